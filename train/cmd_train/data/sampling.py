"""Selection of the frames, motion windows and keyframe of a training sample: pure functions of numbers, no pixels.

A sample with the default configuration (the paper's values) along its video::

    clip: 16 frames, every 4th          skipped   future motion
    |x...x...x...x.. ... ..x...x...x|     ..       |--------|      71 frames in total
     <------------ 61 ------------->     2             8

Rules for cases that the paper does not specify:

- If a video is shorter than this window, the stride is lowered in steps of one until the window fits. If it does not
  fit even at stride 1, the clip starts at frame 0, frames beyond the end repeat the last frame, and motion beyond the
  end is marked invalid, never repeated.
- Temporal negatives lie entirely within the video and overlap neither the positive window nor each other; all
  arrangements are equally likely. If fewer fit, the missing ones are marked invalid and counted.
- If no keyframe is near the clip, the nearest one is used (the earlier of two) and counted.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from cmd_extract.system.validation import require, require_choice, require_range

MotionWindowKind = Literal["future", "clip"]
MOTION_WINDOWS: tuple[MotionWindowKind, ...] = get_args(MotionWindowKind)
SEED_LIMIT = 2**32
"""Upper bound of seeds, epochs and positions, so that each is one word of a seed sequence."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Temporal geometry of a training sample.

    Attributes:
        clip_frames: frames per clip.
        stride: distance between consecutive frames of a clip, in frames of the video; lowered for short videos.
        future_interval: frames skipped between the last frame of the clip and the first frame of motion. If negative,
            motion starts that many frames before the end of the clip and thus shows the clip itself, not its future.
        motion_frames: consecutive frames per motion window.
        temporal_negatives: number of additional motion windows from the same video.
        keyframe_margin: maximum distance of a keyframe from the clip, in frames.
        motion_room: reserve room for the future motion between the clip and the end of the video. False allows clips
            anywhere in the video, for runs that do not use motion.
        motion_window: "future": ``motion_frames`` frames from ``future_interval`` frames after the clip (the paper).
            "clip": all frames that the clip spans, ``clip_frames * stride`` of them; ``motion_frames`` and
            ``future_interval`` are then ignored. Where the stride is lowered, the window still has that many frames,
            evenly spaced over the clip, so that a share of the window always corresponds to the same share of the clip.
    """

    clip_frames: int = 16
    stride: int = 4
    future_interval: int = 2
    motion_frames: int = 8
    temporal_negatives: int = 3
    keyframe_margin: int = 5
    motion_room: bool = True
    motion_window: MotionWindowKind = "future"

    def __post_init__(self) -> None:
        require_range(self, "clip_frames", "stride", "motion_frames", ge=1)
        require_range(self, "temporal_negatives", "keyframe_margin", ge=0)
        require(
            self.future_interval >= -self.clip_frames,
            f"future_interval: must be at least -clip_frames = {-self.clip_frames}, got {self.future_interval}",
        )
        require_choice(self, "motion_window", MOTION_WINDOWS)
        require(
            self.motion_window == "future" or self.temporal_negatives == 0,
            f"temporal_negatives: must be 0 with motion_window='clip', got {self.temporal_negatives}",
        )

    @property
    def window_frames(self) -> int:
        """Frames per motion window."""
        return self.motion_frames if self.motion_window == "future" else self.clip_frames * self.stride

    @property
    def window_count(self) -> int:
        """Motion windows per sample: the positive one and the temporal negatives."""
        return 1 + self.temporal_negatives

    def clip_span(self, stride: int) -> int:
        """Return the number of frames from the first to the last frame of a clip, inclusive."""
        return (self.clip_frames - 1) * stride + 1

    def window_span(self, stride: int) -> int:
        """Return the number of frames from the first frame of a clip to the last frame of its future motion, inclusive.

        Without ``motion_room``, and with ``motion_window="clip"``, the window ends with the clip.
        """
        future = self.motion_room and self.motion_window == "future"
        room = self.future_interval + self.motion_frames if future else 0
        return self.clip_span(stride) + max(room, 0)


class MotionWindow(NamedTuple):
    """Window of motion frames; only the first ``valid_frames`` of the configured number of frames exist.

    Attributes:
        start: first frame of the video.
        valid_frames: frames of the window that exist.
        span: frames of the video that the window covers, evenly spaced; None: as many as the window has, consecutive.
    """

    start: int
    valid_frames: int
    span: int | None = None

    def frames(self, length: int) -> NDArray[np.int64]:
        """Return the frames of the video, relative to ``start``, of a window of ``length`` frames that exist."""
        return np.arange(self.valid_frames) * (length if self.span is None else self.span) // length


@dataclass(frozen=True, kw_only=True)
class SamplePlan:
    """Frames, motion windows and keyframe to read for one sample.

    Attributes:
        clip_frames: frame indices within the video; the last one may be repeated.
        stride: stride used.
        motion_windows: the positive window first, then the temporal negatives, by start; missing ones are (0, 0).
            Empty for a clip without motion.
        keyframe: index among the video's keyframes (not a frame index); None for a clip without keyframe.
        stride_shrunk: whether the stride is lower than configured.
        clip_padded: whether the clip repeats the last frame of the video.
        motion_padded: whether the positive window extends beyond the end of the video.
        negatives_missing: number of temporal negatives that do not fit into the video.
        keyframe_outside: whether no keyframe is within the margin and ``keyframe`` is the nearest one.
    """

    clip_frames: tuple[int, ...]
    stride: int
    motion_windows: tuple[MotionWindow, ...]
    keyframe: int | None
    stride_shrunk: bool
    clip_padded: bool
    motion_padded: bool
    negatives_missing: int
    keyframe_outside: bool

    @property
    def window_valid(self) -> tuple[bool, ...]:
        """For each motion window, whether any of its frames exists."""
        return tuple(window.valid_frames > 0 for window in self.motion_windows)


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the random generator of the frames of sample ``index`` in ``epoch``.

    Raises:
        ValueError: a number is negative or does not fit into 32 bits.
    """
    return np.random.default_rng(seed_sequence(seed, epoch, index))


def seed_sequence(*words: int, purpose: tuple[int, ...] = ()) -> np.random.SeedSequence:
    """Return a seed sequence of numbers below 2**32; each ``purpose`` yields an independent stream."""
    for word in words:
        require(0 <= word < SEED_LIMIT, f"seed, epoch and index: must be from 0 to 2**32 - 1, got {word}")
    return np.random.SeedSequence(list(words), spawn_key=purpose)


def plan_sample(
    frame_count: int, keyframe_indices: Sequence[int], config: SamplingConfig, rng: np.random.Generator
) -> SamplePlan:
    """Draw a training sample of a video according to the rules in the module docstring.

    Args:
        frame_count: frames of the video.
        keyframe_indices: frame indices of its keyframes, ascending.
        config: temporal geometry of the sample.
        rng: random generator, see ``sample_rng``.

    Returns:
        The plan; a pure function of the arguments and the state of the generator.

    Raises:
        ValueError: the video has no frames or no keyframes.
    """
    require(frame_count >= 1, f"frame_count: must be at least 1, got {frame_count}")
    require(len(keyframe_indices) >= 1, "keyframe_indices: must not be empty")
    first, stride = _draw_clip(frame_count, config, rng)
    clip = _clip_at(first, stride, frame_count, config)
    motion_start = first + config.clip_span(stride) + config.future_interval
    positive = MotionWindow(motion_start, min(max(frame_count - motion_start, 0), config.motion_frames))
    if config.motion_window == "clip":
        positive = _window_of_clip(first, stride, frame_count, config)
    negatives = _draw_negatives(frame_count, motion_start, config, rng)
    missing = config.temporal_negatives - len(negatives)
    keyframe, outside = _draw_keyframe(keyframe_indices, clip[0], clip[-1], config.keyframe_margin, rng)
    return SamplePlan(
        clip_frames=clip,
        stride=stride,
        motion_windows=(positive, *negatives, *[MotionWindow(0, 0)] * missing),
        keyframe=keyframe,
        stride_shrunk=stride < config.stride,
        clip_padded=first + config.clip_span(stride) > frame_count,
        motion_padded=positive.valid_frames < config.window_frames,
        negatives_missing=missing,
        keyframe_outside=outside,
    )


def plan_clip(frame_count: int, config: SamplingConfig, rng: np.random.Generator) -> SamplePlan:
    """Draw a clip without motion and keyframe; the same clip as ``plan_sample`` with the same arguments.

    Raises:
        ValueError: the video has no frames.
    """
    require(frame_count >= 1, f"frame_count: must be at least 1, got {frame_count}")
    first, stride = _draw_clip(frame_count, config, rng)
    return SamplePlan(
        clip_frames=_clip_at(first, stride, frame_count, config),
        stride=stride,
        motion_windows=(),
        keyframe=None,
        stride_shrunk=stride < config.stride,
        clip_padded=first + config.clip_span(stride) > frame_count,
        motion_padded=False,
        negatives_missing=0,
        keyframe_outside=False,
    )


def evaluation_clips(frame_count: int, config: SamplingConfig, clips: int = 10) -> tuple[tuple[int, ...], ...]:
    """Return evenly spaced clips: the first starts at frame 0, the last ends with the video, a single one is central.

    Evaluation uses no motion, so only the clip itself has to fit. The stride is lowered as in training, and a video
    with fewer frames than a clip repeats its last frame.

    Args:
        frame_count: frames of the video.
        config: temporal geometry of a clip.
        clips: number of clips.

    Returns:
        ``clips`` tuples of ``config.clip_frames`` frame indices.

    Raises:
        ValueError: the video has no frames, or ``clips`` is not positive.
    """
    require(frame_count >= 1, f"frame_count: must be at least 1, got {frame_count}")
    require(clips >= 1, f"clips: must be at least 1, got {clips}")
    stride = fitting_stride(frame_count, config, 0)
    room = max(frame_count - config.clip_span(stride), 0)
    starts = [room // 2] if clips == 1 else [number * room // (clips - 1) for number in range(clips)]
    return tuple(_clip_at(start, stride, frame_count, config) for start in starts)


def fitting_stride(frame_count: int, config: SamplingConfig, reserve: int) -> int:
    """Return the largest stride up to the configured one at which a clip plus ``reserve`` frames fit; at least 1."""
    fitting = (s for s in range(config.stride, 0, -1) if config.clip_span(s) + reserve <= frame_count)
    return next(fitting, 1)


def _draw_clip(frame_count: int, config: SamplingConfig, rng: np.random.Generator) -> tuple[int, int]:
    """Draw the first frame of a training clip; return it with the stride."""
    stride = fitting_stride(frame_count, config, config.window_span(1) - config.clip_span(1))
    return int(rng.integers(max(frame_count - config.window_span(stride), 0) + 1)), stride


def _clip_at(first: int, stride: int, frame_count: int, config: SamplingConfig) -> tuple[int, ...]:
    return tuple(min(first + number * stride, frame_count - 1) for number in range(config.clip_frames))


def _window_of_clip(first: int, stride: int, frame_count: int, config: SamplingConfig) -> MotionWindow:
    span, length = config.clip_frames * stride, config.window_frames
    # The window reaches stride - 1 frames beyond the clip's last frame, which a video may not have.
    existing = -(-min(frame_count - first, span) * length // span)
    return MotionWindow(first, existing, None if span == length else span)


def _draw_negatives(
    frame_count: int, positive_start: int, config: SamplingConfig, rng: np.random.Generator
) -> list[MotionWindow]:
    """Draw as many disjoint windows as fit, up to ``temporal_negatives``; all arrangements are equally likely."""
    length = config.motion_frames
    after_start = positive_start + length
    room_before, room_after = min(positive_start, frame_count), max(frame_count - after_start, 0)
    count = min(config.temporal_negatives, room_before // length + room_after // length)
    # Number of windows before the positive one, weighted by the number of arrangements with that many.
    ways = [
        _arrangements(room_before, before, length) * _arrangements(room_after, count - before, length)
        for before in range(count + 1)
    ]
    cumulative = list(accumulate(way / sum(ways) for way in ways))
    before = bisect_right([share / cumulative[-1] for share in cumulative], rng.random())
    starts = _draw_disjoint(room_before, before, length, rng)
    starts += [after_start + start for start in _draw_disjoint(room_after, count - before, length, rng)]
    return [MotionWindow(start, length) for start in starts]


def _arrangements(room: int, count: int, length: int) -> int:
    """Return the number of arrangements of ``count`` disjoint windows of ``length`` frames within ``room`` frames."""
    return math.comb(max(room - count * (length - 1), 0), count)


def _draw_disjoint(room: int, count: int, length: int, rng: np.random.Generator) -> list[int]:
    """Draw the starts of ``count`` disjoint windows, ascending."""
    if count == 0:
        return []
    # Windows shrunk to one frame are distinct integers; expanding them shifts each by the windows before it.
    slots = np.sort(rng.choice(room - count * (length - 1), size=count, replace=False))
    return [int(slot) + number * (length - 1) for number, slot in enumerate(slots)]


def _draw_keyframe(
    keyframe_indices: Sequence[int], first: int, last: int, margin: int, rng: np.random.Generator
) -> tuple[int, bool]:
    """Draw a keyframe near the clip; return its index and whether it is outside the margin."""
    distances = [max(first - frame, frame - last, 0) for frame in keyframe_indices]
    near = [number for number, distance in enumerate(distances) if distance <= margin]
    if near:
        return near[int(rng.integers(len(near)))], False
    return distances.index(min(distances)), True
