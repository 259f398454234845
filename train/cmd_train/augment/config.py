"""Settings of the augmentation and the shape of the motion input; imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from cmd_extract.system.validation import require, require_choice, require_range

MotionInput = Literal["native", "paper"]
MOTION_INPUTS: tuple[MotionInput, ...] = get_args(MotionInput)

GlobalMotion = Literal["keep", "median"]
GLOBAL_MOTIONS: tuple[GlobalMotion, ...] = get_args(GlobalMotion)

NATIVE_CELL_PX = 4
"""Side of a cell of the native motion input, in pixels of the crop."""


def motion_input_shape(motion_input: MotionInput, *, frames: int, crop_size: int) -> tuple[int, int, int, int]:
    """Return the shape (C, T, H, W) of a motion window at the input of the motion encoder.

    Args:
        motion_input: "native" (dx, dy and validity; one cell per 4 x 4 pixels of the crop) or "paper" (dx and dy; one
            value per pixel of the crop).
        frames: motion frames per window.
        crop_size: side of the crop in pixels.
    """
    if motion_input == "native":
        side = crop_size // NATIVE_CELL_PX
        return 3, frames, side, side
    return 2, frames, crop_size, crop_size


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Settings of the augmentation; the defaults are the paper's.

    Attributes:
        crop_size: side in pixels of the square to which every crop is resized.
        crop_area: range of the crop's share of the picture area.
        crop_aspect: range of the crop's aspect ratio, width divided by height.
        flip_probability: probability of a horizontal flip; vectors are mirrored with the picture.
        blur_probability: probability of a Gaussian blur.
        blur_sigma: range of its standard deviation, in pixels of a 112-pixel crop; scaled in proportion to the crop.
        jitter_probability: probability of color jitter (brightness, contrast, saturation and hue together).
        brightness, contrast, saturation: maximum change of the respective factor from 1.
        hue: maximum shift of the hue, as a fraction of the color circle.
        gray_probability: probability of conversion to grayscale.
        rotation_degrees: maximum rotation of the clip in either direction; must be 0 if motion is used.
        motion_input: ``native``: one cell per 4 x 4 crop pixels, channels dx, dy and validity. ``paper``: crop
            resolution, channels dx and dy.
        motion_clamp_px: vectors are clamped to this many pixels and then divided by it.
        rescale_vectors: false: vectors stay in units of the stored picture, regardless of the crop. True: vectors are
            scaled as if the crop were enlarged to the size of the whole picture: dx is divided by the crop's share of
            the width, dy by its share of the height.
        global_motion: ``median`` removes camera motion (see ``cmd_train.augment.global_motion``); ``keep`` does not.
    """

    crop_size: int = 112
    crop_area: tuple[float, float] = (0.2, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5
    blur_probability: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    jitter_probability: float = 0.5
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    gray_probability: float = 0.2
    rotation_degrees: float = 0.0
    motion_input: MotionInput = "native"
    motion_clamp_px: float = 10.0
    rescale_vectors: bool = False
    global_motion: GlobalMotion = "keep"

    def __post_init__(self) -> None:
        require(
            self.crop_size > 0 and self.crop_size % NATIVE_CELL_PX == 0,
            f"crop_size: must be a positive multiple of {NATIVE_CELL_PX}, got {self.crop_size}",
        )
        probabilities = ("flip_probability", "blur_probability", "jitter_probability", "gray_probability")
        require_range(self, *probabilities, "brightness", "contrast", "saturation", ge=0, le=1)
        require_range(self, "hue", ge=0, le=0.5)
        require_range(self, "rotation_degrees", ge=0, le=180)
        require_range(self, "motion_clamp_px", gt=0)
        for name, limit in (("crop_area", 1.0), ("crop_aspect", math.inf), ("blur_sigma", math.inf)):
            low, high = getattr(self, name)
            require(0 < low <= high <= limit, f"{name}: must satisfy 0 < low <= high <= {limit}, got {(low, high)}")
        require_choice(self, "motion_input", MOTION_INPUTS)
        require_choice(self, "global_motion", GLOBAL_MOTIONS)

    @property
    def motion_size(self) -> int:
        """Number of cells along each side of the motion input."""
        return motion_input_shape(self.motion_input, frames=1, crop_size=self.crop_size)[-1]

    @property
    def motion_channels(self) -> int:
        """Number of channels of the motion input."""
        return motion_input_shape(self.motion_input, frames=1, crop_size=self.crop_size)[0]
