"""Tensors of all ranks, side by side. Every rank's part must be of one shape.

Shape legend:
    N  any count along the first dimension
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _GatherWithGradient(torch.autograd.Function):
    """Concatenates a tensor over ranks; a rank's gradient is the sum of what all ranks' losses ask of its part."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.count = len(tensor)
        return _gather(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        start = dist.get_rank() * ctx.count
        return gradient[start : start + ctx.count]


def _gather(tensor: Tensor) -> Tensor:
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather_with_grad(tensor: Tensor) -> Tensor:
    """Concatenates the ranks' tensors along the first dimension, in rank order, with gradients to all of them.

    Args:
        tensor: this rank's part; of one shape on all ranks. Returned as it is if there is one process only.
    """
    if rank_and_world()[1] == 1:
        return tensor
    return _GatherWithGradient.apply(tensor)  # type: ignore[no-untyped-call, no-any-return]


def gather(tensor: Tensor) -> Tensor:
    """Concatenates the ranks' tensors along the first dimension, in rank order, without gradients.

    Args:
        tensor: this rank's part; of one shape on all ranks. Returned as it is if there is one process only.
    """
    return tensor if rank_and_world()[1] == 1 else _gather(tensor)


def gather_flags(valid_N: Tensor) -> Tensor:
    """Concatenates boolean flags over ranks."""
    if rank_and_world()[1] == 1:
        return valid_N.bool()
    return _gather(valid_N.to(torch.uint8)).bool()
