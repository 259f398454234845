"""Augmentation on the training device: from stored samples to network inputs.

Pictures are processed in this order: crop, resize, flip and blur (one linear step), color jitter, grayscale, rotation,
normalization. Nothing here is random: the parameters are drawn by ``cmd_train.augment.parameters``.

Shape legend: B samples, T frames, H x W pixels, S crop size in pixels, G motion cells per side; in suffixes that start
with BW, W counts motion windows.
"""

# ruff: noqa: N815 (field names carry the shapes of their tensors)

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cmd_extract.schema import ShardHeader
from cmd_train.augment.color import change_colors, normalize
from cmd_train.augment.config import AugmentConfig
from cmd_train.augment.global_motion import remove_global_motion
from cmd_train.augment.parameters import AugmentParameters, ColorParameters, CropParameters, center_box
from cmd_train.augment.space import crop_motion, crop_pictures, rotate
from cmd_train.data.batch import Batch


@dataclass(frozen=True, kw_only=True)
class AugmentedBatch:
    """Inputs of the pre-training network for a batch.

    Attributes:
        clip_B3THW: (B, 3, T, S, S) float32, normalized.
        keyframe_B31HW: (B, 3, 1, S, S) float32, normalized.
        motion_BWCTHW: (B, W, C, Tm, G, G) float32; see ``crop_motion`` for values and channels.
        window_valid_BW: (B, W) bool, whether any frame of each motion window exists.
    """

    clip_B3THW: Tensor
    keyframe_B31HW: Tensor
    motion_BWCTHW: Tensor
    window_valid_BW: Tensor


def augment(batch: Batch, parameters: AugmentParameters, config: AugmentConfig, header: ShardHeader) -> AugmentedBatch:
    """Augment a batch on its own device.

    Args:
        batch: stored samples.
        parameters: augmentation parameters of the samples, on the CPU.
        config: sizes and units.
        header: sizes of the shard set.

    Returns:
        Inputs of the network, float32, on the batch's device. Each sample is augmented independently of the others.

    Raises:
        ValueError: rotation is enabled, which is not applied to motion.
    """
    return AugmentedBatch(
        clip_B3THW=augment_clip(batch.clip_u8_BTHWC, parameters, config),
        keyframe_B31HW=augment_keyframe(batch.keyframe_u8_BHWC, parameters, config),
        motion_BWCTHW=augment_motion(
            batch.motion_quarter_px_BWTCHW, batch.motion_valid_BWTHW, parameters, config, header
        ),
        window_valid_BW=batch.window_valid_BW,
    )


def augment_clip(clip_u8_BTHWC: Tensor, parameters: AugmentParameters, config: AugmentConfig) -> Tensor:
    """Map (B, T, H, W, 3) uint8 to (B, 3, T, S, S) float32, normalized; all frames of a clip share its parameters."""
    rotation_B = parameters.rotation_B if config.rotation_degrees > 0 else None
    return _augment_pictures(clip_u8_BTHWC, parameters.clip_crop, parameters.clip_color, rotation_B, config.crop_size)


def augment_keyframe(keyframe_u8_BHWC: Tensor, parameters: AugmentParameters, config: AugmentConfig) -> Tensor:
    """Map (B, H, W, 3) uint8 to (B, 3, 1, S, S) float32, normalized."""
    crop, color = parameters.keyframe_crop, parameters.keyframe_color
    return _augment_pictures(keyframe_u8_BHWC.unsqueeze(1), crop, color, None, config.crop_size)


def augment_motion(
    motion_quarter_px_BWTCHW: Tensor,
    valid_BWTHW: Tensor,
    parameters: AugmentParameters,
    config: AugmentConfig,
    header: ShardHeader,
) -> Tensor:
    """Map (B, W, Tm, 2, gh, gw) int16 quarter pixels to (B, W, C, Tm, G, G) float32; see ``crop_motion``.

    Raises:
        ValueError: rotation is enabled, which is not applied to motion.
    """
    if config.rotation_degrees > 0:
        raise ValueError(f"rotation_degrees: must be 0 if motion is used, got {config.rotation_degrees}")
    device = motion_quarter_px_BWTCHW.device
    flat = CropParameters(
        box=parameters.motion_crop.box.flatten(0, 1).to(device), flip=parameters.motion_crop.flip.flatten().to(device)
    )
    grid, valid = motion_quarter_px_BWTCHW.flatten(0, 1), valid_BWTHW.flatten(0, 1)
    if config.global_motion == "median":
        grid = remove_global_motion(grid, valid)
    motion = crop_motion(grid, valid, flat, config, header)
    return motion.view(*motion_quarter_px_BWTCHW.shape[:2], *motion.shape[1:])


def center_crop(clip_u8_BTHWC: Tensor, crop_size: int) -> Tensor:
    """Crop clips for evaluation: the central square with 112/128 of the short side, resized and normalized.

    Args:
        clip_u8_BTHWC: (B, T, H, W, 3) uint8. With a short side of 128 and ``crop_size`` 112, no pixel is resampled.
        crop_size: side S of the result in pixels.

    Returns:
        (B, 3, T, S, S) float32, normalized.
    """
    batch, _, height, width, _ = clip_u8_BTHWC.shape
    box = center_box(width, height).to(clip_u8_BTHWC.device).expand(batch, 4)
    crop = CropParameters(box=box, flip=torch.zeros(batch, dtype=torch.bool, device=box.device))
    with torch.no_grad(), torch.autocast(clip_u8_BTHWC.device.type, enabled=False):
        return normalize(crop_pictures(clip_u8_BTHWC, crop, crop_size, None))


def _augment_pictures(
    picture_u8_BTHWC: Tensor, crop: CropParameters, color: ColorParameters, rotation_B: Tensor | None, size: int
) -> Tensor:
    device = picture_u8_BTHWC.device
    crop = CropParameters(box=crop.box.to(device), flip=crop.flip.to(device))
    # Autocast would resample in half precision.
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        picture = crop_pictures(picture_u8_BTHWC, crop, size, color.blur_sigma_B.to(device))
        picture = change_colors(picture, color)
        if rotation_B is not None:
            picture = rotate(picture, rotation_B.to(device))
        return normalize(picture)
