"""Loss of fine-tuning: cross-entropy and, optionally, motion prediction as an auxiliary task (as in the paper).

Shape legend:
    B  clips of a batch
    W  motion windows of a sample, P  positions of the predicted motion
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cmd_train.distributed.gather import rank_mean
from cmd_train.losses.config import LossConfig
from cmd_train.losses.contrast import InfoNCEOutput
from cmd_train.losses.directions import DirectionLoss, DirectionTargets, direction_loss
from cmd_train.losses.outputs import SupervisedOutput
from cmd_train.losses.pretrain import motion_loss


@dataclass(frozen=True, kw_only=True)
class SupervisedLoss:
    """Supervised loss and its components.

    Attributes:
        total: weighted sum, with gradient.
        classification: mean cross-entropy over the rank's clips; its mean over ranks is that over the global batch.
        top1: fraction of clips whose label has the highest score.
        motion: motion prediction by features; None if its head is off.
        directions: motion prediction by directions; None if its head is off.
    """

    total: Tensor
    classification: Tensor
    top1: Tensor
    motion: InfoNCEOutput | None = None
    directions: DirectionLoss | None = None


def supervised_loss(
    output: SupervisedOutput,
    label_B: Tensor,
    window_valid_BW: Tensor | None,
    config: LossConfig,
    *,
    query_valid_BP: Tensor | None = None,
    targets: DirectionTargets | None = None,
    valid_B: Tensor | None = None,
) -> SupervisedLoss:
    """Compute the cross-entropy plus, if the model predicted motion, the weighted motion loss of pre-training.

    Args:
        output: model output for this rank's batch.
        label_B: int64 class of each clip.
        window_valid_BW: whether each motion window exists; None only without motion.
        config: weight and settings of the motion loss.
        query_valid_BP: positions whose motion is predicted (all if None).
        targets: directions to predict; required if the model predicts directions.
        valid_B: samples that count (all if None); the others must have no motion windows and no valid targets.

    Raises:
        ValueError: the model predicted motion and `window_valid_BW` or `targets` is missing.
    """
    logits_BK = output.logits_BK.float()
    counted_B = torch.ones_like(label_B, dtype=torch.bool) if valid_B is None else valid_B
    count = counted_B.sum()
    classification = rank_mean((F.cross_entropy(logits_BK, label_B, reduction="none") * counted_B).sum(), count)
    hits_B = (logits_BK.detach().argmax(1) == label_B) & counted_B
    top1 = hits_B.sum() / count.clamp(min=1)
    if (scores_BKQHW := output.embeddings.direction_BKQHW) is not None:
        if targets is None:
            raise ValueError("targets: required, since the model predicts directions")
        directions = direction_loss(scores_BKQHW, targets, still_weight=config.still_weight)
        total = classification + config.motion_weight * directions.loss
        return SupervisedLoss(total=total, classification=classification, top1=top1, directions=directions)
    if output.embeddings.motion_query_BPD is None:
        return SupervisedLoss(total=classification, classification=classification, top1=top1)
    if window_valid_BW is None:
        raise ValueError("window_valid_BW: required, since the model predicts motion")
    motion = motion_loss(output.embeddings, window_valid_BW, config, query_valid_BP=query_valid_BP)
    total = classification + config.motion_weight * motion.loss
    return SupervisedLoss(total=total, classification=classification, top1=top1, motion=motion)
