"""Forward and backward pass of one step, with gradient accumulation and optional compilation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cmd_train.config import TrainConfig
from cmd_train.data.batch import Batch
from cmd_train.data.sampling import seed_sequence
from cmd_train.distributed.process_group import RankContext
from cmd_train.engine.activation_checkpointing import recompute_activations
from cmd_train.losses.outputs import StepOutput

_PURPOSE_STEP = (2,)
_MAX_CAUSE_CHARACTERS = 200

Objective = Callable[[nn.Module, Batch], StepOutput]


class GradientStep:
    """Computes the gradients of an objective; the optimizer step is left to the caller.

    Args:
        model: network on the training device; set to training mode and, on CUDA with several ranks, converted to
            SyncBatchNorm.
        objective: computes the loss from (model, batch).
        config: configuration of the run.
        context: this process among all.
        log: prints a line for the user.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        config: TrainConfig,
        context: RankContext,
        log: Callable[[str], None],
    ) -> None:
        self._objective, self._config, self._context, self._log = objective, config, context, log
        _set_precision(config.run.precision)
        model.train()
        if context.world_size > 1 and context.device.type == "cuda":
            # SyncBatchNorm supports CUDA only; on CPUs each rank normalizes its own part of the batch.
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call] # untyped in torch
        if config.run.activation_checkpointing:
            recompute_activations(model)
        self._model = model
        # Compilation happens in the first step and may fail there; then fall back to the network as it is.
        self._may_fall_back = config.run.compile
        self._wrapped = self._wrap(cast(nn.Module, torch.compile(model)) if config.run.compile else model)

    def _wrap(self, model: nn.Module) -> nn.Module:
        if self._context.world_size == 1:
            return model
        devices = [self._context.device] if self._context.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices)

    def __call__(self, batch: Batch, step: int) -> tuple[StepOutput, Tensor]:
        """Compute the gradients and leave them, clipped, in the parameters.

        Args:
            batch: batch on the training device.
            step: steps completed before this one; seeds dropout.

        Returns:
            The output of the objective, averaged over micro-batches, and the gradient norm before clipping.
        """
        if not self._may_fall_back:
            return self._compute(batch, step)
        before = {name: value.clone() for name, value in self._model.state_dict().items()}
        try:
            computed = self._compute(batch, step)
        except Exception as error:
            # An error that is not caused by compilation occurs again below.
            cause = " ".join(str(error).split())[:_MAX_CAUSE_CHARACTERS]
            self._log(f"Warning: torch.compile failed, continuing without it ({type(error).__name__}: {cause})")
            self._model.load_state_dict(before)
            self._wrapped = self._wrap(self._model)
            computed = self._compute(batch, step)
        self._may_fall_back = False
        return computed

    def _compute(self, batch: Batch, step: int) -> tuple[StepOutput, Tensor]:
        # Dropout uses torch's global generator. Seeding it at every step keeps its state out of checkpoints.
        seed = seed_sequence(self._config.run.seed, step, self._context.rank, purpose=_PURPOSE_STEP)
        torch.manual_seed(int(seed.generate_state(1)[0]))
        self._model.zero_grad(set_to_none=True)
        parts = batch.split(self._config.optim.accumulate)
        outputs = []
        for number, part in enumerate(parts):
            with self._no_sync() if number + 1 < len(parts) else nullcontext():
                output = self._objective(self._wrapped, part)
                (output.loss / len(parts)).backward()  # type: ignore[no-untyped-call] # untyped in torch
            outputs.append(output)
        limit = self._config.optim.clip_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), limit)
        return _mean_output(outputs), norm

    def _no_sync(self) -> Any:
        """Defer the gradient exchange between ranks to the last micro-batch."""
        return self._wrapped.no_sync() if isinstance(self._wrapped, DistributedDataParallel) else nullcontext()


def _mean_output(outputs: Sequence[StepOutput]) -> StepOutput:
    if len(outputs) == 1:
        return outputs[0]
    metrics: Mapping[str, Tensor] = {
        name: torch.stack([output.metrics[name].float() for output in outputs]).mean() for name in outputs[0].metrics
    }
    return StepOutput(loss=metrics["loss"], metrics=metrics)


def _set_precision(precision: str) -> None:
    """Set TF32 for matrix products and convolutions; by default torch uses it for convolutions only."""
    allow = precision != "float32"
    torch.backends.cuda.matmul.allow_tf32 = allow
    torch.backends.cudnn.allow_tf32 = allow
