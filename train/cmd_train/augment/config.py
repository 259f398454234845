"""What training does to its pictures and vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from cmd_train.augment.global_motion import GLOBAL_MOTIONS, GlobalMotion

NATIVE_STRIDE = 4
"""Crop pixels per cell of the native motion input, along each axis."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What training does to its pictures and vectors; the defaults are the paper's.

    Attributes:
        crop_size: side in pixels of the square that every crop is resized to.
        crop_area: least and greatest share of the picture's area that a crop covers.
        crop_aspect: least and greatest ratio of a crop's width to its height.
        flip_probability: of a horizontal flip; vectors turn their sign with it.
        blur_probability: of a Gaussian blur.
        blur_sigma: its least and greatest standard deviation, in pixels of a 112-pixel crop; smaller crops are blurred
            by proportionally less.
        jitter_probability: of a change of colours, all four together.
        brightness, contrast, saturation: greatest change of the factor 1.
        hue: greatest shift, in turns of the colour circle.
        grey_probability: of a picture without colours.
        rotation_degrees: greatest rotation of the clip to either side; allowed only where no motion is read.
        motion_input: ``native``: one cell per 4 x 4 crop pixels, channels dx, dy and validity; ``paper``: crop
            resolution, channels dx and dy.
        motion_clamp_px: vectors are clamped to this many pixels and divided by it.
        rescale_vectors: False: vectors keep the units of the stored picture, however large the crop is. True: they
            are in pixels of a picture to whose size the crop has been enlarged, that is, dx is divided by the crop's
            share of the width and dy by its share of the height.
        global_motion: ``keep``; ``median`` or ``affine`` remove camera motion (``cmd_train.augment.global_motion``).
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
    grey_probability: float = 0.2
    rotation_degrees: float = 0.0
    motion_input: Literal["native", "paper"] = "native"
    motion_clamp_px: float = 10.0
    rescale_vectors: bool = False
    global_motion: GlobalMotion = "keep"

    def __post_init__(self) -> None:
        size = self.crop_size
        _require(
            size >= NATIVE_STRIDE and size % NATIVE_STRIDE == 0,
            f"crop_size: {size} is not allowed, need a positive multiple of {NATIVE_STRIDE}",
        )
        for name in ("flip", "blur", "jitter", "grey"):
            value = getattr(self, f"{name}_probability")
            _require(0 <= value <= 1, f"{name}_probability: {value} is not allowed, need 0 to 1")
        for name, limit in (("crop_area", 1.0), ("crop_aspect", math.inf), ("blur_sigma", math.inf)):
            low, high = getattr(self, name)
            _require(0 < low <= high <= limit, f"{name}: {(low, high)} is not allowed, need 0 < low <= high <= {limit}")
        limits = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.5, "rotation_degrees": 180.0}
        for name, limit in limits.items():
            value = getattr(self, name)
            _require(0 <= value <= limit, f"{name}: {value} is not allowed, need 0 to {limit}")
        _require(self.motion_clamp_px > 0, f"motion_clamp_px: {self.motion_clamp_px} is not allowed, need more than 0")
        _require(
            self.motion_input in ("native", "paper"),
            f"motion_input: {self.motion_input!r} is not allowed, need 'native' or 'paper'",
        )
        _require(
            self.global_motion in GLOBAL_MOTIONS,
            f"global_motion: {self.global_motion!r} is not allowed, need one of {', '.join(GLOBAL_MOTIONS)}",
        )

    @property
    def motion_size(self) -> int:
        """Cells along each side of the motion input."""
        return self.crop_size // NATIVE_STRIDE if self.motion_input == "native" else self.crop_size

    @property
    def motion_channels(self) -> int:
        """Channels of the motion input."""
        return 3 if self.motion_input == "native" else 2
