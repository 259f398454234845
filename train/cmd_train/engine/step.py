"""The gradient of one step: forward and backward, in parts if wanted, compiled if it can be."""

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
from cmd_train.distributed.process_group import Placement
from cmd_train.engine.activation_checkpointing import recompute_activations
from cmd_train.losses.pretrain import StepOutput

_PURPOSE_STEP = (2,)
_LONGEST_CAUSE = 200

Objective = Callable[[nn.Module, Batch], StepOutput]


class GradientStep:
    """Computes gradients of an objective; the network's weights are left to the optimiser.

    Args:
        model: on the training device; put into training mode and, on CUDA with several ranks, given SyncBatchNorm.
        objective: turns (model, batch) into a loss.
        config: precision, compilation, parts of a batch.
        placement: this process among all.
        say: prints a line for the user.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        config: TrainConfig,
        placement: Placement,
        say: Callable[[str], None],
    ) -> None:
        self._objective, self._config, self._placement, self._say = objective, config, placement, say
        _set_precision(config.run.precision)
        model.train()
        if placement.world_size > 1 and placement.device.type == "cuda":
            # SyncBatchNorm exists for CUDA only; on CPUs each rank normalises its own part.
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call] # torch leaves it bare
        if config.run.activation_checkpointing:
            recompute_activations(model)
        self._model = model
        # Compiled code may still fail where it is first run; until it has worked, there is a way back.
        self._on_trial = config.run.compile
        self._wrapped = self._wrap(cast(nn.Module, torch.compile(model)) if config.run.compile else model)

    def _wrap(self, model: nn.Module) -> nn.Module:
        if self._placement.world_size == 1:
            return model
        devices = [self._placement.device] if self._placement.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices)

    def __call__(self, batch: Batch, step: int) -> tuple[StepOutput, Tensor]:
        """Leaves the gradients in the parameters.

        Args:
            batch: on the training device.
            step: steps done before this one; decides dropout.

        Returns:
            The objective's output, averaged over parts, and the norm of the gradient before clipping.
        """
        if not self._on_trial:
            return self._compute(batch, step)
        before = {name: value.clone() for name, value in self._model.state_dict().items()}
        try:
            computed = self._compute(batch, step)
        except Exception as error:
            # What is wrong without compilation as well will say so when it is tried.
            cause = " ".join(str(error).split())[:_LONGEST_CAUSE]
            self._say(f"warning: torch.compile failed, training goes on without it ({type(error).__name__}: {cause})")
            self._model.load_state_dict(before)
            self._wrapped = self._wrap(self._model)
            computed = self._compute(batch, step)
        self._on_trial = False
        return computed

    def _compute(self, batch: Batch, step: int) -> tuple[StepOutput, Tensor]:
        # Dropout draws from torch's global generator: seeded by the step, it needs no place in the checkpoint.
        seed = seed_sequence(self._config.run.seed, step, self._placement.rank, purpose=_PURPOSE_STEP)
        torch.manual_seed(int(seed.generate_state(1)[0]))
        self._model.zero_grad(set_to_none=True)
        parts = batch.split(self._config.optim.accumulate)
        outputs = []
        for number, part in enumerate(parts):
            with self._without_exchange() if number + 1 < len(parts) else nullcontext():
                output = self._objective(self._wrapped, part)
                (output.loss / len(parts)).backward()  # type: ignore[no-untyped-call] # torch leaves it bare
            outputs.append(output)
        limit = self._config.optim.clip_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), limit)
        return _mean_output(outputs), norm

    def _without_exchange(self) -> Any:
        """Ranks exchange the sum of all parts' gradients, once."""
        return self._wrapped.no_sync() if isinstance(self._wrapped, DistributedDataParallel) else nullcontext()


def _mean_output(outputs: Sequence[StepOutput]) -> StepOutput:
    if len(outputs) == 1:
        return outputs[0]
    metrics: Mapping[str, Tensor] = {
        name: torch.stack([output.metrics[name].float() for output in outputs]).mean() for name in outputs[0].metrics
    }
    return StepOutput(loss=metrics["loss"], metrics=metrics)


def _set_precision(precision: str) -> None:
    """Without this, torch shortens float32 products of convolutions on CUDA, but not those of matrices."""
    short = precision != "float32"
    torch.backends.cuda.matmul.allow_tf32 = short
    torch.backends.cudnn.allow_tf32 = short
