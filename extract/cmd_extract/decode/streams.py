"""Choice of the video stream of a file, and what its container says about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import av.error
from av.stream import Disposition

from cmd_extract.errors import VideoError

_COVER = Disposition.attached_pic | Disposition.timed_thumbnails
_SAMPLED_PACKETS = 256
_DEFAULT_FPS = 25


def select_stream(container: av.container.InputContainer) -> tuple[av.VideoStream, str]:
    """Choose the video stream, and describe the choice if there was one.

    Cover pictures, and streams of a single picture if there are others, are ignored. A stream that the container marks
    as default comes first, then the one with most frames, then with most pixels, then the first one. Frames are only
    counted if there are several streams, which reads the whole file.

    Returns:
        The stream, and a note for the user; empty if there is only one video stream.

    Raises:
        VideoError: stage ``probe``; there is none.
    """
    usable = [s for s in container.streams.video if not s.disposition & _COVER]
    usable = [s for s in usable if s.codec_context is not None and s.codec_context.width and s.codec_context.height]
    if not usable:
        kinds = ", ".join(sorted({s.type for s in container.streams}))
        raise VideoError("probe", f"no video stream in the file (streams: {kinds or 'none'})")
    if len(usable) == 1:
        return usable[0], ""
    frames = _count_packets(container, usable)
    moving = [s for s in usable if frames[s.index] > 1] or usable
    best = max(
        moving,
        key=lambda s: (
            bool(s.disposition & Disposition.default),
            frames[s.index],
            s.codec_context.width * s.codec_context.height,
            -s.index,
        ),
    )
    others = "; ".join(_describe(s, frames) for s in usable if s is not best)
    return best, f"video stream {_describe(best, frames)} used; ignored: {others}"


def _describe(stream: av.VideoStream, frames: Counter[int]) -> str:
    context = stream.codec_context
    default = ", default" if stream.disposition & Disposition.default else ""
    size = f"{context.width}x{context.height}"
    count = f"{frames[stream.index]} frame{'' if frames[stream.index] == 1 else 's'}"
    return f"{stream.index} ({context.codec.canonical_name}, {size}, {count}{default})"


def _count_packets(container: av.container.InputContainer, streams: Sequence[av.VideoStream]) -> Counter[int]:
    """Return the number of packets by stream index, up to the first read error."""
    counts: Counter[int] = Counter()
    try:
        for packet in container.demux(list(streams)):
            if packet.size:
                counts[packet.stream_index] += 1
    except (av.error.FFmpegError, OSError):
        pass
    return counts


def declared_frames(container: av.container.InputContainer, stream: av.VideoStream) -> int:
    """Return the number of frames to be shown according to the container, 0 if it does not say."""
    formats = container.format.name.split(",")
    if stream.frames > 0 and "mov" in formats:
        # If an MP4 file was cut without re-encoding, its edit list hides frames that the file contains and counts.
        return min(stream.frames, sum(not entry.is_discard for entry in stream.index_entries))
    if stream.frames > 0 and "avi" in formats:
        # AVI counts dropped frames, which are empty chunks; its index lists them, but PyAV only the others. A truncated
        # file has no index, only entries of the packets that have been read.
        shown = sum(entry.size > 0 for entry in stream.index_entries)
        return (
            min(stream.frames, shown)
            if shown and _has_avi_index(Path(container.name.removeprefix("file:")))
            else stream.frames
        )
    return max(0, stream.frames)


def _has_avi_index(path: Path) -> bool:
    """Return whether an AVI file contains its index, which follows the frames, and thus is complete."""
    with path.open("rb") as file:
        file.seek(12)
        while len(header := file.read(8)) == 8:
            if header[:4] == b"idx1":
                return True
            size = int.from_bytes(header[4:], "little")
            file.seek(size + size % 2, 1)
    return False


def declared_rate(stream: av.VideoStream) -> Fraction:
    """Return the frame rate that the container or the stream declares, 0 if neither does."""
    rate = stream.guessed_rate or stream.average_rate
    return Fraction(rate.numerator, rate.denominator) if rate else Fraction(0)


def time_base_of(stream: av.VideoStream) -> Fraction:
    """Return the seconds per tick of the stream's time stamps."""
    base = stream.time_base
    return Fraction(base.numerator, base.denominator) if base else Fraction(1, 1000)


def nominal_interval(stream: av.VideoStream) -> int:
    """Return the ticks between two frames at the declared frame rate; at least 1."""
    return max(1, round(1 / ((declared_rate(stream) or _DEFAULT_FPS) * time_base_of(stream))))


def measured_rate(container: av.container.InputContainer, stream: av.VideoStream) -> tuple[int, float]:
    """Read the time stamps of the first packets.

    The frame rate that a container declares is no average: WebM with stamps in whole milliseconds has 1000 per second.

    Returns:
        Number of frames in the file, 0 if it has more than were read; and frames per second, 0 if unknown.
    """
    packets = (packet for packet in container.demux(stream) if packet.size)
    stamps = [packet.dts if packet.dts is not None else packet.pts for packet in islice(packets, _SAMPLED_PACKETS)]
    if len(stamps) < _SAMPLED_PACKETS:
        return len(stamps), 0.0
    known = [stamp for stamp in stamps if stamp is not None]
    span = float((max(known) - min(known)) * time_base_of(stream)) if known else 0.0
    return 0, (len(known) - 1) / span if span > 0 else float(declared_rate(stream))


def first_packet(container: av.container.InputContainer, stream: av.VideoStream) -> av.Packet[av.VideoStream] | None:
    """Read the first packet of the stream; None if there is none."""
    try:
        return next((packet for packet in container.demux(stream) if packet.size), None)
    except (av.error.FFmpegError, OSError):
        return None


def is_encrypted(stream: av.VideoStream, first: av.Packet[av.VideoStream] | None) -> bool:
    """Return whether the container says that the stream, of which this is the first packet, is encrypted."""
    if "enc_key_id" in stream.metadata:  # Matroska and WebM
        return True
    return first is not None and (first.has_sidedata("encryption_info") or first.has_sidedata("encryption_init_info"))
