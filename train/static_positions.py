"""Which positions of the predicted motion stand still, so that the motion loss may leave them out.

Shape legend:
    B  samples of a batch
    C  channels (dx, dy and, at the grid's own resolution, validity), T  motion frames, H  rows, W  columns
    P  positions of the predicted motion (rows times columns of the token map)
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


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
