"""Recognition: what a classifier's probabilities are worth, by the videos' labels. Pure functions of arrays.

Shape legend: N test videos, K classes of the classifier, L all classes: these and, behind them, labels of test videos
that the classifier does not know.
"""

# ruff: noqa: N815 (carriers name the shapes of their arrays)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmd_eval.metrics.intervals import bootstrap_interval, confusion_matrix, per_class_accuracy, top_k_hits

TOP = 5
"""The k of the second figure that papers report."""


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """What a classifier made of test videos.

    Attributes:
        classes: L names; those that the classifier does not know come last.
        known: K, how many it knows.
        truth_N, predicted_N: numbers of classes.
        confidence_N: probability of the predicted class.
        trained_K: how many videos of each class it was trained on; None if that is not known.
        top1_N, top5_N: bool, whether the true class is the likeliest, and among the five likeliest.
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
        """Test videos of classes that the classifier does not know; they count as wrong."""
        return int((self.truth_N >= self.known).sum())

    @property
    def chance(self) -> float | None:
        """Top-1 of naming the class of a training video drawn at random; None if the training videos are not known."""
        if self.trained_K is None:
            return None
        share_K = self.trained_K / self.trained_K.sum()
        return float(share_K[self.truth_N[self.truth_N < self.known]].sum() / len(self.truth_N))

    def as_json(self) -> dict[str, Any]:
        """Figures with their bootstrap intervals, per-class accuracy and confusion matrix, for a result file."""
        confusion_LL = confusion_matrix(self.truth_N, self.predicted_N, len(self.classes))
        return {
            "classes": list(self.classes),
            "classes_unknown": list(self.classes[self.known :]),
            "test": len(self.truth_N),
            "top1": bootstrap_interval(self.top1_N.astype(np.float64)).as_json(),
            "top5": bootstrap_interval(self.top5_N.astype(np.float64)).as_json(),
            "chance": self.chance,
            "per_class": self._per_class(per_class_accuracy(confusion_LL)),
            "confusion": confusion_LL.tolist(),
        }

    def _per_class(self, accuracy_L: NDArray[np.float64]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for number, name in enumerate(self.classes):
            own = self.top1_N[self.truth_N == number].astype(np.float64)
            row = {"class": name, "test": len(own)}
            if len(own):
                interval = bootstrap_interval(own)
                row |= {"accuracy": float(accuracy_L[number]), "low": interval.low, "high": interval.high}
            else:
                row |= {"accuracy": None, "low": None, "high": None}
            rows.append(row)
        return rows


def judge(
    probability_NK: NDArray[np.float64],
    labels: Sequence[str],
    classes: Sequence[str],
    trained: Sequence[int] | None = None,
) -> Recognition:
    """Compares probabilities with labels.

    Args:
        probability_NK: of the classifier's classes.
        labels: N names of classes.
        classes: K names, in the order of the classifier's outputs.
        trained: on how many videos of each the classifier was trained, if that is known.

    Raises:
        ValueError: there is no video, or numbers disagree.
    """
    if not len(labels) or probability_NK.shape != (len(labels), len(classes)):
        raise ValueError(
            f"probability_NK: shape {probability_NK.shape} for {len(labels)} videos and {len(classes)} classes"
        )
    everything = (*classes, *sorted(set(labels) - set(classes)))
    number_of = {name: number for number, name in enumerate(everything)}
    truth_N = np.array([number_of[label] for label in labels], np.int64)
    # What the classifier does not know it cannot predict.
    score_NL = np.full((len(labels), len(everything)), -np.inf)
    score_NL[:, : len(classes)] = probability_NK
    top1_N = top_k_hits(score_NL, truth_N, 1)
    # Of equals the last one counts as the better one, as in `top_k_hits`.
    predicted_N = len(classes) - 1 - probability_NK[:, ::-1].argmax(axis=1)
    return Recognition(
        classes=everything,
        known=len(classes),
        truth_N=truth_N,
        predicted_N=predicted_N,
        confidence_N=probability_NK.max(axis=1),
        top1_N=top1_N,
        trained_K=None if trained is None else np.array(trained, np.int64),
        top5_N=top_k_hits(score_NL, truth_N, TOP),
    )
