"""Nearest neighbors by cosine similarity, computed in blocks; used by evaluation and during training.

Shape legend: Q queries, G gallery rows, N rows that are both queries and gallery, D features, K neighbors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

_QUERY_BLOCK = 1024
_GALLERY_BLOCK = 32_768
_GALLERY_BLOCK_VALUES = 2**25
# The default of torch.nn.functional.normalize: a row of zeros stays zero.
_MIN_NORM = 1e-12


class Rows(Protocol):
    """Array of shape (rows, features) that is read by slices of rows, such as a tensor or a memory-mapped file."""

    def __len__(self) -> int: ...

    @property
    def shape(self) -> Sequence[int]:
        """Number of rows and of features."""

    def __getitem__(self, block: slice, /) -> Tensor: ...


def nearest(
    query_QD: Rows, gallery_GD: Rows, count: int, *, excluded: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Find the gallery rows most similar to each query, by exact search; ties are ordered by row.

    If the last neighbor is tied with others, which of them is returned is undefined.

    Both inputs may be larger than memory: each block of the gallery is read once, and with it all blocks of queries.
    Memory holds one block of each, their similarities (each at most 2**25 float32 values, or 128 MB, for up to 32,768
    features), and the neighbors found so far.

    Args:
        query_QD: (Q, D) features.
        gallery_GD: (G, D) features.
        count: number of neighbors K, at most G.
        excluded: numbers (Q,) of the queries and (G,) of the gallery rows, for example of their groups. A gallery row
            is not a neighbor of queries with its number.

    Returns:
        Cosine similarities (Q, K), in descending order, and gallery rows (Q, K). Where too few rows are not excluded,
        they are minus infinity and -1.

    Raises:
        ValueError: the numbers of features differ, ``count`` is not between 1 and G, or a feature is not finite.
    """
    if query_QD.shape[1] != gallery_GD.shape[1]:
        raise ValueError(f"gallery_GD: has {gallery_GD.shape[1]} features, query_QD has {query_QD.shape[1]}")
    if not 1 <= count <= len(gallery_GD):
        raise ValueError(f"count: must be between 1 and {len(gallery_GD)} (gallery rows), got {count}")
    device = query_QD[:1].device
    best_QK = torch.empty(len(query_QD), 0, device=device)
    row_QK = torch.empty(len(query_QD), 0, dtype=torch.int64, device=device)
    step = max(1, min(_GALLERY_BLOCK, _GALLERY_BLOCK_VALUES // gallery_GD.shape[1]))
    for start in range(0, len(gallery_GD), step):
        gallery = _unit_rows(gallery_GD, slice(start, start + step), "gallery_GD")
        merged = []
        for first in range(0, len(query_QD), _QUERY_BLOCK):
            block = slice(first, first + _QUERY_BLOCK)
            similarity = _unit_rows(query_QD, block, "query_QD") @ gallery.T
            if excluded is not None:
                own_Q, others_G = excluded[0][block].to(device), excluded[1][start : start + step].to(device)
                similarity.masked_fill_(own_Q[:, None] == others_G, -torch.inf)
            found = similarity.topk(min(count, len(gallery)), dim=1)
            best = torch.cat([best_QK[block], found.values], 1)
            rows = torch.cat([row_QK[block], found.indices + start], 1)
            merged.append(_first_by_similarity(best, rows, count))
        best_QK, row_QK = (torch.cat(parts) for parts in zip(*merged, strict=True))
    return best_QK, row_QK if excluded is None else row_QK.masked_fill(best_QK == -torch.inf, -1)


def _unit_rows(rows: Rows, block: slice, name: str) -> Tensor:
    feature = rows[block].float()
    # The norm is finite only if all values of the row are, and needs no extra memory of the block's size.
    norm = torch.linalg.vector_norm(feature, dim=1, keepdim=True)
    # Comparisons with NaN are false, so that the ranking would be arbitrary.
    if not bool(torch.isfinite(norm).all()):
        bad = int((~torch.isfinite(norm[:, 0])).nonzero()[0])
        raise ValueError(f"{name}: row {block.start + bad} contains values that are not finite")
    unit: Tensor = feature / norm.clamp_min(_MIN_NORM)
    return unit


def _first_by_similarity(best: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    # Top-k guarantees no order among ties; two stable sorts of the few remaining rows do.
    by_row = rows.argsort(dim=1, stable=True)
    best, rows = best.gather(1, by_row), rows.gather(1, by_row)
    kept = best.sort(dim=1, descending=True, stable=True)
    return kept.values[:, :count], rows.gather(1, kept.indices[:, :count])


def nearest_others(feature_ND: Rows, count: int) -> tuple[Tensor, Tensor]:
    """Find the other rows most similar to each row; see ``nearest``.

    Args:
        feature_ND: (N, D) features.
        count: number of neighbors K, at most N - 1.

    Returns:
        Cosine similarities (N, K), in descending order, and rows (N, K).

    Raises:
        ValueError: ``count`` is not between 1 and N - 1.
    """
    if not 1 <= count < len(feature_ND):
        raise ValueError(f"count: must be between 1 and {len(feature_ND) - 1} (other rows), got {count}")
    best, rows = nearest(feature_ND, feature_ND, count + 1)
    # An identical row may rank first, so exclude each row by its number, not by its rank.
    itself = rows == torch.arange(len(rows), device=rows.device)[:, None]
    order = itself.byte().argsort(dim=1, stable=True)[:, :count]
    return best.gather(1, order), rows.gather(1, order)


def leave_one_out_recall(feature_ND: Tensor, labels: Sequence[str], ranks: Sequence[int]) -> dict[int, float]:
    """Compute leave-one-out recall at k: the share of rows with a row of the same label among their k neighbors.

    Args:
        feature_ND: (N, D) features.
        labels: label of each row; rows with an empty label are ignored.
        ranks: values of k; one above the number of other rows means all of them.

    Returns:
        Recall by k, over the rows whose label occurs more than once.

    Raises:
        ValueError: the numbers of rows and labels differ, or no two rows share a label.
    """
    if len(labels) != len(feature_ND):
        raise ValueError(f"labels: must have one entry per row, got {len(labels)} for {len(feature_ND)} rows")
    counts = Counter(labels)
    kept = [row for row, label in enumerate(labels) if label]
    queries = torch.tensor([counts[labels[row]] > 1 for row in kept], dtype=torch.bool)
    if not queries.any():
        raise ValueError("labels: no two rows share a label")
    number_of = {label: number for number, label in enumerate(counts)}
    number_N = torch.tensor([number_of[labels[row]] for row in kept])
    _, rows_NK = nearest_others(feature_ND[kept], min(max(ranks), len(kept) - 1))
    hit_NK = number_N[rows_NK.cpu()] == number_N[:, None]
    return {k: float(hit_NK[:, :k].any(1)[queries].float().mean()) for k in ranks}
