"""Nearest neighbours by cosine similarity, in blocks; used by evaluation and by monitoring during training.

Shape legend: Q queries, G gallery rows, N rows that are both, D features, K neighbours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_BLOCK = 1024
_GALLERY_BLOCK = 65_536


def nearest(query_QD: Tensor, gallery_GD: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The gallery rows most similar to each query, exactly; equals are listed by row.

    Memory is bounded by blocks of both, whatever the size of the gallery.

    Args:
        query_QD: (Q, D) features.
        gallery_GD: (G, D) features.
        count: neighbours K wanted; at most G.

    Returns:
        Cosine similarities (Q, K), falling, and gallery rows (Q, K).

    Raises:
        ValueError: the widths differ or ``count`` is not between 1 and G.
    """
    if query_QD.shape[1] != gallery_GD.shape[1]:
        raise ValueError(f"gallery_GD: {gallery_GD.shape[1]} features, queries have {query_QD.shape[1]}")
    if not 1 <= count <= len(gallery_GD):
        raise ValueError(f"count: {count} is not between 1 and the {len(gallery_GD)} gallery rows")
    gallery = F.normalize(gallery_GD.float(), dim=1)
    parts = [
        _nearest_of_block(F.normalize(block.float(), dim=1), gallery, count) for block in torch.split(query_QD, _BLOCK)
    ]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def _nearest_of_block(query_QD: Tensor, gallery_GD: Tensor, count: int) -> tuple[Tensor, Tensor]:
    best = query_QD.new_empty(len(query_QD), 0)
    rows = torch.empty(len(query_QD), 0, dtype=torch.int64, device=query_QD.device)
    for start in range(0, len(gallery_GD), _GALLERY_BLOCK):
        found = (query_QD @ gallery_GD[start : start + _GALLERY_BLOCK].T).topk(
            min(count, len(gallery_GD) - start), dim=1
        )
        best, rows = torch.cat([best, found.values], 1), torch.cat([rows, found.indices + start], 1)
        # Top-k promises no order among equals; two stable sorts of the few that are left do.
        by_row = rows.argsort(dim=1, stable=True)
        best, rows = best.gather(1, by_row), rows.gather(1, by_row)
        kept = best.sort(dim=1, descending=True, stable=True)
        best, rows = kept.values[:, :count], rows.gather(1, kept.indices[:, :count])
    return best, rows


def leave_one_out_recall(feature_ND: Tensor, labels: Sequence[str], ranks: Sequence[int]) -> dict[int, float]:
    """Share of rows that find their label among the nearest others.

    Args:
        feature_ND: (N, D) features.
        labels: of each row; rows without one (empty) are left out.
        ranks: numbers k of neighbours to look at; a k above the number of others counts all of them.

    Returns:
        k to recall, of the rows whose label another row has as well.

    Raises:
        ValueError: numbers disagree, or no two rows share a label.
    """
    if len(labels) != len(feature_ND):
        raise ValueError(f"labels: {len(labels)} for {len(feature_ND)} rows")
    counts = Counter(labels)
    kept = [row for row, label in enumerate(labels) if label]
    asked = torch.tensor([counts[labels[row]] > 1 for row in kept], dtype=torch.bool)
    if not asked.any():
        raise ValueError("labels: no two rows share a label")
    number_of = {label: number for number, label in enumerate(counts)}
    number_N = torch.tensor([number_of[labels[row]] for row in kept])
    features = feature_ND[kept]
    _, rows_NK = nearest(features, features, min(max(ranks) + 1, len(kept)))
    rows_NK = rows_NK.cpu()
    others_NK = rows_NK != torch.arange(len(kept))[:, None]
    # A row may find a copy of itself first: it is told by its number, not by its place.
    place_NK = others_NK.cumsum(1)
    hit_NK = others_NK & (number_N[rows_NK] == number_N[:, None])
    return {k: float((hit_NK & (place_NK <= k)).any(1)[asked].float().mean()) for k in ranks}
