"""Memory for batches, made before they are read and used again: pictures are decoded to where they stay.

A batch is one block, in data workers of shared memory, so that one handle takes it to the training process and nothing
is copied. New shared memory is slow: the system clears each page when it is touched first, which takes nearly as long
as decoding the pictures in it. So blocks return: the block's first byte, which both processes see, says whether
somebody still needs it.

Shape legend: as in ``cmd_train.data.batch``.
"""

# ruff: noqa: N815 (carriers name the shapes of their tensors)

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

# Arrays begin at multiples of a cache line; the first line is the block's own.
_LINE_BYTES = 64


@dataclass(frozen=True, kw_only=True)
class BatchLayout:
    """What a batch holds of each of its samples, and how that lies in a block.

    Attributes:
        samples: B, at most.
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
        """Length of a block."""
        return _LINE_BYTES + sum(_in_lines(shape, dtype) for shape, dtype in self._arrays())

    def views(self, block: Tensor) -> BatchArrays:
        """The arrays in a block of ``block_bytes`` uint8."""
        start, arrays = _LINE_BYTES, []
        for shape, dtype in self._arrays():
            stop = start + math.prod(shape) * dtype.itemsize
            arrays.append(block[start:stop].view(dtype).view(shape))
            start += _in_lines(shape, dtype)
        return BatchArrays(*arrays)


def _in_lines(shape: tuple[int, ...], dtype: torch.dtype) -> int:
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
    """Where one sample is written; its content is whatever was there.

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
    """A block, and where the samples of a batch are written in it.

    Args:
        layout: of the block.

    Attributes:
        layout: of the block.
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
        """The memory of one sample."""
        return SampleMemory(*(array[number] for array in self._arrays))


class BatchPool:
    """Blocks of one process that are written again once nobody needs them; never fewer than are in use."""

    def __init__(self) -> None:
        self._memories: list[BatchMemory] = []

    def take(self, layout: BatchLayout) -> BatchMemory:
        """A block of this layout that nobody uses; from now on it is in use, until ``release``."""
        free = (m for m in self._memories if m.layout == layout and not m.block[0])
        memory = next(free, None)
        if memory is None:
            memory = BatchMemory(layout)
            self._memories.append(memory)
        memory.block[0] = 1
        return memory


def release(block: Tensor) -> None:
    """Gives a block back, from whatever process; it may be overwritten at once."""
    block[0] = 0


def _new_block(size: int) -> Tensor:
    if get_worker_info() is None:
        # numpy asks for large pages, which are far cheaper to get.
        return torch.from_numpy(np.empty(size, np.uint8))
    # As torch's own collation does in workers; a tensor that is not shared yet would be copied on its way.
    storage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call] # torch leaves it bare
    return torch.empty(0, dtype=torch.uint8).set_(storage)
