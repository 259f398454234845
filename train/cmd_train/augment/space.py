"""Crops of pictures and of motion grids, given in fractions of the picture and therefore aligned with each other.

Pictures: cropping, resizing, mirroring and blurring along one axis are linear, so together they are one small matrix a
sample and axis, and a batch is two batched matrix products, exact and the same on every device. The filter is
the triangle of antialiased bilinear resizing: as wide as a source pixel when enlarging, as a target pixel when
shrinking. Pixels just outside the crop take part where its filter reaches them, as long as the picture has them.

Motion: each output cell takes the stored cell under its centre, in one step from the stored grid. Vectors are constant
within a block of the codec, and a mean of two of them, or of a vector and a hole, is a motion that nothing has.

Shape legend: B samples, N pictures or motion windows with a crop each, T frames, H x W pixels, S output pixels a side,
gh x gw stored cells, G output cells a side.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cmd_extract.schema import QUARTER_PX, ShardHeader
from cmd_train.augment.config import AugmentConfig
from cmd_train.augment.parameters import CropParameters

_BLUR_UNIT_SIZE = 112


def crop_pictures(picture_u8_BTHWC: Tensor, crop: CropParameters, size: int, blur_sigma_B: Tensor | None) -> Tensor:
    """Crop, resize to a square, mirror and blur.

    Args:
        picture_u8_BTHWC: (B, T, H, W, 3) uint8.
        crop: (B,) crops, on the pictures' device.
        size: side S of the result in pixels.
        blur_sigma_B: standard deviations in pixels of a 112-pixel crop, 0 = none; None: no blur at all.

    Returns:
        (B, 3, T, S, S) float32 in 0 to 1.
    """
    batch, frames, height, width, _ = picture_u8_BTHWC.shape
    left, top, across, down = crop.box.unbind(-1)
    rows_BSH = resize_weights(top, down, torch.zeros_like(crop.flip), height, size) / 255
    columns_BSW = resize_weights(left, across, crop.flip, width, size)
    if blur_sigma_B is not None:
        blur_BSS = blur_weights(blur_sigma_B * (size / _BLUR_UNIT_SIZE), size)
        rows_BSH, columns_BSW = blur_BSS @ rows_BSH, blur_BSS @ columns_BSW
    # Rows first: there the interleaved colours are just more columns, so nothing is permuted at full size.
    flat = picture_u8_BTHWC.reshape(batch, frames, height, width * 3).float()
    squeezed = (rows_BSH.unsqueeze(1) @ flat).view(batch, frames, size, width, 3)
    planes_B3TSW = squeezed.permute(0, 4, 1, 2, 3).reshape(batch, 3 * frames * size, width)
    return (planes_B3TSW @ columns_BSW.transpose(1, 2)).view(batch, 3, frames, size, size)


def resize_weights(start_N: Tensor, length_N: Tensor, flip_N: Tensor, source: int, target: int) -> Tensor:
    """(N, target, source) matrices that crop, resize and mirror one axis.

    Args:
        start_N, length_N: the crop in fractions of the axis.
        flip_N: bool, whether the result is mirrored.
        source, target: pixels before and after.
    """
    step_N1 = length_N[:, None] * (source / target)
    order = torch.arange(target, device=start_N.device).expand(len(start_N), target)
    order = torch.where(flip_N[:, None], target - 1 - order, order)
    centre_NT = start_N[:, None] * source + (order + 0.5) * step_N1
    pixel_S = torch.arange(source, device=start_N.device) + 0.5
    reach_N11 = step_N1.clamp(min=1).unsqueeze(2)
    weight = (1 - (pixel_S - centre_NT.unsqueeze(2)).abs() / reach_N11).clamp_(min=0)
    return weight / weight.sum(2, keepdim=True)


def blur_weights(sigma_N: Tensor, size: int) -> Tensor:
    """(N, size, size) matrices of a Gaussian blur along one axis of ``size`` pixels, mirrored at its ends.

    Args:
        sigma_N: standard deviations in pixels; 0 = identity.
        size: pixels of the axis.
    """
    index = torch.arange(size, device=sigma_N.device, dtype=torch.float32)
    target, source = index[:, None], index[None, :]
    spread_N11 = sigma_N.clamp(min=1e-3).view(-1, 1, 1)

    def bell(distance: Tensor) -> Tensor:
        return torch.exp(-0.5 * (distance / spread_N11) ** 2)

    # The end pixels are their own mirror images and count once.
    weight = bell(target - source)
    weight = weight + bell(target + source) * (source > 0)
    weight = weight + bell(2 * (size - 1) - target - source) * (source < size - 1)
    return weight / weight.sum(2, keepdim=True)


def rotate(picture_BCTHW: Tensor, degrees_B: Tensor) -> Tensor:
    """Rotate counter-clockwise about the centre, bilinear; what comes from outside is black.

    Args:
        picture_BCTHW: (B, C, T, H, W) float32, square pictures, not normalised (black is 0).
        degrees_B: angles in degrees, one a sample, the same for all of its frames.

    Returns:
        (B, C, T, H, W) float32.
    """
    angle_B = degrees_B * (math.pi / 180)
    cosine, sine, zero = angle_B.cos(), angle_B.sin(), torch.zeros_like(angle_B)
    inverse_B23 = torch.stack([cosine, -sine, zero, sine, cosine, zero], 1).view(-1, 2, 3)
    flat = picture_BCTHW.flatten(1, 2)
    grid = F.affine_grid(inverse_B23, list(flat.shape), align_corners=False)
    turned = F.grid_sample(flat, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return turned.view_as(picture_BCTHW)


def crop_motion(
    motion_quarter_px_NTCHW: Tensor,
    valid_NTHW: Tensor,
    crop: CropParameters,
    config: AugmentConfig,
    header: ShardHeader,
) -> Tensor:
    """Crop, resample and mirror motion; scale its values.

    Args:
        motion_quarter_px_NTCHW: (N, T, 2, gh, gw) int16, quarter pixels of the canonical picture.
        valid_NTHW: (N, T, gh, gw) bool.
        crop: (N,) crops, on the same device.
        config: resolution, clamping and rescaling.
        header: the canonical picture's size and that of a cell.

    Returns:
        (N, C, T, G, G) float32: dx and dy in -1 to 1 (``motion_clamp_px`` pixels), 0 where invalid; in ``native``
        form also validity, 0 or 1.
    """
    side, (rows, columns) = config.motion_size, header.grid_shape
    left, top, across, down = crop.box.unbind(-1)
    keep = torch.zeros_like(crop.flip)
    row_NG = _cells_under(top, down, keep, side, header.canonical_height / header.cell_px, rows)
    column_NG = _cells_under(left, across, crop.flip, side, header.canonical_width / header.cell_px, columns)
    cell_NP = (row_NG.unsqueeze(2) * columns + column_NG.unsqueeze(1)).flatten(1)
    count, frames = valid_NTHW.shape[:2]
    vector = _gather(motion_quarter_px_NTCHW.flatten(1, 2), cell_NP).view(count, frames, 2, side, side).float()
    valid = _gather(valid_NTHW, cell_NP).view(count, frames, 1, side, side).float()
    scale_N2 = torch.full((count, 2), 1 / QUARTER_PX, device=vector.device)
    if config.rescale_vectors:
        scale_N2 = scale_N2 / torch.stack([across, down], 1)
    scale_N2 = torch.stack([torch.where(crop.flip, -scale_N2[:, 0], scale_N2[:, 0]), scale_N2[:, 1]], 1)
    limit = config.motion_clamp_px
    vector = (vector * scale_N2.view(count, 1, 2, 1, 1)).clamp_(-limit, limit).div_(limit).mul_(valid)
    channels = vector if config.motion_channels == 2 else torch.cat([vector, valid], 2)
    return channels.transpose(1, 2).contiguous()


def _cells_under(
    start_N: Tensor, length_N: Tensor, flip_N: Tensor, side: int, cells_across: float, cells: int
) -> Tensor:
    """(N, side) int64: the stored cell under the centre of each output cell, along one axis.

    ``cells_across`` is the picture's length in cells; it is no integer where the last cell is partly outside.
    """
    order = torch.arange(side, device=start_N.device).expand(len(start_N), side)
    order = torch.where(flip_N[:, None], side - 1 - order, order)
    position = (start_N[:, None] + (order + 0.5) * (length_N[:, None] / side)) * cells_across
    # A centre lies inside the picture; only rounding can carry it to the far edge.
    return position.floor().long().clamp_(0, cells - 1)


def _gather(grid_NDHW: Tensor, cell_NP: Tensor) -> Tensor:
    """(N, D, P): the values of some cells, the same in all D planes of a window."""
    planes = grid_NDHW.flatten(2)
    return planes.gather(2, cell_NP.unsqueeze(1).expand(-1, planes.shape[1], -1))
