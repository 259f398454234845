"""Retrieval metrics: pure functions of neighbours and labels.

Shape legend: Q queries, G gallery rows, K neighbours.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RECALL_RANKS = (1, 5, 10, 20, 50)
"""The k of R@k that the literature reports."""


def recall_at(
    neighbour_rows_QK: NDArray[np.int64], query_labels: Sequence[str], gallery_labels: Sequence[str], rank: int
) -> float:
    """R@k: the share of queries of which at least one of the k nearest gallery rows has the query's label.

    Args:
        neighbour_rows_QK: gallery rows, nearest first; K at least ``rank``, or all of the gallery.
        query_labels: Q labels.
        gallery_labels: G labels.
        rank: k.

    Raises:
        ValueError: there are no queries, or too few neighbours.
    """
    queries, found = neighbour_rows_QK.shape
    if queries == 0 or queries != len(query_labels):
        raise ValueError(f"query_labels: {len(query_labels)} labels for {queries} rows of neighbours")
    if found < min(rank, len(gallery_labels)):
        raise ValueError(f"neighbour_rows_QK: {found} neighbours, need {rank}")
    labels = np.asarray(gallery_labels, dtype=object)[neighbour_rows_QK[:, :rank]]
    hits = (labels == np.asarray(query_labels, dtype=object)[:, None]).any(axis=1)
    return float(hits.mean())


def chance_recall_at(query_labels: Sequence[str], gallery_labels: Sequence[str], rank: int) -> float:
    """What R@k is expected to be if neighbours are drawn at random, without replacement."""
    size = len(gallery_labels)
    k = min(rank, size)
    share = Counter(gallery_labels)
    misses = [math.comb(size - share[label], k) / math.comb(size, k) for label in query_labels]
    return 1.0 - math.fsum(misses) / len(misses)
