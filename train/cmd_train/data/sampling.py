"""Which frames, motion windows and keyframe a training sample takes: pure functions of numbers, no pixels.

A sample of the default configuration, seen along its video (the paper's numbers)::

    clip: 16 frames, every 4th          skipped   future motion
    |x...x...x...x.. ... ..x...x...x|     ..       |--------|      71 frames in all
     <------------ 61 ------------->     2             8

What is not said by the paper, and therefore decided here:

- a video shorter than this window lowers the stride, one at a time, until the window fits; if it does not fit even at
  stride 1, the clip starts at frame 0, frames beyond the end repeat the last one, and motion beyond the end is
  marked invalid, never repeated;
- temporal negatives lie wholly within the video and overlap neither the positive window nor one another; all
  arrangements are equally likely; where fewer fit, the rest is marked invalid and counted;
- where no keyframe lies near the clip, the nearest one is taken (the earlier of two) and counted.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np

SEED_LIMIT = 2**32
"""Seeds, epochs and positions are below this, so that each is one word of a seed sequence."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Geometry of a training sample in time.

    Attributes:
        clip_frames: frames of a clip.
        stride: frames from one frame of the clip to the next; lowered for short videos.
        future_interval: frames skipped between the clip's last frame and the first frame of motion. Below 0 the motion
            begins so many frames before the clip's end: it is then what the clip shows, not what comes after.
        motion_frames: consecutive frames of a motion window.
        temporal_negatives: further motion windows of the same video.
        keyframe_margin: how many frames before or behind the clip a keyframe may lie.
        motion_room: whether a clip leaves room for its future motion before the video's end. False lets it lie
            anywhere in the video, which suits trainings that read no motion.
    """

    clip_frames: int = 16
    stride: int = 4
    future_interval: int = 2
    motion_frames: int = 8
    temporal_negatives: int = 3
    keyframe_margin: int = 5
    motion_room: bool = True

    def __post_init__(self) -> None:
        for name in ("clip_frames", "stride", "motion_frames"):
            _require(getattr(self, name) >= 1, f"{name}: {getattr(self, name)} is not allowed, need at least 1")
        for name in ("temporal_negatives", "keyframe_margin"):
            _require(getattr(self, name) >= 0, f"{name}: {getattr(self, name)} is not allowed, need at least 0")

        _require(
            self.future_interval >= -self.clip_frames,
            f"future_interval: {self.future_interval} is not allowed, need at least -clip_frames = {-self.clip_frames}",
        )

    @property
    def window_count(self) -> int:
        """Motion windows of a sample: the positive and the temporal negatives."""
        return 1 + self.temporal_negatives

    def clip_span(self, stride: int) -> int:
        """Frames from the first to the last frame of a clip, both counted."""
        return (self.clip_frames - 1) * stride + 1

    def window_span(self, stride: int) -> int:
        """Frames from the clip's first frame to the last frame of its future motion, both counted.

        Without ``motion_room`` to the last frame of the clip.
        """
        room = self.future_interval + self.motion_frames if self.motion_room else 0
        return self.clip_span(stride) + max(room, 0)


class MotionWindow(NamedTuple):
    """Consecutive frames of motion; only the first ``valid_frames`` of ``motion_frames`` exist."""

    start: int
    valid_frames: int


@dataclass(frozen=True, kw_only=True)
class SamplePlan:
    """What to read for one sample.

    Attributes:
        clip_frames: frame numbers within the video; the last one may be repeated.
        stride: stride used.
        motion_windows: the positive window first, then the temporal negatives, by start; missing ones are (0, 0).
            Empty for a clip alone.
        keyframe: number of the keyframe within the video's keyframes (not a frame number); None for a clip alone.
        stride_shrunk: the stride is lower than configured.
        clip_padded: the clip repeats the video's last frame.
        motion_padded: the positive window ends behind the video's end.
        negatives_missing: temporal negatives for which there is no room.
        keyframe_outside: no keyframe lies within the margin; ``keyframe`` is the nearest one.
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
    """Generator that decides which frames sample ``index`` of ``epoch`` takes.

    Raises:
        ValueError: if a number is negative or does not fit into 32 bits.
    """
    return np.random.default_rng(seed_sequence(seed, epoch, index))


def seed_sequence(*words: int, purpose: tuple[int, ...] = ()) -> np.random.SeedSequence:
    """Seed sequence of some numbers below 2**32; different ``purpose``s give independent streams."""
    for word in words:
        _require(0 <= word < SEED_LIMIT, f"seed, epoch and index: {word} is not allowed, need 0 to 2**32 - 1")
    return np.random.SeedSequence(list(words), spawn_key=purpose)


def plan_sample(
    frame_count: int, keyframe_indices: Sequence[int], config: SamplingConfig, rng: np.random.Generator
) -> SamplePlan:
    """Draw one training sample of a video, by the rules at the head of this module.

    Args:
        frame_count: frames of the video.
        keyframe_indices: frame numbers of its keyframes, ascending.
        config: geometry of the sample.
        rng: source of every draw, see ``sample_rng``.

    Returns:
        The plan; a pure function of the arguments and of the generator's state.

    Raises:
        ValueError: if the video has no frame or no keyframe.
    """
    _require(frame_count >= 1, f"frame_count: {frame_count} is not allowed, need at least 1")
    _require(len(keyframe_indices) >= 1, "keyframe_indices: empty, need at least one keyframe")
    first, stride = _draw_clip(frame_count, config, rng)
    clip = _clip_at(first, stride, frame_count, config)
    motion_start = first + config.clip_span(stride) + config.future_interval
    positive = MotionWindow(motion_start, min(max(frame_count - motion_start, 0), config.motion_frames))
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
        motion_padded=positive.valid_frames < config.motion_frames,
        negatives_missing=missing,
        keyframe_outside=outside,
    )


def plan_clip(frame_count: int, config: SamplingConfig, rng: np.random.Generator) -> SamplePlan:
    """Draw a clip alone; the very clip that ``plan_sample`` takes with the same arguments.

    Raises:
        ValueError: if the video has no frame.
    """
    _require(frame_count >= 1, f"frame_count: {frame_count} is not allowed, need at least 1")
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
    """Clips at equal spacing: the first starts at frame 0, the last ends with the video, a single one is central.

    Evaluation reads no motion, so only the clip's span must fit; the stride shrinks as in training, and a video with
    fewer frames than a clip repeats its last one.

    Args:
        frame_count: frames of the video.
        config: geometry of a clip.
        clips: number of clips.

    Returns:
        ``clips`` tuples of ``config.clip_frames`` frame numbers.

    Raises:
        ValueError: if there is no frame, or ``clips`` is not positive.
    """
    _require(frame_count >= 1, f"frame_count: {frame_count} is not allowed, need at least 1")
    _require(clips >= 1, f"clips: {clips} is not allowed, need at least 1")
    stride = fitting_stride(frame_count, config, 0)
    room = max(frame_count - config.clip_span(stride), 0)
    starts = [room // 2] if clips == 1 else [number * room // (clips - 1) for number in range(clips)]
    return tuple(_clip_at(start, stride, frame_count, config) for start in starts)


def fitting_stride(frame_count: int, config: SamplingConfig, reserve: int) -> int:
    """Largest stride, at most the configured one, at which a clip and ``reserve`` more frames fit; at least 1."""
    fitting = (s for s in range(config.stride, 0, -1) if config.clip_span(s) + reserve <= frame_count)
    return next(fitting, 1)


def _draw_clip(frame_count: int, config: SamplingConfig, rng: np.random.Generator) -> tuple[int, int]:
    """First frame and stride of a training clip."""
    stride = fitting_stride(frame_count, config, config.window_span(1) - config.clip_span(1))
    return int(rng.integers(max(frame_count - config.window_span(stride), 0) + 1)), stride


def _clip_at(first: int, stride: int, frame_count: int, config: SamplingConfig) -> tuple[int, ...]:
    return tuple(min(first + number * stride, frame_count - 1) for number in range(config.clip_frames))


def _draw_negatives(
    frame_count: int, positive_start: int, config: SamplingConfig, rng: np.random.Generator
) -> list[MotionWindow]:
    """As many disjoint windows as fit, at most ``temporal_negatives``; every arrangement equally likely."""
    length = config.motion_frames
    behind = positive_start + length
    rooms = (min(positive_start, frame_count), max(frame_count - behind, 0))
    count = min(config.temporal_negatives, rooms[0] // length + rooms[1] // length)
    # i windows before the positive one, the others behind it: weighted by the number of such arrangements.
    ways = [_arrangements(rooms[0], i, length) * _arrangements(rooms[1], count - i, length) for i in range(count + 1)]
    reached = list(accumulate(way / sum(ways) for way in ways))
    before = bisect_right([share / reached[-1] for share in reached], rng.random())
    starts = _draw_disjoint(rooms[0], before, length, rng)
    starts += [behind + start for start in _draw_disjoint(rooms[1], count - before, length, rng)]
    return [MotionWindow(start, length) for start in starts]


def _arrangements(room: int, count: int, length: int) -> int:
    """In how many ways ``count`` disjoint windows of ``length`` frames fit into ``room`` frames."""
    return math.comb(max(room - count * (length - 1), 0), count)


def _draw_disjoint(room: int, count: int, length: int, rng: np.random.Generator) -> list[int]:
    """Starts of ``count`` disjoint windows, ascending."""
    if count == 0:
        return []
    # Windows shrunk to one frame each are distinct numbers; growing them back moves each by those before it.
    slots = np.sort(rng.choice(room - count * (length - 1), size=count, replace=False))
    return [int(slot) + number * (length - 1) for number, slot in enumerate(slots)]


def _draw_keyframe(
    keyframe_indices: Sequence[int], first: int, last: int, margin: int, rng: np.random.Generator
) -> tuple[int, bool]:
    """Number of a keyframe near the clip, and whether it lies outside the margin."""
    distances = [max(first - frame, frame - last, 0) for frame in keyframe_indices]
    near = [number for number, distance in enumerate(distances) if distance <= margin]
    if near:
        return near[int(rng.integers(len(near)))], False
    return distances.index(min(distances)), True
