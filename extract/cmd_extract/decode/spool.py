"""Temporary files of one video: motion grids, masks and JPEGs go from file to file, so memory use stays bounded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.grid import rasterize
from cmd_extract.decode.transcode import read_packets
from cmd_extract.decode.vectors import FrameVectors

_BATCH_FRAMES = 64


@dataclass(frozen=True, kw_only=True)
class VideoSpool:
    """Paths of the files that hold the extracted data of one video.

    Attributes:
        frames, keyframes: concatenated JPEGs.
        grid: raw (F, 2, gh, gw) int16 in C order.
        valid: raw (F, gh, gw) uint8 of 0 and 1.
    """

    frames: Path
    keyframes: Path
    grid: Path
    valid: Path

    @classmethod
    def in_folder(cls, folder: Path) -> VideoSpool:
        """Return the paths inside ``folder``."""
        return cls(
            frames=folder / "frames", keyframes=folder / "keyframes", grid=folder / "grid", valid=folder / "valid"
        )


@dataclass(frozen=True, kw_only=True)
class MotionStream:
    """Per-frame data of the stream that the motion vectors come from.

    Attributes:
        types: (F,) S1, frame types.
        stamps: (F,) int64, time stamps in ticks of the source's time base; 0 in a canonical stream.
        has_stamp: (F,) bool, see ``FrameVectors``.
        keyframe_sizes: (K,) int64, bytes of each keyframe JPEG.
        keyframe_numbers: (K,) int64, frame numbers of the keyframes that FFmpeg made with a canonical stream; None if
            they come from the stream itself.
    """

    types: NDArray[np.bytes_]
    stamps: NDArray[np.int64]
    has_stamp: NDArray[np.bool_]
    keyframe_sizes: NDArray[np.int64]
    keyframe_numbers: NDArray[np.int64] | None = None

    @property
    def keyframe_indices(self) -> NDArray[np.int64]:
        """(K,) frame numbers of the I-frames."""
        return np.flatnonzero(self.types == b"I")


def spool_jpegs(packets: Path | None, target: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Move the JPEGs of one of FFmpeg's NUT outputs to ``target``, concatenated, and delete the NUT file.

    Returns:
        (N,) int64 sizes in bytes and (N,) int64 numbers of their frames.

    Raises:
        VideoError: there are no JPEGs.
    """
    assert packets is not None, "made with the canonical stream"
    sizes, numbers = [], []
    with target.open("wb") as out:
        for number, jpeg in read_packets(packets):
            out.write(jpeg)
            sizes.append(len(jpeg))
            numbers.append(number)
    packets.unlink()
    return np.array(sizes, np.int64), np.array(numbers, np.int64)


def spool_motion(vectors: Iterator[FrameVectors], config: ExtractConfig, spool: VideoSpool) -> MotionStream:
    """Rasterize the vectors of a stream; (over)write its grids, masks and keyframes to the files of ``spool``.

    Args:
        vectors: one item per frame, in presentation order.
        config: size of the stream and of a grid cell in pixels.
        spool: where to write ``grid``, ``valid`` and ``keyframes``.
    """
    types: list[str] = []
    stamps: list[int] = []
    has_stamp: list[bool] = []
    sizes: list[int] = []
    with spool.grid.open("wb") as grid, spool.valid.open("wb") as valid, spool.keyframes.open("wb") as keyframes:
        # Batches share the cost of numpy calls and bound memory.
        while batch := list(islice(vectors, _BATCH_FRAMES)):
            motion = rasterize(batch, config.width, config.height, config.cell_px)
            grid.write(motion.grid_quarter_px.data)
            valid.write(motion.valid.data)
            types += [frame.frame_type for frame in batch]
            stamps += [frame.stamp for frame in batch]
            has_stamp += [frame.has_stamp for frame in batch]
            for frame in batch:
                if frame.keyframe_jpeg is not None:
                    keyframes.write(frame.keyframe_jpeg)
                    sizes.append(len(frame.keyframe_jpeg))
    return MotionStream(
        types=np.array(types, "S1"),
        stamps=np.array(stamps, np.int64),
        has_stamp=np.array(has_stamp, np.bool_),
        keyframe_sizes=np.array(sizes, np.int64),
    )
