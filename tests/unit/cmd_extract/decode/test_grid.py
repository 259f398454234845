from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from cmd_extract.decode.grid import coarsen, rasterize
from cmd_extract.decode.vectors import VECTOR_DTYPE, FrameVectors
from cmd_extract.schema import MotionGrid, grid_shape


def vectors(*rows: tuple[int, ...]) -> FrameVectors:
    return FrameVectors(frame_type="P", vectors=np.array(list(rows), VECTOR_DTYPE))


def block(*, x: int, y: int, side: int, motion: tuple[int, int], scale: int, source: int = -1) -> tuple[int, ...]:
    """Return the vector of a block with top left corner (x, y); FFmpeg gives the center."""
    half = side // 2
    return (source, side, side, 0, 0, x + half, y + half, motion[0], motion[1], scale)


def loop_reference(rows: list[tuple[int, ...]], width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Rasterize cell by cell: each cell gets the vector of the block that covers its first pixel."""
    gh, gw = grid_shape(width, height, 8)
    grid, valid = np.zeros((2, gh, gw), np.int16), np.zeros((gh, gw), bool)
    for r in range(gh):
        for c in range(gw):
            for source, w, h, _, _, cx, cy, mx, my, scale in rows:
                if source < 0 and cx - w // 2 <= c * 8 < cx + w // 2 and cy - h // 2 <= r * 8 < cy + h // 2:
                    grid[:, r, c] = (-mx * 4 // scale, -my * 4 // scale)
                    valid[r, c] = True
    return grid, valid


def test_content_moving_right_is_positive() -> None:
    # FFmpeg reports content moving by +4 px as -8 at scale 2.
    motion = rasterize([vectors(block(x=16, y=0, side=16, motion=(-8, 0), scale=2))], 64, 32)
    assert motion.grid_quarter_px[0, 0, 0, 2] == 16
    assert motion.valid[0].sum() == 4
    assert motion.valid[0, :2, 2:4].all()


@pytest.mark.parametrize("first", [0, -32, -24])
def test_matches_loop_reference_on_random_blocks(first: int) -> None:
    """Negative: blocks lie beyond all edges of the picture, or across them."""
    rng = np.random.default_rng(-first)
    for _ in range(20):
        width, height = (int(n) for n in rng.integers(20, 120, 2))
        rows = []
        for y in range(first, height - first, 16):
            for x in range(first, width - first, 16):
                kind = rng.integers(4)
                motion = (int(rng.integers(-60, 60)), int(rng.integers(-60, 60)))
                scale = int(rng.choice([2, 4]))
                if kind == 0:
                    continue  # intra
                if kind == 1:
                    rows += [
                        block(x=x + a, y=y + b, side=8, motion=motion, scale=scale) for a in (0, 8) for b in (0, 8)
                    ]
                else:
                    rows.append(block(x=x, y=y, side=16, motion=motion, scale=scale, source=-1 if kind == 2 else 1))
        motion_grid = rasterize([vectors(*rows)], width, height)
        grid, valid = loop_reference(rows, width, height)
        np.testing.assert_array_equal(motion_grid.grid_quarter_px[0], grid)
        np.testing.assert_array_equal(motion_grid.valid[0], valid)


def test_matches_loop_reference_on_macroblocks() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        width, height = (int(n) for n in rng.integers(20, 120, 2))
        frames = []
        for _ in range(3):
            corners = [(x, y) for y in range(0, height, 16) for x in range(0, width, 16) if rng.random() < 0.7]
            corners += corners[::3]  # if a block has two vectors, the later one counts
            moves = [(int(a), int(b)) for a, b in rng.integers(-60, 60, (len(corners), 2))]
            frames.append(
                [
                    block(
                        x=x, y=y, side=16, motion=move, scale=int(rng.choice([2, 4])), source=int(rng.choice([-1, 1]))
                    )
                    for (x, y), move in zip(corners, moves, strict=True)
                ]
            )
        motion = rasterize([vectors(*rows) for rows in frames], width, height)
        for number, rows in enumerate(frames):
            grid, valid = loop_reference(rows, width, height)
            np.testing.assert_array_equal(motion.grid_quarter_px[number], grid)
            np.testing.assert_array_equal(motion.valid[number], valid)


@pytest.mark.parametrize(
    ("x", "y"), [(8, 0), (0, 8), (-8, 0), (0, 24), (48, 0), (56, 0), (0, 32), (-16, 0), (-16, -16), (48, 32)]
)
def test_unaligned_large_block_is_drawn_at_its_position(x: int, y: int) -> None:
    rows = [block(x=32, y=16, side=16, motion=(2, 8), scale=2), block(x=x, y=y, side=16, motion=(-6, 4), scale=2)]
    motion = rasterize([vectors(*rows)], 48, 32)
    grid, valid = loop_reference(rows, 48, 32)
    np.testing.assert_array_equal(motion.grid_quarter_px[0], grid)
    np.testing.assert_array_equal(motion.valid[0], valid)


def test_frames_are_independent() -> None:
    frames = [vectors(), vectors(block(x=0, y=0, side=8, motion=(4, 4), scale=4)), vectors()]
    motion = rasterize(frames, 32, 32)
    assert motion.valid.sum(axis=(1, 2)).tolist() == [0, 1, 0]
    assert motion.grid_quarter_px[1, :, 0, 0].tolist() == [-4, -4]
    nothing = rasterize([vectors(), vectors()], 40, 24)
    assert nothing.valid.shape == (2, 3, 5)
    assert not nothing.valid.any()
    assert not nothing.grid_quarter_px.any()


@pytest.mark.parametrize(("width", "height"), [(64, 32), (20, 16), (17, 33), (45, 29)])
def test_coarse_cells_are_means_over_the_valid_pixels_inside(width: int, height: int) -> None:
    rng = np.random.default_rng(width)
    rows, columns = grid_shape(width, height, 8)
    valid = rng.random((5, rows, columns)) < 0.6
    grid = rng.integers(-3, 4, (5, 2, rows, columns)).astype(np.int16) * valid[:, None]
    coarse = coarsen(MotionGrid(grid_quarter_px=grid, valid=valid), width, height)
    values, known = (a.repeat(8, -1).repeat(8, -2)[..., :height, :width] for a in (grid, valid))
    assert coarse.valid.shape == (5, *grid_shape(width, height, 16))
    for t, r, c in np.ndindex(coarse.valid.shape):
        pixels = slice(16 * r, 16 * r + 16), slice(16 * c, 16 * c + 16)
        inside = known[t][pixels]
        assert coarse.valid[t, r, c] == inside.any()
        for channel in range(2):
            mean = Fraction(int(values[t, channel][pixels].sum()), max(int(inside.sum()), 1))
            expected = int(abs(mean) + Fraction(1, 2)) * (1 if mean > 0 else -1)
            assert coarse.grid_quarter_px[t, channel, r, c] == expected


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="valid"):
        MotionGrid(grid_quarter_px=np.zeros((1, 2, 3, 4), np.int16), valid=np.zeros((1, 4, 3), bool))
