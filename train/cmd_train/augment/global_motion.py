"""Removal of camera motion: the median motion of each frame, subtracted from its cells.

Codec motion vectors describe motion in the picture, whether caused by objects or by the camera. The global motion is
estimated per frame on the whole stored grid, before any crop.

Shape legend:
    N  motion windows, T  frames
    C  components dx and dy
    H  rows, W  columns of cells
"""

from __future__ import annotations

import torch
from torch import Tensor


def remove_global_motion(motion_quarter_px_NTCHW: Tensor, valid_NTHW: Tensor) -> Tensor:
    """Subtract from each frame the component-wise median over its valid cells (the lower of two), which removes pans.

    Args:
        motion_quarter_px_NTCHW: (N, T, 2, H, W) displacements in quarter pixels, any numeric dtype.
        valid_NTHW: (N, T, H, W) bool.

    Returns:
        (N, T, 2, H, W) float32, quarter pixels; 0 where invalid.
    """
    vector_NTCHW, valid_NT1HW = motion_quarter_px_NTCHW.float(), valid_NTHW.unsqueeze(2)
    median_NTC = vector_NTCHW.masked_fill(~valid_NT1HW, torch.nan).flatten(3).nanmedian(dim=3).values
    # A frame without valid cells has no median.
    return (vector_NTCHW - median_NTC.nan_to_num(0.0)[..., None, None]) * valid_NT1HW
