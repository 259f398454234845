"""Textures of synthetic videos: a family with its own palette per context class, and random textures for objects.

All textures contain irregular detail 4 to 12 pixels wide, so that block matching with blocks of 8 to 16 pixels finds
the true motion; a regular pattern alone would also match itself one period away. Every function is deterministic given
its generator.

Shape legend: H, W frame height and width in pixels. Values are float32 in 0..1 until ``to_u8``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

FloatImage = NDArray[np.float32]
Color = tuple[float, float, float]


def value_noise(rng: np.random.Generator, height: int, width: int, cell_y: float, cell_x: float) -> FloatImage:
    """Sample smooth noise (H, W) in 0..1: random values ``cell_y`` x ``cell_x`` pixels apart, interpolated."""
    grid = rng.random((int(height / cell_y) + 3, int(width / cell_x) + 3), dtype=np.float32)
    offset_y, offset_x = rng.random(2)
    rows, row_share = _grid_positions(height, cell_y, offset_y)
    columns, column_share = _grid_positions(width, cell_x, offset_x)
    stretched = grid[rows] + row_share[:, None] * (grid[rows + 1] - grid[rows])
    noise: FloatImage = stretched[:, columns] + column_share * (stretched[:, columns + 1] - stretched[:, columns])
    return noise


def _grid_positions(length: int, cell: float, offset: float) -> tuple[NDArray[np.int64], FloatImage]:
    positions = np.arange(length, dtype=np.float64) / cell + offset
    below = positions.astype(np.int64)
    fraction = positions - below
    return below, (fraction * fraction * (3 - 2 * fraction)).astype(np.float32)


def blend(share: FloatImage, low: Color, high: Color) -> FloatImage:
    """Interpolate between two colors: ``share`` (H, W) is the weight of ``high``; returns (H, W, 3)."""
    first, second = np.asarray(low, dtype=np.float32), np.asarray(high, dtype=np.float32)
    return first + share[..., None] * (second - first)


def to_u8(picture: FloatImage) -> NDArray[np.uint8]:
    """Convert values in 0..1 to 8 bits."""
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def _detail(rng: np.random.Generator, height: int, width: int, strength: float) -> FloatImage:
    fine = value_noise(rng, height, width, 4, 4) + value_noise(rng, height, width, 9, 9) - 1
    return (strength * fine)[..., None]


def _bricks(rng: np.random.Generator, height: int, width: int) -> FloatImage:
    brick_h, brick_w, mortar = int(rng.integers(20, 27)), int(rng.integers(44, 60)), 3
    y = np.arange(height)[:, None] + int(rng.integers(brick_h))
    course = y // brick_h
    x = np.arange(width)[None, :] + int(rng.integers(brick_w)) + (course % 2) * (brick_w // 2)
    tone = rng.random((int(course.max()) + 1, int((x // brick_w).max()) + 1), dtype=np.float32)
    picture = blend(tone[course, x // brick_w], (0.45, 0.16, 0.11), (0.72, 0.33, 0.22))
    joint = (y % brick_h < mortar) | (x % brick_w < mortar)
    picture[joint] = (0.74, 0.70, 0.64)
    return picture + _detail(rng, height, width, 0.10)


def _clouds(rng: np.random.Generator, height: int, width: int) -> FloatImage:
    share = np.zeros((height, width), dtype=np.float32)
    for weight, cell in ((4 / 7, 56), (2 / 7, 28), (1 / 7, 14)):
        share += np.float32(weight) * value_noise(rng, height, width, cell, 1.6 * cell)
    share = (share - 0.35) / 0.3
    return blend(np.clip(share, 0, 1), (0.36, 0.58, 0.86), (0.95, 0.96, 0.98)) + _detail(rng, height, width, 0.05)


def _grass(rng: np.random.Generator, height: int, width: int) -> FloatImage:
    blades = 0.6 * value_noise(rng, height, width, 18, 3.5) + 0.4 * value_noise(rng, height, width, 30, 8)
    meadow = value_noise(rng, height, width, 70, 70)
    share: FloatImage = np.clip((blades - 0.3) / 0.4, 0, 1) * (0.6 + 0.4 * meadow)
    return blend(share, (0.07, 0.22, 0.06), (0.52, 0.72, 0.24)) + _detail(rng, height, width, 0.06)


def _tiles(rng: np.random.Generator, height: int, width: int) -> FloatImage:
    side, gap = int(rng.integers(34, 46)), 2
    y = np.arange(height)[:, None] + int(rng.integers(2 * side))
    x = np.arange(width)[None, :] + int(rng.integers(2 * side))
    tone = rng.random((int((y // side).max()) + 1, int((x // side).max()) + 1), dtype=np.float32)
    dark = (y // side + x // side) % 2 == 0
    share = np.where(dark, np.float32(0.15), np.float32(0.85)) + 0.2 * (tone[y // side, x // side] - 0.5)
    picture = blend(share, (0.18, 0.19, 0.24), (0.86, 0.85, 0.82))
    picture[(y % side < gap) | (x % side < gap)] = (0.5, 0.5, 0.5)
    return picture + _detail(rng, height, width, 0.10)


def _water(rng: np.random.Generator, height: int, width: int) -> FloatImage:
    warp = 14 * value_noise(rng, height, width, 40, 60)
    phase = 2 * np.pi * (np.arange(height)[:, None] + warp) / float(rng.uniform(14, 20))
    ripples = (0.5 + 0.5 * np.sin(phase)).astype(np.float32)
    share = 0.55 * ripples + 0.45 * value_noise(rng, height, width, 8, 22)
    return blend(share, (0.02, 0.20, 0.30), (0.30, 0.72, 0.76)) + _detail(rng, height, width, 0.08)


def _wood(rng: np.random.Generator, height: int, width: int) -> FloatImage:
    plank = int(rng.integers(46, 62))
    y = np.arange(height)[:, None] + int(rng.integers(plank))
    tone = rng.random(int((y // plank).max()) + 1, dtype=np.float32)[y // plank]
    grain = 0.6 * value_noise(rng, height, width, 3.5, 45) + 0.4 * value_noise(rng, height, width, 9, 90)
    share: FloatImage = np.clip(0.3 * tone + 0.9 * (grain - 0.2), 0, 1)
    picture = blend(share, (0.28, 0.16, 0.07), (0.78, 0.55, 0.30))
    picture[np.broadcast_to(y % plank < 3, (height, width))] = (0.16, 0.09, 0.04)
    return picture + _detail(rng, height, width, 0.06)


_FAMILIES: dict[str, Callable[[np.random.Generator, int, int], FloatImage]] = {
    "bricks": _bricks,
    "clouds": _clouds,
    "grass": _grass,
    "tiles": _tiles,
    "water": _water,
    "wood": _wood,
}
CONTEXTS = tuple(_FAMILIES)
"""Names of the context classes."""


def background(context: str, rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """Sample a background (H, W, 3) of a context class with random sizes, phases and lighting.

    Raises:
        KeyError: the context class does not exist.
    """
    picture = _FAMILIES[context](rng, height, width)
    light = 0.85 + 0.3 * value_noise(rng, height, width, height / 1.5, width / 1.5)
    tint = rng.uniform(0.94, 1.06, 3).astype(np.float32)
    return to_u8(picture * light[..., None] * tint)


def object_texture(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """Sample the texture (H, W, 3) of an object: patches of three colors of random hue, with detail."""
    cell = float(rng.uniform(12, 26))
    field = 0.7 * value_noise(rng, height, width, cell, cell) + 0.3 * value_noise(rng, height, width, 6, 6)
    low, high = np.quantile(field, [0.36, 0.68])
    patch = (field > low).astype(np.int64) + (field > high)
    hue = float(rng.random())
    hues = (hue + np.array([0.0, rng.uniform(0.2, 0.4), rng.uniform(0.5, 0.7)])) % 1
    values = rng.permutation(np.array([0.35, 0.7, 0.95]))
    colors = np.stack([_rgb_of_hue(h, float(rng.uniform(0.5, 0.95)), v) for h, v in zip(hues, values, strict=True)])
    return to_u8(colors[patch] + _detail(rng, height, width, 0.12))


def _rgb_of_hue(hue: float, saturation: float, value: float) -> FloatImage:
    away = np.abs((6 * hue + np.array([0.0, 4.0, 2.0])) % 6 - 3)  # hue distance to each channel, in sextants
    rgb: FloatImage = (value * (1 - saturation * (1 - np.clip(away - 1, 0, 1)))).astype(np.float32)
    return rgb


def object_mask(rng: np.random.Generator, height: int, width: int) -> NDArray[np.bool_]:
    """Sample the silhouette (H, W) of an object: a rounded box, ellipse, diamond or lobed blob.

    It touches all four sides of the array.
    """
    y = ((np.arange(height) + 0.5) / height * 2 - 1)[:, None]
    x = ((np.arange(width) + 0.5) / width * 2 - 1)[None, :]
    kind = int(rng.integers(4))
    if kind == 0:
        return (y**6 + x**6 <= 1).astype(np.bool_)
    if kind == 1:
        return (y**2 + x**2 <= 1).astype(np.bool_)
    if kind == 2:
        return (np.abs(y) ** 1.2 + np.abs(x) ** 1.2 <= 1).astype(np.bool_)
    lobes, turn = int(rng.integers(3, 6)), float(rng.uniform(0, 2 * np.pi))
    radius = 0.85 + 0.15 * np.cos(lobes * np.arctan2(y, x) + turn)
    return (np.hypot(y, x) <= radius).astype(np.bool_)
