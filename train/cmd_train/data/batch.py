"""What the data workers hand over: one sample, and samples stacked to a batch. Nothing here reads or computes.

Shape legend: B samples, N evaluation clips, T clip frames, Tm motion frames, H x W frame pixels, Hk x Wk keyframe
pixels, gh x gw grid cells; in suffixes that start with BW, that W counts motion windows (the positive first, then the
temporal negatives).
"""

# ruff: noqa: N815 (carriers name the shapes of their tensors)

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmd_train.data.batch_memory import BatchLayout, BatchMemory, release
from cmd_train.data.sampling import SamplePlan
from cmd_train.data.sampling_report import SamplingReport


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class ClipSample:
    """One training sample as stored, before any augmentation.

    Attributes:
        clip_u8: (T, H, W, 3) uint8, RGB.
        keyframe_u8: (Hk, Wk, 3) uint8, RGB; (0, 0, 3) where it was not read.
        motion_quarter_px: (W, Tm, 2, gh, gw) int16; as in ``MotionGrid``; 0 in frames that do not exist. W is 0 where
            no motion was read.
        motion_valid: (W, Tm, gh, gw) bool; False in frames that do not exist.
        epoch, position: the key of the sample, from which its draws follow.
        video: number of the video among the dataset's entries.
        plan: where all this was taken from.
    """

    clip_u8: NDArray[np.uint8]
    keyframe_u8: NDArray[np.uint8]
    motion_quarter_px: NDArray[np.int16]
    motion_valid: NDArray[np.bool_]
    epoch: int
    position: int
    video: int
    plan: SamplePlan

    def __post_init__(self) -> None:
        clip, keyframe, motion = self.clip_u8, self.keyframe_u8, self.motion_quarter_px
        _require(clip.ndim == 4 and clip.shape[-1] == 3 and clip.dtype == np.uint8, f"clip_u8: {clip.shape}")
        _require(keyframe.ndim == 3 and keyframe.shape[-1] == 3, f"keyframe_u8: {keyframe.shape}")
        _require(motion.ndim == 5 and motion.shape[2] == 2, f"motion_quarter_px: {motion.shape}")
        _require(self.motion_valid.shape == (*motion.shape[:2], *motion.shape[3:]), f"motion_valid: {motion.shape}")


class _TensorCarrier:
    """Moves the tensor fields of a frozen dataclass; the other fields come along unchanged."""

    def _each_tensor(self, change: Callable[[Tensor], Tensor]) -> Self:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type] # dataclasses only
        changed = {name: change(value) for name, value in tensors.items() if isinstance(value, Tensor)}
        return replace(self, **changed)  # type: ignore[type-var] # the same

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same on ``device``."""
        return self._each_tensor(lambda tensor: tensor.to(device, non_blocking=non_blocking))


@dataclass(frozen=True, kw_only=True)
class Batch(_TensorCarrier):
    """Samples stacked; see ``ClipSample`` for values and units.

    Attributes:
        clip_u8_BTHWC: (B, T, H, W, 3) uint8.
        keyframe_u8_BHWC: (B, Hk, Wk, 3) uint8.
        motion_quarter_px_BWTCHW: (B, W, Tm, 2, gh, gw) int16.
        motion_valid_BWTHW: (B, W, Tm, gh, gw) bool.
        window_valid_BW: (B, W) bool, whether any frame of a motion window exists.
        video_B: (B,) int64, number of the video among the dataset's entries.
        keys: (epoch, position) of each sample.
        report: what the sampling rules did to these samples.
        damaged: (video id, what is damaged) of each sample that had to be left out.
        rank_sizes: samples of each rank's batch; None where all have equally many.
    """

    clip_u8_BTHWC: Tensor
    keyframe_u8_BHWC: Tensor
    motion_quarter_px_BWTCHW: Tensor
    motion_valid_BWTHW: Tensor
    window_valid_BW: Tensor
    video_B: Tensor
    keys: tuple[tuple[int, int], ...]
    report: SamplingReport
    damaged: tuple[tuple[str, str], ...] = ()
    rank_sizes: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def split(self, parts: int) -> list[Self]:
        """Consecutive parts of nearly one size; the first of them keeps the report."""
        if parts == 1:
            return [self]
        places = torch.arange(len(self)).tensor_split(parts)
        pieces: list[Self] = []
        for number, place in enumerate(places):
            chosen = slice(int(place[0]), int(place[-1]) + 1)
            piece = self._each_tensor(lambda tensor, chosen=chosen: tensor[chosen])  # type: ignore[misc] # bound now
            report = SamplingReport() if pieces else self.report
            sizes = self.rank_sizes and tuple(n // parts + (number < n % parts) for n in self.rank_sizes)
            pieces.append(replace(piece, keys=self.keys[chosen], report=report, rank_sizes=sizes))
        return pieces


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """A batch on its way from a data worker to the training: one block of memory, and what is known of it.

    Attributes:
        block: (bytes,) uint8; see ``cmd_train.data.batch_memory``.
        layout: how the samples lie in it, from its beginning.
        videos: number of each sample's video among the dataset's entries.
        keys, report, damaged: as in ``Batch``.
        windows: for each sample and motion window, whether any of its frames exists.
    """

    block: Tensor
    layout: BatchLayout
    videos: tuple[int, ...]
    keys: tuple[tuple[int, int], ...]
    report: SamplingReport
    damaged: tuple[tuple[str, str], ...]
    windows: tuple[tuple[bool, ...], ...]

    @classmethod
    def of(cls, memory: BatchMemory, samples: Sequence[ClipSample], damaged: Sequence[tuple[str, str]] = ()) -> Self:
        """What was read.

        Args:
            memory: where the samples lie.
            samples: in their order there.
            damaged: (video id, what is damaged) of those that are left out.
        """
        return cls(
            block=memory.block,
            layout=memory.layout,
            videos=tuple(sample.video for sample in samples),
            keys=tuple((sample.epoch, sample.position) for sample in samples),
            report=SamplingReport.of_plans(sample.plan for sample in samples),
            damaged=tuple(damaged),
            windows=tuple(sample.plan.window_valid for sample in samples),
        )

    def __len__(self) -> int:
        return len(self.keys)

    def pin_memory(self) -> Self:
        """The same in page-locked memory, the block given back; the data loader calls this by name."""
        pinned = replace(self, block=self.block.pin_memory())
        release(self.block)
        return pinned

    def open(self) -> Batch:
        """The batch, in this very memory: valid until the block is given back."""
        read, arrays = slice(len(self)), self.layout.views(self.block)
        return Batch(
            clip_u8_BTHWC=arrays.clip_u8_BTHWC[read],
            keyframe_u8_BHWC=arrays.keyframe_u8_BHWC[read],
            motion_quarter_px_BWTCHW=arrays.motion_quarter_px_BWTCHW[read],
            motion_valid_BWTHW=arrays.motion_valid_BWTHW[read],
            window_valid_BW=torch.tensor(self.windows, dtype=torch.bool),
            video_B=torch.tensor(self.videos),
            keys=self.keys,
            report=self.report,
            damaged=self.damaged,
        )


def open_in_turn(packed: Iterable[PackedBatch]) -> Iterator[Batch]:
    """Batches as they come; each is valid until the next one is asked for, then its memory is used again."""
    for batch in packed:
        yield batch.open()
        release(batch.block)


@dataclass(frozen=True, kw_only=True)
class EvalSample:
    """All evaluation clips of one video.

    Attributes:
        clips_u8: (N, T, H, W, 3) uint8, RGB, in the order of time.
        video: number of the video among the dataset's entries.
    """

    clips_u8: NDArray[np.uint8]
    video: int


@dataclass(frozen=True, kw_only=True)
class EvalBatch(_TensorCarrier):
    """Videos stacked.

    Attributes:
        clips_u8_BNTHWC: (B, N, T, H, W, 3) uint8.
        video_B: (B,) int64, number of the video among the dataset's entries.
    """

    clips_u8_BNTHWC: Tensor
    video_B: Tensor


def collate_eval(samples: Sequence[EvalSample]) -> EvalBatch:
    """Stack videos; all of a shard set have frames of one size."""
    return EvalBatch(
        clips_u8_BNTHWC=_stack([sample.clips_u8 for sample in samples]),
        video_B=torch.tensor([sample.video for sample in samples]),
    )


def _stack(arrays: Sequence[NDArray[np.generic]]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))
