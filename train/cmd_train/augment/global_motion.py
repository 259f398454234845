"""Camera motion: what most of a frame's vectors share, estimated robustly and taken away.

A codec's vectors tell what moves in the picture, whether a thing or the camera moved it. The estimate is made on the
whole stored grid, before any crop, frame by frame.

Shape legend:
    N  motion windows, T  frames
    K  frames of all windows
    H  rows, W  columns of cells, M  cells of a frame (H times W)
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

GlobalMotion = Literal["keep", "median", "affine"]
GLOBAL_MOTIONS: tuple[GlobalMotion, ...] = get_args(GlobalMotion)

_ROUNDS = 8
_MAD_TO_SIGMA = 1.4826
_FINEST_SIGMA_QUARTER_PX = 1.0
_RIDGE = 1e-4


def remove_global_motion(motion_quarter_px_NTCHW: Tensor, valid_NTHW: Tensor, kind: GlobalMotion) -> Tensor:
    """Subtracts each frame's global motion from its valid cells.

    Args:
        motion_quarter_px_NTCHW: (N, T, 2, H, W) displacements in quarter pixels, any number type.
        valid_NTHW: (N, T, H, W) bool.
        kind: ``median``: one vector a frame, the median of each component over valid cells (a pan); ``affine``: a
            vector that changes linearly over the frame (pan, zoom, rotation, shear), fitted so that outliers lose
            their say; ``keep``: nothing is subtracted.

    Returns:
        (N, T, 2, H, W) float32, quarter pixels; 0 where invalid.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in GLOBAL_MOTIONS:
        raise ValueError(f"kind: {kind!r} is not one of {', '.join(GLOBAL_MOTIONS)}")
    vector_NTCHW = motion_quarter_px_NTCHW.float()
    if kind == "keep":
        return vector_NTCHW
    # Autocast would fit in half precision.
    with torch.no_grad(), torch.autocast(vector_NTCHW.device.type, enabled=False):
        vector_K2M = vector_NTCHW.flatten(0, 1).flatten(2)
        valid_KM = valid_NTHW.flatten(0, 1).flatten(1)
        if kind == "median":
            shared_K2M = masked_median(vector_K2M, valid_KM).unsqueeze(2)
        else:
            rows, columns = vector_NTCHW.shape[-2:]
            shared_K2M = _fit_affine(vector_K2M, valid_KM, _places(rows, columns, vector_K2M.device))
        left_K2M = (vector_K2M - shared_K2M) * valid_KM.unsqueeze(1)
        return left_K2M.view_as(vector_NTCHW)


def masked_median(value_KCM: Tensor, valid_KM: Tensor) -> Tensor:
    """(K, C) medians over the valid of the last axis, the lower of two; 0 where none is valid."""
    holes = value_KCM.masked_fill(~valid_KM.unsqueeze(1), torch.nan)
    return holes.nanmedian(dim=2).values.nan_to_num(0.0)


def _places(rows: int, columns: int, device: torch.device) -> Tensor:
    """(M, 3): each cell's column and row, from -1 to 1, and 1."""
    row, column = torch.meshgrid(
        torch.linspace(-1, 1, rows, device=device), torch.linspace(-1, 1, columns, device=device), indexing="ij"
    )
    return torch.stack([column, row, torch.ones_like(row)], -1).flatten(0, 1)


def _fit_affine(vector_K2M: Tensor, valid_KM: Tensor, place_M3: Tensor) -> Tensor:
    """(K, 2, M): the affine motion of each frame at each cell, by reweighted least squares (Cauchy's weights).

    It starts from the median, so that things which move by themselves count little from the first round on. A little
    ridge on the slopes decides what few or collinear cells leave open.
    """
    fitted_K2M = masked_median(vector_K2M, valid_KM).unsqueeze(2).expand_as(vector_K2M)
    ridge_33 = torch.diag(torch.tensor([_RIDGE, _RIDGE, 0.0], device=vector_K2M.device))
    for _ in range(_ROUNDS):
        error_KM = (vector_K2M - fitted_K2M).square().sum(1).sqrt()
        sigma_K1 = _MAD_TO_SIGMA * masked_median(error_KM.unsqueeze(1), valid_KM)
        weight_KM = valid_KM / (1 + (error_KM / sigma_K1.clamp(min=_FINEST_SIGMA_QUARTER_PX)).square())
        total_K11 = weight_KM.sum(1).clamp(min=1e-6).view(-1, 1, 1)
        weighed_KM3 = weight_KM.unsqueeze(2) * place_M3 / total_K11
        normal_K33 = weighed_KM3.transpose(1, 2) @ place_M3 + ridge_33
        # A frame without valid cells would be singular.
        normal_K33 = normal_K33 + 1e-9 * torch.eye(3, device=vector_K2M.device)
        slopes_K32 = torch.linalg.solve(normal_K33, weighed_KM3.transpose(1, 2) @ vector_K2M.transpose(1, 2))
        fitted_K2M = (place_M3 @ slopes_K32).transpose(1, 2)
    return fitted_K2M
