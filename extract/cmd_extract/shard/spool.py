"""Spool of a shard: its videos, kept in files until the shard is written."""

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
    """A manifest row whose video could not be extracted."""

    record: VideoRecord
    stage: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A video, or one of the segments it is cut into.

    Attributes:
        record: the manifest row.
        video: the whole video.
        video_id: id of the video or segment.
        start, stop: range of its frames in the video.
    """

    record: VideoRecord
    video: ExtractedVideo
    video_id: str
    start: int
    stop: int

    @property
    def frame_count(self) -> int:
        """Number of frames F."""
        return self.stop - self.start

    @property
    def fps(self) -> float:
        """Mean frames per second; that of the whole video if the frames span no time."""
        span = float(self.video.pts_seconds[self.stop - 1] - self.video.pts_seconds[self.start])
        return (self.frame_count - 1) / span if span > 0 else self.video.fps

    @property
    def pts_seconds(self) -> NDArray[np.float64]:
        """(F,) float64, seconds since the first frame of the video."""
        return self.video.pts_seconds[self.start : self.stop]

    @property
    def keyframe_indices(self) -> NDArray[np.int64]:
        """(K,) int64, frame numbers of the keyframes within the sample."""
        indices = self.video.keyframe_indices
        return indices[(indices >= self.start) & (indices < self.stop)] - self.start


@dataclass
class Spool:
    """Files of a shard's videos, by kind of content, and the metadata of the videos.

    Attributes:
        folder: where the files are kept.
        samples: videos or segments.
        videos: whole videos.
        failures: videos that could not be extracted.
        files: files by kind, in the order of ``videos``.
    """

    folder: Path
    samples: list[Sample] = field(default_factory=list)
    videos: list[ExtractedVideo] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    files: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))

    def append(self, kind: str, source: Path) -> None:
        """Move a file of this kind into the spool."""
        kept = self.folder / f"{kind}-{len(self.files[kind])}"
        source.rename(kept)
        self.files[kind].append(kept)

    def byte_count(self, kind: str) -> int:
        """Return the total size of the files of this kind."""
        return sum(path.stat().st_size for path in self.files[kind])

    def blocks(self, kind: str, size: int) -> Iterator[memoryview]:
        """Yield the concatenated content of the files of this kind in blocks of ``size`` bytes, and remove the files.

        A block is valid until the next one is requested; the last one may be shorter.
        """
        size = min(size, self.byte_count(kind)) or 1  # allocating unused memory takes time
        block, filled = bytearray(size), 0
        for path in self.files[kind]:
            with path.open("rb") as stream:
                while count := stream.readinto(memoryview(block)[filled:]):
                    filled += count
                    if filled == size:
                        yield memoryview(block)
                        filled = 0
            path.unlink()
        if filled:
            yield memoryview(block)[:filled]
