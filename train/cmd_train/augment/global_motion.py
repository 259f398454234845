"""Removal of camera motion: the global motion of each frame, robustly estimated and subtracted.

Codec motion vectors describe motion in the picture, whether caused by objects or by the camera. The global motion is
estimated per frame on the whole stored grid, before any crop.

Shape legend:
    N  motion windows, T  frames
    K  frames of all windows
    H  rows, W  columns of cells, M  cells of a frame (H times W)
"""

from __future__ import annotations

import torch
from torch import Tensor

from cmd_train.augment.config import GLOBAL_MOTIONS, GlobalMotion

_ITERATIONS = 8
_MAD_TO_SIGMA = 1.4826
_MIN_SIGMA_QUARTER_PX = 1.0
_RIDGE = 1e-4


def remove_global_motion(motion_quarter_px_NTCHW: Tensor, valid_NTHW: Tensor, kind: GlobalMotion) -> Tensor:
    """Subtract the global motion of each frame from its valid cells.

    Args:
        motion_quarter_px_NTCHW: (N, T, 2, H, W) displacements in quarter pixels, any numeric dtype.
        valid_NTHW: (N, T, H, W) bool.
        kind: ``median``: a single vector per frame, the component-wise median over valid cells (pan). ``affine``: a
            vector field that is affine in the position (pan, zoom, rotation, shear), fitted robustly to outliers.
            ``keep``: subtract nothing.

    Returns:
        (N, T, 2, H, W) float32, quarter pixels; 0 where invalid.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in GLOBAL_MOTIONS:
        raise ValueError(f"kind: must be one of {', '.join(GLOBAL_MOTIONS)}, got {kind!r}")
    vector_NTCHW = motion_quarter_px_NTCHW.float()
    if kind == "keep":
        return vector_NTCHW
    # Autocast would compute the fit in half precision.
    with torch.no_grad(), torch.autocast(vector_NTCHW.device.type, enabled=False):
        vector_K2M = vector_NTCHW.flatten(0, 1).flatten(2)
        valid_KM = valid_NTHW.flatten(0, 1).flatten(1)
        if kind == "median":
            global_K2M = masked_median(vector_K2M, valid_KM).unsqueeze(2)
        else:
            rows, columns = vector_NTCHW.shape[-2:]
            global_K2M = _fit_affine(vector_K2M, valid_KM, _cell_coordinates(rows, columns, vector_K2M.device))
        residual_K2M = (vector_K2M - global_K2M) * valid_KM.unsqueeze(1)
        return residual_K2M.view_as(vector_NTCHW)


def masked_median(value_KCM: Tensor, valid_KM: Tensor) -> Tensor:
    """Return (K, C) medians over the valid entries of the last axis (the lower of two); 0 where none is valid."""
    masked_KCM = value_KCM.masked_fill(~valid_KM.unsqueeze(1), torch.nan)
    return masked_KCM.nanmedian(dim=2).values.nan_to_num(0.0)


def _cell_coordinates(rows: int, columns: int, device: torch.device) -> Tensor:
    """Return (M, 3) homogeneous cell coordinates: column and row, both from -1 to 1, and 1."""
    row, column = torch.meshgrid(
        torch.linspace(-1, 1, rows, device=device), torch.linspace(-1, 1, columns, device=device), indexing="ij"
    )
    return torch.stack([column, row, torch.ones_like(row)], -1).flatten(0, 1)


def _fit_affine(vector_K2M: Tensor, valid_KM: Tensor, coordinates_M3: Tensor) -> Tensor:
    """Return (K, 2, M), the affine motion of each frame, by iteratively reweighted least squares (Cauchy weights).

    The fit starts from the median, so that independently moving objects have little weight from the first iteration. A
    small ridge penalty on the slopes resolves the ambiguity of few or collinear cells.
    """
    fitted_K2M = masked_median(vector_K2M, valid_KM).unsqueeze(2).expand_as(vector_K2M)
    ridge_33 = torch.diag(torch.tensor([_RIDGE, _RIDGE, 0.0], device=vector_K2M.device))
    for _ in range(_ITERATIONS):
        error_KM = (vector_K2M - fitted_K2M).square().sum(1).sqrt()
        sigma_K1 = _MAD_TO_SIGMA * masked_median(error_KM.unsqueeze(1), valid_KM)
        weight_KM = valid_KM / (1 + (error_KM / sigma_K1.clamp(min=_MIN_SIGMA_QUARTER_PX)).square())
        total_K11 = weight_KM.sum(1).clamp(min=1e-6).view(-1, 1, 1)
        weighted_KM3 = weight_KM.unsqueeze(2) * coordinates_M3 / total_K11
        normal_K33 = weighted_KM3.transpose(1, 2) @ coordinates_M3 + ridge_33
        # Without this term, the matrix of a frame without valid cells would be singular.
        normal_K33 = normal_K33 + 1e-9 * torch.eye(3, device=vector_K2M.device)
        slopes_K32 = torch.linalg.solve(normal_K33, weighted_KM3.transpose(1, 2) @ vector_K2M.transpose(1, 2))
        fitted_K2M = (coordinates_M3 @ slopes_K32).transpose(1, 2)
    return fitted_K2M
