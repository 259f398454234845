"""Optimiser and learning-rate schedule of the paper's recipes; rates scale with the global batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

OPTIMIZERS = ("sgd", "adamw")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimisation; the defaults are the paper's for pre-training on UCF101.

    Attributes:
        optimizer: ``sgd`` with Nesterov momentum, the paper's; ``adamw`` gets somewhere in far fewer steps.
        batch_size: samples a step, all ranks together.
        epochs: passes over the training videos.
        lr_per_sample: peak learning rate divided by the batch size.
        warmup_epochs: epochs of linear warm-up, step by step.
        warmup_lr_per_sample: where the warm-up starts.
        final_lr_per_sample: where the cosine ends.
        momentum: Nesterov momentum of SGD, or the decay of AdamW's first moment.
        weight_decay: penalty on all parameters (1e-3 in the released code, 5e-3 in the paper's text).
        clip_norm: largest norm of the gradient; 0 switches clipping off.
        accumulate: parts that each rank's batch is computed in, one after the other, to save memory. Clips are told
            apart within a part only: the optimiser's batch stays, the contrast gets easier.
        fused: whether the update is one kernel instead of one an operation.
    """

    optimizer: str = "sgd"
    batch_size: int = 64
    epochs: int = 120
    lr_per_sample: float = 5e-4
    warmup_epochs: float = 5.0
    warmup_lr_per_sample: float = 5e-6
    final_lr_per_sample: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 1e-3
    clip_norm: float = 15.0
    accumulate: int = 1
    fused: bool = True

    def __post_init__(self) -> None:
        _require(self.optimizer in OPTIMIZERS, f"optimizer: {self.optimizer!r} is not one of {', '.join(OPTIMIZERS)}")
        # One clip alone has nothing to be told apart from, and BatchNorm nothing to average over.
        _require(self.batch_size >= 2, f"batch_size: {self.batch_size} is not at least 2")
        for name in ("epochs", "accumulate"):
            _require(getattr(self, name) >= 1, f"{name}: {getattr(self, name)} is not at least 1")
        _require(self.lr_per_sample > 0, f"lr_per_sample: {self.lr_per_sample} is not positive")
        _require(0 <= self.momentum < 1, f"momentum: {self.momentum} is not in [0, 1)")
        for name in ("warmup_epochs", "warmup_lr_per_sample", "final_lr_per_sample", "weight_decay", "clip_norm"):
            _require(getattr(self, name) >= 0, f"{name}: {getattr(self, name)} is negative")


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The configured optimiser over all trainable parameters."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    peak = config.lr_per_sample * config.batch_size
    if config.optimizer == "adamw":
        betas = (config.momentum, 0.999)
        return torch.optim.AdamW(parameters, lr=peak, betas=betas, weight_decay=config.weight_decay, fused=config.fused)
    nesterov = config.momentum > 0
    return torch.optim.SGD(
        parameters,
        lr=peak,
        momentum=config.momentum,
        nesterov=nesterov,
        weight_decay=config.weight_decay,
        fused=config.fused,
    )


def learning_rate(step: int, steps_per_epoch: int, config: OptimConfig) -> float:
    """Learning rate of a step: linear warm-up, then half a cosine to the final rate.

    Args:
        step: steps done before this one.
        steps_per_epoch: steps of an epoch.
        config: the recipe.
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


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate
