"""Tensors of all ranks, side by side. Ranks' parts may differ in their first dimension; then sizes are to be given.

Shape legend:
    N  any count along the first dimension
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Sizes = Sequence[int] | None
"""Length of each rank's part, in rank order; None where all are of one length."""


class _GatherWithGradient(torch.autograd.Function):
    """Concatenates a tensor over ranks; a rank's gradient is the sum of what all ranks' losses ask of its part."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, sizes: Sizes) -> Tensor:
        ctx.count, ctx.start = len(tensor), first_row(len(tensor), sizes)
        return _gather(tensor, sizes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient[ctx.start : ctx.start + ctx.count], None


def _gather(tensor: Tensor, sizes: Sizes) -> Tensor:
    sizes = sizes or [len(tensor)] * dist.get_world_size()
    # Collectives want one shape on all ranks: shorter parts are filled up and cut again.
    padded = torch.cat([tensor, tensor.new_zeros(max(sizes) - len(tensor), *tensor.shape[1:])]).contiguous()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def first_row(count: int, sizes: Sizes) -> int:
    """Where this rank's part begins among all ranks' parts.

    Args:
        count: length of this rank's part.
        sizes: those of all; None if they are equal.
    """
    rank, _ = rank_and_world()
    return rank * count if sizes is None else sum(sizes[:rank])


def sizes_of_ranks(count: int, device: torch.device) -> list[int]:
    """Length of each rank's part; all ranks must call this together.

    Args:
        count: length of this rank's part.
        device: where collectives take place.
    """
    if rank_and_world()[1] == 1:
        return [count]
    counts = [torch.empty(1, dtype=torch.int64, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([count], device=device))
    return [int(one.item()) for one in counts]


def gather_with_grad(tensor: Tensor, sizes: Sizes = None) -> Tensor:
    """Concatenates the ranks' tensors along the first dimension, in rank order, with gradients to all of them.

    Args:
        tensor: this rank's part. Returned as it is if there is one process only.
        sizes: lengths of all parts; None if they are equal.
    """
    if rank_and_world()[1] == 1:
        return tensor
    return _GatherWithGradient.apply(tensor, sizes)  # type: ignore[no-untyped-call, no-any-return] # torch


def gather(tensor: Tensor, sizes: Sizes = None) -> Tensor:
    """Concatenates the ranks' tensors along the first dimension, in rank order, without gradients.

    Args:
        tensor: this rank's part. Returned as it is if there is one process only.
        sizes: lengths of all parts; None if they are equal.
    """
    return tensor if rank_and_world()[1] == 1 else _gather(tensor, sizes)


def gather_flags(valid_N: Tensor, sizes: Sizes = None) -> Tensor:
    """Concatenates boolean flags along the first dimension, in rank order.

    Args:
        valid_N: this rank's flags; further dimensions may follow the first.
        sizes: lengths of all parts; None if they are equal.

    Returns:
        bool, the sum of all lengths along the first dimension.
    """
    if rank_and_world()[1] == 1:
        return valid_N.bool()
    return _gather(valid_N.to(torch.uint8), sizes).bool()
