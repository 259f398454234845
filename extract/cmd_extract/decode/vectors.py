"""Reading frame types and motion vectors of a stream, with PyAV or mvextractor.

PyAV decodes with one thread, skips work that only affects pictures (the vectors stay the same), and respects the format
and protocol whitelists. mvextractor always decodes with frame threads, which corrupts the vectors of streams with
B-frames, and opens any file that its input refers to; it therefore only reads streams written by this project.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import av
import av.error
import numpy as np
from av.codec.context import Flags
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import PictureType
from numpy.typing import NDArray

from cmd_extract.decode.bitstream import mixed_picture_type, nal_length_bytes
from cmd_extract.decode.source import open_input
from cmd_extract.decode.stamps import StampReader
from cmd_extract.decode.streams import nominal_interval
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
"""Memory layout of FFmpeg's AVMotionVector; the unused flags and the padding have no field."""

_NO_VECTORS = np.empty(0, VECTOR_DTYPE)
_TYPE_NAMES = {kind.value: kind.name for kind in PictureType}


@dataclass(frozen=True, kw_only=True)
class SourceStream:
    """How to read the stream of a source file, which may be of any kind and damaged.

    Attributes:
        index: index of the stream among all streams of the file.
        size: width and height that every frame must have.
        encode_keyframe: converts an I-frame to a JPEG.
        decode_all_pictures: whether to decode every picture. Otherwise only what intact I-frames need is decoded;
            concealment of damage, and guesses of lost vectors, would also need the other pictures.
        on_damage: called for every packet or picture that is, or may be, damaged.
    """

    index: int
    size: tuple[int, int]
    encode_keyframe: Callable[[av.VideoFrame], bytes]
    decode_all_pictures: bool
    on_damage: Callable[[], None]


@dataclass(kw_only=True, slots=True)  # not frozen: created once per frame, and a frozen one takes twice as long
class FrameVectors:
    """The motion vectors of one frame.

    Attributes:
        frame_type: ``I``, ``P`` or ``B``; possibly another, such as ``S``, in the stream of a source file.
        vectors: (N,) ``VECTOR_DTYPE``; each points from a block to where its content came from.
        stamp: time stamp in ticks of the source's time base; 0 in a canonical stream.
        has_stamp: whether ``stamp`` comes from the stream, instead of following the frame before.
        keyframe_jpeg: JPEG of an I-frame of a ``SourceStream``.
    """

    frame_type: str
    vectors: NDArray[np.void]
    stamp: int = 0
    has_stamp: bool = False
    keyframe_jpeg: bytes | None = None

    def __post_init__(self) -> None:
        if self.vectors.ndim != 1 or self.vectors.dtype != VECTOR_DTYPE:
            raise ValueError(f"vectors: shape {self.vectors.shape} of {self.vectors.dtype}, need (N,) of VECTOR_DTYPE")


def choose_reader(name: str) -> str:
    """Resolve the name of a reader; ``auto`` is PyAV, which is faster on every stream measured and runs anywhere.

    Raises:
        ValueError: the reader does not exist or is not installed.
    """
    if name not in READERS:
        raise ValueError(f"reader: {name!r} is not one of {', '.join(READERS)}")
    if name == "mvextractor" and find_spec("mvextractor") is None:
        raise ValueError("reader: mvextractor is not installed (it is available for x86-64 Linux only); use pyav")
    return "pyav" if name == "auto" else name


def read_vectors(path: Path, reader: str = "auto", source: SourceStream | None = None) -> Iterator[FrameVectors]:
    """Yield the vectors of every frame of a stream, in presentation order.

    Args:
        path: the file; for mvextractor, one written by this project.
        reader: see ``choose_reader``.
        source: how to read the stream of a source file (PyAV only); None for a canonical stream.

    Raises:
        VideoError: stage ``motion``; the stream cannot be opened, or its picture size changes.
    """
    if choose_reader(reader) == "mvextractor":
        return _read_mvextractor(path)
    return _read_pyav(path, source)


def _decoder_options(source: SourceStream | None) -> dict[str, str]:
    """Return FFmpeg decoder options that export motion vectors and skip unneeded work.

    In intact streams, vectors depend on the bitstream only and the picture of an I-frame on that frame only. The two
    skip levels differ because decoders interpret them differently: with ``nointra`` the MPEG-4 decoder would transform
    every frame; with ``nokey`` the H.264 decoder would filter only I-frames at which decoding can start.
    """
    options = {"flags2": "+export_mvs"}
    if source is None:
        return options | {"skip_loop_filter": "all", "skip_idct": "all"}
    return options if source.decode_all_pictures else options | {"skip_loop_filter": "nointra", "skip_idct": "nokey"}


def _read_pyav(path: Path, source: SourceStream | None) -> Iterator[FrameVectors]:
    try:
        with open_input(path) as container:
            stream = container.streams[0 if source is None else source.index]
            assert isinstance(stream, av.VideoStream), "selected by probe"
            context = stream.codec_context
            context.thread_type = "NONE"
            context.thread_count = 1
            context.options = _decoder_options(source)
            context.flags |= Flags.copy_opaque
            may_mix_slices = source is not None and context.codec.canonical_name == "h264"
            length_bytes = nal_length_bytes(context.extradata or b"")
            stamps = None if source is None else StampReader(nominal_interval(stream))
            for packet in container.demux(stream):
                if source is not None and packet.is_corrupt:
                    source.on_damage()
                if may_mix_slices and packet.size:
                    mixed_type = mixed_picture_type(bytes(packet), length_bytes)
                    if mixed_type is not None:
                        packet.opaque = mixed_type
                yield from _decode(context, packet, source, stamps)
    except (av.error.FFmpegError, IndexError) as error:
        raise VideoError("motion", f"the stream cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _decode(
    context: av.VideoCodecContext,
    packet: av.Packet[av.VideoStream],
    source: SourceStream | None,
    stamps: StampReader | None,
) -> Iterator[FrameVectors]:
    try:
        frames = context.decode(packet)
    except av.error.InvalidDataError:
        if source is not None:
            source.on_damage()
        return  # the FFmpeg process that makes the pictures also continues after a damaged packet
    for frame in frames:
        if source is not None:
            if (frame.width, frame.height) != source.size:
                raise VideoError("motion", "the picture size changes within the stream; use --transcode always")
            if frame.is_corrupt:
                source.on_damage()
        kind = _TYPE_NAMES[frame.pict_type]
        if kind == "I" and frame.opaque is not None:
            kind = str(frame.opaque)  # type of a picture with mixed slices, set on its packet
        side = None
        # Vectors that the decoder invents to conceal a damaged I-frame are not vectors of the stream.
        if kind != "I":
            # frame.side_data would create a reference cycle, which keeps the frame's memory until it is garbage
            # collected; measured cost: 20 % of the run time.
            side = SideDataContainer(frame).get(SideDataType.MOTION_VECTORS)  # type: ignore[call-arg] # stubs lack it
        stamp, has_stamp = (0, False) if stamps is None else stamps(frame.pts, frame.dts, frame.duration or 0)
        yield FrameVectors(
            frame_type=kind,
            # A copy, because the original keeps the whole picture in memory.
            vectors=_NO_VECTORS if side is None else np.frombuffer(bytes(side), VECTOR_DTYPE),
            stamp=stamp,
            has_stamp=has_stamp,
            keyframe_jpeg=source.encode_keyframe(frame) if source is not None and kind == "I" else None,
        )


def _read_mvextractor(canonical: Path) -> Iterator[FrameVectors]:
    # Import the submodule only: the package imports OpenCV, which may need libraries that servers lack.
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
