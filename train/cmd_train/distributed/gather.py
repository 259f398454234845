"""Gather tensors, which have the same shape on all ranks, and average losses over ranks.

Shape legend:
    N  length of the first dimension
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _GatherWithGradient(torch.autograd.Function):
    """Concatenate a tensor over ranks; the gradient of a rank's part is summed over the losses of all ranks."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return gather(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_own_part(gradient, reduce_scatter=gradient.is_cuda)


def sum_own_part(gathered: Tensor, *, reduce_scatter: bool) -> Tensor:
    """Return the sum over ranks of this rank's part of a gathered tensor.

    Args:
        gathered: tensor of ``gather``, or its gradient.
        reduce_scatter: sum no parts of other ranks. NCCL, which is used on CUDA, can do that; gloo, used on CPUs, only
            with recent releases of torch.
    """
    rank, world = rank_and_world()
    count = len(gathered) // world
    if reduce_scatter:
        own = gathered.new_empty(count, *gathered.shape[1:])
        dist.reduce_scatter_tensor(own, gathered.contiguous())
        return own
    summed = gathered.contiguous().clone()
    dist.all_reduce(summed)
    return summed[rank * count : (rank + 1) * count]


def rank_and_world() -> tuple[int, int]:
    """Return the rank of this process and the number of ranks; (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather_with_grad(tensor: Tensor) -> Tensor:
    """Concatenate the ranks' tensors along the first dimension, in rank order, with gradients to all ranks.

    Args:
        tensor: this rank's part; returned unchanged in a single process.
    """
    if rank_and_world()[1] == 1:
        return tensor
    return _GatherWithGradient.apply(tensor)  # type: ignore[no-untyped-call, no-any-return] # torch


def gather(tensor: Tensor) -> Tensor:
    """Concatenate the ranks' tensors along the first dimension, in rank order, without gradients.

    Args:
        tensor: this rank's part; returned unchanged in a single process.
    """
    world = rank_and_world()[1]
    if world == 1:
        return tensor
    # Not all backends transfer booleans.
    sent = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor.contiguous()
    parts = [torch.empty_like(sent) for _ in range(world)]
    dist.all_gather(parts, sent)
    return torch.cat(parts).to(tensor.dtype)


def rank_mean(summed: Tensor, weight: Tensor) -> Tensor:
    """Return this rank's share of a weighted mean over all ranks: the mean of the shares over ranks is that mean.

    DistributedDataParallel averages gradients over ranks, which then yields the gradients of the mean.

    Args:
        summed: sum of this rank's weighted values, with gradient.
        weight: sum of their weights, without gradient; the result is 0 if those of all ranks are 0.
    """
    world = rank_and_world()[1]
    total = weight.float()
    if world > 1:
        total = total.clone()
        dist.all_reduce(total)
    return summed * world / total.clamp(min=1e-6)
