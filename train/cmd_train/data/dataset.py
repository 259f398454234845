"""Reads samples out of shards: decodes JPEG and gathers motion, in the data workers.

A sample is asked for by its key (epoch, position), which alone, with the seed, decides what is read. So workers share
no state, and a run can resume anywhere. ``cmd_train.data.epoch_sampler`` makes the keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from torch.utils.data import Dataset

from cmd_extract.schema import ShardHeader, VideoEntry
from cmd_train.data.batch import ClipSample, EvalSample
from cmd_train.data.batch_memory import BatchLayout, BatchMemory, SampleMemory
from cmd_train.data.sampling import MotionWindow, SamplingConfig, evaluation_clips, plan_clip, plan_sample, sample_rng
from cmd_train.data.sampling_report import SamplingReport


class DamagedSampleError(RuntimeError):
    """Stored data of a video that cannot be read; the message names the video and what is damaged.

    It takes one argument, the message, so that the data loader can raise it again in the parent process.
    """


class VideoSource(Protocol):
    """What the datasets need of ``cmd_extract.shard.reader.ShardSet``."""

    header: ShardHeader

    def frame_jpegs(self, entry: VideoEntry, frames: Sequence[int]) -> Sequence[bytes | memoryview]:
        """JPEG bytes of some frames, in the order asked for."""

    def keyframe_jpeg(self, entry: VideoEntry, keyframe: int) -> bytes | memoryview:
        """JPEG bytes of a keyframe, by its number among the video's keyframes."""

    def read_motion(self, entry: VideoEntry, start: int, grid: NDArray[np.int16], valid: NDArray[np.bool_]) -> None:
        """Motion of consecutive frames from ``start`` on, as many as the arrays hold, written to them."""


class PretrainDataset(Dataset[ClipSample]):
    """Training samples, by key.

    Args:
        shards: where the videos are read from.
        entries: the videos to train on. Position p of an epoch belongs to video p modulo their number.
        sampling: geometry of a sample.
        seed: decides, with the key, which frames a sample takes; see ``cmd_train.data.sampling``.
        clips_only: whether motion and keyframes are left unread; their arrays are empty then.

    Raises:
        ValueError: if there is no video.
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
        self._entries = tuple(entries)
        self._sampling = sampling
        self._seed = seed
        self._clips_only = clips_only

    def video_id(self, key: tuple[int, int]) -> str:
        """The video that the sample of ``key`` is of."""
        return self._entries[key[1] % len(self._entries)].video_id

    def __getitem__(self, key: tuple[int, int]) -> ClipSample:
        """Read the sample of ``key`` = (epoch, position), to memory of its own.

        Raises:
            DamagedSampleError: if what is stored cannot be decoded or has the wrong size.
        """
        return self.read(key, BatchMemory(self.layout(1)).sample(0))

    def layout(self, samples: int) -> BatchLayout:
        """How so many samples lie side by side."""
        header, sampling = self._shards.header, self._sampling
        return BatchLayout(
            samples=samples,
            clip=(sampling.clip_frames, header.frame_height, header.frame_width),
            keyframe=(0, 0) if self._clips_only else (header.canonical_height, header.canonical_width),
            windows=(0 if self._clips_only else sampling.window_count, sampling.motion_frames),
            grid=header.grid_shape,
        )

    def read(self, key: tuple[int, int], memory: SampleMemory) -> ClipSample:
        """Read the sample of ``key`` = (epoch, position).

        Args:
            key: of the sample.
            memory: where it is written; where reading fails, it may be used again.

        Raises:
            DamagedSampleError: if what is stored cannot be decoded or has the wrong size.
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
        _read_frames(self._shards, entry, plan.clip_frames, memory.clip_u8)
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
    """Evaluation clips at equal spacing, one item a video.

    Args:
        shards: where the videos are read from.
        entries: the videos to evaluate.
        sampling: geometry of a clip.
        clips: clips a video.

    Raises:
        ValueError: if there is no video, or the shards hold no small frames.
    """

    def __init__(
        self, shards: VideoSource, entries: Sequence[VideoEntry], sampling: SamplingConfig, clips: int = 10
    ) -> None:
        _require_entries(entries)
        require_frames(shards.header)
        self._shards = shards
        self._entries = tuple(entries)
        self._sampling = sampling
        self._clips = clips

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, video: int) -> EvalSample:
        """Read all clips of a video.

        Raises:
            DamagedSampleError: if what is stored cannot be decoded or has the wrong size.
        """
        entry = self._entries[video]
        clips = evaluation_clips(entry.frame_count, self._sampling, self._clips)
        size = (self._shards.header.frame_height, self._shards.header.frame_width)
        pictures = np.empty((len(clips) * self._sampling.clip_frames, *size, 3), np.uint8)
        _read_frames(self._shards, entry, [frame for clip in clips for frame in clip], pictures)
        return EvalSample(clips_u8=pictures.reshape(len(clips), -1, *size, 3), video=video)

    def report(self) -> SamplingReport:
        """How many videos are too short for the configured clips."""
        return SamplingReport.of_evaluation((entry.frame_count for entry in self._entries), self._sampling)


def _require_entries(entries: Sequence[VideoEntry]) -> None:
    if not entries:
        raise ValueError("entries: no video is selected, need at least one; check the split's name and part")


def require_frames(header: ShardHeader) -> None:
    """Refuses shards that have been extracted without small frames.

    Raises:
        ValueError: they have.
    """
    if not header.config.get("store_frames", True):
        raise ValueError(
            "shards: hold no small frames, which clips are made of (cmd-extract run --no-frames); extract into another "
            "folder, with --frames"
        )


def _read_frames(shards: VideoSource, entry: VideoEntry, wanted: Sequence[int], into: NDArray[np.uint8]) -> None:
    """Fills (N, H, W, 3) uint8; a frame that is wanted several times is decoded once."""
    frames = sorted(set(wanted))
    jpegs = dict(zip(frames, shards.frame_jpegs(entry, frames), strict=True))
    place_of: dict[int, int] = {}
    for place, frame in enumerate(wanted):
        if frame in place_of:
            into[place] = into[place_of[frame]]
        else:
            _decode(jpegs[frame], into[place], entry, f"frame {frame}")
            place_of[frame] = place


def _read_keyframe(shards: VideoSource, entry: VideoEntry, keyframe: int, into: NDArray[np.uint8]) -> None:
    """Fills (Hk, Wk, 3) uint8."""
    jpeg = shards.keyframe_jpeg(entry, keyframe)
    _decode(jpeg, into, entry, f"keyframe {keyframe} (frame {entry.keyframe_indices[keyframe]})")


def _decode(jpeg: bytes | memoryview, into: NDArray[np.uint8], entry: VideoEntry, what: str) -> None:
    """Decodes a picture to its place; pictures put together afterwards would be copied once more."""
    try:
        # The fast transforms win 5 % of the time and would make pixels depend on the library's build. A picture that is
        # too large for its place is refused, so that it cannot spill over.
        shape = simplejpeg.decode_jpeg(jpeg, "RGB", fastdct=False, fastupsample=False, buffer=into).shape
    except ValueError as error:
        shape = _size_of(jpeg)
        if shape is None or shape == into.shape:
            raise DamagedSampleError(f"video {entry.video_id}: {what} is not a readable JPEG ({error})") from error
    if shape != into.shape:
        raise DamagedSampleError(
            f"video {entry.video_id}: {what} has {shape[1]} x {shape[0]} pixels, "
            f"the shard says {into.shape[1]} x {into.shape[0]}"
        )


def _size_of(jpeg: bytes | memoryview) -> tuple[int, int, int] | None:
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
    """Fills (W, Tm, 2, gh, gw) int16 and (W, Tm, gh, gw) bool; frames that do not exist are zero and invalid."""
    for number, (start, count) in enumerate(windows):
        grid[number, count:] = 0
        valid[number, count:] = False
        if count == 0:
            continue
        try:
            shards.read_motion(entry, start, grid[number, :count], valid[number, :count])
        except OSError as error:
            raise DamagedSampleError(
                f"video {entry.video_id}: motion of frames {start} to {start + count - 1} cannot be read ({error})"
            ) from error
