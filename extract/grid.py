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
    grid = np.zeros((len(frames), 2, rows, columns), np.int16)
    valid = np.zeros((len(frames), rows, columns), np.bool_)
    if frames:
        vectors = np.concatenate([f.vectors for f in frames])
        frame_of = np.repeat(np.arange(len(frames)), [len(f.vectors) for f in frames])
        past = vectors[:, _SOURCE] < 0
        if not past.all():
            vectors, frame_of = vectors[past], frame_of[past]
        _draw(grid, valid, vectors, frame_of)
    return MotionGrid(grid_quarter_px=grid, valid=valid)


def _draw(
    grid: NDArray[np.int16], valid: NDArray[np.bool_], vectors: NDArray[np.int32], frame_of: NDArray[np.int64]
) -> None:
    rows, columns = valid.shape[1:]
    scale = vectors[:, _SCALE]
    # Scales are 2 or 4 (half or quarter pixels), so that the division is exact.
    dx = (-QUARTER_PX * vectors[:, _MOTION_X] // scale).astype(np.int16)
    dy = (-QUARTER_PX * vectors[:, _MOTION_Y] // scale).astype(np.int16)
    left = (vectors[:, _DST_X] - vectors[:, _W] // 2) // FINE_CELL_PX
    top = (vectors[:, _DST_Y] - vectors[:, _H] // 2) // FINE_CELL_PX
    for down in range(int(vectors[:, _H].max(initial=0)) // FINE_CELL_PX):
        for right in range(int(vectors[:, _W].max(initial=0)) // FINE_CELL_PX):
            row, column = top + down, left + right
            inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
            covered = (vectors[:, _H] > down * FINE_CELL_PX) & (vectors[:, _W] > right * FINE_CELL_PX) & inside
            where = (frame_of[covered], row[covered], column[covered])
            grid[where[0], 0, where[1], where[2]] = dx[covered]
            grid[where[0], 1, where[1], where[2]] = dy[covered]
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
