"""Turns a frame's motion vectors into a regular grid of displacements, in pure numpy.

Shape legend: T frames, N vectors, gh x gw cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmd_extract.decode.vectors import VECTOR_DTYPE, FrameVectors
from cmd_extract.schema import QUARTER_PX, MotionGrid, grid_shape

# FFmpeg exports blocks of 8 or 16 pixels only, aligned to 8, so that a grid of 8-pixel cells loses nothing.
FINE_CELL_PX = 8
_WIDE_PX = 16
# Marks cells without a vector while drawing. As a displacement it would be 8192 pixels, more than any picture has.
_NOTHING = np.full(2, np.iinfo(np.int16).min, np.int16).view(np.int32)[0]
# Vectors as bytes without meaning: numpy copies these at once, and records field by field.
_OPAQUE = np.dtype(f"V{VECTOR_DTYPE.itemsize}")
_NO_BYTES = np.empty(0, _OPAQUE)


def rasterize(frames: Sequence[FrameVectors], width: int, height: int, cell_px: int = FINE_CELL_PX) -> MotionGrid:
    """Draws the vectors of T frames onto grids.

    A vector of the stream points from a block to where its content came from, in 1/scale pixels; the grid holds the
    opposite, the displacement of the content (destination minus source), in quarter pixels. Only references to the
    past count. Cells without a vector (intra blocks, I-frames) are invalid and 0.

    Args:
        frames: vectors of T consecutive frames.
        width, height: size of the stream in pixels; blocks outside are dropped.
        cell_px: 8 for the lossless grid, 16 for area-weighted means of it.

    Returns:
        Grids of T frames.
    """
    fine = _rasterize_fine(frames, *grid_shape(width, height, FINE_CELL_PX))
    return fine if cell_px == FINE_CELL_PX else coarsen(fine, width, height)


def _rasterize_fine(frames: Sequence[FrameVectors], rows: int, columns: int) -> MotionGrid:
    vectors, frame_of = _past_vectors(frames)
    motion = _draw_macroblocks(vectors, frame_of, (len(frames), -(-rows // 2), -(-columns // 2)))
    if motion is not None:
        return _double(motion, rows, columns)
    # Whole macroblocks, as they are coded, and a margin of one cell all around: blocks may reach over the edges.
    canvas = np.full((len(frames), rows + rows % 2 + 2, columns + columns % 2 + 2), _NOTHING, np.int32)
    _draw(canvas, vectors, frame_of)
    return _take_apart(canvas[:, 1 : rows + 1, 1 : columns + 1])


def _past_vectors(frames: Sequence[FrameVectors]) -> tuple[NDArray[np.void], NDArray[np.int32]]:
    """(N,) vectors of all frames that refer to the past, and the frame of each."""
    vectors = np.concatenate([_NO_BYTES, *(f.vectors.view(_OPAQUE) for f in frames)]).view(VECTOR_DTYPE)
    frame_of = np.repeat(np.arange(len(frames), dtype=np.int32), [len(f.vectors) for f in frames])
    past = vectors["source"] < 0
    return (vectors, frame_of) if past.all() else (vectors[past], frame_of[past])


def _draw_macroblocks(
    vectors: NDArray[np.void], frame_of: NDArray[np.int32], shape: tuple[int, int, int]
) -> MotionGrid | None:
    """Grids of 16-pixel cells, ``shape`` (T, rows, columns), if each vector has one to itself; else None.

    So it is in most of MPEG-4, where it saves a quarter of the drawing.
    """
    _, rows, columns = shape
    if not ((vectors["w"] == _WIDE_PX).all() and (vectors["h"] == _WIDE_PX).all()):
        return None
    x, y = vectors["dst_x"], vectors["dst_y"]
    half = _WIDE_PX // 2
    if (((x ^ half) | (y ^ half)) & (_WIDE_PX - 1)).any():
        return None  # some centre is not a macroblock's
    left, top = x >> 4, y >> 4
    if _any_outside(left, columns) or _any_outside(top, rows):
        return None
    canvas = np.full(shape, _NOTHING, np.int32)
    canvas.reshape(-1)[(frame_of * np.intp(rows) + top) * columns + left] = _displacements(vectors)
    return _take_apart(canvas)


def _take_apart(canvas: NDArray[np.int32]) -> MotionGrid:
    """The components of what was drawn on (T, gh, gw) cells, and where anything was."""
    frames, rows, columns = canvas.shape
    valid = canvas != _NOTHING
    pairs = np.multiply(canvas, valid)
    grid = np.empty((frames, 2, rows, columns), np.int16)
    grid[:, 0] = pairs  # of which 16 bits are kept: dx
    grid[:, 1] = pairs >> 16
    return MotionGrid(grid_quarter_px=grid, valid=valid)


def _double(motion: MotionGrid, rows: int, columns: int) -> MotionGrid:
    """Each cell as two by two of half its side, of which the picture has ``rows`` x ``columns``."""
    frames = len(motion.valid)
    grid, valid = np.empty((frames, 2, rows, columns), np.int16), np.empty((frames, rows, columns), np.bool_)
    for coarse, fine in ((motion.grid_quarter_px, grid), (motion.valid, valid)):
        wide = _double_columns(coarse)[..., :columns]
        fine[..., 0::2, :] = wide
        fine[..., 1::2, :] = wide[..., : rows // 2, :]
    return MotionGrid(grid_quarter_px=grid, valid=valid)


def _double_columns(cells: NDArray[Any]) -> NDArray[Any]:
    # Two equal numbers side by side are one of twice the bits; numpy.repeat takes three times as long, or more.
    bits = 8 * cells.itemsize
    pairs: NDArray[Any] = cells.view(f"u{cells.itemsize}").astype(f"u{2 * cells.itemsize}")
    pairs *= (1 << bits) + 1
    return pairs.view(cells.dtype)


def _draw(canvas: NDArray[np.int32], vectors: NDArray[np.void], frame_of: NDArray[np.int32]) -> None:
    """Writes both components of each vector, as one number, into the cells that its block covers."""
    _, rows, columns = canvas.shape
    width, height = vectors["w"], vectors["h"]
    # Cells count from the margin.
    left = ((vectors["dst_x"] - (width >> 1).astype(np.int16)) >> 3) + np.int16(1)
    top = ((vectors["dst_y"] - (height >> 1).astype(np.int16)) >> 3) + np.int16(1)
    if _any_outside(left, columns - 1) or _any_outside(top, rows - 1):
        inside = (left >= 0) & (left < columns - 1) & (top >= 0) & (top < rows - 1)
        vectors, frame_of, left, top = vectors[inside], frame_of[inside], left[inside], top[inside]
        width, height = vectors["w"], vectors["h"]
    corner = frame_of * np.intp(rows)
    corner += top
    corner *= columns
    corner += left
    values = _displacements(vectors)
    written = canvas.reshape(-1)
    wide, tall = width == _WIDE_PX, height == _WIDE_PX
    written[corner] = values
    written[np.compress(wide, corner) + 1] = np.compress(wide, values)
    below, values, wide = np.compress(tall, corner) + columns, np.compress(tall, values), np.compress(tall, wide)
    written[below] = values
    written[np.compress(wide, below) + 1] = np.compress(wide, values)


def _any_outside(cells: NDArray[np.int16], end: int) -> bool:
    return bool(cells.min(initial=0) < 0 or cells.max(initial=0) >= end)


def _displacements(vectors: NDArray[np.void]) -> NDArray[np.int32]:
    """(N,) dx and dy in quarter pixels, two int16 in the lower and the upper half of one int32."""
    scale = vectors["motion_scale"]
    lowest, highest = int(scale.min(initial=QUARTER_PX)), int(scale.max(initial=1))
    # Scales are 1, 2 or 4, so that the division is exact.
    factor = -QUARTER_PX // lowest if lowest == highest else -QUARTER_PX // scale.astype(np.int32)
    pair = np.empty((len(vectors), 2), np.int16)
    for channel, name in enumerate(("motion_x", "motion_y")):
        np.multiply(vectors[name], factor, out=pair[:, channel], casting="unsafe")
    return pair.view(np.int32)[:, 0]


def coarsen(fine: MotionGrid, width: int, height: int) -> MotionGrid:
    """Halves the resolution of an 8-pixel grid.

    A 16-pixel cell is the mean of its valid 8-pixel cells, weighted by their area inside the picture, rounded half away
    from zero to quarter pixels; it is valid if any of them is.

    Args:
        fine: grids of 8-pixel cells, (T, 2, gh, gw).
        width, height: size of the stream in pixels.
    """
    rows, columns = grid_shape(width, height, 2 * FINE_CELL_PX)
    area = np.outer(_inside_px(height, 2 * rows), _inside_px(width, 2 * columns))
    pad = ((0, 0), (0, 2 * rows - fine.valid.shape[1]), (0, 2 * columns - fine.valid.shape[2]))
    weight = np.pad(fine.valid, pad) * area
    values = np.pad(fine.grid_quarter_px, (pad[0], (0, 0), *pad[1:])).astype(np.float64)
    total = _pool(weight)
    mean = _pool(values * weight[:, None]) / np.maximum(total, 1)[:, None]
    rounded = np.trunc(mean + np.copysign(0.5, mean)).astype(np.int16)
    return MotionGrid(grid_quarter_px=rounded, valid=total > 0)


def _inside_px(length: int, cells: int) -> NDArray[np.float64]:
    """Pixels of each 8-pixel cell along one axis that lie inside the picture."""
    starts = np.arange(cells) * FINE_CELL_PX
    return np.clip(length - starts, 0, FINE_CELL_PX).astype(np.float64)


def _pool(array: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums 2 x 2 cells over the last two axes."""
    *lead, rows, columns = array.shape
    pooled: NDArray[np.float64] = array.reshape(*lead, rows // 2, 2, columns // 2, 2).sum(axis=(-3, -1))
    return pooled
