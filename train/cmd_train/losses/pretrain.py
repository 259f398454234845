"""Pre-training losses over the global batch: context matching, motion prediction and their weighted sum.

Shape legend:
    B  samples of this rank's batch, G  samples of all ranks
    W  motion windows of a sample; window 0 is the predicted one
    P  positions of the predicted motion
    D  features of an embedding
    N  motion queries of this rank, M  motion keys of all ranks

Multiple ranks: keys are gathered from all ranks together with their gradients, and each rank's loss is weighted so
that the *mean over ranks* equals the mean over all queries of the global batch. Averaging gradients over ranks, as
DistributedDataParallel does, then yields exactly the gradients of a single process with the whole batch (BatchNorm
apart). Top-1 and top-5 accuracy refer to the rank's own queries. Samples that only fill the batch (``valid_B``) are
neither queries nor candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cmd_train.distributed.gather import gather, gather_with_grad, rank_and_world, rank_mean
from cmd_train.losses.config import LossConfig
from cmd_train.losses.contrast import InfoNCEOutput, info_nce
from cmd_train.losses.directions import DirectionLoss, DirectionTargets, direction_loss
from cmd_train.losses.outputs import ModelOutput


@dataclass(frozen=True, kw_only=True)
class PretrainLoss:
    """Pre-training loss and its components.

    Attributes:
        total: weighted sum, with gradient.
        context: context matching; None if its head is off.
        motion: motion prediction by features; None if its head is off.
        directions: motion prediction by directions; None if its head is off.
    """

    total: Tensor
    context: InfoNCEOutput | None
    motion: InfoNCEOutput | None
    directions: DirectionLoss | None


def _weighted_for_rank_mean(matched: InfoNCEOutput) -> InfoNCEOutput:
    """Scale a rank's mean loss so that the mean over ranks is the mean over all valid queries."""
    return replace(matched, loss=rank_mean(matched.loss * matched.queries, matched.queries))


def _own_rows(samples: int, device: torch.device) -> Tensor:
    """Return the rows of this rank's samples among those gathered from all ranks."""
    return rank_and_world()[0] * samples + torch.arange(samples, device=device)


def context_loss(output: ModelOutput, config: LossConfig, *, valid_B: Tensor | None = None) -> InfoNCEOutput:
    """Context matching: classify each clip's own keyframe among all keyframes of the global batch.

    Args:
        output: embeddings of this rank's batch, with context.
        config: temperature.
        valid_B: samples that count (all if None).

    Raises:
        ValueError: `output` contains no context embeddings.
    """
    query_BD, key_BD = output.context_query_BD, output.context_key_BD
    if query_BD is None or key_BD is None:
        raise ValueError("output: contains no context embeddings; the context head is off")
    target_B = _own_rows(len(query_BD), query_BD.device)
    valid_G = None if valid_B is None else gather(valid_B)
    key_GD = gather_with_grad(key_BD)
    return _weighted_for_rank_mean(
        info_nce(query_BD, key_GD, target_B, temperature=config.temperature, key_valid_M=valid_G)
    )


def _motion_embeddings(output: ModelOutput, window_valid_BW: Tensor) -> tuple[Tensor, Tensor]:
    query_BPD, key_BWPD = output.motion_query_BPD, output.motion_key_BWPD
    if query_BPD is None or key_BWPD is None:
        raise ValueError("output: contains no motion embeddings; the motion head is off")
    if window_valid_BW.shape != key_BWPD.shape[:2]:
        shape = tuple(key_BWPD.shape[:2])
        raise ValueError(f"window_valid_BW: must have shape {shape}, got {tuple(window_valid_BW.shape)}")
    return query_BPD, key_BWPD


def motion_loss(
    output: ModelOutput,
    window_valid_BW: Tensor,
    config: LossConfig,
    *,
    query_valid_BP: Tensor | None = None,
) -> InfoNCEOutput:
    """Motion prediction: classify the feature at the same position of the sample's own future window.

    Candidates are the features at all positions of all valid windows of the global batch: other positions of the same
    window, other times of the same video, and other videos.

    Args:
        output: embeddings of this rank's batch, with motion.
        window_valid_BW: whether each window exists; short videos have fewer temporal negatives. Samples without
            window 0 contribute no queries.
        config: temperature and restriction of the candidates.
        query_valid_BP: positions that are queries (all if None); features at other positions remain candidates.

    Raises:
        ValueError: `output` contains no motion embeddings, or the shape of `window_valid_BW` does not match them.
    """
    query_BPD, key_BWPD = _motion_embeddings(output, window_valid_BW)
    samples, windows, positions, _ = key_BWPD.shape
    row_B = _own_rows(samples, query_BPD.device)
    key_valid = gather(window_valid_BW).flatten()
    key_GWPD = gather_with_grad(key_BWPD)
    if config.motion_own_position:
        # Positions are groups, within which a sample's own key is that of its window 0.
        query, key, target = query_BPD.transpose(0, 1), key_GWPD.flatten(0, 1).transpose(0, 1), row_B * windows
        query_valid = None if query_valid_BP is None else query_valid_BP.T
    else:
        place_P = torch.arange(positions, device=query_BPD.device)
        query, key = query_BPD.flatten(0, 1), key_GWPD.flatten(0, 2)
        target = (row_B[:, None] * windows * positions + place_P).flatten()
        key_valid = key_valid.repeat_interleave(positions)
        query_valid = None if query_valid_BP is None else query_valid_BP.flatten()
    matched = info_nce(
        query, key, target, temperature=config.temperature, key_valid_M=key_valid, query_valid_LN=query_valid
    )
    return _weighted_for_rank_mean(matched)


def pretrain_loss(
    output: ModelOutput,
    window_valid_BW: Tensor | None,
    config: LossConfig,
    *,
    query_valid_BP: Tensor | None = None,
    targets: DirectionTargets | None = None,
    valid_B: Tensor | None = None,
) -> PretrainLoss:
    """Compute the weighted sum of the losses of all heads that are on.

    Args:
        output: embeddings of this rank's batch.
        window_valid_BW: whether each motion window exists; None only without motion embeddings.
        config: weights and settings of both losses.
        query_valid_BP: positions whose motion is predicted (all if None).
        targets: directions to predict; required if the output contains scores of directions.
        valid_B: samples that count (all if None); the others must have no motion windows and no valid targets.

    Raises:
        ValueError: `output` contains no embeddings, or `targets` or `window_valid_BW` is missing.
    """
    context = motion = directions = None
    terms = []
    if output.context_query_BD is not None:
        context = context_loss(output, config, valid_B=valid_B)
        terms.append(config.context_weight * context.loss)
    if output.motion_query_BPD is not None:
        if window_valid_BW is None:
            raise ValueError("window_valid_BW: required, since the output contains motion embeddings")
        motion = motion_loss(output, window_valid_BW, config, query_valid_BP=query_valid_BP)
        terms.append(config.motion_weight * motion.loss)
    if output.direction_BKQHW is not None:
        if targets is None:
            raise ValueError("targets: required, since the output contains scores of directions")
        directions = direction_loss(output.direction_BKQHW, targets, still_weight=config.still_weight)
        terms.append(config.motion_weight * directions.loss)
    if not terms:
        raise ValueError("output: contains neither context nor motion embeddings; turn on at least one head")
    return PretrainLoss(total=torch.stack(terms).sum(), context=context, motion=motion, directions=directions)
