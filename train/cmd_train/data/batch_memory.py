"""Reusable memory for batches, into which samples are decoded directly.

A batch is a single block; in data workers it is shared memory, so that only a handle is sent to the training process
and nothing is copied. Fresh shared memory is slow: the operating system zeroes each page on first access, which takes
nearly as long as decoding the pictures. Blocks are therefore reused: the first byte of a block, visible to both
processes, marks whether it is in use.

Shape legend: as in ``cmd_train.data.batch``.
"""

# ruff: noqa: N815 (field names carry the shapes of their tensors)

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

# Arrays are aligned to cache lines; the first line of a block holds its in-use flag.
_LINE_BYTES = 64


@dataclass(frozen=True, kw_only=True)
class BatchLayout:
    """Layout of the arrays of a batch in a block.

    Attributes:
        samples: capacity B.
        clip: T, H, W.
        keyframe: Hk, Wk.
        windows: W, Tm.
        grid: gh, gw.
    """

    samples: int
    clip: tuple[int, int, int]
    keyframe: tuple[int, int]
    windows: tuple[int, int]
    grid: tuple[int, int]

    def _arrays(self) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
        return (
            ((self.samples, *self.clip, 3), torch.uint8),
            ((self.samples, *self.keyframe, 3), torch.uint8),
            ((self.samples, *self.windows, 2, *self.grid), torch.int16),
            ((self.samples, *self.windows, *self.grid), torch.bool),
        )

    @property
    def block_bytes(self) -> int:
        """Size of a block in bytes."""
        return _LINE_BYTES + sum(_aligned_bytes(shape, dtype) for shape, dtype in self._arrays())

    def views(self, block: Tensor) -> BatchArrays:
        """Return views of the arrays in a block of ``block_bytes`` uint8."""
        start, arrays = _LINE_BYTES, []
        for shape, dtype in self._arrays():
            stop = start + math.prod(shape) * dtype.itemsize
            arrays.append(block[start:stop].view(dtype).view(shape))
            start += _aligned_bytes(shape, dtype)
        return BatchArrays(*arrays)


def _aligned_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return -(-math.prod(shape) * dtype.itemsize // _LINE_BYTES) * _LINE_BYTES


@dataclass(frozen=True)
class BatchArrays:
    """Arrays of a batch, as in ``cmd_train.data.batch.Batch``."""

    clip_u8_BTHWC: Tensor
    keyframe_u8_BHWC: Tensor
    motion_quarter_px_BWTCHW: Tensor
    motion_valid_BWTHW: Tensor


@dataclass(frozen=True)
class SampleMemory:
    """Destination of one sample; its initial content is arbitrary.

    Attributes:
        clip_u8: (T, H, W, 3) uint8.
        keyframe_u8: (Hk, Wk, 3) uint8.
        motion_quarter_px: (W, Tm, 2, gh, gw) int16.
        motion_valid: (W, Tm, gh, gw) bool.
    """

    clip_u8: NDArray[np.uint8]
    keyframe_u8: NDArray[np.uint8]
    motion_quarter_px: NDArray[np.int16]
    motion_valid: NDArray[np.bool_]


class BatchMemory:
    """Block of memory with views for the samples of a batch.

    Args:
        layout: layout of the block.

    Attributes:
        layout: layout of the block.
        block: (bytes,) uint8.
    """

    def __init__(self, layout: BatchLayout) -> None:
        self.layout = layout
        self.block = _new_block(layout.block_bytes)
        arrays = layout.views(self.block)
        self._arrays: list[NDArray[Any]] = [
            arrays.clip_u8_BTHWC.numpy(),
            arrays.keyframe_u8_BHWC.numpy(),
            arrays.motion_quarter_px_BWTCHW.numpy(),
            arrays.motion_valid_BWTHW.numpy(),
        ]

    def sample(self, number: int) -> SampleMemory:
        """Return the memory of one sample."""
        return SampleMemory(*(array[number] for array in self._arrays))

    def fill(self, number: int, source: int) -> None:
        """Fill the place of a sample with the clip and keyframe of another one, without motion."""
        clip, keyframe, motion, valid = self._arrays
        clip[number], keyframe[number] = clip[source], keyframe[source]
        motion[number], valid[number] = 0, False


class BatchPool:
    """Pool of the reusable blocks of a process; grows while all of its blocks are in use."""

    def __init__(self) -> None:
        self._memories: list[BatchMemory] = []

    def take(self, layout: BatchLayout) -> BatchMemory:
        """Return an unused block with this layout and mark it as in use until ``release`` is called."""
        free = (m for m in self._memories if m.layout == layout and not m.block[0])
        memory = next(free, None)
        if memory is None:
            memory = BatchMemory(layout)
            self._memories.append(memory)
        memory.block[0] = 1
        return memory


def release(block: Tensor) -> None:
    """Mark a block as unused, from any process; it may be overwritten immediately."""
    block[0] = 0


def _new_block(size: int) -> Tensor:
    if get_worker_info() is None:
        # NumPy requests huge pages, which are much cheaper to allocate.
        return torch.from_numpy(np.empty(size, np.uint8))
    # As in torch's default collation in workers: a tensor outside shared memory would be copied when sent.
    storage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call] # untyped in torch
    return torch.empty(0, dtype=torch.uint8).set_(storage)
