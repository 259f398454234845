"""Classifiers on averaged features, as scikit-learn estimators: logistic regression and k nearest neighbors.

Their parameter is chosen by cross-validation on the training videos, never on the test videos.

Shape legend: T training videos, N test videos, K classes with training videos, F features.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold, StratifiedKFold
from sklearn.preprocessing import StandardScaler

from cmd_train.monitoring.neighbors import nearest

METHODS = ("logistic", "knn")
PARAMETERS: Mapping[str, str] = {"logistic": "C", "knn": "k"}
"""Name of the parameter to choose: scikit-learn's inverse regularization strength, or the number of neighbors."""
GRIDS: Mapping[str, tuple[float, ...]] = {
    "logistic": (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0),
    "knn": (1, 3, 5, 10, 20, 50),
}
VALIDATION_FOLDS = 5
MAX_ITER = 2000
_RANKED_NEIGHBORS = 500

Folds = list[tuple[NDArray[np.int64], NDArray[np.int64]]]


class LogisticProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn has no type hints
    """Logistic regression on standardized features.

    Args:
        C: inverse regularization strength.

    Attributes:
        classes_: (K,) class numbers of the training videos.
        converged_: whether the optimizer converged within ``MAX_ITER`` iterations.
    """

    def __init__(self, C: float = 1.0) -> None:
        self.C = C

    def fit(self, feature_TF: NDArray[np.float32], number_T: NDArray[np.int64]) -> Self:
        """Fit to class numbers; with a single class, it is predicted for every video."""
        self.classes_ = np.unique(number_T)
        self.converged_ = True
        if len(self.classes_) > 1:
            self.scaler_ = StandardScaler()
            scaled_TF = self.scaler_.fit_transform(feature_TF.astype(np.float64))
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", ConvergenceWarning)
                self.model_ = LogisticRegression(C=self.C, max_iter=MAX_ITER).fit(scaled_TF, number_T)
            self.converged_ = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
        return self

    def decision_function(self, feature_NF: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the logits (N, K); unlike probabilities, small ones do not underflow to equal values."""
        if len(self.classes_) == 1:
            return np.zeros((len(feature_NF), 1))
        logit = self.model_.decision_function(self.scaler_.transform(feature_NF.astype(np.float64)))
        logit_NK: NDArray[np.float64] = logit if logit.ndim == 2 else np.stack([np.zeros_like(logit), logit], axis=1)
        return logit_NK

    def predict(self, feature_NF: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the class numbers with the highest logits."""
        best: NDArray[np.int64] = self.classes_[self.decision_function(feature_NF).argmax(axis=1)]
        return best


class NeighborProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn has no type hints
    """Majority vote of the k nearest training videos by cosine similarity.

    Unlike ``KNeighborsClassifier``, classes with equally many votes, including none, are ranked by their nearest video,
    so that top-5 accuracy is meaningful for any k.

    Args:
        k: number of neighbors that vote.
        scale: whether to standardize the features with the statistics of the training videos.

    Attributes:
        classes_: (K,) class numbers of the training videos.
        converged_: always true.
    """

    converged_ = True

    def __init__(self, k: int = 1, *, scale: bool = False) -> None:
        self.k = k
        self.scale = scale

    def fit(self, feature_TF: NDArray[np.float32], number_T: NDArray[np.int64]) -> Self:
        """Store the training videos."""
        self.scaler_ = StandardScaler().fit(feature_TF.astype(np.float64)) if self.scale else None
        self.classes_, self.number_T_ = np.unique(number_T, return_inverse=True)
        self.feature_TF_ = self._prepare(feature_TF)
        return self

    def decision_function(self, feature_NF: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return votes plus a tie-breaker below 1, (N, K); minus infinity for classes without a near video."""
        return self._scores(*self._ranked(feature_NF, max(int(self.k), _RANKED_NEIGHBORS)), int(self.k))

    def predict(self, feature_NF: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the class numbers with the most votes."""
        return self.predict_each(feature_NF, [self.k])[0]

    def predict_each(self, feature_NF: NDArray[np.float32], values: Sequence[float]) -> list[NDArray[np.int64]]:
        """Return the predictions for several values of ``k``, for which the neighbors are ranked only once."""
        similarity_NM, number_NM = self._ranked(feature_NF, int(max(values)))
        scores = (self._scores(similarity_NM[:, :k], number_NM[:, :k], k) for k in map(int, values))
        return [self.classes_[score_NK.argmax(axis=1)] for score_NK in scores]

    def _ranked(self, feature_NF: NDArray[np.float32], neighbors: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return similarity and class of the M nearest training videos, nearest first, each (N, M)."""
        similarity, place = nearest(self._prepare(feature_NF), self.feature_TF_, min(neighbors, len(self.number_T_)))
        number_NM: NDArray[np.int64] = self.number_T_[place.numpy()]
        return similarity.numpy().astype(np.float64), number_NM

    def _scores(self, similarity_NM: NDArray[np.float64], number_NM: NDArray[np.int64], k: int) -> NDArray[np.float64]:
        row_N1 = np.arange(len(number_NM))[:, None]
        closeness_NK = np.full((len(number_NM), len(self.classes_)), -np.inf)
        np.maximum.at(closeness_NK, (row_N1, number_NM), similarity_NM)
        votes_NK = np.zeros(closeness_NK.shape)
        np.add.at(votes_NK, (row_N1, number_NM[:, :k]), 1.0)
        # Similarities are between -1 and 1: a third of them never outweighs a vote.
        return votes_NK + closeness_NK / 3

    def _prepare(self, feature_NF: NDArray[np.float32]) -> torch.Tensor:
        if self.scaler_ is not None:
            feature_NF = self.scaler_.transform(feature_NF.astype(np.float64)).astype(np.float32)
        return torch.from_numpy(feature_NF)


Probe = LogisticProbe | NeighborProbe


def make_probe(method: str, *, scale: bool = False) -> Probe:
    """Return an unfitted probe.

    Args:
        method: one of ``METHODS``.
        scale: whether the k-nearest-neighbor probe standardizes features; logistic regression always does.

    Raises:
        ValueError: there is no such method.
    """
    if method not in METHODS:
        raise ValueError(f"method: {method!r} is not one of {', '.join(METHODS)}")
    return LogisticProbe() if method == "logistic" else NeighborProbe(scale=scale)


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Result of the cross-validation that chose a probe's parameter.

    Attributes:
        folds: number of folds.
        grouped: whether the videos of a group were kept in one fold.
        accuracy: top-1 accuracy over all left-out videos for each value of the parameter; pairs of learning rate and
            weight decay for ``cmd_eval.tasks.sgd_probe``.
        groups_divided: whether groups had to be divided because no label occurs in two groups.
    """

    folds: int
    grouped: bool
    accuracy: Mapping[Any, float]
    groups_divided: bool = False

    @property
    def best(self) -> Any:
        """Value with the highest accuracy; among equals the first in the order of the grid.

        That is the strongest regularization of logistic regression, the smallest k, and for the SGD probe the smallest
        learning rate with the weakest weight decay.
        """
        return max(self.accuracy, key=lambda value: self.accuracy[value])

    def as_json(self) -> dict[str, Any]:
        """Return the entry in a result file."""
        names = (
            f"learning rate {value[0]:g}, weight decay {value[1]:g}" if isinstance(value, tuple) else f"{value:g}"
            for value in self.accuracy
        )
        return {
            "folds": self.folds,
            "grouped": self.grouped,
            "top1": dict(zip(names, self.accuracy.values(), strict=True)),
        }


def cross_validate(
    method: str,
    probe: Probe,
    feature_TF: NDArray[np.float32],
    number_T: NDArray[np.int64],
    groups: Sequence[str] | None = None,
    *,
    seed: int = 0,
) -> Validation:
    """Evaluate all values of a probe's parameter by cross-validation on the training videos.

    Args:
        method: one of ``METHODS``.
        probe: an unfitted probe of this method.
        feature_TF: features of the training videos.
        number_T: their class numbers.
        groups: T names of groups that are kept in one fold if there are other videos; videos with an empty name are
            independent. If no left-out video is classified correctly, as must happen when each label occurs in a single
            group, the groups are divided.
        seed: random seed of the folds.

    Raises:
        ValueError: no class has two videos, so none can be left out.
    """
    group_numbers = unit_group_numbers(groups)
    folds = validation_folds(number_T, group_numbers, seed)
    found = _grid_search(method, probe, feature_TF, number_T, folds, grouped=group_numbers is not None)
    if group_numbers is None or any(found.accuracy.values()):
        return found
    folds = validation_folds(number_T, None, seed)
    divided = _grid_search(method, probe, feature_TF, number_T, folds, grouped=False)
    return replace(divided, groups_divided=True)


def _grid_search(
    method: str,
    probe: Probe,
    feature_TF: NDArray[np.float32],
    number_T: NDArray[np.int64],
    folds: Folds,
    *,
    grouped: bool,
) -> Validation:
    smallest = min(len(kept) for kept, _ in folds)
    values = [value for value in GRIDS[method] if method != "knn" or value <= smallest]
    if isinstance(probe, NeighborProbe):
        correct = _correct_neighbors(probe, values, feature_TF, number_T, folds)
    else:
        search = GridSearchCV(probe, {PARAMETERS[method]: values}, scoring="accuracy", cv=folds, refit=False)
        scores = search.fit(feature_TF, number_T).cv_results_
        correct = [np.rint(scores[f"split{fold}_test_score"] * len(out)) for fold, (_, out) in enumerate(folds)]
    # Each left-out video counts the same, whatever the size of its fold.
    accuracy = dict(zip(values, (np.sum(correct, axis=0) / len(number_T)).tolist(), strict=True))
    return Validation(folds=len(folds), grouped=grouped, accuracy=accuracy)


def _correct_neighbors(
    probe: NeighborProbe,
    values: Sequence[float],
    feature_TF: NDArray[np.float32],
    number_T: NDArray[np.int64],
    folds: Folds,
) -> list[NDArray[np.int64]]:
    """Return the number of correct predictions in each fold for each ``k``. Grid search would rank neighbors per k."""
    correct = []
    for kept, left_out in folds:
        fitted = clone(probe).fit(feature_TF[kept], number_T[kept])
        predictions = fitted.predict_each(feature_TF[left_out], values)
        correct.append(np.array([(predicted == number_T[left_out]).sum() for predicted in predictions]))
    return correct


def validation_folds(number_T: NDArray[np.int64], groups: NDArray[np.int64] | None, seed: int) -> Folds:
    """Return the (kept, left-out) indices of each fold; groups are kept whole if they are given.

    Raises:
        ValueError: no class has two videos.
    """
    largest = max(Counter(number_T.tolist()).values())
    if largest < 2:
        raise ValueError(
            f"train: none of the classes of the {len(number_T)} training videos has two videos, so the probe's "
            "hyperparameter cannot be selected; use a larger training part"
        )
    if groups is not None:
        splitter: StratifiedGroupKFold | StratifiedKFold = StratifiedGroupKFold(
            min(VALIDATION_FOLDS, len(set(groups.tolist())), largest), shuffle=True, random_state=seed
        )
    else:
        splitter = StratifiedKFold(min(VALIDATION_FOLDS, largest), shuffle=True, random_state=seed)
    folds = stratified_folds(splitter, number_T, groups)
    return [(kept, left_out) for kept, left_out in folds if len(kept) and len(left_out)]


def stratified_folds(
    splitter: StratifiedGroupKFold | StratifiedKFold,
    numbers: Sequence[str] | NDArray[np.int64],
    groups: NDArray[np.int64] | None = None,
) -> Folds:
    """Return the (kept, left-out) indices of each fold, without the warning that rare classes are not in all folds."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        return list(splitter.split(np.zeros((len(numbers), 1)), numbers, groups))


def unit_group_numbers(groups: Sequence[str] | None) -> NDArray[np.int64] | None:
    """Return the number of each video's group, videos without one being their own.

    None if there is nothing to keep together, or only one group.
    """
    names = [name or f"\0{place}" for place, name in enumerate(groups or ())]
    if not 2 <= len(set(names)) < len(names):
        return None
    return np.unique(names, return_inverse=True)[1].astype(np.int64)
