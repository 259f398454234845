"""Which positions of the predicted motion stand still, so that the motion loss may leave them out.

Shape legend:
    B  samples of a batch
    C  channels (dx, dy and, at the grid's own resolution, validity), T  motion frames, H  rows, W  columns
    P  positions of the predicted motion (rows times columns of the token map)
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def moving_positions(
    motion_BWCTHW: Tensor, grid: tuple[int, int], *, least_px: float, clamp_px: float
) -> Tensor | None:
    """Positions of the predicted window that are fast enough to be asked for.

    Args:
        motion_BWCTHW: motion windows as the encoder reads them, the predicted one first.
        grid: rows and columns of positions.
        least_px: mean speed from which a position counts as moving, in pixels per frame.
        clamp_px: pixels that a value of 1 stands for.

    Returns:
        (B, P) bool; None if ``least_px`` is 0.
    """
    return None if least_px == 0 else mean_speed_px(motion_BWCTHW[:, 0], grid, clamp_px=clamp_px) >= least_px


def static_share(moving_BP: Tensor, window_valid_BW: Tensor) -> Tensor:
    """Share of positions that stand still, among the samples whose predicted window exists; 0 if there is none.

    Args:
        moving_BP: bool, positions that are fast enough.
        window_valid_BW: bool, motion windows that exist, the predicted one first.

    Returns:
        Scalar, 0 to 1.
    """
    among_B1 = window_valid_BW[:, :1]
    return (~moving_BP & among_B1).sum() / (among_B1.sum() * moving_BP.shape[1]).clamp(min=1)


def mean_speed_px(motion_BCTHW: Tensor, grid: tuple[int, int], *, clamp_px: float) -> Tensor:
    """Mean length of the vectors under each position, over the valid cells of all frames.

    Args:
        motion_BCTHW: motion windows as the encoder reads them. The paper's form has no validity: there a missing
            vector counts as one of length 0.
        grid: rows and columns of positions.
        clamp_px: pixels that a value of 1 stands for.

    Returns:
        (B, P), pixels a frame (of the canonical stream, unless vectors were rescaled); 0 where no cell is valid.
    """
    speed_BTHW = motion_BCTHW[:, :2].float().square().sum(1).sqrt() * clamp_px
    pooled_BHW = F.adaptive_avg_pool2d(speed_BTHW.mean(1), grid)
    if motion_BCTHW.shape[1] == 3:
        # Invalid cells read 0: dividing by the share of valid ones makes it their mean.
        valid_BHW = F.adaptive_avg_pool2d(motion_BCTHW[:, 2].float().mean(1), grid)
        pooled_BHW = pooled_BHW / valid_BHW.clamp(min=1e-6)
    return pooled_BHW.flatten(1)
