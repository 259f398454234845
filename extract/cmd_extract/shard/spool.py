"""The videos of one shard that wait in files for its writing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmd_extract.decode.video import ExtractedVideo
from cmd_extract.schema import VideoRecord


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A manifest row that gave no video."""

    record: VideoRecord
    stage: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A video, or one of the segments it is cut into.

    Attributes:
        record: the manifest row.
        video: the whole video.
        video_id: the row's, or that of a segment.
        start, stop: its frames among the video's.
    """

    record: VideoRecord
    video: ExtractedVideo
    video_id: str
    start: int
    stop: int

    @property
    def frame_count(self) -> int:
        """F, frames of the sample."""
        return self.stop - self.start

    @property
    def fps(self) -> float:
        """Frames a second between its first and its last."""
        span = float(self.video.pts_seconds[self.stop - 1] - self.video.pts_seconds[self.start])
        return (self.frame_count - 1) / span if span > 0 else self.video.fps

    @property
    def pts_seconds(self) -> NDArray[np.float64]:
        """(F,) seconds since the first frame of the video."""
        return self.video.pts_seconds[self.start : self.stop]

    @property
    def keyframe_indices(self) -> NDArray[np.int64]:
        """(K,) frames of the sample, counted from its first, that are keyframes."""
        indices = self.video.keyframe_indices
        return indices[(indices >= self.start) & (indices < self.stop)] - self.start


@dataclass
class Spool:
    """The files of one shard's videos, by what they hold, and the columns that describe them."""

    folder: Path
    samples: list[Sample] = field(default_factory=list)
    videos: list[ExtractedVideo] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    files: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))

    def append(self, name: str, source: Path) -> None:
        """Takes over a file of what is called ``name``."""
        kept = self.folder / f"{name}-{len(self.files[name])}"
        source.rename(kept)
        self.files[name].append(kept)

    def byte_count(self, name: str) -> int:
        """Bytes of all files of what is called ``name``."""
        return sum(path.stat().st_size for path in self.files[name])

    def blocks(self, name: str, size: int) -> Iterator[memoryview]:
        """The bytes of all files end to end, in blocks of ``size``; the last may be shorter. Removes the files."""
        size = min(size, self.byte_count(name)) or 1  # fresh memory costs time
        block, filled = bytearray(size), 0
        for path in self.files[name]:
            with path.open("rb") as stream:
                while count := stream.readinto(memoryview(block)[filled:]):
                    filled += count
                    if filled == size:
                        yield memoryview(block)
                        filled = 0
            path.unlink()
        if filled:
            yield memoryview(block)[:filled]
