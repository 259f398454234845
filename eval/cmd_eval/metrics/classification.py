"""Classification metrics: top-k accuracy, per-class accuracy and confusion matrix, with confidence intervals.

Shape legend: N test videos, K classes of the classifier, L all classes: the classifier's, then the labels of test
videos that it does not have.
"""

# ruff: noqa: N815 (field names carry the shapes of their arrays)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, recall_score

from cmd_eval.metrics.intervals import mean_interval

TOP = 5
"""The k of the second accuracy that papers report."""


def top_k_hits(score_NK: NDArray[np.floating], truth_N: NDArray[np.integer], k: int) -> NDArray[np.bool_]:
    """Return for each item whether its true class is among the k classes with the highest scores.

    Ties are broken in favor of the class with the higher number, as in scikit-learn's ``top_k_accuracy_score``.
    A class with a score of minus infinity, which the classifier cannot predict, is never a hit.

    Args:
        score_NK: one score per item and class; higher means more likely.
        truth_N: class number of each item.
        k: number of classes to consider; with k >= K, every class with a finite score is a hit.

    Returns:
        (N,) bool.

    Raises:
        ValueError: shapes disagree, k is not positive, a class number is out of range, or a score is NaN.
    """
    if score_NK.ndim != 2 or not score_NK.size or len(truth_N) != len(score_NK):
        raise ValueError(f"score_NK: shape {score_NK.shape} for {len(truth_N)} true classes")
    items, classes = score_NK.shape
    if np.isnan(score_NK).any():
        raise ValueError("score_NK: contains NaN")
    for number in np.unique(truth_N):
        if not 0 <= number < classes:
            raise ValueError(f"truth_N: class {number} is not between 0 and {classes - 1}")
    if k < 1:
        raise ValueError(f"k: {k} is not at least 1")
    own_N1 = score_NK[np.arange(items), truth_N][:, None]
    later_NK = np.arange(classes) > np.asarray(truth_N)[:, None]
    better_N = ((score_NK > own_N1) | ((score_NK == own_N1) & later_NK)).sum(axis=1)
    hits: NDArray[np.bool_] = (better_N < k) & (own_N1[:, 0] > -np.inf)
    return hits


def most_likely(score_NK: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the class with the highest score of each item, (N,) int64; ties are broken as by ``top_k_hits``."""
    return np.asarray(score_NK.shape[1] - 1 - score_NK[:, ::-1].argmax(axis=1), np.int64)


def accuracy_record(
    classes: Sequence[str],
    truth_N: NDArray[np.int64],
    predicted_N: NDArray[np.int64],
    top1_N: NDArray[np.bool_],
    top5_N: NDArray[np.bool_],
    groups: Sequence[str],
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Return ``top1``, ``top5``, ``per_class`` and ``confusion`` for a result file.

    Args:
        classes: names of all classes.
        truth_N, predicted_N: class numbers.
        top1_N, top5_N: whether the true class is the most likely one, and among the five most likely ones.
        groups: group of each item, over which the intervals are computed; may be empty names.
        seed: random seed of the bootstrap intervals.
    """
    numbers, group_N = np.arange(len(classes)), np.array(groups, dtype=object)
    accuracy = recall_score(truth_N, predicted_N, labels=numbers, average=None, zero_division=np.nan)
    per_class: list[dict[str, Any]] = []
    for number, name in enumerate(classes):
        own = top1_N[truth_N == number].astype(np.float64)
        row: dict[str, Any] = {"class": name, "test": len(own), "accuracy": None, "low": None, "high": None}
        if len(own):
            interval = mean_interval(own, list(group_N[truth_N == number]), seed=seed)
            row |= interval.as_json() | {"accuracy": float(accuracy[number])}
            del row["value"]
        per_class.append(row)
    return {
        "top1": mean_interval(top1_N.astype(np.float64), groups, seed=seed).as_json(),
        "top5": mean_interval(top5_N.astype(np.float64), groups, seed=seed).as_json(),
        "per_class": per_class,
        "confusion": confusion_matrix(truth_N, predicted_N, labels=numbers).tolist(),
    }


@dataclass(frozen=True, kw_only=True)
class RecognitionResult:
    """Predictions of a classifier for test videos.

    Attributes:
        classes: L class names; those unknown to the classifier come last.
        known: K, the number of classes of the classifier.
        truth_N, predicted_N: class numbers.
        confidence_N: probability of the predicted class.
        trained_K: number of training videos per class; None if unknown.
        top1_N, top5_N: whether the true class is the most likely one, and among the five most likely ones.
    """

    classes: tuple[str, ...]
    known: int
    truth_N: NDArray[np.int64]
    predicted_N: NDArray[np.int64]
    confidence_N: NDArray[np.float64]
    top1_N: NDArray[np.bool_]
    top5_N: NDArray[np.bool_]
    trained_K: NDArray[np.int64] | None

    @property
    def unknown(self) -> int:
        """Number of test videos whose class the classifier does not have; they count as wrong."""
        return int((self.truth_N >= self.known).sum())

    @property
    def chance(self) -> float | None:
        """Top-1 accuracy of predicting the class of a random training video; None if the training set is unknown."""
        if self.trained_K is None:
            return None
        share_K = self.trained_K / self.trained_K.sum()
        return float(share_K[self.truth_N[self.truth_N < self.known]].sum() / len(self.truth_N))

    def as_json(self, groups: Sequence[str]) -> dict[str, Any]:
        """Return the figures with their intervals over the groups of the test videos, per class, and the confusion."""
        return {
            "classes": list(self.classes),
            "classes_unknown": list(self.classes[self.known :]),
            "test": len(self.truth_N),
            "chance": self.chance,
            **accuracy_record(self.classes, self.truth_N, self.predicted_N, self.top1_N, self.top5_N, groups),
        }


def score_predictions(
    probability_NK: NDArray[np.float64],
    labels: Sequence[str],
    classes: Sequence[str],
    trained: Sequence[int] | None = None,
) -> RecognitionResult:
    """Compare predicted probabilities with labels.

    Args:
        probability_NK: probabilities of the classifier's classes.
        labels: N class names.
        classes: K class names, in the order of the classifier's outputs.
        trained: number of training videos of each class, if known.

    Raises:
        ValueError: there are no videos, or the sizes disagree.
    """
    if not len(labels) or probability_NK.shape != (len(labels), len(classes)):
        raise ValueError(
            f"probability_NK: shape {probability_NK.shape} for {len(labels)} videos and {len(classes)} classes"
        )
    all_classes = (*classes, *sorted(set(labels) - set(classes)))
    number_of = {name: number for number, name in enumerate(all_classes)}
    truth_N = np.array([number_of[label] for label in labels], np.int64)
    score_NL = np.full((len(labels), len(all_classes)), -np.inf)  # unknown classes cannot be predicted
    score_NL[:, : len(classes)] = probability_NK
    return RecognitionResult(
        classes=all_classes,
        known=len(classes),
        truth_N=truth_N,
        predicted_N=most_likely(score_NL),
        confidence_N=probability_NK.max(axis=1),
        top1_N=top_k_hits(score_NL, truth_N, 1),
        top5_N=top_k_hits(score_NL, truth_N, TOP),
        trained_K=None if trained is None else np.array(trained, np.int64),
    )
