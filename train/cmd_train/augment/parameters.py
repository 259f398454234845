"""Random augmentation parameters, drawn on the CPU from an independent stream per sample.

The parameters of a sample depend only on (seed, epoch, position), never on the batch it is in, nor on workers, ranks or
the device, and a resumed run draws exactly what the interrupted one would have drawn. Each sample uses a fixed number
of variates in a fixed order, regardless of the configuration, so disabling one augmentation does not change the others.

Shape legend: B samples, W motion windows (the positive first, then the temporal negatives).
"""

# ruff: noqa: N815 (field names carry the shapes of their tensors)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmd_extract.system.validation import require
from cmd_train.augment.config import AugmentConfig
from cmd_train.data.sampling import seed_sequence

EVALUATION_SIDE = 112 / 128
"""Side of the central evaluation crop, relative to the short side of the picture (in the paper, 112 of 128 pixels)."""

_PURPOSE_AUGMENT = (3,)
_CROP_ATTEMPTS = 10
_CROP_DRAWS = 2 * _CROP_ATTEMPTS + 3
_COLOR_DRAWS = 8

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class CropParameters:
    """Crops in fractions of the picture, independent of the size it is stored at; any leading axes.

    Attributes:
        box: (..., 4) float32: left, top, width, height.
        flip: (...) bool: whether to flip horizontally after the crop.
    """

    box: Tensor
    flip: Tensor

    def __post_init__(self) -> None:
        shape = (*self.flip.shape, 4)
        require(self.box.shape == shape, f"box: must have shape {shape}, got {tuple(self.box.shape)}")


@dataclass(frozen=True, kw_only=True)
class ColorParameters:
    """Color and blur parameters; neutral values where an augmentation is not applied.

    Attributes:
        blur_sigma_B: float32, standard deviation in pixels of a 112-pixel crop; 0 = no blur.
        jitter_B: bool, whether color jitter is applied; if not, the next four are neutral.
        brightness_B, contrast_B, saturation_B: float32 factors; 1 = no change.
        hue_B: float32 shifts as fractions of the color circle; 0 = no change.
        gray_B: bool, whether to convert to grayscale.
    """

    blur_sigma_B: Tensor
    jitter_B: Tensor
    brightness_B: Tensor
    contrast_B: Tensor
    saturation_B: Tensor
    hue_B: Tensor
    gray_B: Tensor


@dataclass(frozen=True, kw_only=True)
class AugmentParameters:
    """Augmentation parameters of a batch of samples; kept on the CPU.

    Attributes:
        clip_crop: (B,) crops of the clips, shared with the positive motion windows.
        keyframe_crop: (B,) crops of the keyframes.
        motion_crop: (B, W) crops of the motion windows, the clip's crop first.
        clip_color, keyframe_color: (B,) color parameters.
        rotation_B: float32, rotation of the clip in degrees, counter-clockwise.
    """

    clip_crop: CropParameters
    keyframe_crop: CropParameters
    motion_crop: CropParameters
    clip_color: ColorParameters
    keyframe_color: ColorParameters
    rotation_B: Tensor


def draw_parameters(
    config: AugmentConfig, keys: Sequence[tuple[int, int]], *, seed: int, windows: int, picture_size: tuple[int, int]
) -> AugmentParameters:
    """Draw the augmentation parameters of a batch of samples.

    The clip and its positive motion window share crop and flip; the keyframe and each temporal negative have their own.

    Args:
        config: probabilities and ranges.
        keys: (epoch, position) of each sample, ``Batch.keys``.
        seed: random seed of the run.
        windows: motion windows W per sample; at least 1.
        picture_size: (width, height) of the picture; only the aspect ratio matters.

    Returns:
        Parameters of B = ``len(keys)`` samples.
    """
    require(windows >= 1, f"windows: must be at least 1, got {windows}")
    count = 1 + 2 * _COLOR_DRAWS + (windows + 1) * _CROP_DRAWS
    draws = np.stack([_sample_draws(seed, key, count) for key in keys])
    colors = draws[:, 1 : 1 + 2 * _COLOR_DRAWS].reshape(len(keys), 2, _COLOR_DRAWS)
    crops = draws[:, 1 + 2 * _COLOR_DRAWS :].reshape(len(keys), windows + 1, _CROP_DRAWS)
    box, flip = _crops(config, crops, picture_size[0] / picture_size[1])
    clip_and_negatives = [0, *range(2, windows + 1)]
    return AugmentParameters(
        clip_crop=CropParameters(box=box[:, 0], flip=flip[:, 0]),
        keyframe_crop=CropParameters(box=box[:, 1], flip=flip[:, 1]),
        motion_crop=CropParameters(box=box[:, clip_and_negatives], flip=flip[:, clip_and_negatives]),
        clip_color=_colors(config, colors[:, 0]),
        keyframe_color=_colors(config, colors[:, 1]),
        rotation_B=_float32(config.rotation_degrees * (2 * draws[:, 0] - 1)),
    )


def center_box(width: int, height: int) -> Tensor:
    """Return the box of the central evaluation crop, (4,) float32, in fractions of a picture of this size."""
    side = EVALUATION_SIDE * min(width, height)
    return torch.tensor([(1 - side / width) / 2, (1 - side / height) / 2, side / width, side / height])


def _sample_draws(seed: int, key: tuple[int, int], count: int) -> FloatArray:
    rng = np.random.default_rng(seed_sequence(seed, *key, purpose=_PURPOSE_AUGMENT))
    return rng.random(count)


def _crops(config: AugmentConfig, draws: FloatArray, picture_aspect: float) -> tuple[Tensor, Tensor]:
    """Return boxes (..., 4) and flips (...) from uniform draws (..., _CROP_DRAWS).

    The area and the logarithm of the aspect ratio are uniform. The first of ten attempts that fits into the picture is
    used; if none does, the largest central crop with an allowed aspect ratio.
    """
    low, high = config.crop_area
    area = low + (high - low) * draws[..., :_CROP_ATTEMPTS]
    low, high = np.log(config.crop_aspect)
    aspect = np.exp(low + (high - low) * draws[..., _CROP_ATTEMPTS : 2 * _CROP_ATTEMPTS])
    widths, heights = np.sqrt(area * aspect / picture_aspect), np.sqrt(area / aspect * picture_aspect)
    fits = (widths <= 1) & (heights <= 1)
    first = fits.argmax(-1)[..., None]
    found = fits.any(-1)
    fallback = min(max(picture_aspect, config.crop_aspect[0]), config.crop_aspect[1]) / picture_aspect
    width = np.where(found, np.take_along_axis(widths, first, -1)[..., 0], min(fallback, 1.0))
    height = np.where(found, np.take_along_axis(heights, first, -1)[..., 0], min(1 / fallback, 1.0))
    horizontal, vertical, flip = np.moveaxis(draws[..., 2 * _CROP_ATTEMPTS :], -1, 0)
    left = np.where(found, horizontal, 0.5) * (1 - width)
    top = np.where(found, vertical, 0.5) * (1 - height)
    box = _float32(np.stack([left, top, width, height], -1))
    return box, torch.from_numpy(flip < config.flip_probability)


def _colors(config: AugmentConfig, draws: FloatArray) -> ColorParameters:
    """Return color parameters from uniform draws (B, _COLOR_DRAWS)."""
    blur, jitter, gray, sigma, *factors, hue = draws.T
    low, high = config.blur_sigma
    jittered = jitter < config.jitter_probability
    strengths = (config.brightness, config.contrast, config.saturation)
    brightness, contrast, saturation = (
        _float32(np.where(jittered, 1 + strength * (2 * factor - 1), 1.0))
        for strength, factor in zip(strengths, factors, strict=True)
    )
    return ColorParameters(
        blur_sigma_B=_float32(np.where(blur < config.blur_probability, low + (high - low) * sigma, 0.0)),
        jitter_B=torch.from_numpy(jittered),
        brightness_B=brightness,
        contrast_B=contrast,
        saturation_B=saturation,
        hue_B=_float32(np.where(jittered, config.hue * (2 * hue - 1), 0.0)),
        gray_B=torch.from_numpy(gray < config.gray_probability),
    )


def _float32(values: FloatArray) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))
