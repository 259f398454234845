"""Time stamps: from what FFmpeg and PyAV report to strictly increasing ticks of the source's time base.

Both readers report the same stamp for the same frame (see ``StampReader``), so that the times of a video depend neither
on where its motion vectors come from nor on whether its frames are stored. The rule, see ``increasing_ticks``:

* Every frame keeps its own time stamp, exactly.
* A stamp that does not exceed the one before is moved by the least step that keeps the times strictly increasing.
* If the clock steps back and stays behind for more than ``RESTART_FRAMES`` frames, it has started again (concatenated
  files): it continues one frame interval after the frame before.
* In containers whose clock may jump (MPEG-TS, MPEG-PS and others), a step of more than ``JUMP_SECONDS`` is closed in
  the same way, as FFmpeg does. In all others a gap is a part of the video, however long.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmd_extract.errors import VideoError

RESTART_FRAMES = 8
"""A clock that is still behind after so many frames has started again; before that, frames are merely out of order."""
JUMP_SECONDS = 10
"""Longest step of a clock that may jump, and longest gap that ``--fps`` fills with copies of a frame."""

_PRINTED = re.compile(rb"\s+(?=pts)")


@dataclass(frozen=True, kw_only=True)
class FrameTimes:
    """Times of the frames of a video.

    Attributes:
        ticks: (F,) int64, strictly increasing, 0 for the first frame.
        time_base: seconds per tick.
        moved: number of time stamps that were moved by the least step.
        closed: number of jumps of the clock that were closed; with ``--fps``, also of gaps that were shortened.
    """

    ticks: NDArray[np.int64]
    time_base: Fraction
    moved: int = 0
    closed: int = 0

    def __post_init__(self) -> None:
        if self.ticks.ndim != 1 or self.ticks.dtype != np.int64:
            raise ValueError(f"ticks: shape {self.ticks.shape} of {self.ticks.dtype}, need (F,) int64")

    def __len__(self) -> int:
        return len(self.ticks)

    @property
    def note(self) -> str:
        """Number of repairs for the user, empty if there are none."""
        moved = f"time stamps moved to keep them increasing: {self.moved}" if self.moved else ""
        closed = f"jumps of the clock closed: {self.closed}" if self.closed else ""
        return "; ".join(filter(None, (moved, closed)))

    @property
    def seconds(self) -> NDArray[np.float64]:
        """(F,) float64, seconds since the first frame."""
        return self.ticks * self.time_base.numerator / self.time_base.denominator

    def intervals(self, frames: Sequence[int], length: Fraction) -> list[int]:
        """Return for each of these frames in which interval of ``length`` seconds it is, exactly."""
        step = self.time_base / length
        return [int(self.ticks[frame]) * step.numerator // step.denominator for frame in frames]


class StampReader:
    """Chooses the time stamp of each decoded frame as the ``ffmpeg`` program does.

    If a stream has several kinds of time stamps, this is the more plausible one (``best_effort_timestamp``, which PyAV
    does not provide). Frames without any follow the frame before at its duration.

    Args:
        interval: ticks between frames according to the container, used if frames have no duration.
    """

    def __init__(self, interval: int) -> None:
        self._interval = max(1, interval)
        self._last_pts = self._last_dts = -(1 << 63)
        self._faulty_pts = self._faulty_dts = 0
        self._next: int | None = None
        self._stamp: int | None = None
        self._step = 0

    def __call__(self, pts: int | None, dts: int | None, duration: int) -> tuple[int, bool]:
        """Return the stamp of the next frame in ticks, and whether it comes from the stream.

        Args:
            pts, dts: presentation and decoding time stamp of the frame, None if unknown.
            duration: its duration in ticks, 0 if unknown.
        """
        self._count_faults(pts, dts)
        prefer_pts = dts is None or self._faulty_pts <= self._faulty_dts
        stamp = pts if pts is not None and prefer_pts else dts
        known = stamp is not None
        if stamp is None:
            stamp = self._next or 0
        elif self._stamp is not None:
            self._step = stamp - self._stamp
        self._stamp = stamp
        self._next = stamp + self._reliable(duration)
        return stamp, known

    def _reliable(self, duration: int) -> int:
        """Return the duration, or the last step between two stamps where a demuxer invented a duration of one tick."""
        if duration == 1 and self._step > 2:
            return self._step
        return duration if duration > 0 else self._interval

    def _count_faults(self, pts: int | None, dts: int | None) -> None:
        if dts is not None:
            self._faulty_dts += dts <= self._last_dts
            self._last_dts = dts
        elif pts is not None:
            self._last_dts = pts
        if pts is not None:
            self._faulty_pts += pts <= self._last_pts
            self._last_pts = pts
        elif dts is not None:
            self._last_pts = dts


def read_printed_stamps(path: Path, time_base: Fraction, interval: int) -> NDArray[np.int64]:
    """Read (F,) time stamps in ticks that FFmpeg's filter ``metadata=mode=print`` has written.

    Args:
        path: the text file, with lines such as ``frame:3    pts:102     pts_time:0.102``.
        time_base: seconds per tick, as PyAV reads it.
        interval: ticks between frames according to the container, for frames without a time stamp.

    Raises:
        VideoError: FFmpeg reads another time base.
    """
    reader = StampReader(interval)
    stamps: list[int] = []
    seconds = 0.0
    with path.open("rb") as lines:
        for line in lines:
            if line.startswith(b"frame:"):
                _, pts, pts_time = (part.partition(b":")[2].strip() for part in _PRINTED.split(line))
                has_stamp = pts != b"NOPTS"
                stamps.append(reader(int(pts) if has_stamp else None, None, 0)[0])
                seconds = float(pts_time) if has_stamp else float(stamps[-1] * time_base)
    # Printed with six digits.
    if stamps and not math.isclose(seconds, float(stamps[-1] * time_base), rel_tol=1e-4, abs_tol=1e-4):
        raise VideoError("transcode", f"ffmpeg and PyAV disagree about the time base ({time_base} s according to PyAV)")
    return np.array(stamps, np.int64)


def increasing_ticks(stamps: NDArray[np.int64], time_base: Fraction, *, may_jump: bool) -> FrameTimes:
    """Apply the rule of this module to the time stamps of a video.

    Args:
        stamps: (F,) int64, one per frame in presentation order, in ticks of ``time_base``.
        time_base: seconds per tick.
        may_jump: whether the container's clock may jump, see ``JUMP_SECONDS``.
    """
    steps = np.diff(stamps)
    longest = int(JUMP_SECONDS / time_base) if may_jump else np.iinfo(np.int64).max
    if not len(steps) or (steps.min() > 0 and steps.max() <= longest):
        return FrameTimes(ticks=stamps - stamps[:1], time_base=time_base)
    interval = int(np.median(steps[steps > 0])) if (steps > 0).any() else 1
    values: list[int] = stamps.tolist()
    times = [values[0]]
    shift = moved = closed = 0
    latest = values[0]  # of the source's own times so far, in the current shift
    for number in range(1, len(values)):
        before, time = times[-1], values[number] + shift
        if time - before > longest or _has_restarted(values, number, latest - shift):
            time = latest = before + interval
            shift = time - values[number]
            closed += 1
        elif time <= before:
            time = before + 1
            moved += 1
        latest = max(latest, values[number] + shift)
        times.append(time)
    ticks = np.array(times, np.int64)
    return FrameTimes(ticks=ticks - ticks[0], time_base=time_base, moved=moved, closed=closed)


def constant_rate_times(
    frames: int, fps: Fraction, source_stamps: NDArray[np.int64], time_base: Fraction
) -> FrameTimes:
    """Return the times of a video that FFmpeg has converted to a constant frame rate.

    Args:
        frames: number of frames F after conversion.
        fps: frames per second.
        source_stamps: time stamps before conversion; ``closed`` counts the jumps and long gaps between them.
        time_base: seconds per tick of ``source_stamps``.
    """
    steps = np.diff(source_stamps)
    jumps = (steps > int(JUMP_SECONDS / time_base)) | (steps < -int(1 / time_base))
    return FrameTimes(ticks=np.arange(frames, dtype=np.int64), time_base=1 / fps, closed=int(jumps.sum()))


def _has_restarted(values: Sequence[int], number: int, latest: int) -> bool:
    """Return whether the clock steps back at frame ``number`` and does not catch up soon."""
    if values[number] >= values[number - 1] or number + RESTART_FRAMES >= len(values):
        return False
    return max(values[number : number + RESTART_FRAMES + 1]) <= latest
