"""Contrast of queries with keys: InfoNCE, and the two properties that tell good embeddings from collapsed ones.

Shape legend:
    N  queries, M  keys
    D  features of an embedding
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

DEFAULT_TEMPERATURE = 0.1
_IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class InfoNCEOutput:
    """A contrastive loss and how well queries find their keys; all scalars are 0-d tensors, so no device waits.

    Attributes:
        loss: mean cross-entropy over the valid queries, with gradient; 0 if there are none.
        top1: fraction of valid queries whose key beats all others. A tie is a miss: collapsed embeddings score 0.
        top5: fraction of valid queries whose key is among the best five.
        candidates: valid keys that every query chose from; the mean over queries where they differ in it.
        queries: valid queries.
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
    symmetric: bool = False,
) -> InfoNCEOutput:
    """Cross-entropy of every query's choice among the keys (the paper's loss), in float32.

    Args:
        query_ND: queries of unit length.
        key_MD: keys of unit length.
        target_N: index of each query's own key.
        temperature: divides the similarities; positive.
        key_valid_M: keys that take part (all if None). A query whose own key does not is left out.
        query_valid_N: queries that take part (all if None).
        pair_valid_NM: keys that each query chooses from (all if None); its own key must be among them. Not applied
            to the reverse choice.
        symmetric: whether to average the loss with that of the reverse choice, in which each query's own key chooses
            among the valid queries; the other outputs stay those of the queries.

    Raises:
        ValueError: if the temperature is not positive or shapes disagree.
    """
    _check_matching(query_ND, key_MD, target_N, temperature, key_valid_M, query_valid_N, pair_valid_NM)
    valid_N = torch.ones_like(target_N, dtype=torch.bool) if query_valid_N is None else query_valid_N.bool()
    # Autocast would compute similarities in half precision; divided by the temperature they need more.
    with torch.autocast(query_ND.device.type, enabled=False):
        query_ND, key_MD = query_ND.float(), key_MD.float()
        if key_valid_M is not None:
            valid_N = valid_N & key_valid_M.bool()[target_N]
        logits_NM, candidates = _choices(query_ND, key_MD, temperature, key_valid_M, pair_valid_NM)
        asked_N = target_N.masked_fill(~valid_N, _IGNORED)
        summed = F.cross_entropy(logits_NM, asked_N, ignore_index=_IGNORED, reduction="sum")
    queries = valid_N.sum()
    loss = summed / queries.clamp(min=1)
    if symmetric:
        own_N = torch.arange(len(query_ND), device=target_N.device)
        reverse = info_nce(key_MD[target_N], query_ND, own_N, temperature=temperature, key_valid_M=valid_N)
        loss = (loss + reverse.loss) / 2
    top1, top5 = (_found_among_best(rank, logits_NM, target_N, valid_N) for rank in (1, 5))
    return InfoNCEOutput(loss=loss, top1=top1, top5=top5, candidates=candidates, queries=queries)


def _choices(
    query_ND: Tensor, key_MD: Tensor, temperature: float, key_valid_M: Tensor | None, pair_valid_NM: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Logits (N, M), -inf where a key cannot be chosen, and from how many keys a query chooses.

    Where a query could choose none at all, nothing is barred: a row of -inf would make gradients NaN, and such a query
    does not count in any case.
    """
    valid_M = torch.ones_like(key_MD[:, 0], dtype=torch.bool) if key_valid_M is None else key_valid_M.bool()
    if pair_valid_NM is None:
        mask_M = torch.zeros_like(key_MD[:, 0]).masked_fill(~valid_M & valid_M.any(), -torch.inf)
        return torch.addmm(mask_M, query_ND, key_MD.T, alpha=1 / temperature), valid_M.sum()
    allowed_NM = pair_valid_NM & valid_M
    barred_NM = ~allowed_NM & allowed_NM.any(dim=1, keepdim=True)
    logits_NM = (query_ND @ key_MD.T / temperature).masked_fill(barred_NM, -torch.inf)
    return logits_NM, allowed_NM.sum() / len(query_ND)


@torch.no_grad()
def _found_among_best(rank: int, logits_NM: Tensor, target_N: Tensor, valid_N: Tensor) -> Tensor:
    """Fraction of valid queries with fewer than ``rank`` keys ahead of their own."""
    own_N1 = logits_NM.gather(1, target_N[:, None])
    # "Not smaller" rather than "greater": counts ties and NaN against the query.
    ahead_N = (~(logits_NM < own_N1)).sum(dim=1) - 1
    return ((ahead_N < rank) & valid_N).sum() / valid_N.sum().clamp(min=1)


def _check_matching(
    query_ND: Tensor,
    key_MD: Tensor,
    target_N: Tensor,
    temperature: float,
    key_valid_M: Tensor | None,
    query_valid_N: Tensor | None,
    pair_valid_NM: Tensor | None,
) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    if query_ND.ndim != 2 or key_MD.ndim != 2 or query_ND.shape[1] != key_MD.shape[1]:
        raise ValueError(
            f"query_ND and key_MD must be (N, D) and (M, D), not {tuple(query_ND.shape)} and {tuple(key_MD.shape)}"
        )
    for field, tensor, count in (
        ("target_N", target_N, len(query_ND)),
        ("query_valid_N", query_valid_N, len(query_ND)),
        ("key_valid_M", key_valid_M, len(key_MD)),
    ):
        if tensor is not None and tensor.shape != (count,):
            raise ValueError(f"{field} must have shape ({count},), not {tuple(tensor.shape)}")
    if pair_valid_NM is not None and pair_valid_NM.shape != (len(query_ND), len(key_MD)):
        raise ValueError(
            f"pair_valid_NM must have shape {(len(query_ND), len(key_MD))}, not {tuple(pair_valid_NM.shape)}"
        )


def alignment(query_ND: Tensor, key_ND: Tensor, valid_N: Tensor | None = None) -> Tensor:
    """Mean squared distance of matching pairs of unit length: 0 is perfect (Wang & Isola, 2020).

    Args:
        query_ND, key_ND: matching embeddings of unit length.
        valid_N: pairs that count (all if None); 0 is returned if none does.
    """
    squared_N = (query_ND.float() - key_ND.float()).square().sum(dim=1)
    if valid_N is None:
        return squared_N.mean()
    return (squared_N * valid_N).sum() / valid_N.sum().clamp(min=1)


def uniformity(embedding_ND: Tensor, valid_N: Tensor | None = None) -> Tensor:
    """Log of the mean Gaussian potential exp(-2 d^2) over all pairs: 0 is collapsed, lower is more spread out.

    Source: Wang & Isola, 2020.

    Args:
        embedding_ND: at least two embeddings of unit length.
        valid_N: embeddings that count (all if None); 0 is returned if fewer than two do.

    Raises:
        ValueError: if there are fewer than two embeddings.
    """
    if len(embedding_ND) < 2:
        raise ValueError(f"embedding_ND must hold at least 2 embeddings, not {len(embedding_ND)}")
    potential_K = (-2 * F.pdist(embedding_ND.float()).square()).exp()
    if valid_N is None:
        return potential_K.mean().log()
    first_K, second_K = torch.triu_indices(len(valid_N), len(valid_N), offset=1, device=valid_N.device)
    counts_K = valid_N[first_K] & valid_N[second_K]
    mean = (potential_K * counts_K).sum() / counts_K.sum().clamp(min=1)
    return torch.where(counts_K.any(), mean, 1.0).log()
