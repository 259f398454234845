"""Containers that data workers return: single samples and batches.

Shape legend: B samples, N evaluation clips, T clip frames, Tm motion frames, H x W frame pixels, Hk x Wk keyframe
pixels, gh x gw grid cells; in suffixes that start with BW, W counts motion windows (the positive first, then the
temporal negatives).
"""

# ruff: noqa: N815 (field names carry the shapes of their tensors)

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmd_extract.system.validation import require
from cmd_train.data.batch_memory import BatchLayout, BatchMemory, release
from cmd_train.data.sampling import SamplePlan
from cmd_train.data.sampling_report import SamplingReport


@dataclass(frozen=True, kw_only=True)
class ClipSample:
    """Training sample as stored, before augmentation.

    Attributes:
        clip_u8: (T, H, W, 3) uint8, RGB.
        keyframe_u8: (Hk, Wk, 3) uint8, RGB; (0, 0, 3) if keyframes are not read.
        motion_quarter_px: (W, Tm, 2, gh, gw) int16, as in ``MotionGrid``; 0 in missing frames. W is 0 if motion is not
            read.
        motion_valid: (W, Tm, gh, gw) bool; False in missing frames.
        epoch, position: key of the sample, which determines all of its random choices.
        video: index of the video among the dataset's entries.
        plan: which frames, motion windows and keyframe were read.
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
        require(
            clip.ndim == 4 and clip.shape[-1] == 3 and clip.dtype == np.uint8,
            f"clip_u8: must be uint8 of shape (T, H, W, 3), got {clip.dtype} of shape {clip.shape}",
        )
        require(
            keyframe.ndim == 3 and keyframe.shape[-1] == 3,
            f"keyframe_u8: must have shape (H, W, 3), got {keyframe.shape}",
        )
        require(
            motion.ndim == 5 and motion.shape[2] == 2,
            f"motion_quarter_px: must have shape (W, T, 2, H, W), got {motion.shape}",
        )
        shape = (*motion.shape[:2], *motion.shape[3:])
        require(
            self.motion_valid.shape == shape, f"motion_valid: must have shape {shape}, got {self.motion_valid.shape}"
        )


class _TensorFields:
    """Base of frozen dataclasses that applies functions to all tensor fields and keeps the other fields."""

    def _map_tensors(self, change: Callable[[Tensor], Tensor]) -> Self:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type] # subclasses are dataclasses
        changed = {name: change(value) for name, value in tensors.items() if isinstance(value, Tensor)}
        return replace(self, **changed)  # type: ignore[type-var] # subclasses are dataclasses

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return a copy on ``device``."""
        return self._map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory of all tensors from being reused until ``stream`` has done what is queued on it now."""
        for each in fields(self):  # type: ignore[arg-type] # subclasses are dataclasses
            if isinstance(value := getattr(self, each.name), Tensor):
                value.record_stream(stream)


@dataclass(frozen=True, kw_only=True)
class Batch(_TensorFields):
    """Batch of samples; see ``ClipSample`` for values and units.

    Attributes:
        clip_u8_BTHWC: (B, T, H, W, 3) uint8.
        keyframe_u8_BHWC: (B, Hk, Wk, 3) uint8.
        motion_quarter_px_BWTCHW: (B, W, Tm, 2, gh, gw) int16.
        motion_valid_BWTHW: (B, W, Tm, gh, gw) bool.
        window_valid_BW: (B, W) bool, whether any frame of each motion window exists.
        video_B: (B,) int64, index of each video among the dataset's entries.
        keys: (epoch, position) of each sample.
        report: how often each sampling rule applied to these samples.
        valid_B: (B,) bool; False for copies of other samples, without motion, that stand in for damaged samples. They
            keep the batch at its full size, but must not count in losses.
        damaged: (video id, error message) of each damaged sample.
    """

    clip_u8_BTHWC: Tensor
    keyframe_u8_BHWC: Tensor
    motion_quarter_px_BWTCHW: Tensor
    motion_valid_BWTHW: Tensor
    window_valid_BW: Tensor
    video_B: Tensor
    valid_B: Tensor
    keys: tuple[tuple[int, int], ...]
    report: SamplingReport
    damaged: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def split(self, parts: int) -> list[Self]:
        """Split into consecutive micro-batches of nearly equal size; the first keeps the report.

        The training step gives each micro-batch the same weight, however many of its samples count (``valid_B``, moving
        positions). Where these differ, the loss is not exactly that of the whole batch.
        """
        if parts == 1:
            return [self]
        pieces: list[Self] = []
        for rows in torch.arange(len(self)).tensor_split(parts):
            chosen = slice(int(rows[0]), int(rows[-1]) + 1)
            piece = self._map_tensors(lambda tensor, chosen=chosen: tensor[chosen])  # type: ignore[misc] # bind now
            report = SamplingReport() if pieces else self.report
            pieces.append(replace(piece, keys=self.keys[chosen], report=report))
        return pieces


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """Batch in transit from a data worker to the training process: one block of memory and its metadata.

    Attributes:
        block: (bytes,) uint8; see ``cmd_train.data.batch_memory``.
        layout: layout of the samples in the block.
        videos: index of each sample's video among the dataset's entries.
        valid: whether each sample is one of its own, not a copy, as in ``Batch``.
        keys, report, damaged: as in ``Batch``.
        windows: for each sample and motion window, whether any of its frames exists.
    """

    block: Tensor
    layout: BatchLayout
    videos: tuple[int, ...]
    valid: tuple[bool, ...]
    keys: tuple[tuple[int, int], ...]
    report: SamplingReport
    damaged: tuple[tuple[str, str], ...]
    windows: tuple[tuple[bool, ...], ...]

    @classmethod
    def pack(
        cls, memory: BatchMemory, samples: Sequence[ClipSample | None], damaged: Sequence[tuple[str, str]] = ()
    ) -> Self:
        """Pack samples that have been read into a batch memory, and fill the places of damaged ones.

        Args:
            memory: memory that contains the samples.
            samples: the samples, in their order in memory; None for a damaged one. At least one is not.
            damaged: (video id, error message) of each damaged sample.
        """
        readable = [(place, sample) for place, sample in enumerate(samples) if sample is not None]
        others, filled = itertools.cycle(readable), []
        for place, sample in enumerate(samples):
            if sample is None:
                source, other = next(others)
                memory.fill(place, source)
                windows = (False,) * len(other.plan.window_valid)
            else:
                other, windows = sample, sample.plan.window_valid
            filled.append((other, windows))
        return cls(
            block=memory.block,
            layout=memory.layout,
            videos=tuple(sample.video for sample, _ in filled),
            valid=tuple(sample is not None for sample in samples),
            keys=tuple((sample.epoch, sample.position) for sample, _ in filled),
            report=SamplingReport.from_plans(sample.plan for _, sample in readable),
            damaged=tuple(damaged),
            windows=tuple(windows for _, windows in filled),
        )

    def __len__(self) -> int:
        return len(self.keys)

    def pin_memory(self) -> Self:
        """Return a copy in page-locked memory and release the block; called by the data loader."""
        pinned = replace(self, block=self.block.pin_memory())
        release(self.block)
        return pinned

    def unpack(self) -> Batch:
        """Return the batch as views of the block, valid until the block is released."""
        arrays = self.layout.views(self.block)
        return Batch(
            clip_u8_BTHWC=arrays.clip_u8_BTHWC,
            keyframe_u8_BHWC=arrays.keyframe_u8_BHWC,
            motion_quarter_px_BWTCHW=arrays.motion_quarter_px_BWTCHW,
            motion_valid_BWTHW=arrays.motion_valid_BWTHW,
            window_valid_BW=torch.tensor(self.windows, dtype=torch.bool),
            video_B=torch.tensor(self.videos),
            valid_B=torch.tensor(self.valid),
            keys=self.keys,
            report=self.report,
            damaged=self.damaged,
        )


def unpack_batches(packed: Iterable[PackedBatch]) -> Iterator[Batch]:
    """Yield unpacked batches; each is valid until the next one is requested, when its memory is released for reuse."""
    for batch in packed:
        yield batch.unpack()
        release(batch.block)


@dataclass(frozen=True, kw_only=True)
class EvalSample:
    """Evaluation clips of one video.

    Attributes:
        clips_u8: (N, T, H, W, 3) uint8, RGB, in temporal order.
        video: index of the video among the dataset's entries.
    """

    clips_u8: NDArray[np.uint8]
    video: int
