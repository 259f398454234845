"""Datasets that read samples from shards in data workers: they decode JPEGs and read motion grids.

The key of a sample, (epoch, position), and the seed determine its content. Workers therefore share no state, and a run
can resume at any step. ``cmd_train.data.epoch_sampler`` generates the keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from torch.utils.data import Dataset

from cmd_extract.schema import ShardHeader, VideoEntry
from cmd_extract.shard.videos import Videos
from cmd_train.data.batch import ClipSample, EvalSample
from cmd_train.data.batch_memory import BatchLayout, BatchMemory, SampleMemory
from cmd_train.data.sampling import MotionWindow, SamplingConfig, evaluation_clips, plan_clip, plan_sample, sample_rng
from cmd_train.data.sampling_report import SamplingReport


class DamagedSampleError(RuntimeError):
    """Stored data of a video cannot be read; the message names the video and the damaged part.

    The message is the only argument, so that the data loader can re-raise the error in the parent process.
    """


class VideoSource(Protocol):
    """Interface of ``cmd_extract.shard.reader.ShardSet`` that the datasets use."""

    header: ShardHeader

    def frame_jpegs(self, entry: VideoEntry, frames: Sequence[int]) -> Sequence[bytes | memoryview]:
        """Return the JPEG bytes of the given frames, in the given order."""

    def keyframe_jpeg(self, entry: VideoEntry, keyframe: int) -> bytes | memoryview:
        """Return the JPEG bytes of a keyframe, given its index among the video's keyframes."""

    def read_motion(self, entry: VideoEntry, start: int, grid: NDArray[np.int16], valid: NDArray[np.bool_]) -> None:
        """Read the motion of consecutive frames from ``start`` into arrays, whose length is the number of frames."""


class PretrainDataset(Dataset[ClipSample]):
    """Training samples, indexed by key.

    Args:
        shards: source of the videos.
        entries: videos to train on. Position p of an epoch is a sample of video p modulo their number.
        sampling: temporal geometry of a sample.
        seed: random seed; with the key, it determines the frames of a sample (see ``cmd_train.data.sampling``).
        clips_only: skip motion and keyframes; their arrays are then empty.

    Raises:
        ValueError: there are no videos.
    """

    def __init__(
        self,
        shards: VideoSource,
        entries: Sequence[VideoEntry],
        sampling: SamplingConfig,
        *,
        seed: int,
        clips_only: bool = False,
    ) -> None:
        _require_entries(entries)
        self._shards = shards
        self._entries = entries
        self._sampling = sampling
        self._seed = seed
        self._clips_only = clips_only

    def video_id(self, key: tuple[int, int]) -> str:
        """Return the id of the video of a sample."""
        return self._entries[key[1] % len(self._entries)].video_id

    def __getitem__(self, key: tuple[int, int]) -> ClipSample:
        """Read the sample with ``key`` = (epoch, position) into its own memory.

        Raises:
            DamagedSampleError: the stored data cannot be decoded or has the wrong size.
        """
        return self.read(key, BatchMemory(self.layout(1)).sample(0))

    def layout(self, samples: int) -> BatchLayout:
        """Return the memory layout of a batch of ``samples`` samples."""
        header, sampling = self._shards.header, self._sampling
        return BatchLayout(
            samples=samples,
            clip=(sampling.clip_frames, header.frame_height, header.frame_width),
            keyframe=(0, 0) if self._clips_only else (header.canonical_height, header.canonical_width),
            windows=(0 if self._clips_only else sampling.window_count, sampling.window_frames),
            grid=header.grid_shape,
        )

    def read(self, key: tuple[int, int], memory: SampleMemory) -> ClipSample:
        """Read the sample with ``key`` = (epoch, position).

        Args:
            key: key of the sample.
            memory: destination; it can be reused if reading fails.

        Raises:
            DamagedSampleError: the stored data cannot be decoded or has the wrong size.
        """
        epoch, position = key
        video = position % len(self._entries)
        entry = self._entries[video]
        rng = sample_rng(self._seed, epoch, position)
        if self._clips_only:
            plan = plan_clip(entry.frame_count, self._sampling, rng)
        else:
            plan = plan_sample(entry.frame_count, entry.keyframe_indices, self._sampling, rng)
        _read_motion(self._shards, entry, plan.motion_windows, memory.motion_quarter_px, memory.motion_valid)
        read_frames(self._shards, entry, plan.clip_frames, memory.clip_u8)
        if plan.keyframe is not None:
            _read_keyframe(self._shards, entry, plan.keyframe, memory.keyframe_u8)
        return ClipSample(
            clip_u8=memory.clip_u8,
            keyframe_u8=memory.keyframe_u8,
            motion_quarter_px=memory.motion_quarter_px,
            motion_valid=memory.motion_valid,
            epoch=epoch,
            position=position,
            video=video,
            plan=plan,
        )


class EvalDataset(Dataset[EvalSample]):
    """Evenly spaced evaluation clips; one item per video.

    Args:
        shards: source of the videos.
        entries: videos to evaluate.
        sampling: temporal geometry of a clip.
        clips: clips per video.

    Raises:
        ValueError: there are no videos, or the shards contain no small frames.
    """

    def __init__(self, shards: VideoSource, entries: Videos, sampling: SamplingConfig, clips: int = 10) -> None:
        _require_entries(entries)
        require_frames(shards.header)
        self._shards = shards
        self._entries = entries
        self._sampling = sampling
        self._clips = clips

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, video: int) -> EvalSample:
        """Read all clips of a video.

        Raises:
            DamagedSampleError: the stored data cannot be decoded or has the wrong size.
        """
        entry = self._entries[video]
        clips = evaluation_clips(entry.frame_count, self._sampling, self._clips)
        size = (self._shards.header.frame_height, self._shards.header.frame_width)
        pictures = np.empty((len(clips) * self._sampling.clip_frames, *size, 3), np.uint8)
        read_frames(self._shards, entry, [frame for clip in clips for frame in clip], pictures)
        return EvalSample(clips_u8=pictures.reshape(len(clips), -1, *size, 3), video=video)

    def report(self) -> SamplingReport:
        """Count the videos that are too short for the configured clips."""
        counts = self._entries.numbers("frame_count")
        return SamplingReport.from_evaluation(counts.tolist(), self._sampling)


def _require_entries(entries: Sequence[VideoEntry]) -> None:
    if not entries:
        raise ValueError("entries: no videos selected; check the split column and its part")


def require_frames(header: ShardHeader) -> None:
    """Check that shards contain the small frames that clips are decoded from.

    Raises:
        ValueError: they were extracted without them.
    """
    if not header.config.get("store_frames", True):
        raise ValueError(
            "shards: contain no small frames, which clips are decoded from (extracted with --no-frames); extract "
            "again with --frames into another folder"
        )


def read_frames(shards: VideoSource, entry: VideoEntry, frames: Sequence[int], out: NDArray[np.uint8]) -> None:
    """Decode frames into (N, H, W, 3) uint8; repeated frames are decoded only once."""
    distinct = sorted(set(frames))
    jpegs = dict(zip(distinct, shards.frame_jpegs(entry, distinct), strict=True))
    decoded: dict[int, int] = {}
    for index, frame in enumerate(frames):
        if frame in decoded:
            out[index] = out[decoded[frame]]
        else:
            _decode(jpegs[frame], out[index], entry, f"frame {frame}")
            decoded[frame] = index


def _read_keyframe(shards: VideoSource, entry: VideoEntry, keyframe: int, out: NDArray[np.uint8]) -> None:
    """Decode a keyframe into (Hk, Wk, 3) uint8."""
    jpeg = shards.keyframe_jpeg(entry, keyframe)
    _decode(jpeg, out, entry, f"keyframe {keyframe} (frame {entry.keyframe_indices[keyframe]})")


def _decode(jpeg: bytes | memoryview, out: NDArray[np.uint8], entry: VideoEntry, name: str) -> None:
    """Decode a picture into its final memory; stacking pictures afterwards would copy them once more."""
    try:
        # The fast transforms save 5 % of the time, but would make pixels depend on the build of the library. Pictures
        # that are larger than the buffer raise an error; they never overrun it.
        shape = simplejpeg.decode_jpeg(jpeg, "RGB", fastdct=False, fastupsample=False, buffer=out).shape
    except ValueError as error:
        shape = _jpeg_shape(jpeg)
        if shape is None or shape == out.shape:
            raise DamagedSampleError(f"video {entry.video_id}: {name} is not a readable JPEG ({error})") from error
    if shape != out.shape:
        raise DamagedSampleError(
            f"video {entry.video_id}: {name} has {shape[1]} x {shape[0]} pixels, "
            f"expected {out.shape[1]} x {out.shape[0]}"
        )


def _jpeg_shape(jpeg: bytes | memoryview) -> tuple[int, int, int] | None:
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
    except ValueError:
        return None
    return height, width, 3


def _read_motion(
    shards: VideoSource,
    entry: VideoEntry,
    windows: Sequence[MotionWindow],
    grid: NDArray[np.int16],
    valid: NDArray[np.bool_],
) -> None:
    """Read motion windows into (W, Tm, 2, gh, gw) int16 and (W, Tm, gh, gw) bool; missing frames are 0 and invalid."""
    for number, window in enumerate(windows):
        count = window.valid_frames
        grid[number, count:] = 0
        valid[number, count:] = False
        if count == 0:
            continue
        frames = window.frames(len(grid[number]))
        stop = window.start + int(frames[-1]) + 1
        try:
            if window.span is None:
                shards.read_motion(entry, window.start, grid[number, :count], valid[number, :count])
            else:
                shape = (stop - window.start, *grid.shape[2:])
                source, flags = np.empty(shape, np.int16), np.empty((shape[0], *shape[2:]), np.bool_)
                shards.read_motion(entry, window.start, source, flags)
                grid[number, :count], valid[number, :count] = source[frames], flags[frames]
        except OSError as error:
            raise DamagedSampleError(
                f"video {entry.video_id}: motion of frames {window.start} to {stop - 1} cannot be read ({error})"
            ) from error
