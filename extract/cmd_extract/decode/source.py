"""Properties of a source file, read from its container with PyAV: no frame is decoded and no ffprobe is needed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import av.logging

from cmd_extract.decode.streams import (
    declared_frames,
    declared_rate,
    first_packet,
    is_encrypted,
    measured_rate,
    nominal_interval,
    select_stream,
    time_base_of,
)
from cmd_extract.errors import VideoError
from cmd_extract.sources.access import fingerprint

# Only plain containers and elementary streams may be opened. FFmpeg's playlists and scripts (hls, concat, dash, ...)
# could read other files or the network under the name of a video.
SAFE_FORMATS = (
    "3g2,3gp,asf,av1,avi,dv,flv,gif,h263,h264,hevc,ivf,m4v,matroska,mj2,mov,mp4,mpeg,mpegts,mpegvideo,mxf,nut,obu,ogg,"
    "rm,vc1,webm,wtv,yuv4mpegpipe"
)
SAFE_PROTOCOLS = "file"
# Text metadata is not used and need not be UTF-8. PyAV 19 accepts any bytes, earlier versions only with this option.
_ACCEPT_ANY_TEXT: dict[str, Any] = {} if int(av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "ignore"}

# PyAV sets this flag, ``ffmpeg`` does not: the time stamps that it invents (in AVI, say) are not those of the source.
_GENERATE_PTS = 0x1
# FFmpeg's AVFMT_NOTIMESTAMPS and AVFMT_TS_DISCONT.
_NO_TIME_STAMPS, _CLOCK_MAY_JUMP = 0x80, 0x200


@dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """Properties of a source file and of its video stream, as declared by the container.

    Attributes:
        stream_index: index of the video stream among all streams of the file.
        codec: FFmpeg's name of the codec.
        width, height: size of the decoded picture in pixels, before any rotation requested by the container.
        fps: frame rate declared by the container or the stream, 0 if neither does.
        declared_frames: number of frames to be shown according to the container, 0 if it does not say.
        fingerprint: SHA-256 (hex) of the file.
        file_bytes: size of the file.
        time_base: seconds per tick of the stream's time stamps.
        frame_interval: ticks between two frames at the declared frame rate; at least 1.
        may_jump: whether the clock of this kind of container may jump, as in MPEG-TS.
        has_stamps: whether there are time stamps; otherwise, as in raw H.264, frames are ``frame_interval`` apart.
        note: how the stream was chosen, if the file has several.
    """

    stream_index: int
    codec: str
    width: int
    height: int
    fps: float
    declared_frames: int
    fingerprint: str
    file_bytes: int
    time_base: Fraction = Fraction(1, 1000)
    frame_interval: int = 1
    may_jump: bool = False
    has_stamps: bool = True
    note: str = ""


def input_options() -> dict[str, str]:
    """Return demuxer options that keep an untrusted file from opening any other file."""
    return {"protocol_whitelist": SAFE_PROTOCOLS, "format_whitelist": SAFE_FORMATS}


def input_url(path: Path) -> str:
    """Return the URL of a local file, which FFmpeg cannot mistake for an option or another protocol."""
    return "file:" + str(path.absolute())


def open_input(path: Path) -> av.container.InputContainer:
    """Open a file with PyAV such that it cannot open any other file; use as a context manager.

    Raises:
        av.error.FFmpegError: the file is not a readable video.
    """
    opened: av.container.InputContainer = av.open(input_url(path), options=input_options(), **_ACCEPT_ANY_TEXT)
    opened.flags &= ~_GENERATE_PTS
    return opened


def probe(path: Path) -> SourceInfo:
    """Read the container of ``path`` and select its video stream, see ``select_stream``.

    Raises:
        VideoError: stage ``open`` if the file cannot be read, ``probe`` if it is not a video or is encrypted.
    """
    try:
        digest, length = fingerprint(path), path.stat().st_size
    except OSError as error:
        raise VideoError("open", f"cannot read the file: {error.strerror}") from error
    try:
        with _open_video(path) as (container, stream, note):
            first = first_packet(container, stream)
            no_stamps = bool(container.format.flags & _NO_TIME_STAMPS)
            if is_encrypted(stream, first):
                raise VideoError("probe", "the video is encrypted; decrypt it first")
            return SourceInfo(
                stream_index=stream.index,
                codec=stream.codec_context.codec.canonical_name,
                width=stream.codec_context.width,
                height=stream.codec_context.height,
                fps=float(declared_rate(stream)),
                declared_frames=declared_frames(container, stream),
                fingerprint=digest,
                file_bytes=length,
                time_base=time_base_of(stream),
                frame_interval=nominal_interval(stream),
                may_jump=bool(container.format.flags & _CLOCK_MAY_JUMP),
                has_stamps=first is None or first.pts is not None or first.dts is not None or not no_stamps,
                note=note,
            )
    except av.error.ArgumentError as error:
        # A format that is not whitelisted is reported as "Invalid argument".
        raise VideoError("probe", "not one of the accepted video containers") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError("probe", f"not a readable video: {getattr(error, 'strerror', None) or error}") from error


def estimate_frame_count(path: Path, fps: Fraction | None = None) -> int | None:
    """Estimate the number of frames of a video from its container and its first packets, without decoding.

    Args:
        path: the video file.
        fps: frame rate to convert to; None keeps the source's.

    Returns:
        The estimate, or None if the container does not say or the file is not a readable video.
    """
    try:
        if not path.is_file():
            return None
        with _open_video(path) as (container, stream, _):
            seconds = container.duration / av.time_base if container.duration else 0.0
            if fps is not None:
                return round(seconds * float(fps)) or None
            if declared := declared_frames(container, stream):
                return declared
            frames, rate = measured_rate(container, stream)
            return frames or round(seconds * rate) or None
    except (av.error.FFmpegError, OSError, ValueError, VideoError):
        return None


@contextmanager
def decoder_errors() -> Iterator[Callable[[], int]]:
    """Context that yields a function: the number of errors FFmpeg's libraries have reported since entry.

    The count covers the whole process.
    """
    logger = logging.getLogger("libav")
    level = logger.level
    # Count the errors without logging them: a damaged file may cause millions.
    logger.setLevel(logging.CRITICAL + 1)
    av.logging.set_level(av.logging.ERROR)
    before = av.logging.get_last_error()[0]
    try:
        yield lambda: av.logging.get_last_error()[0] - before
    finally:
        av.logging.set_level(None)
        logger.setLevel(level)


@contextmanager
def _open_video(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream, str]]:
    """Open a file before its first packet; yield the container, its video stream and a note on the choice."""
    with open_input(path) as container:
        stream, note = select_stream(container)
        if not note:
            yield container, stream, note
            return
        index = stream.index
    with open_input(path) as container:  # choosing between streams has read the file to its end
        chosen = container.streams[index]
        assert isinstance(chosen, av.VideoStream), "selected above"
        yield container, chosen, note
