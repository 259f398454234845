"""Motion vectors as pictures: arrows, colours by direction, and the colour wheel that explains them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cmd_extract.schema import QUARTER_PX

BRIGHTEST_PX = 6.0
"""Speed in pixels a frame that is drawn as brightly as can be."""
_GREY = 96


def color_motion(motion_T2HW: NDArray[np.int16], valid_THW: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Colours of the mean vector of each cell over the frames in which it has one.

    Args:
        motion_T2HW: (T, 2, gh, gw) quarter pixels, dx to the right and dy down.
        valid_THW: (T, gh, gw), cells that have a vector.

    Returns:
        (gh, gw, 3) uint8 RGB.
    """
    counts = valid_THW.sum(0)
    sums = (motion_T2HW.astype(np.float64) * valid_THW[:, None]).sum(0)
    dx, dy = sums / np.maximum(counts, 1) / QUARTER_PX
    hue = np.arctan2(dy, dx) % (2 * np.pi) / (2 * np.pi) * 255
    value = np.minimum(np.hypot(dx, dy) / BRIGHTEST_PX, 1) * 255
    hsv = np.stack([hue, np.full_like(hue, 255), value], -1).astype(np.uint8)
    # Told by shape, not by a mode: newer releases of Pillow want it so.
    rgb = np.array(Image.merge("HSV", [Image.fromarray(hsv[..., channel]) for channel in range(3)]).convert("RGB"))
    rgb[counts == 0] = _GREY
    return rgb
