"""Facts of a source file, read from its container with PyAV: no frame is decoded, no ffprobe needed."""

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

# What may be opened at all. FFmpeg's playlists and scripts (hls, concat, dash ...) would read other files or the
# network under the name of a video, so only plain containers and elementary streams pass.
SAFE_FORMATS = (
    "3g2,3gp,asf,av1,avi,dv,flv,gif,h263,h264,hevc,ivf,m4v,matroska,mj2,mov,mp4,mpeg,mpegts,mpegvideo,mxf,nut,obu,ogg,"
    "rm,vc1,webm,wtv,yuv4mpegpipe"
)
SAFE_PROTOCOLS = "file"
# Free text in containers need not be UTF-8, and is not used. PyAV 19 takes any; before, it had to be told to.
_ANY_TEXT: dict[str, Any] = {} if int(av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "ignore"}

STAGES = ("open", "probe", "transcode", "motion", "timeout", "memory", "crash", "error")


@dataclass(frozen=True, kw_only=True)
class SourceFacts:
    """What the container says of the video stream that is extracted.

    Attributes:
        stream_index: index of the stream among all streams of the file.
        codec: FFmpeg's name of the codec.
        width, height: size of the decoded picture in pixels, before any rotation the container asks for.
        fps: frame rate by the container or the stream, 0 if neither says.
        promised_frames: number of frames by the container that are to be shown, 0 if it does not say.
        fingerprint: SHA-256 (hex) of the file.
        file_bytes: its length.
    """

    stream_index: int
    codec: str
    width: int
    height: int
    fps: float
    promised_frames: int
    fingerprint: str
    file_bytes: int


def input_options() -> dict[str, str]:
    """Demuxer options that keep an untrusted file from opening anything but itself."""
    return {"protocol_whitelist": SAFE_PROTOCOLS, "format_whitelist": SAFE_FORMATS}


def input_url(path: Path) -> str:
    """The URL of a local file that FFmpeg cannot mistake for an option or another protocol."""
    return "file:" + str(path.absolute())


def open_input(path: Path) -> av.container.InputContainer:
    """Opens a file for PyAV, which then opens nothing else; use as a context manager.

    Raises:
        av.error.FFmpegError: it is no readable video.
    """
    opened: av.container.InputContainer = av.open(input_url(path), options=input_options(), **_ANY_TEXT)
    return opened


def fingerprint(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes.

    Raises:
        VideoError: it is a folder, device, pipe or socket; reading one may never end.
        OSError: it cannot be read.
    """
    # Without O_NONBLOCK, opening a pipe waits for a writer.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise VideoError("open", "not a regular file")
        return hashlib.file_digest(stream, "sha256").hexdigest()


def probe(path: Path) -> SourceFacts:
    """Reads the container of ``path`` and picks its best video stream; cover pictures do not count.

    Raises:
        VideoError: stage ``open`` if the file cannot be read, ``probe`` if it is no video.
    """
    try:
        digest, length = fingerprint(path), path.stat().st_size
    except OSError as error:
        raise VideoError("open", f"cannot read the file: {error.strerror}") from error
    try:
        with open_input(path) as container:
            stream = _best_stream(container)
            return SourceFacts(
                stream_index=stream.index,
                codec=stream.codec_context.codec.canonical_name,
                width=stream.codec_context.width,
                height=stream.codec_context.height,
                fps=float(stream.guessed_rate or stream.average_rate or Fraction(0)),
                promised_frames=_promised_frames(container, stream),
                fingerprint=digest,
                file_bytes=length,
            )
    except av.error.ArgumentError as error:
        # What the format whitelist refuses comes back as "Invalid argument".
        raise VideoError("probe", "not one of the accepted video containers") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError("probe", f"not a readable video: {getattr(error, 'strerror', None) or error}") from error


def frames_by_header(path: Path, fps: Fraction | None = None) -> int | None:
    """About how many frames a video has, as its container says; nothing is decoded.

    Args:
        path: the file.
        fps: frame rate that it would be converted to; None for its own.

    Returns:
        None if that cannot be told, or the file is no readable video.
    """
    try:
        if not path.is_file():
            return None
        with open_input(path) as container:
            stream = _best_stream(container)
            promised = _promised_frames(container, stream)
            if promised and fps is None:
                return promised
            rate = fps or stream.guessed_rate or stream.average_rate
            seconds = container.duration / av.time_base if container.duration else 0.0
            return round(seconds * float(rate)) or None if rate else None
    except (av.error.FFmpegError, OSError, ValueError, VideoError):
        return None


@contextmanager
def decoder_errors() -> Iterator[Callable[[], int]]:
    """Within it, a function that tells how many errors FFmpeg's libraries have reported in this process so far."""
    logger = logging.getLogger("libav")
    level = logger.level
    # They are to be counted only: a garbled file may give millions.
    logger.setLevel(logging.CRITICAL + 1)
    av.logging.set_level(av.logging.ERROR)
    before = av.logging.get_last_error()[0]
    try:
        yield lambda: av.logging.get_last_error()[0] - before
    finally:
        av.logging.set_level(None)
        logger.setLevel(level)


def _promised_frames(container: av.container.InputContainer, stream: av.VideoStream) -> int:
    # An edit list (of MP4 files cut without coding them again) hides frames that the file holds and counts.
    if stream.frames > 0 and "mov" in container.format.name.split(","):
        return min(stream.frames, sum(not entry.is_discard for entry in stream.index_entries))
    return max(0, stream.frames)


def _best_stream(container: av.container.InputContainer) -> av.VideoStream:
    usable = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    usable = [s for s in usable if s.codec_context is not None and s.codec_context.width and s.codec_context.height]
    if not usable:
        kinds = ", ".join(sorted({s.type for s in container.streams}))
        raise VideoError("probe", f"no video stream in the file (streams: {kinds or 'none'})")
    return max(usable, key=lambda s: (s.codec_context.width * s.codec_context.height, -s.index))
