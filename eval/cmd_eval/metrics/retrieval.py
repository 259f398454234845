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


NO_HIT = 0
"""Rank of the first hit where no neighbor is a hit."""


def first_hits(
    neighbor_rows_QM: NDArray[np.int64], query_labels: Sequence[str], gallery_labels: Sequence[str]
) -> NDArray[np.int64]:
    """Return the rank of the nearest gallery row with the label of the query; R@k is the share of ranks up to k.

    Args:
        neighbor_rows_QM: gallery rows, nearest first; -1 where there is no further row.
        query_labels: Q labels.
        gallery_labels: G labels.

    Returns:
        (Q,) int64, starting at 1; ``NO_HIT`` if none of the M rows has the label.

    Raises:
        ValueError: there are no queries.
    """
    queries = len(neighbor_rows_QM)
    if queries == 0 or queries != len(query_labels):
        raise ValueError(f"query_labels: {len(query_labels)} labels for {queries} rows of neighbors")
    number_of = {label: number for number, label in enumerate(dict.fromkeys((*query_labels, *gallery_labels)))}
    number_G = np.array([*(number_of[label] for label in gallery_labels), -1])  # -1 for row -1
    hit_QM = number_G[neighbor_rows_QM] == np.array([number_of[label] for label in query_labels])[:, None]
    return np.where(hit_QM.any(axis=1), hit_QM.argmax(axis=1) + 1, NO_HIT)


def chance_recall_at(query_labels: Sequence[str], gallery_labels: Sequence[str], rank: int) -> float:
    """Return the expected R@k if neighbors are drawn at random without replacement.

    Args:
        query_labels: Q labels.
        gallery_labels: G labels.
        rank: k.
    """
    gallery_counts = Counter(gallery_labels)
    matches = [gallery_counts[label] for label in query_labels]
    return chance_recall(np.full(len(matches), len(gallery_labels)), np.array(matches), rank)


def chance_recall(size_Q: NDArray[np.int64], matches_Q: NDArray[np.int64], rank: int) -> float:
    """Return the expected R@k if neighbors are drawn at random without replacement.

    Args:
        size_Q: number of gallery videos that each query is compared with.
        matches_Q: number of those with its label.
        rank: k.
    """
    kinds, queries = np.unique(np.stack([size_Q, matches_Q]), axis=1, return_counts=True)
    size, matches = kinds
    # Without gallery videos, there is no hit.
    misses = np.where(size > 0, hypergeom.pmf(0, np.maximum(size, 1), matches, np.minimum(rank, size)), 1.0)
    # The mean of ones may exceed 1 by its rounding error.
    return max(0.0, float(1.0 - np.average(misses, weights=queries)))
