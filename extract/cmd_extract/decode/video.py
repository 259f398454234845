"""Extracts one video into spool files: probe, transcode, read vectors, draw grids.

What a video needs in memory does not depend on its length: bytes go from file to file, and only a few numbers a frame
are held.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.decode.keyframes import KeyframeEncoder
from cmd_extract.decode.own_stream import use_own_vectors
from cmd_extract.decode.source import SourceFacts, decoder_errors, probe
from cmd_extract.decode.spool import SpooledStream, spool_stream, unpack
from cmd_extract.decode.transcode import TranscodedFiles, read_packets, transcode
from cmd_extract.decode.vectors import OwnStream, read_vectors
from cmd_extract.errors import VideoError
from cmd_extract.schema import Damage

_SAME_SECONDS = 1e-3
_USUAL_FPS = 25.0
# Edit lists and packed B-frames make a few frames fewer of what containers count.
_LOST_SHARE, _LOST_FRAMES = 0.05, 1


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
        damage: what is known to be wrong with the source.
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
    damage: Damage = Damage.NONE

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
        reader: see ``cmd_extract.decode.vectors.choose_reader``; it does not change the result.

    Raises:
        VideoError: the video cannot be extracted; says at which stage and why.
        OutputError: ``workdir`` cannot be written.
    """
    source = _plain_name(source, workdir)
    facts = probe(source)
    # mvextractor may open only what this project has written.
    own_vectors = reader != "mvextractor" and use_own_vectors(source, facts, config)
    spool = {name: workdir / name for name in ("frames", "keyframes", "grid", "valid")}
    own = _read_own_stream(source, facts, reader, config, spool) if own_vectors else None
    damaged = own is not None and own.damaged
    if damaged and config.transcode == "auto":
        own = None
    files = transcode(source, facts, config, workdir, binary, own_vectors=own is not None)
    files = replace(files, decode_errors=files.decode_errors or damaged)
    if own is not None:
        stream, keyframe_sizes, keyframe_pts = own.stream, own.stream.keyframe_sizes, None
    else:
        assert files.canonical is not None, "made where the source's own vectors are not used"
        stream = spool_stream(read_vectors(files.canonical, reader), config, spool)
        files.canonical.unlink()
        keyframe_sizes, keyframe_pts = unpack(files.keyframes, spool["keyframes"])
    if files.frames is None:
        spool["frames"].touch()
        frame_sizes, pts = np.zeros(len(stream.types), np.int64), _times_without_frames(files, stream, facts)
    else:
        frame_sizes, pts = unpack(files.frames, spool["frames"])
    indices = np.flatnonzero(stream.types == b"I")
    _check_frames(pts, stream, indices, keyframe_pts)
    return ExtractedVideo(
        facts=facts,
        frame_jpeg=spool["frames"],
        frame_sizes=frame_sizes,
        pts_seconds=pts - pts[0],
        frame_types=stream.types,
        keyframe_jpeg=spool["keyframes"],
        keyframe_sizes=keyframe_sizes,
        keyframe_indices=indices,
        grid=spool["grid"],
        valid=spool["valid"],
        own_vectors=own is not None,
        damage=_damage(files, facts, len(pts), config),
    )


@dataclass(frozen=True, kw_only=True)
class _OwnReading:
    stream: SpooledStream
    damaged: bool


def _read_own_stream(
    source: Path, facts: SourceFacts, reader: str, config: ExtractConfig, spool: dict[str, Path]
) -> _OwnReading:
    """Reads a source's own vectors and keyframes; those of a damaged one once more, with all that concealing needs.

    Under ``auto`` that is not needed: damaged sources are transcoded.
    """
    for whole_pictures in (False, True):
        damaged: list[bool] = []
        own = OwnStream(
            stream_index=facts.stream_index,
            size=(config.width, config.height),
            encode_keyframe=KeyframeEncoder(config.jpeg_quality),
            whole_pictures=whole_pictures,
            on_damage=partial(damaged.append, True),
        )
        with decoder_errors() as count_errors:
            stream = spool_stream(read_vectors(source, reader, own), config, spool)
            found = bool(damaged) or count_errors() > 0
        if not found or config.transcode == "auto":
            break
    return _OwnReading(stream=stream, damaged=found)


def _damage(files: TranscodedFiles, facts: SourceFacts, frames: int, config: ExtractConfig) -> Damage:
    damage = Damage.DECODE_ERRORS if files.decode_errors else Damage.NONE
    if config.fps is None and frames < facts.promised_frames * (1 - _LOST_SHARE) - _LOST_FRAMES:
        damage |= Damage.FRAMES_MISSING
    return damage


def _times_without_frames(files: TranscodedFiles, stream: SpooledStream, facts: SourceFacts) -> NDArray[np.float64]:
    """Time stamps of the source, not those of a canonical stream, whose frames are merely numbered.

    Elementary streams have none; as with FFmpeg, their frames then follow at the frame rate.
    """
    if files.stamps is not None:
        times = np.array([stamp for stamp, _ in read_packets(files.stamps)], np.float64)
        files.stamps.unlink()
        return times
    pts = stream.pts_seconds
    return np.arange(len(pts)) / (facts.fps or _USUAL_FPS) if np.isnan(pts).any() else pts


def _check_frames(
    pts: NDArray[np.float64],
    stream: SpooledStream,
    keyframe_indices: NDArray[np.int64],
    keyframe_pts: NDArray[np.float64] | None,
) -> None:
    """Frame n must mean the same frame in all outputs; anything else would pair frames with foreign motion.

    Args:
        pts: (F,) time stamps of the frames.
        stream: what the vectors come from.
        keyframe_indices: (K,) numbers of its I-frames.
        keyframe_pts: (K,) time stamps of keyframes that FFmpeg has made beside a canonical stream; None where pictures,
            vectors and time stamps all come from ``stream``.
    """
    types = stream.types
    if len(pts) == 0:
        raise VideoError("transcode", "no frame of the video could be decoded")
    if len(pts) != len(types):
        raise VideoError("motion", f"{len(types)} frames of motion for {len(pts)} JPEG frames")
    if len(keyframe_indices) == 0:
        raise VideoError("motion", "it has no I-frame; extract it with --transcode auto or always")
    if keyframe_pts is None:
        if not _same_times(pts, stream.pts_seconds):
            raise VideoError("motion", "small frames and frames of motion have different time stamps")
        return
    if len(keyframe_indices) != len(keyframe_pts):
        raise VideoError("motion", f"{len(keyframe_pts)} keyframe pictures for {len(keyframe_indices)} I-frames")
    if not _same_times(pts[keyframe_indices], keyframe_pts):
        raise VideoError("motion", "keyframe pictures and I-frames have different time stamps")


def _same_times(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> bool:
    """Whether two readers give the same frames the same times, as far as both give any (NaN: none).

    Compared are distances from the first frame that both have, since FFmpeg may move the start to 0.
    """
    known = np.flatnonzero(~(np.isnan(ours) | np.isnan(theirs)))
    if len(known) == 0:
        return True
    apart = (ours[known] - ours[known[0]]) - (theirs[known] - theirs[known[0]])
    return bool(np.abs(apart).max() <= _SAME_SECONDS)


def _plain_name(source: Path, workdir: Path) -> Path:
    """A name of the source that every library takes: PyAV cannot open names that are not UTF-8."""
    try:
        str(source).encode("utf-8")
    except UnicodeEncodeError:
        link = workdir / "source"
        link.symlink_to(source.absolute())
        return link
    return source
