"""Batched color augmentation with one set of factors per sample, following torchvision's definitions.

The order is fixed: brightness, contrast, saturation, hue. torchvision shuffles it in every call; a fixed order allows a
single pass over the batch. Contrast blends with the mean gray value of each individual frame.

Shape legend: B samples, T frames, H x W pixels. Pictures are (B, 3, T, H, W) float32, RGB in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from cmd_train.augment.parameters import ColorParameters

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_GRAY_WEIGHTS = (0.2989, 0.587, 0.114)


def change_colors(picture_B3THW: Tensor, color: ColorParameters) -> Tensor:
    """Apply color jitter, then grayscale conversion, to the selected samples.

    Args:
        picture_B3THW: (B, 3, T, H, W) float32 in [0, 1]; may be overwritten.
        color: parameters of the B samples, on the CPU; the blur is not applied here.

    Returns:
        (B, 3, T, H, W) float32 in [0, 1].
    """
    # The samples are selected on the CPU, so there is no device synchronization.
    device = picture_B3THW.device
    if (rows := color.jitter_B.nonzero().flatten()).numel():
        factors = (color.brightness_B, color.contrast_B, color.saturation_B, color.hue_B)
        chosen = rows.to(device)
        jittered = jitter(picture_B3THW[chosen], *(factor[rows].to(device) for factor in factors))
        picture_B3THW[chosen] = jittered
    if (rows := color.gray_B.nonzero().flatten()).numel():
        chosen = rows.to(device)
        picture_B3THW[chosen] = gray_of(picture_B3THW[chosen]).expand(-1, 3, -1, -1, -1)
    return picture_B3THW


def jitter(
    picture_B3THW: Tensor, brightness_B: Tensor, contrast_B: Tensor, saturation_B: Tensor, hue_B: Tensor
) -> Tensor:
    """Change brightness, contrast, saturation and hue, in this order, clamping to [0, 1] after each.

    Args:
        picture_B3THW: (B, 3, T, H, W) float32 in [0, 1].
        brightness_B, contrast_B, saturation_B: factors; 1 = no change.
        hue_B: shifts as fractions of the color circle; 0 = no change.

    Returns:
        (B, 3, T, H, W) float32 in [0, 1].
    """
    picture = (picture_B3THW * _per_sample(brightness_B)).clamp_(0, 1)
    mean_gray = gray_of(picture).mean((-2, -1), keepdim=True)
    picture = torch.lerp(mean_gray, picture, _per_sample(contrast_B)).clamp_(0, 1)
    picture = torch.lerp(gray_of(picture), picture, _per_sample(saturation_B)).clamp_(0, 1)
    return shift_hue(picture, hue_B)


def gray_of(picture_B3THW: Tensor) -> Tensor:
    """Return the ITU-R BT.601 luma, (B, 1, T, H, W)."""
    red, green, blue = picture_B3THW.unbind(1)
    luma = (red * _GRAY_WEIGHTS[0]).add_(green, alpha=_GRAY_WEIGHTS[1]).add_(blue, alpha=_GRAY_WEIGHTS[2])
    return luma.unsqueeze(1)


def shift_hue(picture_B3THW: Tensor, hue_B: Tensor) -> Tensor:
    """Shift the hue in HSV; value and saturation are unchanged.

    Args:
        picture_B3THW: (B, 3, T, H, W) float32 in [0, 1].
        hue_B: shifts as fractions of the color circle, of either sign.

    Returns:
        (B, 3, T, H, W) float32 in [0, 1].
    """
    red, green, blue = picture_B3THW.unbind(1)
    value, low = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    chroma = value - low
    divisor = torch.where(chroma > 0, chroma, 1.0)
    # Hue in sixths of the color circle; where two channels share the maximum, both formulas agree.
    hue = torch.where(value == red, (green - blue) / divisor, 2 + (blue - red) / divisor)
    hue = torch.where((value == blue) & (value != red) & (value != green), 4 + (red - green) / divisor, hue)
    hue += 6 * hue_B.view(-1, 1, 1, 1)
    channels = []
    for offset in (5, 3, 1):
        # Each channel falls from value to low and rises again as the hue moves away from it and back.
        ramp = torch.remainder(hue + offset, 6)
        ramp = torch.minimum(ramp, 4 - ramp).clamp_(0, 1)
        channels.append(torch.addcmul(value, chroma, ramp, value=-1))
    return torch.stack(channels, 1)


def normalize(picture_B3THW: Tensor) -> Tensor:
    """Normalize RGB in [0, 1], (B, 3, T, H, W), with the ImageNet mean and standard deviation."""
    mean = torch.tensor(IMAGENET_MEAN, device=picture_B3THW.device).view(3, 1, 1, 1)
    deviation = torch.tensor(IMAGENET_STD, device=picture_B3THW.device).view(3, 1, 1, 1)
    return (picture_B3THW - mean) / deviation


def _per_sample(factor_B: Tensor) -> Tensor:
    return factor_B.view(-1, 1, 1, 1, 1)
