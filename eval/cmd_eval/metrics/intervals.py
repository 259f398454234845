"""Metrics of classification and retrieval, and how far they can be trusted: pure functions of arrays.

Shape legend: N items (test videos), K classes, Q queries, G gallery rows, M neighbours.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RECALL_RANKS = (1, 5, 10, 20, 50)
"""The k of R@k that the literature reports."""

RESAMPLES = 2000
LEVEL = 0.95
_VALUES_AT_ONCE = 2**22


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure and the range that resampling of its items gives.

    Attributes:
        value: the figure itself.
        low, high: ends of the interval.
    """

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"low: {self.low} is above high = {self.high}")

    def as_json(self) -> dict[str, float]:
        """``value``, ``low``, ``high``."""
        return {"value": self.value, "low": self.low, "high": self.high}


def bootstrap_interval(
    value_per_item_N: NDArray[np.float64], *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval:
    """Mean of items, with the percentile bootstrap interval over items.

    The items are drawn anew, with replacement, as many as there are; the interval holds the middle ``level`` of the
    means of all draws. It tells how much the figure depends on which test videos there are, and nothing else: not what
    another training or another gallery would give. Where all items are equal it has no width.

    Args:
        value_per_item_N: one value an item, for example 1 where it was a hit.
        seed: decides the draws.
        resamples: number of draws.
        level: share of draws inside the interval.

    Raises:
        ValueError: no items, or an argument out of range.
    """
    value_N = np.asarray(value_per_item_N, dtype=np.float64)
    if value_N.ndim != 1 or not len(value_N):
        raise ValueError(f"value_per_item_N: shape {value_N.shape}, need one value for each of at least one item")
    if resamples < 1:
        raise ValueError(f"resamples: {resamples} is not at least 1")
    if not 0 < level < 1:
        raise ValueError(f"level: {level} is not between 0 and 1")
    rng = np.random.default_rng(seed)
    block = max(1, _VALUES_AT_ONCE // len(value_N))
    means = np.concatenate(
        [
            value_N[rng.integers(len(value_N), size=(min(block, resamples - start), len(value_N)))].mean(axis=1)
            for start in range(0, resamples, block)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=float(value_N.mean()), low=float(low), high=float(high))


def paired_bootstrap(
    a_N: NDArray[np.float64],
    b_N: NDArray[np.float64],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """Mean of ``a - b`` over pairs, with its bootstrap interval; item n of both belongs to one pair.

    Args:
        a_N, b_N: one value an item, for example 1 where it was a hit.
        seed, resamples, level: see ``bootstrap_interval``.

    Raises:
        ValueError: the numbers of items differ, or there are none.
    """
    a, b = np.asarray(a_N, dtype=np.float64), np.asarray(b_N, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"b_N: shape {b.shape}, a_N has {a.shape}; pairs need one value on each side")
    return bootstrap_interval(a - b, seed=seed, resamples=resamples, level=level)


def top_k_hits(score_NK: NDArray[np.floating], truth_N: NDArray[np.integer], k: int) -> NDArray[np.bool_]:
    """Which items have their true class among the k of highest score.

    Of equal scores the class with the higher number counts as the better one, which is scikit-learn's rule. A score of
    minus infinity, that of a class that cannot be told, is never a hit.

    Args:
        score_NK: one score an item and class; higher is likelier.
        truth_N: number of each item's class.
        k: how many classes count; all hit if k is at least K.

    Returns:
        (N,) bool.

    Raises:
        ValueError: shapes disagree, k is not positive, a class does not exist or a score is not a number.
    """
    items, classes = _check_scores(score_NK, truth_N)
    if k < 1:
        raise ValueError(f"k: {k} is not at least 1")
    own_N1 = score_NK[np.arange(items), truth_N][:, None]
    later_NK = np.arange(classes) > np.asarray(truth_N)[:, None]
    better_N = ((score_NK > own_N1) | ((score_NK == own_N1) & later_NK)).sum(axis=1)
    hits: NDArray[np.bool_] = (better_N < k) & (own_N1[:, 0] > -np.inf)
    return hits


def _check_scores(score_NK: NDArray[np.floating], truth_N: NDArray[np.integer]) -> tuple[int, int]:
    if score_NK.ndim != 2 or not score_NK.size or len(truth_N) != len(score_NK):
        raise ValueError(f"score_NK: shape {score_NK.shape} for {len(truth_N)} true classes")
    if np.isnan(score_NK).any():
        raise ValueError("score_NK: holds values that are not a number")
    items, classes = score_NK.shape
    _check_classes("truth_N", truth_N, classes)
    return items, classes


def _check_classes(name: str, number_N: NDArray[np.integer], classes: int) -> None:
    outside = [int(n) for n in np.asarray(number_N) if not 0 <= n < classes]
    if outside:
        raise ValueError(f"{name}: class {outside[0]} is not between 0 and {classes - 1}")


def confusion_matrix(truth_N: NDArray[np.integer], predicted_N: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """How many items of each class were taken for each.

    Args:
        truth_N, predicted_N: numbers of classes.
        classes: K.

    Returns:
        (K, K): a row for each true class, a column for each predicted one.

    Raises:
        ValueError: the numbers of items differ or a class does not exist.
    """
    if len(truth_N) != len(predicted_N):
        raise ValueError(f"predicted_N: {len(predicted_N)} items, truth_N has {len(truth_N)}")
    _check_classes("truth_N", truth_N, classes)
    _check_classes("predicted_N", predicted_N, classes)
    cells = np.asarray(truth_N, np.int64) * classes + np.asarray(predicted_N, np.int64)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def per_class_accuracy(confusion_KK: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of each true class that was recognised, (K,); NaN for a class without items."""
    totals_K = confusion_KK.sum(axis=1)
    shares_K = np.full(len(confusion_KK), np.nan)
    np.divide(np.diagonal(confusion_KK), totals_K, out=shares_K, where=totals_K > 0)
    return shares_K


def recall_hits(
    neighbour_rows_QM: NDArray[np.int64], query_labels: Sequence[str], gallery_labels: Sequence[str], rank: int
) -> NDArray[np.bool_]:
    """Which queries have at least one of their k nearest gallery rows of their own label.

    Args:
        neighbour_rows_QM: gallery rows, nearest first; M at least ``rank``, or all of the gallery.
        query_labels: Q labels.
        gallery_labels: G labels.
        rank: k.

    Returns:
        (Q,) bool.

    Raises:
        ValueError: there are no queries, or too few neighbours.
    """
    queries, found = neighbour_rows_QM.shape
    if queries == 0 or queries != len(query_labels):
        raise ValueError(f"query_labels: {len(query_labels)} labels for {queries} rows of neighbours")
    if found < min(rank, len(gallery_labels)):
        raise ValueError(f"neighbour_rows_QM: {found} neighbours, need {rank}")
    labels = np.asarray(gallery_labels, dtype=object)[neighbour_rows_QM[:, :rank]]
    hits: NDArray[np.bool_] = (labels == np.asarray(query_labels, dtype=object)[:, None]).any(axis=1)
    return hits


def chance_recall_at(
    query_labels: Sequence[str], gallery_labels: Sequence[str], rank: int, *, leave_one_out: bool = False
) -> float:
    """What R@k is expected to be if neighbours are drawn at random, without replacement.

    Args:
        query_labels: Q labels.
        gallery_labels: G labels.
        rank: k.
        leave_one_out: every query is itself in the gallery, and is not drawn.
    """
    size = len(gallery_labels) - leave_one_out
    k = min(rank, size)
    share = Counter(gallery_labels)
    draws = math.comb(size, k)
    missed = [
        count * (math.comb(size - share[label] + leave_one_out, k) / draws)
        for label, count in Counter(query_labels).items()
    ]
    return 1.0 - math.fsum(missed) / len(query_labels)
