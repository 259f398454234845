"""Motion of one video file, frame by frame, without writing a shard.

Shape legend: F frames, N vectors of a frame, gh x gw grid cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.decode.grid import rasterize
from cmd_extract.decode.own_stream import CODECS_WITH_VECTORS
from cmd_extract.decode.source import SourceInfo, probe
from cmd_extract.decode.stamps import increasing_ticks, read_printed_stamps
from cmd_extract.decode.transcode import TranscodedFiles, transcode
from cmd_extract.decode.vectors import FrameVectors, SourceStream, read_vectors
from cmd_extract.decode.video import utf8_path
from cmd_extract.errors import VideoError
from cmd_extract.schema import grid_shape

MotionStreamKind = Literal["canonical", "source"]
MOTION_STREAMS: tuple[MotionStreamKind, ...] = get_args(MotionStreamKind)
_BATCH_FRAMES = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class MotionFrame:
    """Motion of one frame.

    Attributes:
        index: number of the frame in presentation order, from 0.
        frame_type: ``I``, ``P`` or ``B``; other types such as ``S`` occur in source streams only.
        time_seconds: presentation time since the first frame.
        grid_quarter_px: (2, gh, gw) int16, displacement of the content since the frame it is predicted from, in quarter
            pixels; channel 0 = dx (right positive), 1 = dy (down positive); 0 where invalid.
        valid: (gh, gw) bool, False for cells without a vector (I-frames, intra blocks).
        vectors: (N,) records with FFmpeg's fields ``source``, ``w``, ``h``, ``src_x``, ``src_y``, ``dst_x``, ``dst_y``,
            ``motion_x``, ``motion_y`` and ``motion_scale``, as in the bitstream: each points from a block to where its
            content came from, in 1/``motion_scale`` pixels. None unless requested.
    """

    index: int
    frame_type: str
    time_seconds: float
    grid_quarter_px: NDArray[np.int16]
    valid: NDArray[np.bool_]
    vectors: NDArray[np.void] | None = None


@dataclass(frozen=True, kw_only=True)
class MotionInfo:
    """Sizes of a video's motion.

    Attributes:
        width, height: size in pixels of the stream that the vectors come from.
        cell_px: side of a grid cell in pixels.
        codec: FFmpeg's name of the source codec.
        source_width, source_height: size of the source in pixels, before any rotation.
        fps: frame rate that the container declares, 0 if it declares none.
    """

    width: int
    height: int
    cell_px: int
    codec: str
    source_width: int
    source_height: int
    fps: float

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Rows and columns of the grid; the last ones may extend beyond the picture."""
        return grid_shape(self.width, self.height, self.cell_px)


class MotionSession:
    """Reads the motion of one video in steps; each call returns the next part.

    It can be pickled before the first call, so that a ``ContainedExtractor`` can run it in a child process.

    Args:
        stream: ``canonical`` or ``source``, see ``cmd_extract.api.motion.read_motion``.
        vectors: whether to return the vectors too.
    """

    def __init__(self, stream: MotionStreamKind, *, vectors: bool) -> None:
        self._stream = stream
        self._vectors = vectors
        self._batches: Iterator[list[MotionFrame]] | None = None

    def __call__(
        self, source: Path, config: ExtractConfig, workdir: Path, binary: FfmpegBinary
    ) -> MotionInfo | list[MotionFrame]:
        """Return the sizes in the first call, then the frames in batches, and an empty list at the end.

        Args:
            source: the video file, the same in all calls.
            config: size, codec and cell size of the motion.
            workdir: empty folder.
            binary: the FFmpeg to transcode with.

        Raises:
            VideoError: the video cannot be read.
        """
        if self._batches is not None:
            return next(self._batches, [])
        source = utf8_path(source, workdir)
        info = probe(source)
        width, height = config.width, config.height
        if self._stream == "source":
            width, height = info.width, info.height
            if info.codec not in CODECS_WITH_VECTORS:
                raise VideoError(
                    "motion", f"no motion vectors available for codec {info.codec}; use the canonical stream"
                )
        sizes = MotionInfo(
            width=width,
            height=height,
            cell_px=config.cell_px,
            codec=info.codec,
            source_width=info.width,
            source_height=info.height,
            fps=info.fps,
        )
        frames = (
            _source_frames(source, info)
            if self._stream == "source"
            else _canonical_frames(source, info, config, workdir, binary)
        )
        self._batches = self._rasterized(frames, sizes)
        return sizes

    def _rasterized(
        self, frames: Iterator[tuple[FrameVectors, float]], sizes: MotionInfo
    ) -> Iterator[list[MotionFrame]]:
        count = 0
        while batch := list(islice(frames, _BATCH_FRAMES)):
            motion = rasterize([vectors for vectors, _ in batch], sizes.width, sizes.height, sizes.cell_px)
            yield [
                MotionFrame(
                    index=count + number,
                    frame_type=vectors.frame_type,
                    time_seconds=seconds,
                    grid_quarter_px=motion.grid_quarter_px[number],
                    valid=motion.valid[number],
                    vectors=vectors.vectors if self._vectors else None,
                )
                for number, (vectors, seconds) in enumerate(batch)
            ]
            count += len(batch)
        if count == 0:
            raise VideoError("motion", "no frame of the video could be decoded")


def _source_frames(source: Path, info: SourceInfo) -> Iterator[tuple[FrameVectors, float]]:
    """Yield the vectors and times of the frames of a source's own stream; the times are those of the stream."""
    stream = SourceStream(
        index=info.stream_index,
        size=(info.width, info.height),
        encode_keyframe=lambda _: b"",
        decode_all_pictures=False,
        on_damage=lambda: None,
    )
    frames = read_vectors(source, "pyav", stream)
    for first in frames:
        for number, frame in enumerate(chain((first,), frames)):
            ticks = frame.stamp - first.stamp if info.has_stamps else number * info.frame_interval
            yield frame, float(ticks * info.time_base)


def _canonical_frames(
    source: Path, info: SourceInfo, config: ExtractConfig, workdir: Path, binary: FfmpegBinary
) -> Iterator[tuple[FrameVectors, float]]:
    """Transcode a source; yield the vectors and times of the frames of the canonical stream."""
    files = transcode(source, info, replace(config, store_frames=False), workdir, binary)
    assert files.canonical is not None, "made unless only frames are"
    times = _canonical_times(files, info, config)
    number = -1
    for number, frame in enumerate(read_vectors(files.canonical)):
        if times is not None and number >= len(times):
            break
        yield frame, float(number / Fraction(str(config.fps)) if times is None else times[number])
    if times is not None and number + 1 != len(times):
        raise VideoError("motion", f"{len(times)} time stamps, but another number of frames with motion vectors")


def _canonical_times(files: TranscodedFiles, info: SourceInfo, config: ExtractConfig) -> NDArray[np.float64] | None:
    """Return (F,) times in seconds, or None with a constant frame rate."""
    if config.fps is not None:
        return None
    assert files.stamps is not None, "written with every canonical stream"
    stamps = read_printed_stamps(files.stamps, info.time_base, info.frame_interval)
    if not info.has_stamps:
        stamps = np.arange(len(stamps), dtype=np.int64) * info.frame_interval
    return increasing_ticks(stamps, info.time_base, may_jump=info.may_jump).seconds
