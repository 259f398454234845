"""Extraction of one video into spool files: probe, transcode, read motion vectors, rasterize.

Memory use does not depend on the length of the video: bulk data goes from file to file, only a few numbers per frame
are kept in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.decode.own_stream import read_own_stream, use_own_vectors
from cmd_extract.decode.source import SourceInfo, probe
from cmd_extract.decode.spool import MotionStream, VideoSpool, spool_jpegs, spool_motion
from cmd_extract.decode.transcode import TranscodedFiles, read_packets, transcode
from cmd_extract.decode.vectors import read_vectors
from cmd_extract.errors import VideoError
from cmd_extract.schema import Damage

_PTS_TOLERANCE_SECONDS = 1e-3
_DEFAULT_FPS = 25.0
# Edit lists and packed B-frames lose a few of the frames that the container declares.
_TOLERATED_LOSS_FRACTION, _TOLERATED_LOSS_FRAMES = 0.05, 1


@dataclass(frozen=True, kw_only=True)
class ExtractedVideo:
    """The data of one video, as files in its working folder.

    Attributes:
        source: properties of the source file.
        frame_jpeg, keyframe_jpeg: files of concatenated JPEGs.
        frame_sizes, keyframe_sizes: (F,) and (K,) int64, bytes of each JPEG.
        pts_seconds: (F,) float64, seconds since the first frame.
        frame_types: (F,) S1.
        keyframe_indices: (K,) int64.
        grid, valid: files of raw C-ordered (F, 2, gh, gw) int16 and (F, gh, gw) uint8.
        own_vectors: whether the vectors are the source's own instead of a canonical stream's.
        damage: known damage of the source.
    """

    source: SourceInfo
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
    damage: Damage = Damage.NONE

    def __post_init__(self) -> None:
        frames, keyframes = len(self.frame_sizes), len(self.keyframe_sizes)
        if not frames == len(self.pts_seconds) == len(self.frame_types):
            raise ValueError(
                f"{frames} frame sizes, {len(self.pts_seconds)} time stamps and {len(self.frame_types)} frame types, "
                "need equal numbers"
            )
        if keyframes != len(self.keyframe_indices):
            raise ValueError(
                f"{keyframes} keyframe sizes and {len(self.keyframe_indices)} keyframe indices, need equal numbers"
            )

    @property
    def frame_count(self) -> int:
        """Number of frames F."""
        return len(self.frame_sizes)

    @property
    def fps(self) -> float:
        """Frames per second from the time stamps; the container's frame rate if they span no time."""
        span = float(self.pts_seconds[-1] - self.pts_seconds[0])
        return (self.frame_count - 1) / span if span > 0 else self.source.fps


def cut_into_segments(video: ExtractedVideo, seconds: float | None) -> list[tuple[int, int]]:
    """Return (start, stop) frames of each sample of a video.

    Cuts are at the first I-frame at or after each multiple of ``seconds``, so every sample starts with a keyframe. If
    ``seconds`` is None the whole video is one sample.
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
    """Extract one video.

    Args:
        source: the video file.
        config: the extraction configuration.
        workdir: existing, empty folder for this video alone.
        binary: the FFmpeg of the run.
        reader: see ``cmd_extract.decode.vectors.choose_reader``; it does not change the result.

    Raises:
        VideoError: the video cannot be extracted; contains the stage and the reason.
        OutputError: ``workdir`` cannot be written.
    """
    source = _utf8_path(source, workdir)
    info = probe(source)
    spool = VideoSpool.in_folder(workdir)
    own_stream, damaged = _try_own_stream(source, info, config, reader, spool)
    files = transcode(source, info, config, workdir, binary, own_vectors=own_stream is not None)
    stream = _read_canonical_stream(files, config, reader, spool) if own_stream is None else own_stream
    frame_sizes, pts = _read_frames(files, info, stream, spool)
    _check_alignment(pts, stream)
    return ExtractedVideo(
        source=info,
        frame_jpeg=spool.frames,
        frame_sizes=frame_sizes,
        pts_seconds=pts - pts[0],
        frame_types=stream.types,
        keyframe_jpeg=spool.keyframes,
        keyframe_sizes=stream.keyframe_sizes,
        keyframe_indices=stream.keyframe_indices,
        grid=spool.grid,
        valid=spool.valid,
        own_vectors=own_stream is not None,
        damage=_damage(info, config, decode_errors=files.decode_errors or damaged, frames=len(pts)),
    )


def _utf8_path(source: Path, workdir: Path) -> Path:
    """Return a path that every library accepts: PyAV cannot open file names that are not UTF-8, so link to them."""
    try:
        str(source).encode("utf-8")
    except UnicodeEncodeError:
        link = workdir / "source"
        link.symlink_to(source.absolute())
        return link
    return source


def _try_own_stream(
    source: Path, info: SourceInfo, config: ExtractConfig, reader: str, spool: VideoSpool
) -> tuple[MotionStream | None, bool]:
    """Read the source's own vectors if they are to be used.

    Returns:
        The stream, or None if a canonical stream is needed, and whether damage was found.
    """
    # mvextractor may only open files written by this project.
    if reader == "mvextractor" or not use_own_vectors(source, info, config):
        return None, False
    stream, damaged = read_own_stream(source, info, config, reader, spool)
    return (None if damaged and config.transcode == "auto" else stream), damaged


def _read_canonical_stream(
    files: TranscodedFiles, config: ExtractConfig, reader: str, spool: VideoSpool
) -> MotionStream:
    """Read the vectors of the canonical stream and the keyframes made beside it; delete both files."""
    assert files.canonical is not None, "made unless the source's own vectors are used"
    stream = spool_motion(read_vectors(files.canonical, reader), config, spool)
    files.canonical.unlink()
    sizes, pts = spool_jpegs(files.keyframes, spool.keyframes)
    return replace(stream, keyframe_sizes=sizes, keyframe_pts_seconds=pts)


def _read_frames(
    files: TranscodedFiles, info: SourceInfo, stream: MotionStream, spool: VideoSpool
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return (F,) sizes in bytes (0 if frames are not stored) and (F,) source time stamps of the small frames."""
    if files.frames is not None:
        return spool_jpegs(files.frames, spool.frames)
    spool.frames.touch()
    return np.zeros(len(stream.types), np.int64), _source_pts(files, info, stream)


def _source_pts(files: TranscodedFiles, info: SourceInfo, stream: MotionStream) -> NDArray[np.float64]:
    """Return the source's time stamps if there are no small frames to take them from.

    Elementary streams have no time stamps; as in FFmpeg, their frames are then spaced by the frame rate.
    """
    if files.stamps is not None:
        pts = np.array([stamp for stamp, _ in read_packets(files.stamps)], np.float64)
        files.stamps.unlink()
        return pts
    pts = stream.pts_seconds
    return np.arange(len(pts)) / (info.fps or _DEFAULT_FPS) if np.isnan(pts).any() else pts


def _check_alignment(pts: NDArray[np.float64], stream: MotionStream) -> None:
    """Check that frame n is the same frame in all outputs; otherwise frames would be paired with another's motion.

    Args:
        pts: (F,) time stamps of the small frames.
        stream: the stream that the vectors come from.

    Raises:
        VideoError: the outputs do not match, or there is no frame or no I-frame.
    """
    frames, indices = len(stream.types), stream.keyframe_indices
    if len(pts) == 0:
        raise VideoError("transcode", "no frame of the video could be decoded")
    if len(pts) != frames:
        raise VideoError("motion", f"{frames} frames with motion vectors but {len(pts)} JPEG frames")
    if len(indices) == 0:
        raise VideoError("motion", "the video has no I-frame; extract it with --transcode auto or always")
    keyframe_pts = stream.keyframe_pts_seconds
    if keyframe_pts is None:
        if not _equal_times(pts, stream.pts_seconds):
            raise VideoError("motion", "small frames and motion vectors have different time stamps")
        return
    if len(indices) != len(keyframe_pts):
        raise VideoError("motion", f"{len(keyframe_pts)} keyframe JPEGs for {len(indices)} I-frames")
    if not _equal_times(pts[indices], keyframe_pts):
        raise VideoError("motion", "keyframe JPEGs and I-frames have different time stamps")


def _equal_times(first: NDArray[np.float64], second: NDArray[np.float64]) -> bool:
    """Return whether two readers give the same frames the same times, ignoring frames without one (NaN).

    Times are compared relative to the first frame that both readers have, since FFmpeg may shift the start to 0.
    """
    known = np.flatnonzero(~(np.isnan(first) | np.isnan(second)))
    if len(known) == 0:
        return True
    difference = (first[known] - first[known[0]]) - (second[known] - second[known[0]])
    return bool(np.abs(difference).max() <= _PTS_TOLERANCE_SECONDS)


def _damage(info: SourceInfo, config: ExtractConfig, *, decode_errors: bool, frames: int) -> Damage:
    damage = Damage.DECODE_ERRORS if decode_errors else Damage.NONE
    expected = info.declared_frames * (1 - _TOLERATED_LOSS_FRACTION) - _TOLERATED_LOSS_FRAMES
    if config.fps is None and frames < expected:
        damage |= Damage.FRAMES_MISSING
    return damage
