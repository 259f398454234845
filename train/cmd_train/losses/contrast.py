"""InfoNCE, and two measures that distinguish useful embeddings from collapsed ones: alignment and uniformity.

Shape legend:
    L  groups of queries with candidates of their own (optional)
    N  queries, M  keys
    D  features of an embedding
    K  pairs of embeddings
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cmd_train.losses.config import DEFAULT_TEMPERATURE

_IGNORE_INDEX = -100
MAX_LOGITS = 2**27
"""Number of logits that a loss holds at the same time: 0.5 GiB, and as much for their gradients."""


@dataclass(frozen=True, kw_only=True)
class InfoNCEOutput:
    """InfoNCE loss with retrieval metrics; all scalars are 0-d tensors, so computing them does not sync the device.

    Attributes:
        loss: mean cross-entropy over the valid queries, with gradient; 0 if there are none.
        top1: fraction of valid queries whose own key scores highest. Ties are misses: collapsed embeddings score 0.
        top5: fraction of valid queries whose own key is among the five highest.
        candidates: candidate keys per query.
        queries: number of valid queries.
    """

    loss: Tensor
    top1: Tensor
    top5: Tensor
    candidates: Tensor
    queries: Tensor


def info_nce(
    query_LND: Tensor,
    key_LMD: Tensor,
    target_N: Tensor,
    *,
    temperature: float = DEFAULT_TEMPERATURE,
    key_valid_M: Tensor | None = None,
    query_valid_LN: Tensor | None = None,
    max_logits: int = MAX_LOGITS,
) -> InfoNCEOutput:
    """Compute the cross-entropy of classifying each query's own key among all keys (the paper's loss), in float32.

    Args:
        query_LND: queries of unit length, (N, D); or (L, N, D) for L groups, each with candidates of its own.
        key_LMD: keys of unit length, (M, D) or (L, M, D).
        target_N: index of each query's own key, the same in all groups.
        temperature: divisor of the similarities; positive.
        key_valid_M: keys that are candidates (all if None). Queries whose own key is not are ignored.
        query_valid_LN: queries to include (all if None), (N,) or (L, N).
        max_logits: number of logits to hold at the same time. If there are more, they are computed in parts, and once
            more in the backward pass.

    Raises:
        ValueError: the temperature is not positive, or shapes do not match.
    """
    _check_arguments(query_LND, key_LMD, target_N, temperature, key_valid_M, query_valid_LN)
    valid_LN = torch.ones_like(query_LND[..., 0], dtype=torch.bool) if query_valid_LN is None else query_valid_LN.bool()
    # Autocast would compute similarities in half precision, which is too coarse once divided by the temperature.
    with torch.autocast(query_LND.device.type, enabled=False):
        query_LND, key_LMD = query_LND.float(), key_LMD.float()
        candidates = torch.full_like(target_N[:1], key_LMD.shape[-2]).sum()
        mask_M = None
        if key_valid_M is not None:
            valid_M = key_valid_M.bool()
            valid_LN, candidates = valid_LN & valid_M[target_N], valid_M.sum()
            # Without any candidate all logits stay: a row of -inf would make gradients NaN, and the loss is 0 anyway.
            mask_M = torch.zeros_like(valid_M, dtype=torch.float32).masked_fill(~valid_M & valid_M.any(), -torch.inf)
        rows = max(1, max_logits // (key_LMD.shape[:-1].numel()))
        parts = list(
            zip(
                torch.split(query_LND, rows, -2),
                torch.split(target_N, rows),
                torch.split(valid_LN, rows, -1),
                strict=True,
            )
        )
        compute = _match if len(parts) == 1 else partial(checkpoint, _match, use_reentrant=False)
        sums = torch.stack([compute(*part, key_LMD, mask_M, temperature) for part in parts]).sum(0)
    queries = valid_LN.sum()
    loss, top1, top5 = (sums / queries.clamp(min=1)).unbind()
    return InfoNCEOutput(loss=loss, top1=top1.detach(), top5=top5.detach(), candidates=candidates, queries=queries)


def _match(
    query_LND: Tensor, target_N: Tensor, valid_LN: Tensor, key_LMD: Tensor, mask_M: Tensor | None, temperature: float
) -> Tensor:
    """Return the sums over the valid queries of the cross-entropy (with gradient), of top-1 and of top-5 hits."""
    logits_LNM = (query_LND / temperature) @ key_LMD.transpose(-1, -2)
    if mask_M is not None:
        logits_LNM += mask_M
    logits_NM, valid_N = logits_LNM.flatten(0, -2), valid_LN.flatten()
    target_N = target_N.expand(valid_LN.shape).flatten()
    label_N = target_N.masked_fill(~valid_N, _IGNORE_INDEX)
    summed = F.cross_entropy(logits_NM, label_N, ignore_index=_IGNORE_INDEX, reduction="sum")
    with torch.no_grad():
        own_N1 = logits_NM.gather(1, target_N[:, None])
        # "Not less" instead of "greater" counts ties and NaN as ranked above.
        above_N = (~(logits_NM < own_N1)).sum(dim=1) - 1
        hits = [((above_N < k) & valid_N).sum().float() for k in (1, 5)]
    return torch.stack([summed, *hits])


def _check_arguments(
    query_LND: Tensor,
    key_LMD: Tensor,
    target_N: Tensor,
    temperature: float,
    key_valid_M: Tensor | None,
    query_valid_LN: Tensor | None,
) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature: must be greater than 0, got {temperature}")
    query, key = query_LND.shape, key_LMD.shape
    if not (len(query) == len(key) in (2, 3) and query[:-2] == key[:-2] and query[-1] == key[-1]):
        raise ValueError(
            "query_LND and key_LMD: must have shapes (N, D) and (M, D), or (L, N, D) and (L, M, D), got "
            f"{tuple(query)} and {tuple(key)}"
        )
    for name, tensor, shape in (
        ("target_N", target_N, query[-2:-1]),
        ("query_valid_LN", query_valid_LN, query[:-1]),
        ("key_valid_M", key_valid_M, key[-2:-1]),
    ):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name}: must have shape {tuple(shape)}, got {tuple(tensor.shape)}")


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
