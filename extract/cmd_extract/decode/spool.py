"""The files of one video at work: grids, masks and JPEGs go from file to file, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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


def unpack(packets: Path | None, target: Path) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Turns one of FFmpeg's outputs into JPEGs end to end, and removes it.

    Returns:
        (N,) int64 bytes and (N,) float64 time stamps in seconds of the JPEGs.

    Raises:
        VideoError: there is not one.
    """
    assert packets is not None, "made beside the canonical stream"
    sizes, stamps = [], []
    with target.open("wb") as out:
        for stamp, jpeg in read_packets(packets):
            out.write(jpeg)
            sizes.append(len(jpeg))
            stamps.append(stamp)
    packets.unlink()
    return np.array(sizes, np.int64), np.array(stamps, np.float64)


@dataclass(frozen=True, kw_only=True)
class SpooledStream:
    """What the stream that vectors come from says, frame by frame; (F,) types and times, (K,) bytes of keyframes.

    The times are the source's only if the vectors are; those of a canonical stream merely count. NaN: unknown.
    """

    types: NDArray[np.bytes_]
    pts_seconds: NDArray[np.float64]
    keyframe_sizes: NDArray[np.int64]


def spool_stream(vectors: Iterator[FrameVectors], config: ExtractConfig, spool: Mapping[str, Path]) -> SpooledStream:
    """Draws the grids of a stream; its grids, masks and keyframes are written to files of ``spool``, anew.

    Args:
        vectors: of every frame, in order of presentation.
        config: size of the stream and of a cell in pixels.
        spool: the files: ``grid`` for raw (F, 2, gh, gw) int16, ``valid`` for (F, gh, gw) bytes of 0 and 1,
            ``keyframes`` for JPEGs end to end.
    """
    types: list[str] = []
    stamps: list[tuple[float, float]] = []
    sizes: list[int] = []
    with spool["grid"].open("wb") as grid, spool["valid"].open("wb") as valid, spool["keyframes"].open("wb") as jpegs:
        # Several frames at a time: the cost of numpy's calls is shared, and memory stays bounded.
        while batch := list(islice(vectors, _BATCH_FRAMES)):
            motion = rasterize(batch, config.width, config.height, config.cell_px)
            grid.write(motion.grid_quarter_px.data)
            valid.write(motion.valid.data)
            types += [frame.frame_type for frame in batch]
            stamps += [(frame.pts_seconds, frame.dts_seconds) for frame in batch]
            for frame in batch:
                if frame.keyframe_jpeg is not None:
                    jpegs.write(frame.keyframe_jpeg)
                    sizes.append(len(frame.keyframe_jpeg))
    pts, dts = np.array(stamps, np.float64).reshape(-1, 2).T
    return SpooledStream(
        types=np.array(types, "S1"),
        # Frames come in order of presentation. Where their stamps go back (AVI with packed B-frames), they are guesses.
        pts_seconds=dts if (np.diff(pts) < 0).any() else pts,
        keyframe_sizes=np.array(sizes, np.int64),
    )
