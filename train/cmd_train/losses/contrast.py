"""InfoNCE, and two measures that distinguish useful embeddings from collapsed ones: alignment and uniformity.

Shape legend:
    N  queries, M  keys
    D  features of an embedding
    K  pairs of embeddings
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cmd_train.losses.config import DEFAULT_TEMPERATURE

_IGNORE_INDEX = -100


@dataclass(frozen=True, kw_only=True)
class InfoNCEOutput:
    """InfoNCE loss with retrieval metrics; all scalars are 0-d tensors, so computing them does not sync the device.

    Attributes:
        loss: mean cross-entropy over the valid queries, with gradient; 0 if there are none.
        top1: fraction of valid queries whose own key scores highest. Ties are misses: collapsed embeddings score 0.
        top5: fraction of valid queries whose own key is among the five highest.
        candidates: candidate keys per query; the mean over queries if their numbers differ.
        queries: number of valid queries.
    """

    loss: Tensor
    top1: Tensor
    top5: Tensor
    candidates: Tensor
    queries: Tensor


def info_nce(
    query_ND: Tensor,
    key_MD: Tensor,
    target_N: Tensor,
    *,
    temperature: float = DEFAULT_TEMPERATURE,
    key_valid_M: Tensor | None = None,
    query_valid_N: Tensor | None = None,
    pair_valid_NM: Tensor | None = None,
) -> InfoNCEOutput:
    """Compute the cross-entropy of classifying each query's own key among all keys (the paper's loss), in float32.

    Args:
        query_ND: queries of unit length.
        key_MD: keys of unit length.
        target_N: index of each query's own key.
        temperature: divisor of the similarities; positive.
        key_valid_M: keys that are candidates (all if None). Queries whose own key is not are ignored.
        query_valid_N: queries to include (all if None).
        pair_valid_NM: candidate keys of each query (all if None); must include its own key.

    Raises:
        ValueError: the temperature is not positive, or shapes do not match.
    """
    _check_arguments(query_ND, key_MD, target_N, temperature, key_valid_M, query_valid_N, pair_valid_NM)
    valid_N = torch.ones_like(target_N, dtype=torch.bool) if query_valid_N is None else query_valid_N.bool()
    # Autocast would compute similarities in half precision, which is too coarse once divided by the temperature.
    with torch.autocast(query_ND.device.type, enabled=False):
        query_ND, key_MD = query_ND.float(), key_MD.float()
        if key_valid_M is not None:
            valid_N = valid_N & key_valid_M.bool()[target_N]
        logits_NM, candidates = _masked_logits(query_ND, key_MD, temperature, key_valid_M, pair_valid_NM)
        label_N = target_N.masked_fill(~valid_N, _IGNORE_INDEX)
        summed = F.cross_entropy(logits_NM, label_N, ignore_index=_IGNORE_INDEX, reduction="sum")
    queries = valid_N.sum()
    loss = summed / queries.clamp(min=1)
    top1, top5 = (_topk_accuracy(k, logits_NM, target_N, valid_N) for k in (1, 5))
    return InfoNCEOutput(loss=loss, top1=top1, top5=top5, candidates=candidates, queries=queries)


def _masked_logits(
    query_ND: Tensor, key_MD: Tensor, temperature: float, key_valid_M: Tensor | None, pair_valid_NM: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return logits (N, M), -inf where a key is no candidate, and the (mean) number of candidates per query.

    Queries without any candidate keep all their logits: a row of -inf would make gradients NaN, and such queries are
    ignored anyway.
    """
    valid_M = torch.ones_like(key_MD[:, 0], dtype=torch.bool) if key_valid_M is None else key_valid_M.bool()
    if pair_valid_NM is None:
        mask_M = torch.zeros_like(key_MD[:, 0]).masked_fill(~valid_M & valid_M.any(), -torch.inf)
        return torch.addmm(mask_M, query_ND, key_MD.T, alpha=1 / temperature), valid_M.sum()
    allowed_NM = pair_valid_NM & valid_M
    masked_NM = ~allowed_NM & allowed_NM.any(dim=1, keepdim=True)
    logits_NM = (query_ND @ key_MD.T / temperature).masked_fill(masked_NM, -torch.inf)
    return logits_NM, allowed_NM.sum() / len(query_ND)


@torch.no_grad()
def _topk_accuracy(k: int, logits_NM: Tensor, target_N: Tensor, valid_N: Tensor) -> Tensor:
    """Return the fraction of valid queries with fewer than ``k`` keys ranked above their own."""
    own_N1 = logits_NM.gather(1, target_N[:, None])
    # "Not less" instead of "greater" counts ties and NaN as ranked above.
    above_N = (~(logits_NM < own_N1)).sum(dim=1) - 1
    return ((above_N < k) & valid_N).sum() / valid_N.sum().clamp(min=1)


def _check_arguments(
    query_ND: Tensor,
    key_MD: Tensor,
    target_N: Tensor,
    temperature: float,
    key_valid_M: Tensor | None,
    query_valid_N: Tensor | None,
    pair_valid_NM: Tensor | None,
) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature: must be greater than 0, got {temperature}")
    if query_ND.ndim != 2 or key_MD.ndim != 2 or query_ND.shape[1] != key_MD.shape[1]:
        shapes = f"{tuple(query_ND.shape)} and {tuple(key_MD.shape)}"
        raise ValueError(f"query_ND and key_MD: must have shapes (N, D) and (M, D), got {shapes}")
    for name, tensor, shape in (
        ("target_N", target_N, (len(query_ND),)),
        ("query_valid_N", query_valid_N, (len(query_ND),)),
        ("key_valid_M", key_valid_M, (len(key_MD),)),
        ("pair_valid_NM", pair_valid_NM, (len(query_ND), len(key_MD))),
    ):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name}: must have shape {shape}, got {tuple(tensor.shape)}")


def alignment(query_ND: Tensor, key_ND: Tensor, valid_N: Tensor | None = None) -> Tensor:
    """Return the mean squared distance of matching pairs; 0 is perfect (Wang & Isola, 2020).

    Args:
        query_ND, key_ND: matching embeddings of unit length.
        valid_N: pairs to include (all if None); the result is 0 if there are none.
    """
    squared_N = (query_ND.float() - key_ND.float()).square().sum(dim=1)
    if valid_N is None:
        return squared_N.mean()
    return (squared_N * valid_N).sum() / valid_N.sum().clamp(min=1)


def uniformity(embedding_ND: Tensor, valid_N: Tensor | None = None) -> Tensor:
    """Return the log of the mean Gaussian potential exp(-2 d^2) over all pairs (Wang & Isola, 2020).

    0 means collapsed; lower values mean more evenly spread embeddings.

    Args:
        embedding_ND: at least two embeddings of unit length.
        valid_N: embeddings to include (all if None); the result is 0 if there are fewer than two.

    Raises:
        ValueError: there are fewer than two embeddings.
    """
    if len(embedding_ND) < 2:
        raise ValueError(f"embedding_ND: must contain at least 2 embeddings, got {len(embedding_ND)}")
    potential_K = (-2 * F.pdist(embedding_ND.float()).square()).exp()
    if valid_N is None:
        return potential_K.mean().log()
    first_K, second_K = torch.triu_indices(len(valid_N), len(valid_N), offset=1, device=valid_N.device)
    counts_K = valid_N[first_K] & valid_N[second_K]
    mean = (potential_K * counts_K).sum() / counts_K.sum().clamp(min=1)
    return torch.where(counts_K.any(), mean, 1.0).log()
