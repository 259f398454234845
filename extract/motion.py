"""Reads frame types and motion vectors of a stream, with PyAV or with mvextractor.

PyAV decodes with one thread, skips what only pictures need (the vectors are the same), and obeys the whitelists of
formats and protocols. mvextractor always decodes with frame threads, which corrupts the vectors of streams with
B-frames, and opens whatever its file refers to: it only ever reads streams that this project has written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import av
import av.error
import numpy as np
from av.video.frame import PictureType
from numpy.typing import NDArray

from extract.source import VideoError, input_options, input_url

COLUMNS = 10
"""Columns of a vector: source, w, h, src_x, src_y, dst_x, dst_y, motion_x, motion_y, motion_scale."""

READERS = ("auto", "pyav", "mvextractor")
_FIELDS = ("source", "w", "h", "src_x", "src_y", "dst_x", "dst_y", "motion_x", "motion_y", "motion_scale")


@dataclass(frozen=True, kw_only=True)
class FrameVectors:
    """The vectors of one frame.

    Attributes:
        frame_type: ``I``, ``P`` or ``B``.
        vectors: (N, 10) int32, columns as in ``COLUMNS``; they point from a block to where it came from.
        pts_seconds: time stamp, NaN if the reader does not tell.
    """

    frame_type: str
    vectors: NDArray[np.int32]
    pts_seconds: float = float("nan")

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.vectors.shape[1] != COLUMNS:
            raise ValueError(f"vectors: shape {self.vectors.shape}, need (N, {COLUMNS})")


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


def read_vectors(
    path: Path, reader: str = "auto", stream_index: int = 0, size: tuple[int, int] | None = None
) -> Iterator[FrameVectors]:
    """Yields the vectors of every frame of a stream, in order of presentation.

    Args:
        path: the file; for mvextractor, one that this project wrote.
        reader: see ``choose_reader``.
        stream_index: index of the stream among all of the file.
        size: width and height that every frame must have, where a change is possible (PyAV only).

    Raises:
        VideoError: stage ``motion``; the stream cannot be opened.
    """
    if choose_reader(reader) == "mvextractor":
        return _read_mvextractor(path)
    return _read_pyav(path, stream_index, size)


def _read_pyav(path: Path, stream_index: int, size: tuple[int, int] | None) -> Iterator[FrameVectors]:
    try:
        with av.open(input_url(path), options=input_options(), metadata_errors="ignore") as container:
            stream = container.streams[stream_index]
            assert isinstance(stream, av.VideoStream), "the probe has chosen it"
            context = stream.codec_context
            context.thread_type = "NONE"
            context.thread_count = 1
            # Vectors come from the bitstream alone; pictures nobody looks at need neither transform nor filter.
            context.options = {"flags2": "+export_mvs", "skip_loop_filter": "all", "skip_idct": "all"}
            for packet in container.demux(stream):
                yield from _decode(stream, packet, size)
    except (av.error.FFmpegError, IndexError) as error:
        raise VideoError("motion", f"the stream cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _decode(
    stream: av.VideoStream, packet: av.Packet[av.VideoStream], size: tuple[int, int] | None
) -> Iterator[FrameVectors]:
    try:
        frames = stream.codec_context.decode(packet)
    except av.error.InvalidDataError:
        return  # FFmpeg, which makes the pictures, goes on after a damaged packet too
    for frame in frames:
        if size is not None and (frame.width, frame.height) != size:
            raise VideoError("motion", "the size of the picture changes; extract it with --transcode always")
        side = frame.side_data.get("MOTION_VECTORS")
        time = float(frame.pts * frame.time_base) if frame.pts is not None and frame.time_base else float("nan")
        yield FrameVectors(frame_type=PictureType(frame.pict_type).name, vectors=_table(side), pts_seconds=time)


def _table(side: object) -> NDArray[np.int32]:
    if side is None:
        return np.empty((0, COLUMNS), np.int32)
    rows = side.to_ndarray()  # type: ignore[attr-defined]
    # Filled by rows of the transpose, whose memory is contiguous.
    table = np.empty((COLUMNS, len(rows)), np.int32)
    for column, name in enumerate(_FIELDS):
        table[column] = rows[name]
    return table.T


def _read_mvextractor(canonical: Path) -> Iterator[FrameVectors]:
    # Only this submodule: the package itself imports OpenCV, which may want libraries that servers lack.
    from mvextractor.videocap import VideoCap

    capture = VideoCap()
    if not capture.open(str(canonical)):
        raise VideoError("motion", "mvextractor cannot open the canonical stream")
    try:
        capture.set_decode_frames(False)
        while True:
            success, _, vectors, frame_type = capture.read()
            if not success:
                return
            yield FrameVectors(frame_type=frame_type, vectors=vectors)
    finally:
        capture.release()
