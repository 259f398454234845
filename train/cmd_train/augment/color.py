"""Colour changes of batches of pictures, one set of factors a sample, with torchvision's definitions.

Fixed order: brightness, contrast, saturation, hue (torchvision shuffles it for every call; a fixed order keeps the
batch in one pass). Contrast moves towards the mean grey of each frame by itself.

Shape legend: B samples, T frames, H x W pixels. Pictures are (B, 3, T, H, W) float32, RGB in 0 to 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cmd_train.augment.parameters import ColorParameters

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_GREY_WEIGHTS = (0.2989, 0.587, 0.114)


def change_colors(picture_B3THW: Tensor, color: ColorParameters) -> Tensor:
    """Apply jitter where it is drawn, then grey where that is drawn.

    Args:
        picture_B3THW: (B, 3, T, H, W) float32 in 0 to 1; may be overwritten.
        color: parameters of the B samples, on the CPU; its blur is not applied here.

    Returns:
        (B, 3, T, H, W) float32 in 0 to 1.
    """
    # Which samples are concerned is known on the CPU, so this never waits for the device.
    device = picture_B3THW.device
    if (rows := color.jitter_B.nonzero().flatten()).numel():
        factors = (color.brightness_B, color.contrast_B, color.saturation_B, color.hue_B)
        chosen = rows.to(device)
        jittered = jitter(picture_B3THW[chosen], *(factor[rows].to(device) for factor in factors))
        picture_B3THW[chosen] = jittered
    if (rows := color.grey_B.nonzero().flatten()).numel():
        chosen = rows.to(device)
        picture_B3THW[chosen] = grey_of(picture_B3THW[chosen]).expand(-1, 3, -1, -1, -1)
    return picture_B3THW


def jitter(
    picture_B3THW: Tensor, brightness_B: Tensor, contrast_B: Tensor, saturation_B: Tensor, hue_B: Tensor
) -> Tensor:
    """Change brightness, contrast, saturation and hue, in this order, each clamped to 0 to 1.

    Args:
        picture_B3THW: (B, 3, T, H, W) float32 in 0 to 1.
        brightness_B, contrast_B, saturation_B: factors; 1 = none.
        hue_B: shifts in turns; 0 = none.

    Returns:
        (B, 3, T, H, W) float32 in 0 to 1.
    """
    picture = (picture_B3THW * _per_sample(brightness_B)).clamp_(0, 1)
    mean_grey = grey_of(picture).mean((-2, -1), keepdim=True)
    picture = torch.lerp(mean_grey, picture, _per_sample(contrast_B)).clamp_(0, 1)
    picture = torch.lerp(grey_of(picture), picture, _per_sample(saturation_B)).clamp_(0, 1)
    return shift_hue(picture, hue_B)


def grey_of(picture_B3THW: Tensor) -> Tensor:
    """(B, 1, T, H, W), luma of ITU-R BT.601."""
    red, green, blue = picture_B3THW.unbind(1)
    luma = (red * _GREY_WEIGHTS[0]).add_(green, alpha=_GREY_WEIGHTS[1]).add_(blue, alpha=_GREY_WEIGHTS[2])
    return luma.unsqueeze(1)


def shift_hue(picture_B3THW: Tensor, hue_B: Tensor) -> Tensor:
    """Turn the hue in HSV; value and saturation stay.

    Args:
        picture_B3THW: (B, 3, T, H, W) float32 in 0 to 1.
        hue_B: shifts in turns of the colour circle, of either sign.

    Returns:
        (B, 3, T, H, W) float32 in 0 to 1.
    """
    red, green, blue = picture_B3THW.unbind(1)
    value, low = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    chroma = value - low
    divisor = torch.where(chroma > 0, chroma, 1.0)
    # Hue in sixths of a turn; where two channels are greatest, both formulas agree.
    hue = torch.where(value == red, (green - blue) / divisor, 2 + (blue - red) / divisor)
    hue = torch.where((value == blue) & (value != red) & (value != green), 4 + (red - green) / divisor, hue)
    hue += 6 * hue_B.view(-1, 1, 1, 1)
    channels = []
    for offset in (5, 3, 1):
        # A channel falls from value to low and rises again as the hue moves away from and back to it.
        ramp = torch.remainder(hue + offset, 6)
        ramp = torch.minimum(ramp, 4 - ramp).clamp_(0, 1)
        channels.append(torch.addcmul(value, chroma, ramp, value=-1))
    return torch.stack(channels, 1)


def normalize(picture_B3THW: Tensor) -> Tensor:
    """Subtract ImageNet's mean and divide by its standard deviation: (B, 3, T, H, W) RGB in 0 to 1, same shape back."""
    mean = torch.tensor(IMAGENET_MEAN, device=picture_B3THW.device).view(3, 1, 1, 1)
    deviation = torch.tensor(IMAGENET_STD, device=picture_B3THW.device).view(3, 1, 1, 1)
    return (picture_B3THW - mean) / deviation


def _per_sample(factor_B: Tensor) -> Tensor:
    return factor_B.view(-1, 1, 1, 1, 1)
