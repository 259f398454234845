"""Extraction of one video into spool files: probe, transcode, read motion vectors, rasterize.

Memory use does not depend on the length of the video: bulk data goes from file to file, only a few numbers per frame
are kept in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.decode.own_stream import read_own_stream, use_own_vectors
from cmd_extract.decode.source import SourceInfo, probe
from cmd_extract.decode.spool import MotionStream, VideoSpool, spool_jpegs, spool_motion
from cmd_extract.decode.stamps import FrameTimes, constant_rate_times, increasing_ticks, read_printed_stamps
from cmd_extract.decode.transcode import TranscodedFiles, transcode
from cmd_extract.decode.vectors import read_vectors
from cmd_extract.errors import OutputError, VideoError
from cmd_extract.schema import Damage

_PTS_TOLERANCE_SECONDS = 1e-3
# Edit lists and packed B-frames lose a few of the frames that the container declares.
_TOLERATED_LOSS_FRACTION, _TOLERATED_LOSS_FRAMES = 0.05, 1


@dataclass(frozen=True, kw_only=True)
class ExtractedVideo:
    """The data of one video, as files in its working folder.

    Attributes:
        source: properties of the source file.
        frame_jpeg, keyframe_jpeg: files of concatenated JPEGs.
        frame_sizes, keyframe_sizes: (F,) and (K,) int64, bytes of each JPEG.
        times: of the F frames.
        frame_types: (F,) S1.
        keyframe_indices: (K,) int64.
        grid, valid: files of raw C-ordered (F, 2, gh, gw) int16 and (F, gh, gw) uint8.
        own_vectors: whether the vectors are the source's own instead of a canonical stream's.
        damage: known damage of the source.
    """

    source: SourceInfo
    frame_jpeg: Path
    frame_sizes: NDArray[np.int64]
    times: FrameTimes
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
        if not frames == len(self.times) == len(self.frame_types):
            raise ValueError(
                f"{frames} frame sizes, {len(self.times)} time stamps and {len(self.frame_types)} frame types, "
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

    @cached_property
    def pts_seconds(self) -> NDArray[np.float64]:
        """(F,) float64, seconds since the first frame."""
        return self.times.seconds

    @property
    def note(self) -> str:
        """What the user should know about the extraction, in one line; usually empty."""
        return "; ".join(filter(None, (self.source.note, self.times.note)))

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
        indices = video.keyframe_indices.tolist()
        # Exactly the given decimal number: 0.6 as a binary floating-point number is not three fifths.
        segments = video.times.intervals(indices, Fraction(str(seconds)))
        # The first sample starts at frame 0, which need not be an I-frame.
        for index, segment, before in zip(indices, segments, [0, *segments], strict=False):
            if index > 0 and segment > before:
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
    source = utf8_path(source, workdir)
    info = probe(source)
    spool = VideoSpool.in_folder(workdir)
    damaged = False
    # mvextractor may only open files written by this project.
    if reader != "mvextractor" and use_own_vectors(source, info, config):
        try:
            video, damaged = _use_own_stream(source, info, config, workdir, binary)
            if video is not None:
                return video
        except VideoError as error:
            # Whatever makes a source unusable as it is, a canonical stream can be made from its pictures.
            if config.transcode != "auto" or error.stage == "memory":
                raise
    files = transcode(source, info, config, workdir, binary)
    stream = _read_canonical_stream(files, config, reader, spool)
    return _assemble(info, config, stream, files, spool, damaged=damaged)


def utf8_path(source: Path, workdir: Path) -> Path:
    """Return a path that every library accepts: PyAV cannot open file names that are not UTF-8, so link to them."""
    try:
        str(source).encode("utf-8")
    except UnicodeEncodeError:
        link = workdir / "source"
        try:
            link.symlink_to(source.absolute())
        except OSError as error:  # a file system without symbolic links, such as CIFS or exFAT
            raise VideoError(
                "open",
                f"the file name is not UTF-8, which needs a symbolic link, but {workdir.parent} does not support them "
                f"({error.strerror}); rename the file or use another --scratch folder",
            ) from None
        return link
    return source


def _use_own_stream(
    source: Path, info: SourceInfo, config: ExtractConfig, workdir: Path, binary: FfmpegBinary
) -> tuple[ExtractedVideo | None, bool]:
    """Extract a video with the source's own vectors.

    Returns:
        The video, or None with ``--transcode auto`` if the source is damaged; and whether it is damaged.
    """
    spool = VideoSpool.in_folder(workdir)
    stream, damaged = read_own_stream(source, info, config, spool)
    if damaged and config.transcode == "auto":
        return None, damaged
    files = transcode(source, info, config, workdir, binary, frames_only=True)
    return _assemble(info, config, stream, files, spool, damaged=damaged), damaged


def _read_canonical_stream(
    files: TranscodedFiles, config: ExtractConfig, reader: str, spool: VideoSpool
) -> MotionStream:
    """Read the vectors of the canonical stream and the keyframes made with it; delete both files."""
    assert files.canonical is not None, "made unless the source's own vectors are used"
    stream = spool_motion(read_vectors(files.canonical, reader), config, spool)
    files.canonical.unlink()
    sizes, numbers = spool_jpegs(files.keyframes, spool.keyframes)
    return replace(stream, keyframe_sizes=sizes, keyframe_numbers=numbers)


def _assemble(
    info: SourceInfo,
    config: ExtractConfig,
    stream: MotionStream,
    files: TranscodedFiles,
    spool: VideoSpool,
    *,
    damaged: bool,
) -> ExtractedVideo:
    """Join the outputs of one video, after checking that they belong together."""
    own_vectors = files.canonical is None
    frame_sizes = _read_frames(files, stream, spool)
    check_frames(stream, len(frame_sizes), files.first_error)
    times = _read_times(files, info, config, stream)
    damage = Damage.DECODE_ERRORS if files.decode_errors or damaged else Damage.NONE
    expected = info.declared_frames * (1 - _TOLERATED_LOSS_FRACTION) - _TOLERATED_LOSS_FRAMES
    if config.fps is None and len(times) < expected:
        damage |= Damage.FRAMES_MISSING
    if times.moved or times.closed:
        damage |= Damage.TIMES_REPAIRED
    return ExtractedVideo(
        source=info,
        frame_jpeg=spool.frames,
        frame_sizes=frame_sizes,
        times=times,
        frame_types=stream.types,
        keyframe_jpeg=spool.keyframes,
        keyframe_sizes=stream.keyframe_sizes,
        keyframe_indices=stream.keyframe_indices,
        grid=spool.grid,
        valid=spool.valid,
        own_vectors=own_vectors,
        damage=damage,
    )


def _read_frames(files: TranscodedFiles, stream: MotionStream, spool: VideoSpool) -> NDArray[np.int64]:
    """Return (F,) sizes of the small frames in bytes, 0 if they are not stored."""
    if files.frames is not None:
        return spool_jpegs(files.frames, spool.frames)[0]
    spool.frames.touch()
    return np.zeros(len(stream.types), np.int64)


def _read_times(files: TranscodedFiles, info: SourceInfo, config: ExtractConfig, stream: MotionStream) -> FrameTimes:
    """Return the times of the frames: those of the stream with the vectors if it is the source, else FFmpeg's.

    Raises:
        VideoError: FFmpeg and PyAV have read different frames.
        OutputError: FFmpeg could not write all time stamps.
    """
    frames = len(stream.types)
    stamps = None
    if files.stamps is not None:
        stamps = read_printed_stamps(files.stamps, info.time_base, info.frame_interval)
        files.stamps.unlink()
        if config.fps is not None:
            return constant_rate_times(frames, Fraction(config.fps), stamps, info.time_base)
        if len(stamps) != frames:
            raise OutputError(
                f"cannot write in {files.stamps.parent}: {len(stamps)} of {frames} time stamps were written"
            )
    if files.canonical is None:
        if stamps is not None and not same_times(stamps, stream, info.time_base):
            raise VideoError("motion", "small frames and motion vectors have different time stamps")
        stamps = stream.stamps
    if not info.has_stamps:  # FFmpeg's guesses depend on its version
        stamps = np.arange(frames, dtype=np.int64) * info.frame_interval
    assert stamps is not None, "printed unless the source's own vectors are used"
    return increasing_ticks(stamps, info.time_base, may_jump=info.may_jump)


def require_frames(frames: int, first_error: str) -> None:
    """Check that FFmpeg has decoded at least one frame.

    Raises:
        VideoError: it has not; the reason contains FFmpeg's first error.
    """
    if frames == 0:
        because = f": {first_error}" if first_error else ""
        raise VideoError("transcode", f"no frame of the video could be decoded{because}")


def check_frames(stream: MotionStream, frames: int, first_error: str = "") -> None:
    """Check that frame n is the same frame in all outputs; otherwise frames would be paired with another's motion.

    Args:
        stream: the stream that the vectors come from.
        frames: number of small frames.
        first_error: FFmpeg's first error, shown if nothing could be decoded.

    Raises:
        VideoError: the outputs do not match, or there is no frame or no I-frame.
    """
    indices = stream.keyframe_indices
    require_frames(frames, first_error)
    if frames != len(stream.types):
        raise VideoError("motion", f"{len(stream.types)} frames with motion vectors but {frames} JPEG frames")
    if len(indices) == 0:
        raise VideoError("motion", "the video has no I-frame; extract it with --transcode auto or always")
    if stream.keyframe_numbers is not None and not np.array_equal(indices, stream.keyframe_numbers):
        raise VideoError(
            "motion", f"{len(stream.keyframe_numbers)} keyframe JPEGs do not match {len(indices)} I-frames"
        )


def same_times(stamps: NDArray[np.int64], stream: MotionStream, time_base: Fraction) -> bool:
    """Return whether FFmpeg and PyAV give the same frames the same times, ignoring frames without a time stamp.

    Times are compared relative to the first frame that has one.

    Args:
        stamps: (F,) FFmpeg's time stamps in ticks.
        stream: the source's own stream, of F frames.
        time_base: seconds per tick.
    """
    known = np.flatnonzero(stream.has_stamp)
    if len(known) == 0:
        return True
    difference = (stamps - stamps[known[0]]) - (stream.stamps - stream.stamps[known[0]])
    return bool(np.abs(difference[known]).max() * time_base <= _PTS_TOLERANCE_SECONDS)
