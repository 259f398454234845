"""Geometric augmentation of pictures and motion grids; crops in fractions of the picture keep both aligned.

Pictures: cropping, resizing, flipping and blurring along one axis are linear, so they combine into one small matrix per
sample and axis, and a batch takes two batched matrix products, exact and identical on every device. The filter is
the triangle of antialiased bilinear resizing: as wide as a source pixel for upsampling, as a target pixel for
downsampling. Pixels just outside the crop contribute where the filter reaches them, if the picture has them.

Motion: each output cell copies the stored cell under its center (nearest neighbor), directly from the stored grid.
Vectors are constant within a codec block; interpolating between two vectors, or between a vector and a missing one,
would yield a motion that does not exist in the video.

Shape legend: B samples, N pictures or motion windows with one crop each, T frames, H x W pixels, S output pixels per
side, gh x gw stored cells, G output cells per side.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cmd_extract.schema import QUARTER_PX, ShardHeader
from cmd_train.augment.config import AugmentConfig
from cmd_train.augment.parameters import CropParameters

_BLUR_REFERENCE_SIZE = 112
MIN_BLUR_WEIGHT = 1e-8
"""Smaller blur weights are set to 0; the sum of a row changes by less than the precision of float32."""


def crop_pictures(picture_u8_BTHWC: Tensor, crop: CropParameters, size: int, blur_sigma_B: Tensor | None) -> Tensor:
    """Crop, resize to a square, flip and blur.

    Args:
        picture_u8_BTHWC: (B, T, H, W, 3) uint8.
        crop: (B,) crops, on the device of the pictures.
        size: side S of the result in pixels.
        blur_sigma_B: standard deviations in pixels of a 112-pixel crop, 0 = no blur; None skips the blur entirely.

    Returns:
        (B, 3, T, S, S) float32 in [0, 1].
    """
    height, width = picture_u8_BTHWC.shape[2:4]
    left, top, crop_width, crop_height = crop.box.unbind(-1)
    rows_BSH = resize_weights(top, crop_height, torch.zeros_like(crop.flip), height, size) / 255
    columns_BSW = resize_weights(left, crop_width, crop.flip, width, size)
    if blur_sigma_B is not None:
        blur_BSS = blur_weights(blur_sigma_B * (size / _BLUR_REFERENCE_SIZE), size)
        rows_BSH, columns_BSW = blur_BSS @ rows_BSH, blur_BSS @ columns_BSW
    if picture_u8_BTHWC.device.type != "cpu":
        return _resample(picture_u8_BTHWC, rows_BSH, columns_BSW)
    # One sample at a time stays in the cache of a CPU, and pixels outside of the crop are not touched.
    tensors = (picture_u8_BTHWC, rows_BSH, columns_BSW)
    samples = (torch.split(tensor, 1) for tensor in tensors)
    return torch.cat([_resample_used_part(*sample) for sample in zip(*samples, strict=True)])


def _resample_used_part(picture_1THWC: Tensor, rows_1SH: Tensor, columns_1SW: Tensor) -> Tensor:
    """Resample one picture or clip from the pixels that have weights."""
    used = [slice(int(at[0]), int(at[-1]) + 1) for at in (w[0].any(0).nonzero() for w in (rows_1SH, columns_1SW))]
    return _resample(picture_1THWC[:, :, used[0], used[1]], rows_1SH[..., used[0]], columns_1SW[..., used[1]])


def _resample(picture_BTHWC: Tensor, rows_BSH: Tensor, columns_BSW: Tensor) -> Tensor:
    """Map (B, T, H, W, 3) to (B, 3, T, S, S) by one matrix per sample and axis."""
    batch, frames, height, width, _ = picture_BTHWC.shape
    size = rows_BSH.shape[1]
    # Rows first: interleaved colors then act as additional columns, which avoids a permutation at full size.
    flat = picture_BTHWC.float().view(batch, frames, height, width * 3)
    resized = (rows_BSH.unsqueeze(1) @ flat).view(batch, frames, size, width, 3)
    planes_B3TSW = resized.permute(0, 4, 1, 2, 3).reshape(batch, 3 * frames * size, width)
    return (planes_B3TSW @ columns_BSW.transpose(1, 2)).view(batch, 3, frames, size, size)


def resize_weights(start_N: Tensor, length_N: Tensor, flip_N: Tensor, source: int, target: int) -> Tensor:
    """Return (N, target, source) matrices that crop, resize and flip one axis.

    Args:
        start_N, length_N: start and length of the crop in fractions of the axis.
        flip_N: bool, whether to flip the axis.
        source, target: pixels before and after.
    """
    step_N1 = length_N[:, None] * (source / target)
    order = torch.arange(target, device=start_N.device).expand(len(start_N), target)
    order = torch.where(flip_N[:, None], target - 1 - order, order)
    center_NT = start_N[:, None] * source + (order + 0.5) * step_N1
    pixel_S = torch.arange(source, device=start_N.device) + 0.5
    reach_N11 = step_N1.clamp(min=1).unsqueeze(2)
    weight = (1 - (pixel_S - center_NT.unsqueeze(2)).abs() / reach_N11).clamp_(min=0)
    return weight / weight.sum(2, keepdim=True)


def blur_weights(sigma_N: Tensor, size: int) -> Tensor:
    """Return (N, size, size) matrices of a Gaussian blur along one axis, with reflection padding.

    Args:
        sigma_N: standard deviations in pixels; 0 = identity.
        size: length of the axis in pixels.
    """
    index = torch.arange(size, device=sigma_N.device, dtype=torch.float32)
    target, source = index[:, None], index[None, :]
    spread_N11 = sigma_N.clamp(min=1e-3).view(-1, 1, 1)

    def gaussian(distance: Tensor) -> Tensor:
        # The limit is far below MIN_BLUR_WEIGHT; exp is slow where its result is subnormal.
        return torch.exp((-0.5 * (distance / spread_N11) ** 2).clamp_(min=-40.0))

    # The end pixels are their own reflections and count once.
    weight = gaussian(target - source)
    weight = weight + gaussian(target + source) * (source > 0)
    weight = weight + gaussian(2 * (size - 1) - target - source) * (source < size - 1)
    weight = weight / weight.sum(2, keepdim=True)
    # Subnormal weights would slow down the products with the pictures several times on CPUs.
    return torch.where(weight < MIN_BLUR_WEIGHT, 0.0, weight)


def rotate(picture_BCTHW: Tensor, degrees_B: Tensor) -> Tensor:
    """Rotate counter-clockwise about the center with bilinear interpolation; pixels from outside are black.

    Args:
        picture_BCTHW: (B, C, T, H, W) float32, square pictures, not normalized (black is 0).
        degrees_B: angle of each sample in degrees, the same for all of its frames.

    Returns:
        (B, C, T, H, W) float32.
    """
    angle_B = degrees_B * (math.pi / 180)
    cosine, sine, zero = angle_B.cos(), angle_B.sin(), torch.zeros_like(angle_B)
    inverse_B23 = torch.stack([cosine, -sine, zero, sine, cosine, zero], 1).view(-1, 2, 3)
    flat = picture_BCTHW.flatten(1, 2)
    grid = F.affine_grid(inverse_B23, list(flat.shape), align_corners=False)
    rotated = F.grid_sample(flat, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return rotated.view_as(picture_BCTHW)


def crop_motion(
    motion_quarter_px_NTCHW: Tensor,
    valid_NTHW: Tensor,
    crop: CropParameters,
    config: AugmentConfig,
    header: ShardHeader,
) -> Tensor:
    """Crop, resample and flip motion, and scale its values.

    Args:
        motion_quarter_px_NTCHW: (N, T, 2, gh, gw) int16, quarter pixels of the canonical picture.
        valid_NTHW: (N, T, gh, gw) bool.
        crop: (N,) crops, on the same device.
        config: resolution, clamping and rescaling.
        header: sizes of the canonical picture and of a cell.

    Returns:
        (N, C, T, G, G) float32: dx and dy in [-1, 1] (1 is ``motion_clamp_px`` pixels), 0 where invalid; with
        ``native`` motion input also validity, 0 or 1.
    """
    side, (rows, columns) = config.motion_size, header.grid_shape
    left, top, crop_width, crop_height = crop.box.unbind(-1)
    no_flip = torch.zeros_like(crop.flip)
    row_NG = _nearest_cells(top, crop_height, no_flip, side, header.canonical_height / header.cell_px, rows)
    column_NG = _nearest_cells(left, crop_width, crop.flip, side, header.canonical_width / header.cell_px, columns)
    cell_NP = (row_NG.unsqueeze(2) * columns + column_NG.unsqueeze(1)).flatten(1)
    count, frames = valid_NTHW.shape[:2]
    vector = _gather(motion_quarter_px_NTCHW.flatten(1, 2), cell_NP).view(count, frames, 2, side, side).float()
    valid = _gather(valid_NTHW, cell_NP).view(count, frames, 1, side, side).float()
    scale_N2 = torch.full((count, 2), 1 / QUARTER_PX, device=vector.device)
    if config.rescale_vectors:
        scale_N2 = scale_N2 / torch.stack([crop_width, crop_height], 1)
    scale_N2 = torch.stack([torch.where(crop.flip, -scale_N2[:, 0], scale_N2[:, 0]), scale_N2[:, 1]], 1)
    limit = config.motion_clamp_px
    vector = (vector * scale_N2.view(count, 1, 2, 1, 1)).clamp_(-limit, limit).div_(limit).mul_(valid)
    channels = vector if config.motion_channels == 2 else torch.cat([vector, valid], 2)
    return channels.transpose(1, 2).contiguous()


def _nearest_cells(
    start_N: Tensor, length_N: Tensor, flip_N: Tensor, side: int, length_cells: float, cells: int
) -> Tensor:
    """Return (N, side) int64, the stored cell under the center of each output cell along one axis.

    ``length_cells`` is the length of the picture in cells; not an integer if the last cell is partly outside.
    """
    order = torch.arange(side, device=start_N.device).expand(len(start_N), side)
    order = torch.where(flip_N[:, None], side - 1 - order, order)
    position = (start_N[:, None] + (order + 0.5) * (length_N[:, None] / side)) * length_cells
    # Centers lie inside the picture; only rounding can move one onto the far edge.
    return position.floor().long().clamp_(0, cells - 1)


def _gather(grid_NDHW: Tensor, cell_NP: Tensor) -> Tensor:
    """Return (N, D, P), the values at the given cells of each of the D planes of a window."""
    planes = grid_NDHW.flatten(2)
    return planes.gather(2, cell_NP.unsqueeze(1).expand(-1, planes.shape[1], -1))
