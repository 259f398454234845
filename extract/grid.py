"""Turns a frame's motion vectors into a regular grid of displacements, in pure numpy.

Shape legend: T frames, N vectors, gh x gw cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from extract.motion import FrameVectors
from extract.schema import QUARTER_PX, MotionGrid, grid_shape

# FFmpeg exports blocks of 8 or 16 pixels only, aligned to 8, so that a grid of 8-pixel cells loses nothing.
FINE_CELL_PX = 8
_SOURCE, _W, _H, _DST_X, _DST_Y, _MOTION_X, _MOTION_Y, _SCALE = 0, 1, 2, 5, 6, 7, 8, 9


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
    # Both components of a cell side by side, so that one assignment writes both.
    pairs = np.zeros((len(frames) * rows * columns, 2), np.int16)
    valid = np.zeros(len(frames) * rows * columns, np.bool_)
    if frames:
        vectors = np.concatenate([f.vectors for f in frames])
        frame_of = np.repeat(np.arange(len(frames), dtype=np.int32), [len(f.vectors) for f in frames])
        past = vectors[:, _SOURCE] < 0
        if not past.all():
            vectors, frame_of = vectors[past], frame_of[past]
        _draw(pairs, valid, vectors, frame_of, rows, columns)
    grid = np.ascontiguousarray(pairs.reshape(len(frames), rows, columns, 2).transpose(0, 3, 1, 2))
    return MotionGrid(grid_quarter_px=grid, valid=valid.reshape(len(frames), rows, columns))


def _draw(
    pairs: NDArray[np.int16],
    valid: NDArray[np.bool_],
    vectors: NDArray[np.int32],
    frame_of: NDArray[np.int32],
    rows: int,
    columns: int,
) -> None:
    column_of = np.ascontiguousarray(vectors.T)
    width, height, scale = column_of[_W], column_of[_H], column_of[_SCALE]
    values = np.empty((len(vectors), 2), np.int16)
    # Scales are 2 or 4 (half or quarter pixels), so that the division is exact.
    values[:, 0] = -QUARTER_PX * column_of[_MOTION_X] // scale
    values[:, 1] = -QUARTER_PX * column_of[_MOTION_Y] // scale
    left = (column_of[_DST_X] - width // 2) // FINE_CELL_PX
    top = (column_of[_DST_Y] - height // 2) // FINE_CELL_PX
    corner = (frame_of.astype(np.int64) * rows + top) * columns + left
    written, cells = pairs.view(np.int32)[:, 0], values.view(np.int32)[:, 0]
    for down in range(int(height.max(initial=0)) // FINE_CELL_PX):
        reaches_down = (height > down * FINE_CELL_PX) & (top >= -down) & (top < rows - down)
        for right in range(int(width.max(initial=0)) // FINE_CELL_PX):
            covered = reaches_down & (width > right * FINE_CELL_PX) & (left >= -right) & (left < columns - right)
            where = np.compress(covered, corner)
            where += down * columns + right
            written[where] = np.compress(covered, cells)
            valid[where] = True


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
