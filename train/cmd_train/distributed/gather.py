"""Gather tensors from all ranks. Parts may differ in length along the first dimension if their sizes are given.

Shape legend:
    N  length of the first dimension
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Sizes = Sequence[int] | None
"""Length of each rank's part, in rank order; None if all parts have the same length."""


class _GatherWithGradient(torch.autograd.Function):
    """Concatenate a tensor over ranks; the gradient of a rank's part is summed over the losses of all ranks."""

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
    # Collectives need the same shape on all ranks: pad shorter parts, then cut off the padding.
    padded = torch.cat([tensor, tensor.new_zeros(max(sizes) - len(tensor), *tensor.shape[1:])]).contiguous()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def rank_and_world() -> tuple[int, int]:
    """Return the rank of this process and the number of ranks; (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def first_row(count: int, sizes: Sizes) -> int:
    """Return the index of this rank's first row in the gathered tensor.

    Args:
        count: length of this rank's part.
        sizes: lengths of all parts; None if they are equal.
    """
    rank, _ = rank_and_world()
    return rank * count if sizes is None else sum(sizes[:rank])


def sizes_of_ranks(count: int, device: torch.device) -> list[int]:
    """Return the length of each rank's part; a collective operation.

    Args:
        count: length of this rank's part.
        device: device of the process group.
    """
    if rank_and_world()[1] == 1:
        return [count]
    counts = [torch.empty(1, dtype=torch.int64, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([count], device=device))
    return [int(one.item()) for one in counts]


def gather_with_grad(tensor: Tensor, sizes: Sizes = None) -> Tensor:
    """Concatenate the ranks' tensors along the first dimension, in rank order, with gradients to all ranks.

    Args:
        tensor: this rank's part; returned unchanged in a single process.
        sizes: lengths of all parts; None if they are equal.
    """
    if rank_and_world()[1] == 1:
        return tensor
    return _GatherWithGradient.apply(tensor, sizes)  # type: ignore[no-untyped-call, no-any-return] # torch


def gather(tensor: Tensor, sizes: Sizes = None) -> Tensor:
    """Concatenate the ranks' tensors along the first dimension, in rank order, without gradients.

    Args:
        tensor: this rank's part; returned unchanged in a single process.
        sizes: lengths of all parts; None if they are equal.
    """
    return tensor if rank_and_world()[1] == 1 else _gather(tensor, sizes)


def gather_flags(valid_N: Tensor, sizes: Sizes = None) -> Tensor:
    """Concatenate boolean flags along the first dimension, in rank order.

    Args:
        valid_N: this rank's flags; may have more dimensions.
        sizes: lengths of all parts; None if they are equal.

    Returns:
        Boolean flags of all ranks.
    """
    if rank_and_world()[1] == 1:
        return valid_N.bool()
    return _gather(valid_N.to(torch.uint8), sizes).bool()
