"""Reads frame types and motion vectors of a stream, with PyAV or with mvextractor.

PyAV decodes with one thread, skips what only pictures need (the vectors are the same), and obeys the whitelists of
formats and protocols. mvextractor always decodes with frame threads, which corrupts the vectors of streams with
B-frames, and opens whatever its file refers to: it only ever reads streams that this project has written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import av
import av.error
import numpy as np
from av.codec.context import Flags
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import PictureType
from numpy.typing import NDArray

from cmd_extract.decode.bitstream import mixed_picture, unit_length_bytes
from cmd_extract.decode.source import open_input
from cmd_extract.errors import VideoError

READERS = ("auto", "pyav", "mvextractor")

VECTOR_DTYPE = np.dtype(
    {
        "names": ["source", "w", "h", "src_x", "src_y", "dst_x", "dst_y", "motion_x", "motion_y", "motion_scale"],
        "formats": ["<i4", "u1", "u1", "<i2", "<i2", "<i2", "<i2", "<i4", "<i4", "<u2"],
        "offsets": [0, 4, 5, 6, 8, 10, 12, 24, 28, 32],
        "itemsize": 40,
    }
)
"""FFmpeg's AVMotionVector as it lies in memory; the flags, which are never set, and the padding have no name."""

_NO_VECTORS = np.empty(0, VECTOR_DTYPE)
_TYPE_NAMES = {kind.value: kind.name for kind in PictureType}


class _Ratio(Protocol):
    """A time base: of PyAV up to 18 a ``Fraction``, of 19 a class of its own."""

    @property
    def numerator(self) -> int: ...
    @property
    def denominator(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class OwnStream:
    """How to read a stream that this project has not written, so that it may be of any kind, and damaged.

    Attributes:
        stream_index: index of the stream among all of the file.
        size: width and height that every frame must have.
        encode_keyframe: makes a JPEG of an I-frame.
        whole_pictures: whether to decode every picture. Else only what intact I-frames need is decoded; but what
            conceals damage is taken from other pictures, and so are guesses of lost vectors.
        on_damage: called whenever a packet or a picture is damaged, or may be.
    """

    stream_index: int
    size: tuple[int, int]
    encode_keyframe: Callable[[av.VideoFrame], bytes]
    whole_pictures: bool
    on_damage: Callable[[], None]


@dataclass(kw_only=True, slots=True)  # not frozen: there is one a frame, and it would take twice as long to make
class FrameVectors:
    """The vectors of one frame.

    Attributes:
        frame_type: ``I``, ``P`` or ``B``; of streams that this project has not written perhaps another, such as ``S``.
        vectors: (N,) of ``VECTOR_DTYPE``; they point from a block to where it came from.
        pts_seconds, dts_seconds: time stamps of presentation and of decoding, NaN if the reader does not tell.
        keyframe_jpeg: the picture of an I-frame, where pictures were asked for.
    """

    frame_type: str
    vectors: NDArray[np.void]
    pts_seconds: float = float("nan")
    dts_seconds: float = float("nan")
    keyframe_jpeg: bytes | None = None

    def __post_init__(self) -> None:
        if self.vectors.ndim != 1 or self.vectors.dtype != VECTOR_DTYPE:
            raise ValueError(f"vectors: shape {self.vectors.shape} of {self.vectors.dtype}, need (N,) of VECTOR_DTYPE")


def choose_reader(name: str) -> str:
    """The reader to use: ``auto`` is PyAV, which measured faster than mvextractor on every stream and runs anywhere.

    Raises:
        ValueError: no such reader, or not installed.
    """
    if name not in READERS:
        raise ValueError(f"reader: {name!r} is not one of {', '.join(READERS)}")
    if name == "mvextractor" and find_spec("mvextractor") is None:
        raise ValueError("reader: mvextractor is not installed (it exists for x86-64 Linux only); use pyav")
    return "pyav" if name == "auto" else name


def read_vectors(path: Path, reader: str = "auto", own: OwnStream | None = None) -> Iterator[FrameVectors]:
    """Yields the vectors of every frame of a stream, in order of presentation.

    Args:
        path: the file; for mvextractor, one that this project wrote.
        reader: see ``choose_reader``.
        own: how to read a source's own stream (PyAV only); None for a canonical stream.

    Raises:
        VideoError: stage ``motion``; the stream cannot be opened, or its picture size changes.
    """
    if choose_reader(reader) == "mvextractor":
        return _read_mvextractor(path)
    return _read_pyav(path, own)


def _decoder_options(own: OwnStream | None) -> dict[str, str]:
    """What the decoder may leave out: vectors come from the bitstream alone, an I-frame's picture from itself alone.

    That holds for intact streams.

    The two words differ because decoders understand them differently: of MPEG-4, ``nointra`` would transform all
    frames; of H.264, ``nokey`` would filter only those I-frames at which decoding can begin.
    """
    skipped = {"skip_loop_filter": "nointra", "skip_idct": "nokey"}
    if own is None:
        skipped = dict.fromkeys(skipped, "all")
    return {"flags2": "+export_mvs"} | (skipped if own is None or not own.whole_pictures else {})


def _read_pyav(path: Path, own: OwnStream | None) -> Iterator[FrameVectors]:
    try:
        with open_input(path) as container:
            stream = container.streams[0 if own is None else own.stream_index]
            assert isinstance(stream, av.VideoStream), "the probe has chosen it"
            context = stream.codec_context
            context.thread_type = "NONE"
            context.thread_count = 1
            context.options = _decoder_options(own)
            context.flags |= Flags.copy_opaque
            may_mix = own is not None and context.codec.canonical_name == "h264"
            length_bytes = unit_length_bytes(context.extradata or b"")
            time_base = stream.time_base  # of all its frames; to ask each takes longer than all else about time
            for packet in container.demux(stream):
                if own is not None and packet.is_corrupt:
                    own.on_damage()
                if may_mix and packet.size:
                    mixed = mixed_picture(bytes(packet), length_bytes)
                    if mixed is not None:
                        packet.opaque = mixed
                yield from _decode(context, packet, own, time_base)
    except (av.error.FFmpegError, IndexError) as error:
        raise VideoError("motion", f"the stream cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _decode(
    context: av.VideoCodecContext,
    packet: av.Packet[av.VideoStream],
    own: OwnStream | None,
    time_base: _Ratio | None,
) -> Iterator[FrameVectors]:
    try:
        frames = context.decode(packet)
    except av.error.InvalidDataError:
        if own is not None:
            own.on_damage()
        return  # FFmpeg, which makes the pictures, goes on after a damaged packet too
    for frame in frames:
        if own is not None:
            if (frame.width, frame.height) != own.size:
                raise VideoError("motion", "the size of the picture changes; extract it with --transcode always")
            if frame.is_corrupt:
                own.on_damage()
        kind = _TYPE_NAMES[frame.pict_type]
        if kind == "I" and frame.opaque is not None:
            kind = str(frame.opaque)  # a mixed picture, as its packet says
        # Not frame.side_data: the frame would keep that, and that the frame, so that its memory could not be used again
        # until Python's collector finds the circle; a fifth of all time, measured.
        side = None
        # What the decoder invents to conceal a damaged I-frame are no vectors of the stream.
        if kind != "I":
            side = SideDataContainer(frame).get(SideDataType.MOTION_VECTORS)  # type: ignore[call-arg] # stubs lack it
        yield FrameVectors(
            frame_type=kind,
            # A copy, since the original keeps the whole picture in memory.
            vectors=_NO_VECTORS if side is None else np.frombuffer(bytes(side), VECTOR_DTYPE),
            pts_seconds=_seconds(frame.pts, time_base),
            dts_seconds=_seconds(frame.dts, time_base),
            keyframe_jpeg=own.encode_keyframe(frame) if own is not None and kind == "I" else None,
        )


def _seconds(stamp: int | None, base: _Ratio | None) -> float:
    # As exact as the product of fractions, and far quicker.
    return float("nan") if stamp is None or base is None else stamp * base.numerator / base.denominator


def _read_mvextractor(canonical: Path) -> Iterator[FrameVectors]:
    # Only this submodule: the package itself imports OpenCV, which may want libraries that servers lack.
    from mvextractor.videocap import VideoCap

    capture = VideoCap()
    if not capture.open(str(canonical)):
        raise VideoError("motion", "mvextractor cannot open the canonical stream")
    try:
        capture.set_decode_frames(False)
        while True:
            success, _, table, frame_type = capture.read()
            if not success:
                return
            vectors = np.zeros(len(table), VECTOR_DTYPE)
            for column, name in enumerate(VECTOR_DTYPE.names or ()):
                vectors[name] = table[:, column]
            yield FrameVectors(frame_type=frame_type, vectors=vectors)
    finally:
        capture.release()
