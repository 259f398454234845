"""Memory for a batch, made before it is read: pictures are decoded to where they stay, and are copied nowhere.

In a data worker it is shared memory, so that the training process gets it without a copy either.

Shape legend: as in ``train.batch``.
"""

# ruff: noqa: N815 (carriers name the shapes of their tensors)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
class BatchMemory:
    """Where some samples are written, side by side.

    Attributes:
        clip_u8_BTHWC, keyframe_u8_BHWC, motion_quarter_px_BWTCHW, motion_valid_BWTHW: as in ``train.batch.Batch``.
    """

    clip_u8_BTHWC: Tensor
    keyframe_u8_BHWC: Tensor
    motion_quarter_px_BWTCHW: Tensor
    motion_valid_BWTHW: Tensor

    @classmethod
    def for_samples(
        cls, count: int, clip: Sequence[int], keyframe: Sequence[int], windows: Sequence[int], grid: Sequence[int]
    ) -> Self:
        """Memory for ``count`` samples.

        Args:
            count: B.
            clip: T, H, W.
            keyframe: Hk, Wk.
            windows: W, Tm.
            grid: gh, gw.
        """
        return cls(
            clip_u8_BTHWC=_empty((count, *clip, 3), torch.uint8),
            keyframe_u8_BHWC=_empty((count, *keyframe, 3), torch.uint8),
            motion_quarter_px_BWTCHW=_empty((count, *windows, 2, *grid), torch.int16),
            motion_valid_BWTHW=_empty((count, *windows, *grid), torch.bool),
        )

    def sample(self, number: int) -> SampleMemory:
        """The memory of one sample."""
        return SampleMemory(
            clip_u8=self.clip_u8_BTHWC[number].numpy(),
            keyframe_u8=self.keyframe_u8_BHWC[number].numpy(),
            motion_quarter_px=self.motion_quarter_px_BWTCHW[number].numpy(),
            motion_valid=self.motion_valid_BWTHW[number].numpy(),
        )


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    count = int(np.prod(shape))
    if get_worker_info() is None or count == 0:
        return torch.empty(shape, dtype=dtype)
    # As torch's own collation does in workers; a tensor that is not shared yet would be copied on its way.
    storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(count * dtype.itemsize)  # type: ignore[no-untyped-call] # torch leaves it bare
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)
