"""Direct prediction of motion: the quantized mean motion vector at every position, as a classification.

The paper predicts learned features of motion and compares them contrastively. Here the target is the motion itself:
for each position of the token map and each part of the motion window, the mean of the valid vectors below the position
is assigned to one of ``directions + 1`` classes, *still* (class 0) or one of equally wide sectors. There is no motion
encoder and there are no negatives; telling videos or positions apart is not the task.

Shape legend:
    B  samples of this rank's batch
    C  channels (dx, dy, validity), T  motion frames, G  motion cells per side
    Q  parts of the motion window, in temporal order
    H  rows, W  columns of the token map
    K  classes: still and the directions
"""

# ruff: noqa: N815 (field names carry the shapes of their tensors)

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cmd_extract.system.validation import require
from cmd_train.distributed.gather import rank_mean

STILL = 0
"""Class of positions that do not move."""


@dataclass(frozen=True, kw_only=True)
class DirectionTargets:
    """Quantized motion of a batch.

    Attributes:
        class_BQHW: int64, ``STILL`` or 1 + number of the direction; direction 0 points to the right, and numbers grow
            clockwise on the screen (dy points down).
        valid_BQHW: bool, whether any cell below the position has a vector in this part of the window.
    """

    class_BQHW: Tensor
    valid_BQHW: Tensor


@dataclass(frozen=True, kw_only=True)
class DirectionLoss:
    """The direction loss and what to log of it.

    Attributes:
        loss: scalar with gradient; its mean over ranks is the weighted mean over the global batch.
        top1: share of this rank's moving positions whose direction is predicted.
        majority: top-1 of always predicting the most frequent direction.
        moving: share of valid positions that move.
    """

    loss: Tensor
    top1: Tensor
    majority: Tensor
    moving: Tensor


def direction_targets(
    motion_BCTGG: Tensor, grid: tuple[int, int], *, parts: int, directions: int, still_px: float, clamp_px: float
) -> DirectionTargets:
    """Quantize the mean motion vector at every position.

    Args:
        motion_BCTGG: (B, 3, T, G, G), motion windows in native form, as augmentation returns them.
        grid: rows and columns of the token map.
        parts: parts Q into which the window is divided; must divide T.
        directions: number of directions.
        still_px: speed below which a position counts as still, in pixels per frame.
        clamp_px: pixels per frame that a value of 1 stands for.

    Raises:
        ValueError: the motion has no validity channel, or ``parts`` does not divide the frames.
    """
    batch, channels, frames, *cells = motion_BCTGG.shape
    require(channels == 3, f"motion_BCTGG: must have 3 channels (dx, dy, validity), got {channels}")
    require(frames % parts == 0, f"parts: must divide the {frames} frames of the motion window, got {parts}")
    # Invalid cells are 0, so that sums over valid cells are sums over all.
    summed = motion_BCTGG.float().view(batch, 3, parts, frames // parts, *cells).sum(3)
    pooled = F.adaptive_avg_pool2d(summed.flatten(0, 2).unsqueeze(1), grid).view(batch, 3, parts, *grid)
    valid_BQHW = pooled[:, 2] > 0
    dx_BQHW, dy_BQHW = (pooled[:, :2] * clamp_px / pooled[:, 2:].clamp(min=1e-6)).unbind(1)
    sector_BQHW = (torch.atan2(dy_BQHW, dx_BQHW) * (directions / (2 * math.pi))).round().long() % directions
    still_BQHW = torch.hypot(dx_BQHW, dy_BQHW) < still_px
    return DirectionTargets(class_BQHW=torch.where(still_BQHW, STILL, 1 + sector_BQHW), valid_BQHW=valid_BQHW)


def direction_loss(logits_BKQHW: Tensor, targets: DirectionTargets, *, still_weight: float) -> DirectionLoss:
    """Weighted cross-entropy of predicted directions.

    Args:
        logits_BKQHW: scores of the classes.
        targets: what to predict.
        still_weight: weight of a still position; a moving one has weight 1, one without vectors 0.
    """
    moving_BQHW = targets.valid_BQHW & (targets.class_BQHW != STILL)
    weight_BQHW = moving_BQHW.float() + still_weight * (targets.valid_BQHW & ~moving_BQHW)
    loss_BQHW = F.cross_entropy(logits_BKQHW.float(), targets.class_BQHW, reduction="none")
    loss = rank_mean((loss_BQHW * weight_BQHW).sum(), weight_BQHW.sum())
    count = moving_BQHW.sum().clamp(min=1)
    with torch.no_grad():
        hits = (logits_BKQHW.argmax(1) == targets.class_BQHW) & moving_BQHW
        frequency = F.one_hot(targets.class_BQHW, logits_BKQHW.shape[1]).mul(moving_BQHW.unsqueeze(-1)).flatten(0, 3)
        majority = frequency.sum(0).max() / count
        valid = targets.valid_BQHW.sum().clamp(min=1)
    return DirectionLoss(
        loss=loss,
        top1=hits.sum() / count,
        majority=majority,
        moving=moving_BQHW.sum() / valid,
    )
