"""Detection of predicted positions without motion, which the motion loss can exclude from its queries.

Shape legend:
    B  samples of a batch
    C  channels (dx, dy and, in native motion input, validity), T  motion frames
    H  rows, W  columns (in `BWCTHW` the first W counts motion windows)
    P  positions of the predicted motion (rows times columns of the token map)
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def moving_positions(motion_BWCTHW: Tensor, grid: tuple[int, int], *, min_px: float, clamp_px: float) -> Tensor | None:
    """Return the positions of the predicted window whose mean speed is at least ``min_px``.

    Args:
        motion_BWCTHW: motion windows as input to the motion encoder, the predicted one first.
        grid: rows and columns of positions.
        min_px: minimum mean speed of a moving position, in pixels per frame.
        clamp_px: motion in pixels that corresponds to an input value of 1.

    Returns:
        (B, P) bool; None if ``min_px`` is 0.
    """
    return None if min_px == 0 else mean_speed_px(motion_BWCTHW[:, 0], grid, clamp_px=clamp_px) >= min_px


def static_share(moving_BP: Tensor, window_valid_BW: Tensor) -> Tensor:
    """Return the share of static positions among the samples whose predicted window exists; 0 if there are none.

    Args:
        moving_BP: bool, positions that move.
        window_valid_BW: bool, whether each motion window exists, the predicted one first.

    Returns:
        Scalar, 0 to 1.
    """
    exists_B1 = window_valid_BW[:, :1]
    return (~moving_BP & exists_B1).sum() / (exists_B1.sum() * moving_BP.shape[1]).clamp(min=1)


def mean_speed_px(motion_BCTHW: Tensor, grid: tuple[int, int], *, clamp_px: float) -> Tensor:
    """Return the mean vector length at each position, over the valid cells of all frames.

    Args:
        motion_BCTHW: motion windows as input to the motion encoder. The paper's input has no validity channel;
            missing vectors then count as vectors of length 0.
        grid: rows and columns of positions.
        clamp_px: motion in pixels that corresponds to an input value of 1.

    Returns:
        (B, P), pixels per frame (of the canonical stream, unless vectors were rescaled); 0 where no cell is valid.
    """
    speed_BTHW = motion_BCTHW[:, :2].float().square().sum(1).sqrt() * clamp_px
    pooled_BHW = F.adaptive_avg_pool2d(speed_BTHW.mean(1), grid)
    if motion_BCTHW.shape[1] == 3:
        # Invalid cells are 0, so dividing by the valid share gives the mean over valid cells.
        valid_BHW = F.adaptive_avg_pool2d(motion_BCTHW[:, 2].float().mean(1), grid)
        pooled_BHW = pooled_BHW / valid_BHW.clamp(min=1e-6)
    return pooled_BHW.flatten(1)
