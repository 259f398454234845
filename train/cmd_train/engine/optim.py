"""Optimizers and learning-rate schedule; learning rates scale with the global batch size."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from cmd_train.config import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build the configured optimizer over all trainable parameters.

    Updates are fused: one kernel for all parameters, which a flag on the device can turn into a no-op
    (``skip_update``).
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": parameters, "weight_decay": config.weight_decay}]
    if not config.decay_norms_and_biases:
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
    peak = config.lr_per_sample * config.batch_size
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=peak, betas=(config.momentum, 0.999), fused=True)
    return torch.optim.SGD(groups, lr=peak, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)


def skip_update(optimizer: torch.optim.Optimizer, flag: Tensor) -> None:
    """Make the following updates change nothing if a flag is set, without waiting for its value.

    Args:
        optimizer: a fused optimizer, as built by ``build_optimizer``.
        flag: 0-d tensor on the device of the parameters; not 0 = skip.
    """
    # The interface by which torch.amp.GradScaler skips updates with infinite gradients.
    optimizer.found_inf = (flag != 0).float()  # type: ignore[attr-defined] # set by torch.amp in the same way


def learning_rate(step: int, steps_per_epoch: int, config: OptimConfig) -> float:
    """Return the learning rate of a step: linear warm-up, then half a cosine down to the final rate.

    Args:
        step: steps completed before this one.
        steps_per_epoch: steps per epoch.
        config: optimizer settings.
    """
    peak, start, final = (
        rate * config.batch_size
        for rate in (config.lr_per_sample, config.warmup_lr_per_sample, config.final_lr_per_sample)
    )
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return start + (peak - start) * step / warmup
    done = (step - warmup) / max(1, config.epochs * steps_per_epoch - warmup)
    return final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


def warmup_warning(config: OptimConfig, steps_per_epoch: int) -> str:
    """Return a warning if the warm-up is as long as the run, so that the peak learning rate is never reached."""
    if config.warmup_epochs < config.epochs:
        return ""
    last = learning_rate(config.epochs * steps_per_epoch - 1, steps_per_epoch, config)
    return (
        f"optim.warmup_epochs = {config.warmup_epochs:g} is not less than optim.epochs = {config.epochs}: the learning "
        f"rate ends at {last:.2g} and never reaches {config.lr_per_sample * config.batch_size:.2g}"
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate
