"""Properties of a source file, read from its container with PyAV: no frame is decoded and no ffprobe is needed."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import av.logging
from av.stream import Disposition

from cmd_extract.errors import VideoError

# Only plain containers and elementary streams may be opened. FFmpeg's playlists and scripts (hls, concat, dash, ...)
# could read other files or the network under the name of a video.
SAFE_FORMATS = (
    "3g2,3gp,asf,av1,avi,dv,flv,gif,h263,h264,hevc,ivf,m4v,matroska,mj2,mov,mp4,mpeg,mpegts,mpegvideo,mxf,nut,obu,ogg,"
    "rm,vc1,webm,wtv,yuv4mpegpipe"
)
SAFE_PROTOCOLS = "file"
# Text metadata is not used and need not be UTF-8. PyAV 19 accepts any bytes, earlier versions only with this option.
_ACCEPT_ANY_TEXT: dict[str, Any] = {} if int(av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "ignore"}


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
    """

    stream_index: int
    codec: str
    width: int
    height: int
    fps: float
    declared_frames: int
    fingerprint: str
    file_bytes: int


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
    return opened


def fingerprint(path: Path) -> str:
    """Return the SHA-256 (hex) of a file.

    Raises:
        VideoError: the path is a folder, device, pipe or socket, which might never reach its end.
        OSError: the file cannot be read.
    """
    # Without O_NONBLOCK, opening a pipe waits for a writer.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise VideoError("open", "not a regular file")
        return hashlib.file_digest(stream, "sha256").hexdigest()


def probe(path: Path) -> SourceInfo:
    """Read the container of ``path`` and select its video stream: the largest, ignoring cover pictures.

    Raises:
        VideoError: stage ``open`` if the file cannot be read, ``probe`` if it is not a video.
    """
    try:
        digest, length = fingerprint(path), path.stat().st_size
    except OSError as error:
        raise VideoError("open", f"cannot read the file: {error.strerror}") from error
    try:
        with open_input(path) as container:
            stream = _select_stream(container)
            return SourceInfo(
                stream_index=stream.index,
                codec=stream.codec_context.codec.canonical_name,
                width=stream.codec_context.width,
                height=stream.codec_context.height,
                fps=float(stream.guessed_rate or stream.average_rate or Fraction(0)),
                declared_frames=_declared_frames(container, stream),
                fingerprint=digest,
                file_bytes=length,
            )
    except av.error.ArgumentError as error:
        # A format that is not whitelisted is reported as "Invalid argument".
        raise VideoError("probe", "not one of the accepted video containers") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError("probe", f"not a readable video: {getattr(error, 'strerror', None) or error}") from error


def estimate_frame_count(path: Path, fps: Fraction | None = None) -> int | None:
    """Estimate the number of frames of a video from its container, without decoding.

    Args:
        path: the video file.
        fps: frame rate to convert to; None keeps the source's.

    Returns:
        The estimate, or None if the container does not say or the file is not a readable video.
    """
    try:
        if not path.is_file():
            return None
        with open_input(path) as container:
            stream = _select_stream(container)
            declared = _declared_frames(container, stream)
            if declared and fps is None:
                return declared
            rate = fps or stream.guessed_rate or stream.average_rate
            seconds = container.duration / av.time_base if container.duration else 0.0
            return round(seconds * float(rate)) or None if rate else None
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


def _declared_frames(container: av.container.InputContainer, stream: av.VideoStream) -> int:
    # If an MP4 file was cut without re-encoding, its edit list hides frames that the file still contains and counts.
    if stream.frames > 0 and "mov" in container.format.name.split(","):
        return min(stream.frames, sum(not entry.is_discard for entry in stream.index_entries))
    return max(0, stream.frames)


def _select_stream(container: av.container.InputContainer) -> av.VideoStream:
    usable = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    usable = [s for s in usable if s.codec_context is not None and s.codec_context.width and s.codec_context.height]
    if not usable:
        kinds = ", ".join(sorted({s.type for s in container.streams}))
        raise VideoError("probe", f"no video stream in the file (streams: {kinds or 'none'})")
    return max(usable, key=lambda s: (s.codec_context.width * s.codec_context.height, -s.index))
