"""Extracts one video into spool files: probe, transcode, read vectors, draw grids.

What a video needs in memory does not depend on its length: bytes go from file to file, and only a few numbers a frame
are held.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from extract.config import ExtractConfig
from extract.direct import use_own_vectors
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
        pts_seconds: (F,) float64, seconds since the first frame.
        frame_types: (F,) S1.
        keyframe_indices: (K,) int64.
        grid, valid: files of raw C-ordered (F, 2, gh, gw) int16 and (F, gh, gw) uint8.
        own_vectors: whether the vectors are the source's own, not those of a canonical stream.
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
    own_vectors: bool = False

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


def cut_into_segments(video: ExtractedVideo, seconds: float | None) -> list[tuple[int, int]]:
    """First and last + 1 frame of each sample of a video.

    A cut falls on the first I-frame at or after each multiple of ``seconds``, so that every sample begins with a
    keyframe; without ``seconds`` the whole video is one sample.
    """
    cuts = [0]
    if seconds is not None:
        times = video.pts_seconds[video.keyframe_indices]
        for index, time in zip(video.keyframe_indices.tolist(), times.tolist(), strict=True):
            if index > 0 and time // seconds > video.pts_seconds[cuts[-1]] // seconds:
                cuts.append(index)
    return list(zip(cuts, [*cuts[1:], video.frame_count], strict=True))


def extract_video(
    source: Path, config: ExtractConfig, workdir: Path, binary: FfmpegBinary, *, reader: str = "auto"
) -> ExtractedVideo:
    """Extracts one video.

    Args:
        source: the video file.
        config: what to make of it.
        workdir: an existing, empty folder for this video alone.
        binary: the run's FFmpeg.
        reader: see ``extract.motion.choose_reader``; it does not change the result.

    Raises:
        VideoError: the video cannot be extracted; says at which stage and why.
        OutputError: ``workdir`` cannot be written.
    """
    source = _plain_name(source, workdir)
    facts = probe(source)
    # mvextractor may open only what this project has written.
    own_vectors = reader != "mvextractor" and use_own_vectors(source, facts, config)
    files = transcode(source, facts, config, workdir, binary, own_vectors=own_vectors)
    frame_jpeg, keyframe_jpeg = workdir / "frames.jpegs", workdir / "keyframes.jpegs"
    grid, valid = workdir / "grid.raw", workdir / "valid.raw"
    if files.canonical is None:
        vectors = read_vectors(source, reader, facts.stream_index, size=(config.width, config.height))
    else:
        vectors = read_vectors(files.canonical, reader)
    types, vector_pts = _spool_motion(vectors, config, grid, valid)
    if files.canonical is not None:
        files.canonical.unlink()
    keyframe_sizes, keyframe_pts = _unpack(files.keyframes, keyframe_jpeg)
    if files.frames is None:
        frame_jpeg.touch()
        frame_sizes, pts = np.zeros(len(types), np.int64), vector_pts
    else:
        frame_sizes, pts = _unpack(files.frames, frame_jpeg)
    indices = np.flatnonzero(types == b"I")
    _check_counts(pts, types, indices, keyframe_pts, compare_times=files.frames is not None)
    return ExtractedVideo(
        facts=facts,
        frame_jpeg=frame_jpeg,
        frame_sizes=frame_sizes,
        pts_seconds=pts - pts[0],
        frame_types=types,
        keyframe_jpeg=keyframe_jpeg,
        keyframe_sizes=keyframe_sizes,
        keyframe_indices=indices,
        grid=grid,
        valid=valid,
        own_vectors=own_vectors,
    )


def _check_counts(
    pts: NDArray[np.float64],
    types: NDArray[np.bytes_],
    keyframe_indices: NDArray[np.int64],
    keyframe_pts: NDArray[np.float64],
    *,
    compare_times: bool,
) -> None:
    """Frame n must mean the same frame in all outputs; anything else would pair frames with foreign motion."""
    if len(pts) == 0:
        raise VideoError("transcode", "no frame of the video could be decoded")
    if len(pts) != len(types):
        raise VideoError("motion", f"{len(types)} frames of motion for {len(pts)} JPEG frames")
    if len(keyframe_indices) == 0:
        raise VideoError("motion", "it has no I-frame; extract it with --transcode auto or always")
    if len(keyframe_indices) != len(keyframe_pts):
        raise VideoError("motion", f"{len(keyframe_pts)} keyframe pictures for {len(keyframe_indices)} I-frames")
    if compare_times and not np.array_equal(pts[keyframe_indices], keyframe_pts):
        raise VideoError("motion", "keyframe pictures and I-frames have different time stamps")


def _unpack(packets: Path, target: Path) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Turns one of FFmpeg's outputs into JPEGs end to end, and removes it."""
    sizes, stamps = [], []
    with target.open("wb") as out:
        for stamp, jpeg in read_packets(packets):
            out.write(jpeg)
            sizes.append(len(jpeg))
            stamps.append(stamp)
    packets.unlink()
    return np.array(sizes, np.int64), np.array(stamps, np.float64)


def _spool_motion(
    vectors: Iterator[FrameVectors], config: ExtractConfig, grid_file: Path, valid_file: Path
) -> tuple[NDArray[np.bytes_], NDArray[np.float64]]:
    types: list[bytes] = []
    stamps: list[float] = []
    with grid_file.open("wb") as grid_out, valid_file.open("wb") as valid_out:
        # Several frames at a time: the cost of numpy's calls is shared, and memory stays bounded.
        while batch := list(islice(vectors, _BATCH_FRAMES)):
            motion = rasterize(batch, config.width, config.height, config.cell_px)
            grid_out.write(motion.grid_quarter_px.data)
            valid_out.write(motion.valid.data)
            types += [frame.frame_type.encode() for frame in batch]
            stamps += [frame.pts_seconds for frame in batch]
    return np.array(types, "S1"), np.array(stamps, np.float64)


def _plain_name(source: Path, workdir: Path) -> Path:
    """A name of the source that every library takes: PyAV cannot open names that are not UTF-8."""
    try:
        str(source).encode("utf-8")
    except UnicodeEncodeError:
        link = workdir / "source"
        link.symlink_to(source.absolute())
        return link
    return source
