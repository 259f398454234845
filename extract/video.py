"""Extracts one video into spool files: probe, transcode, read vectors, draw grids.

What a video needs in memory does not depend on its length: bytes go from file to file, and only a few numbers a frame
are held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from extract.config import ExtractConfig
from extract.ffmpeg_binary import FfmpegBinary
from extract.grid import rasterize
from extract.motion import FrameVectors, read_vectors
from extract.source import SourceFacts, VideoError, probe
from extract.transcode import read_packets, transcode

_BATCH_FRAMES = 64


@dataclass(frozen=True, kw_only=True)
class ExtractedVideo:
    """One video's data, lying in files of its working folder.

    Attributes:
        facts: what its container says.
        frame_jpeg, keyframe_jpeg: files of JPEGs end to end.
        frame_sizes, keyframe_sizes: (F,) and (K,) int64, bytes of each JPEG.
        pts_seconds: (F,) float64.
        frame_types: (F,) S1.
        keyframe_indices: (K,) int64.
        grid, valid: files of raw C-ordered (F, 2, gh, gw) int16 and (F, gh, gw) uint8.
    """

    facts: SourceFacts
    frame_jpeg: Path
    frame_sizes: NDArray[np.int64]
    pts_seconds: NDArray[np.float64]
    frame_types: NDArray[np.bytes_]
    keyframe_jpeg: Path
    keyframe_sizes: NDArray[np.int64]
    keyframe_indices: NDArray[np.int64]
    grid: Path
    valid: Path

    def __post_init__(self) -> None:
        frames, keyframes = len(self.frame_sizes), len(self.keyframe_sizes)
        if not frames == len(self.pts_seconds) == len(self.frame_types):
            raise ValueError(
                f"{frames} frames, {len(self.pts_seconds)} time stamps, {len(self.frame_types)} frames of motion"
            )
        if keyframes != len(self.keyframe_indices):
            raise ValueError(f"{keyframes} keyframes for {len(self.keyframe_indices)} I-frames")

    @property
    def frame_count(self) -> int:
        """Number of frames F."""
        return len(self.frame_sizes)

    @property
    def fps(self) -> float:
        """Frames per second over the video's time stamps; the container's word where these say nothing."""
        span = float(self.pts_seconds[-1] - self.pts_seconds[0])
        return (self.frame_count - 1) / span if span > 0 else self.facts.fps


def extract_video(source: Path, config: ExtractConfig, workdir: Path, binary: FfmpegBinary) -> ExtractedVideo:
    """Extracts one video.

    Args:
        source: the video file.
        config: what to make of it.
        workdir: an existing, empty folder for this video alone.
        binary: the run's FFmpeg.

    Raises:
        VideoError: the video cannot be extracted; says at which stage and why.
    """
    facts = probe(source)
    files = transcode(source, facts, config, workdir, binary)
    frame_jpeg, keyframe_jpeg = workdir / "frames.jpegs", workdir / "keyframes.jpegs"
    frame_sizes, pts = _unpack(read_packets(files.frames), frame_jpeg)
    files.frames.unlink()
    keyframe_sizes, keyframe_pts = _unpack(read_packets(files.keyframes), keyframe_jpeg)
    grid, valid = workdir / "grid.raw", workdir / "valid.raw"
    types = _spool_motion(read_vectors(files.canonical), config, grid, valid)
    files.canonical.unlink()
    indices = np.flatnonzero(types == b"I")
    _check_counts(pts, types, indices, keyframe_pts)
    return ExtractedVideo(
        facts=facts,
        frame_jpeg=frame_jpeg,
        frame_sizes=frame_sizes,
        pts_seconds=pts,
        frame_types=types,
        keyframe_jpeg=keyframe_jpeg,
        keyframe_sizes=keyframe_sizes,
        keyframe_indices=indices,
        grid=grid,
        valid=valid,
    )


def _check_counts(
    pts: NDArray[np.float64],
    types: NDArray[np.bytes_],
    keyframe_indices: NDArray[np.int64],
    keyframe_pts: NDArray[np.float64],
) -> None:
    """Frame n must mean the same frame in all three outputs; anything else would pair frames with foreign motion."""
    if len(pts) == 0:
        raise VideoError("transcode", "no frame of the video could be decoded")
    if len(pts) != len(types):
        raise VideoError("motion", f"{len(types)} frames of motion for {len(pts)} JPEG frames")
    if len(keyframe_indices) != len(keyframe_pts):
        raise VideoError("motion", f"{len(keyframe_pts)} keyframe pictures for {len(keyframe_indices)} I-frames")


def _unpack(packets: Iterable[tuple[float, bytes]], target: Path) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    sizes, stamps = [], []
    with target.open("wb") as out:
        for stamp, jpeg in packets:
            out.write(jpeg)
            sizes.append(len(jpeg))
            stamps.append(stamp)
    return np.array(sizes, np.int64), np.array(stamps, np.float64)


def _spool_motion(
    vectors: Iterator[FrameVectors], config: ExtractConfig, grid_file: Path, valid_file: Path
) -> NDArray[np.bytes_]:
    types: list[bytes] = []
    with grid_file.open("wb") as grid_out, valid_file.open("wb") as valid_out:
        # Several frames at a time: the cost of numpy's calls is shared, and memory stays bounded.
        while batch := list(islice(vectors, _BATCH_FRAMES)):
            motion = rasterize(batch, config.width, config.height, config.cell_px)
            grid_out.write(motion.grid_quarter_px.data)
            valid_out.write(motion.valid.data)
            types += [frame.frame_type.encode() for frame in batch]
    return np.array(types, "S1")
