"""Recall at k (R@k) of retrieval, and the recall expected by chance.

Shape legend: Q queries, G gallery rows, M neighbors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

RECALL_RANKS = (1, 5, 10, 20, 50)
"""Values of k for which the literature reports R@k."""


def recall_hits(
    neighbor_rows_QM: NDArray[np.int64], query_labels: Sequence[str], gallery_labels: Sequence[str], rank: int
) -> NDArray[np.bool_]:
    """Return for each query whether at least one of its k nearest gallery rows has the same label; the mean is R@k.

    Args:
        neighbor_rows_QM: gallery rows, nearest first; M is at least ``rank`` or the size of the gallery.
        query_labels: Q labels.
        gallery_labels: G labels.
        rank: k.

    Returns:
        (Q,) bool.

    Raises:
        ValueError: there are no queries, or too few neighbors.
    """
    queries, neighbors = neighbor_rows_QM.shape
    if queries == 0 or queries != len(query_labels):
        raise ValueError(f"query_labels: {len(query_labels)} labels for {queries} rows of neighbors")
    if neighbors < min(rank, len(gallery_labels)):
        raise ValueError(f"neighbor_rows_QM: {neighbors} neighbors, need {rank}")
    labels = np.asarray(gallery_labels, dtype=object)[neighbor_rows_QM[:, :rank]]
    hits: NDArray[np.bool_] = (labels == np.asarray(query_labels, dtype=object)[:, None]).any(axis=1)
    return hits


def chance_recall_at(
    query_labels: Sequence[str], gallery_labels: Sequence[str], rank: int, *, leave_one_out: bool = False
) -> float:
    """Return the expected R@k if neighbors are drawn at random without replacement.

    Args:
        query_labels: Q labels.
        gallery_labels: G labels.
        rank: k.
        leave_one_out: whether each query is itself in the gallery and excluded from its own neighbors.
    """
    labels, queries = zip(*Counter(query_labels).items(), strict=True)
    gallery_counts = Counter(gallery_labels)
    size = len(gallery_labels) - leave_one_out
    matches = np.array([gallery_counts[label] - leave_one_out for label in labels])
    misses = hypergeom.pmf(0, size, matches, min(rank, size))
    return float(1.0 - np.average(misses, weights=queries))
