"""The pre-training losses over the global batch: context matching, motion prediction and their sum.

Shape legend:
    B  samples of this rank's batch, G  of all ranks
    W  motion windows of a sample, window 0 being the predicted one
    P  positions of the predicted motion
    D  features of an embedding
    N  any count along the first dimension

Several ranks: keys are gathered from all of them with their gradients, and every rank's loss is weighed so that the
*mean over ranks* is the mean over all queries of the global batch. Averaging gradients over ranks, as
DistributedDataParallel does, then gives exactly the gradients of one process with the whole batch (BatchNorm apart).
Top-1 and top-5 are of the rank's own queries. Where damaged samples have left ranks with batches of different sizes,
``rank_sizes`` tells them.
"""

# ruff: noqa: N815 (carriers name the shapes of their tensors)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from cmd_train.distributed.gather import Sizes, first_row, gather_flags, gather_with_grad, rank_and_world
from cmd_train.losses.contrast import DEFAULT_TEMPERATURE, InfoNCEOutput, alignment, info_nce, uniformity
from cmd_train.losses.model_output import ModelOutput

__all__ = [
    "InfoNCEOutput",
    "LossOutput",
    "alignment",
    "context_loss",
    "gather_with_grad",
    "info_nce",
    "motion_loss",
    "pretrain_loss",
    "uniformity",
]


@dataclass(frozen=True, kw_only=True)
class LossOutput:
    """The pre-training loss and its parts.

    Attributes:
        total: weighted sum, with gradient.
        context: context matching; None if its head is off.
        motion: motion prediction; None if its head is off.
    """

    total: Tensor
    context: InfoNCEOutput | None
    motion: InfoNCEOutput | None


def _weighed_by_rank(matched: InfoNCEOutput) -> Tensor:
    """Scales a rank's mean loss so that the mean over ranks is the mean over all valid queries."""
    world = rank_and_world()[1]
    if world == 1:
        return matched.loss
    total = matched.queries.clone()
    dist.all_reduce(total)
    return matched.loss * matched.queries * world / total.clamp(min=1)


def context_loss(
    output: ModelOutput,
    *,
    temperature: float = DEFAULT_TEMPERATURE,
    symmetric: bool = False,
    rank_sizes: Sizes = None,
) -> InfoNCEOutput:
    """Context matching: every clip picks its own video's keyframe out of all keyframes of the global batch.

    Args:
        output: embeddings of this rank's batch, with context. Keys of a queue are further candidates.
        temperature: divides the similarities.
        symmetric: whether keyframes also pick their clips.
        rank_sizes: samples of each rank; None if all have equally many.

    Raises:
        ValueError: if the output holds no context embeddings.
    """
    query_BD, key_BD = output.context_query_BD, output.context_key_BD
    if query_BD is None or key_BD is None:
        raise ValueError("output must hold context embeddings: the context head is off")
    target_B = first_row(len(query_BD), rank_sizes) + torch.arange(len(query_BD), device=query_BD.device)
    key_GD, pair_valid_BG = gather_with_grad(key_BD, rank_sizes), None
    if (queue := output.context_queue) is not None:
        pair_valid_BG = torch.cat([queue.usable_BM.new_ones(len(query_BD), len(key_GD)), queue.usable_BM], dim=1)
        key_GD = torch.cat([key_GD, queue.key_MD.to(key_GD.dtype)])
    matched = info_nce(query_BD, key_GD, target_B, temperature=temperature, pair_valid_NM=pair_valid_BG)
    loss = _weighed_by_rank(matched)
    if symmetric:
        reverse = info_nce(key_BD, gather_with_grad(query_BD, rank_sizes), target_B, temperature=temperature)
        loss = (loss + _weighed_by_rank(reverse)) / 2
    return replace(matched, loss=loss)


def _motion_embeddings(output: ModelOutput, window_valid_BW: Tensor) -> tuple[Tensor, Tensor]:
    query_BPD, key_BWPD = output.motion_query_BPD, output.motion_key_BWPD
    if query_BPD is None or key_BWPD is None:
        raise ValueError("output must hold motion embeddings: the motion head is off")
    if window_valid_BW.shape != key_BWPD.shape[:2]:
        shape = tuple(key_BWPD.shape[:2])
        raise ValueError(f"window_valid_BW must have shape {shape}, not {tuple(window_valid_BW.shape)}")
    return query_BPD, key_BWPD


@dataclass(frozen=True, kw_only=True)
class _OwnPairs:
    """Which features each query chooses from.

    Attributes:
        row_B1: this rank's samples among those of all ranks.
        samples: of all ranks.
        positions: of a sample, and of each of its windows.
        video, place: whether the feature must be of the query's own sample, of its own position.
    """

    row_B1: Tensor
    samples: int
    positions: int
    video: bool
    place: bool

    def flags(self, windows: int) -> Tensor | None:
        """(queries, features) bool for features of so many windows a sample; None if all are allowed."""
        if not (self.video or self.place):
            return None
        device = self.row_B1.device
        own_BG = (self.row_B1 == torch.arange(self.samples, device=device)) | (not self.video)
        place_P = torch.arange(self.positions, device=device)
        own_PP = (place_P[:, None] == place_P) | (not self.place)
        allowed_BPGWP = own_BG[:, None, :, None, None] & own_PP[None, :, None, None, :]
        return allowed_BPGWP.expand(-1, -1, -1, windows, -1).flatten(2).flatten(0, 1)


def motion_loss(
    output: ModelOutput,
    window_valid_BW: Tensor,
    *,
    temperature: float = DEFAULT_TEMPERATURE,
    symmetric: bool = False,
    own_video: bool = False,
    own_place: bool = False,
    query_valid_BP: Tensor | None = None,
    rank_sizes: Sizes = None,
) -> InfoNCEOutput:
    """Motion prediction: every predicted position picks the feature at its place in its own future window.

    Candidates are the features of all positions in all valid windows of the global batch: the same window's other
    places, the same video's other times, and other videos.

    Args:
        output: embeddings of this rank's batch, with motion.
        window_valid_BW: windows that exist; short videos have fewer temporal negatives. A sample without its window
            0 asks no queries.
        temperature: divides the similarities.
        symmetric: whether the features of window 0 also pick the predictions made of them.
        own_video, own_place: whether a query chooses among the features of its own sample, or position, only.
        query_valid_BP: positions that ask queries (all if None); the features of the others stay candidates.
        rank_sizes: samples of each rank; None if all have equally many.

    Raises:
        ValueError: if the output holds no motion embeddings or the flags' shape is not theirs.
    """
    query_BPD, key_BWPD = _motion_embeddings(output, window_valid_BW)
    samples, windows, positions, _ = key_BWPD.shape
    place_P = torch.arange(positions, device=query_BPD.device)
    first_B1 = first_row(samples, rank_sizes) + torch.arange(samples, device=query_BPD.device)[:, None]
    target_BP = first_B1 * windows * positions + place_P
    query_valid_N = None if query_valid_BP is None else query_valid_BP.flatten()
    valid_GW = gather_flags(window_valid_BW, rank_sizes)
    own = _OwnPairs(row_B1=first_B1, samples=len(valid_GW), positions=positions, video=own_video, place=own_place)
    matched = info_nce(
        query_BPD.flatten(0, 1),
        gather_with_grad(key_BWPD, rank_sizes).flatten(0, 2),
        target_BP.flatten(),
        temperature=temperature,
        key_valid_M=valid_GW.flatten().repeat_interleave(positions),
        query_valid_N=query_valid_N,
        pair_valid_NM=own.flags(windows),
    )
    loss = _weighed_by_rank(matched)
    if symmetric:
        reverse = info_nce(
            key_BWPD[:, 0].flatten(0, 1),
            gather_with_grad(query_BPD, rank_sizes).flatten(0, 1),
            (first_B1 * positions + place_P).flatten(),
            temperature=temperature,
            key_valid_M=valid_GW[:, 0].repeat_interleave(positions),
            query_valid_N=query_valid_N,
            pair_valid_NM=own.flags(1),
        )
        loss = (loss + _weighed_by_rank(reverse)) / 2
    return replace(matched, loss=loss)


def pretrain_loss(
    output: ModelOutput,
    window_valid_BW: Tensor | None,
    *,
    context_weight: float = 1.0,
    motion_weight: float = 1.0,
    temperature: float = DEFAULT_TEMPERATURE,
    symmetric: bool = False,
    own_video: bool = False,
    own_place: bool = False,
    query_valid_BP: Tensor | None = None,
    rank_sizes: Sizes = None,
) -> LossOutput:
    """The weighted sum (in the paper: the plain sum) of the losses of the heads that are on.

    Args:
        output: embeddings of this rank's batch.
        window_valid_BW: motion windows that exist; None only without motion embeddings.
        context_weight: weight of context matching, 0 or more.
        motion_weight: weight of motion prediction, 0 or more.
        temperature: divides the similarities of both.
        symmetric: whether keys also pick their queries.
        own_video, own_place: see ``motion_loss``.
        query_valid_BP: positions whose motion is asked for (all if None).
        rank_sizes: samples of each rank; None if all have equally many.

    Raises:
        ValueError: if the output holds no embeddings, a weight is negative, or the flags are missing.
    """
    for field, weight in (("context_weight", context_weight), ("motion_weight", motion_weight)):
        if not weight >= 0:
            raise ValueError(f"{field} must be 0 or more, not {weight}")
    context = motion = None
    terms = []
    if output.context_query_BD is not None:
        context = context_loss(output, temperature=temperature, symmetric=symmetric, rank_sizes=rank_sizes)
        terms.append(context_weight * context.loss)
    if output.motion_query_BPD is not None:
        if window_valid_BW is None:
            raise ValueError("window_valid_BW must be given: the output holds motion embeddings")
        motion = motion_loss(
            output,
            window_valid_BW,
            temperature=temperature,
            symmetric=symmetric,
            own_video=own_video,
            own_place=own_place,
            query_valid_BP=query_valid_BP,
            rank_sizes=rank_sizes,
        )
        terms.append(motion_weight * motion.loss)
    if not terms:
        raise ValueError("output must hold context or motion embeddings")
    return LossOutput(total=torch.stack(terms).sum(), context=context, motion=motion)


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """One step's result.

    Attributes:
        loss: scalar, with gradient.
        metrics: names to scalar tensors, without gradient.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor]
