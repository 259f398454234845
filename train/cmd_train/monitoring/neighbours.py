"""Nearest neighbours by cosine similarity, in blocks; used by evaluation and by monitoring during training.

Shape legend: Q queries, G gallery rows, N rows that are both, D features, K neighbours.
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
# As torch.nn.functional.normalize has it: a row of zeros stays one.
_LEAST_LENGTH = 1e-12


class Rows(Protocol):
    """(rows, features) of any length, read a slice at a time; a tensor is one."""

    def __len__(self) -> int: ...

    @property
    def shape(self) -> Sequence[int]:
        """Rows and features."""

    def __getitem__(self, block: slice, /) -> Tensor: ...


def nearest(query_QD: Rows, gallery_GD: Rows, count: int) -> tuple[Tensor, Tensor]:
    """The gallery rows most similar to each query, exactly; equals are listed by row.

    Where the list ends among equals, which of them are on it is not defined.

    Both may be larger than memory: each block of the gallery is read once, and with it every block of the queries.
    Beside a block of the gallery, one of queries and their similarities (2**25 float32 or 128 MB at most for each of
    these, up to 32,768 features) only the neighbours found so far are kept.

    Args:
        query_QD: (Q, D) features.
        gallery_GD: (G, D) features.
        count: neighbours K wanted; at most G.

    Returns:
        Cosine similarities (Q, K), falling, and gallery rows (Q, K).

    Raises:
        ValueError: the widths differ, ``count`` is not between 1 and G, or a feature is not finite.
    """
    if query_QD.shape[1] != gallery_GD.shape[1]:
        raise ValueError(f"gallery_GD: {gallery_GD.shape[1]} features, queries have {query_QD.shape[1]}")
    if not 1 <= count <= len(gallery_GD):
        raise ValueError(f"count: {count} is not between 1 and the {len(gallery_GD)} gallery rows")
    device = query_QD[:1].device
    best_QK = torch.empty(len(query_QD), 0, device=device)
    row_QK = torch.empty(len(query_QD), 0, dtype=torch.int64, device=device)
    step = max(1, min(_GALLERY_BLOCK, _GALLERY_BLOCK_VALUES // gallery_GD.shape[1]))
    for start in range(0, len(gallery_GD), step):
        gallery = _unit_rows(gallery_GD, slice(start, start + step), "gallery_GD")
        merged = []
        for first in range(0, len(query_QD), _QUERY_BLOCK):
            block = slice(first, first + _QUERY_BLOCK)
            found = (_unit_rows(query_QD, block, "query_QD") @ gallery.T).topk(min(count, len(gallery)), dim=1)
            best = torch.cat([best_QK[block], found.values], 1)
            rows = torch.cat([row_QK[block], found.indices + start], 1)
            merged.append(_first_by_similarity(best, rows, count))
        best_QK, row_QK = (torch.cat(parts) for parts in zip(*merged, strict=True))
    return best_QK, row_QK


def _unit_rows(rows: Rows, block: slice, name: str) -> Tensor:
    feature = rows[block].float()
    # The length tells of the whole row, and needs no further memory of the block's size.
    length = torch.linalg.vector_norm(feature, dim=1, keepdim=True)
    # Of NaN every comparison is false: any order would come out, and figures with it.
    if not bool(torch.isfinite(length).all()):
        bad = int((~torch.isfinite(length[:, 0])).nonzero()[0])
        raise ValueError(f"{name}: row {block.start + bad} holds values that are not finite")
    unit: Tensor = feature / length.clamp_min(_LEAST_LENGTH)
    return unit


def _first_by_similarity(best: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    # Top-k promises no order among equals; two stable sorts of the few that are left do.
    by_row = rows.argsort(dim=1, stable=True)
    best, rows = best.gather(1, by_row), rows.gather(1, by_row)
    kept = best.sort(dim=1, descending=True, stable=True)
    return kept.values[:, :count], rows.gather(1, kept.indices[:, :count])


def nearest_others(feature_ND: Rows, count: int) -> tuple[Tensor, Tensor]:
    """The rows most similar to each row, itself left out; otherwise as ``nearest``.

    Args:
        feature_ND: (N, D) features.
        count: neighbours K wanted; at most N - 1.

    Returns:
        Cosine similarities (N, K), falling, and rows (N, K).

    Raises:
        ValueError: ``count`` is not between 1 and N - 1.
    """
    if not 1 <= count < len(feature_ND):
        raise ValueError(f"count: {count} is not between 1 and the {len(feature_ND) - 1} other rows")
    best, rows = nearest(feature_ND, feature_ND, count + 1)
    # A row may find a copy of itself first: it is told by its number, not by its place.
    itself = rows == torch.arange(len(rows), device=rows.device)[:, None]
    order = itself.byte().argsort(dim=1, stable=True)[:, :count]
    return best.gather(1, order), rows.gather(1, order)


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
    _, rows_NK = nearest_others(feature_ND[kept], min(max(ranks), len(kept) - 1))
    hit_NK = number_N[rows_NK.cpu()] == number_N[:, None]
    return {k: float(hit_NK[:, :k].any(1)[asked].float().mean()) for k in ranks}
