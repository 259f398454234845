"""Forward and backward pass of one step, with gradient accumulation and optional compilation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
import torch._dynamo.exc
import torch._inductor.exc
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cmd_train.config import TrainConfig
from cmd_train.data.batch import Batch
from cmd_train.data.sampling import seed_sequence
from cmd_train.distributed.process_group import RankContext
from cmd_train.engine.activation_checkpointing import recompute_activations
from cmd_train.engine.precision import set_product_precision
from cmd_train.losses.outputs import StepOutput

_PURPOSE_STEP = (2,)
_MAX_CAUSE_CHARACTERS = 200


class CompileError(RuntimeError):
    """``torch.compile`` failed."""


Objective = Callable[[nn.Module, Batch], StepOutput]


class GradientStep:
    """Computes the gradients of an objective; the optimizer step is left to the caller.

    Args:
        model: network on the training device; set to training mode and, on CUDA with several ranks, converted to
            SyncBatchNorm.
        objective: computes the loss from (model, batch).
        config: configuration of the run.
        context: this process among all.
    """

    def __init__(self, model: nn.Module, objective: Objective, config: TrainConfig, context: RankContext) -> None:
        self._objective, self._config, self._context = objective, config, context
        set_product_precision(config.run.precision)
        # The shapes of a run are fixed.
        torch.backends.cudnn.benchmark = True
        model.train()
        on_cuda = context.device.type == "cuda"
        if context.world_size > 1 and on_cuda:
            # SyncBatchNorm supports CUDA only; on CPUs each rank normalizes its own part of the batch.
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call] # untyped in torch
        if config.run.activation_checkpointing:
            recompute_activations(model)
        self._model = model
        self._parallel: DistributedDataParallel | None = None
        if context.world_size > 1:
            self._parallel = DistributedDataParallel(
                model,
                device_ids=[context.device] if on_cuda else None,
                # Views into buckets, whose layout changes after the first step, change the order of summation in the
                # gradient norm; on CPUs a continued run is bit-identical.
                gradient_as_bucket_view=on_cuda,
                # Accumulation skips the exchange of gradients, which a static graph does not allow.
                static_graph=on_cuda and config.optim.accumulate == 1,
            )
        wrapped = self._parallel or model
        self._forward = cast(nn.Module, torch.compile(wrapped)) if config.run.compile else wrapped

    def __call__(self, batch: Batch, step: int) -> tuple[StepOutput, Tensor]:
        """Compute the gradients and leave them, clipped, in the parameters.

        Args:
            batch: batch on the training device.
            step: steps completed before this one; seeds dropout.

        Returns:
            The output of the objective, averaged over micro-batches, and the gradient norm before clipping.

        Raises:
            CompileError: the network cannot be compiled.
        """
        try:
            return self._compute(batch, step)
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
            cause = " ".join(str(error).split())[:_MAX_CAUSE_CHARACTERS]
            raise CompileError(f"torch.compile failed: {cause}; use --set run.compile=false") from error

    def _compute(self, batch: Batch, step: int) -> tuple[StepOutput, Tensor]:
        # Dropout uses torch's global generator. Seeding it at every step keeps its state out of checkpoints.
        seed = seed_sequence(self._config.run.seed, step, self._context.rank, purpose=_PURPOSE_STEP)
        torch.manual_seed(int(seed.generate_state(1)[0]))
        self._model.zero_grad(set_to_none=True)
        parts = batch.split(self._config.optim.accumulate)
        outputs = []
        for number, part in enumerate(parts):
            with self._no_sync() if number + 1 < len(parts) else nullcontext():
                output = self._objective(self._forward, part)
                (output.loss / len(parts)).backward()  # type: ignore[no-untyped-call] # untyped in torch
            outputs.append(output)
        limit = self._config.optim.clip_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), limit)
        return _mean_output(outputs), norm

    def _no_sync(self) -> Any:
        """Defer the gradient exchange between ranks to the last micro-batch."""
        return self._parallel.no_sync() if self._parallel else nullcontext()


def _mean_output(outputs: Sequence[StepOutput]) -> StepOutput:
    if len(outputs) == 1:
        return outputs[0]
    metrics: Mapping[str, Tensor] = {
        name: torch.stack([output.metrics[name].float() for output in outputs]).mean() for name in outputs[0].metrics
    }
    return StepOutput(loss=metrics["loss"], metrics=metrics)
