"""Pictures of motion vectors: arrows, direction colors and the color wheel that explains them.

Direction is the hue (right red, down yellow-green, left cyan, up violet), speed the saturation. Cells that do not move
are white, cells without a vector gray.

Shape legend: T frames, gh x gw grid cells.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cmd_extract.schema import QUARTER_PX

BRIGHTEST_PX = 6.0
"""Default speed, in pixels per frame, from which on colors are fully saturated."""
ARROW_SCALE = 2
"""Length of an arrow per pixel of motion."""
_ARROW_EVERY = 2  # cells; more arrows would hide the image
_MIN_ARROW_PX = 0.5
_ARROW_COLOR, _TIP_COLOR, _OUTLINE_COLOR = (255, 230, 0), (255, 0, 0), (0, 0, 0)
_NO_VECTOR = 0.5


def direction_colors(
    dx: NDArray[np.float64], dy: NDArray[np.float64], valid: NDArray[np.bool_], scale_px: float = BRIGHTEST_PX
) -> NDArray[np.uint8]:
    """Color grid cells by the direction and speed of their vectors.

    Args:
        dx, dy: (gh, gw) displacement, right and down positive.
        valid: (gh, gw), cells that have a vector.
        scale_px: speed from which on colors are fully saturated, in the unit of ``dx``.

    Returns:
        (gh, gw, 3) uint8 RGB.
    """
    saturation = np.minimum(np.hypot(dx, dy) / scale_px, 1)
    hue = (np.arctan2(dy, dx) / (2 * np.pi)) % 1
    # One cosine per channel, a third of a turn apart.
    phases = np.stack([np.cos(2 * np.pi * (hue - shift)) for shift in (0, 1 / 3, 2 / 3)], axis=-1)
    colors = 1 - saturation[..., None] * (1 - np.clip(0.5 + phases, 0, 1))
    colors[~valid] = _NO_VECTOR
    return (255 * colors).astype(np.uint8)


def color_motion(motion_T2HW: NDArray[np.int16], valid_THW: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Color grid cells by their mean vector over the frames in which they have one.

    Args:
        motion_T2HW: (T, 2, gh, gw) quarter pixels, channel 0 = dx, 1 = dy.
        valid_THW: (T, gh, gw), cells that have a vector.

    Returns:
        (gh, gw, 3) uint8 RGB.
    """
    counts = valid_THW.sum(0)
    sums = (motion_T2HW.astype(np.float64) * valid_THW[:, None]).sum(0)
    dx, dy = sums / np.maximum(counts, 1) / QUARTER_PX
    return direction_colors(dx, dy, counts > 0)


def draw_arrows(
    image: Image.Image,
    dx: NDArray[np.float64],
    dy: NDArray[np.float64],
    valid: NDArray[np.bool_],
    cell_px: int,
    *,
    line_px: int = 1,
) -> None:
    """Draw the vectors of every second cell onto an image: arrows in the direction of motion, twice as long.

    Args:
        image: RGB image, modified in place.
        dx, dy: (gh, gw) displacement in pixels of the image.
        valid: (gh, gw), cells that have a vector.
        cell_px: side of a cell in pixels of the image.
        line_px: width of the lines; wider lines than 1 pixel are outlined in black.
    """
    pen = ImageDraw.Draw(image)
    rows, columns = np.nonzero(valid & (np.hypot(dx, dy) >= _MIN_ARROW_PX))
    kept = (rows % _ARROW_EVERY == 0) & (columns % _ARROW_EVERY == 0)
    for row, column in zip(rows[kept].tolist(), columns[kept].tolist(), strict=True):
        x, y = (column + 0.5) * cell_px, (row + 0.5) * cell_px
        tip_x, tip_y = x + ARROW_SCALE * dx[row, column], y + ARROW_SCALE * dy[row, column]
        if line_px > 1:
            pen.line([(x, y), (tip_x, tip_y)], fill=_OUTLINE_COLOR, width=line_px + 2)
        pen.line([(x, y), (tip_x, tip_y)], fill=_ARROW_COLOR, width=line_px)
        pen.ellipse([tip_x - line_px, tip_y - line_px, tip_x + line_px, tip_y + line_px], fill=_TIP_COLOR)


def color_wheel(size: int) -> Image.Image:
    """Return the key to direction colors: an RGBA disc of ``size`` x ``size`` pixels, transparent outside."""
    axis = np.linspace(-1, 1, size)
    dx, dy = np.meshgrid(axis, axis)
    inside = np.hypot(dx, dy) <= 1
    alpha = inside[..., None] * np.uint8(255)
    return Image.fromarray(np.concatenate([direction_colors(dx, dy, inside, 1.0), alpha], axis=-1))
