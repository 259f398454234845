"""Detect a loss or gradient that is not finite without waiting for the device at every step."""

# ruff: noqa: N815 (field names carry the shapes of their tensors)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from cmd_train.data.batch import Batch
from cmd_train.distributed.process_group import RankContext


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The first step whose loss or gradient is not finite.

    Attributes:
        step: steps completed before it.
        loss, norm: loss and gradient norm of this rank.
        video_B, keys: this rank's samples in its batch, see ``cmd_train.data.batch.Batch``.
    """

    step: int
    loss: float
    norm: float
    video_B: Tensor
    keys: Sequence[tuple[int, int]]


class FiniteCheck:
    """Records the first step with a loss or gradient that is not finite, on the device.

    Args:
        context: this process among all.
    """

    def __init__(self, context: RankContext) -> None:
        self._context = context
        self.failed = torch.zeros((), device=context.device)
        """0, or 1 once a step has failed on any rank: updates must be skipped from then on."""
        self._values = torch.zeros(3, dtype=torch.float64, device=context.device)  # step, loss, norm
        self._samples: dict[int, tuple[Tensor, Sequence[tuple[int, int]]]] = {}

    def watch(self, step: int, loss: Tensor, norm: Tensor, batch: Batch) -> None:
        """Check a step; a collective operation that does not wait for the device.

        Args:
            step: steps completed before it.
            loss, norm: loss and gradient norm, 0-d tensors on the device.
            batch: this rank's batch on the CPU; only its samples are remembered, not their memory.
        """
        broken = 1.0 - (torch.isfinite(loss) & torch.isfinite(norm)).float()
        if self._context.world_size > 1:
            dist.all_reduce(broken, dist.ReduceOp.MAX)
        values = torch.stack([torch.full_like(loss, step), loss, norm]).double()
        self._values = torch.where((self.failed == 0) & (broken > 0), values, self._values)
        self.failed = torch.maximum(self.failed, broken)
        self._samples[step] = batch.video_B, batch.keys

    def failure(self) -> Failure | None:
        """Return the first failure among the steps watched since the last call, if any; waits for the device.

        All ranks must call it after the same step.
        """
        samples, self._samples = self._samples, {}
        if not self.failed:
            return None
        step, loss, norm = self._values.tolist()
        video_B, keys = samples[int(step)]
        return Failure(step=int(step), loss=loss, norm=norm, video_B=video_B, keys=keys)
