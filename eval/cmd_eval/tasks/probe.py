"""Classifiers on frozen features: a linear one and k nearest neighbours.

Their one setting is chosen on validation parts of the training videos, never on the videos that are tested.

Shape legend: T training videos, N tested videos, K classes, F features.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.preprocessing import StandardScaler

from cmd_eval.features.store import Features
from cmd_train.monitoring.neighbours import nearest

Places = NDArray[np.int64]
METHODS = ("linear", "knn")
SETTINGS: Mapping[str, tuple[float, ...]] = {
    "linear": (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0),
    "knn": (1, 3, 5, 10, 20, 50),
}
"""What may be chosen: scikit-learn's C, the inverse strength of regularisation; and k."""
SETTING_NAMES: Mapping[str, str] = {"linear": "C", "knn": "k"}

VALIDATION_FOLDS = 5
_MAX_STEPS = 2000
_FARTHER_NEIGHBOURS = 500


@dataclass(frozen=True, kw_only=True)
class Validation:
    """How a setting was chosen.

    Attributes:
        folds: into how many parts the training videos were divided.
        grouped: whether videos of one group were kept in one part.
        one_group_labels: whether groups were parted because no label could be told from other groups.
        accuracy: setting to top-1 on the parts that were left out.
    """

    folds: int
    grouped: bool
    accuracy: Mapping[float, float]
    one_group_labels: bool = False

    @property
    def best(self) -> float:
        """The setting of highest accuracy; of equals the first, which is the strongest regularisation or smallest k."""
        return max(self.accuracy, key=lambda setting: self.accuracy[setting])


@dataclass(frozen=True, kw_only=True)
class TrainingRows:
    """Labelled videos that a classifier is fitted to.

    Attributes:
        rows: (T,) numbers of the videos.
        numbers: (T,) number of each one's class.
        classes: K; some of them may have no video here.
        groups: what must not be parted when the setting is chosen, of each video; empty names stand alone. None where
            groups are what is to be told.
    """

    rows: NDArray[np.int64]
    numbers: NDArray[np.int64]
    classes: int
    groups: Sequence[str] | None = None

    def subset(self, places: NDArray[np.int64]) -> TrainingRows:
        """Some of them."""
        groups = None if self.groups is None else [self.groups[place] for place in places]
        return TrainingRows(rows=self.rows[places], numbers=self.numbers[places], classes=self.classes, groups=groups)


def scores(
    method: str, features: Features, train: TrainingRows, test: NDArray[np.int64], settings: Sequence[float]
) -> dict[float, NDArray[np.float64]]:
    """Scores of every class for the tested videos, by each setting of a method.

    Args:
        method: one of ``METHODS``.
        features: of all videos.
        train: what to fit to.
        test: (N,) numbers of the tested videos.
        settings: C or k.

    Returns:
        Setting to (N, K) scores, higher is likelier; minus infinity for a class without training videos. scikit-learn's
        ``ConvergenceWarning`` tells that a linear one has not settled.

    Raises:
        ValueError: there is no such method.
    """
    if method not in METHODS:
        raise ValueError(f"method: {method!r} is not one of {', '.join(METHODS)}")
    return (_linear_scores if method == "linear" else _knn_scores)(features, train, test, settings)


def _linear_scores(
    features: Features, train: TrainingRows, test: NDArray[np.int64], settings: Sequence[float]
) -> dict[float, NDArray[np.float64]]:
    scaler = StandardScaler()
    train_TF = scaler.fit_transform(features.rows(train.rows).read().astype(np.float64))
    test_NF = scaler.transform(features.rows(test).read().astype(np.float64))
    present = np.unique(train.numbers)
    found = {}
    for setting in settings:
        score_NK = np.full((len(test), train.classes), -np.inf)
        if len(present) == 1:
            score_NK[:, present[0]] = 0.0
        else:
            model = LogisticRegression(C=setting, max_iter=_MAX_STEPS).fit(train_TF, train.numbers)
            # Not the probabilities, of which small ones become 0 and equal.
            logit = model.decision_function(test_NF)
            score_NK[:, present] = logit if logit.ndim == 2 else np.stack([np.zeros_like(logit), logit], axis=1)
        found[setting] = score_NK
    return found


def _knn_scores(
    features: Features, train: TrainingRows, test: NDArray[np.int64], settings: Sequence[float]
) -> dict[float, NDArray[np.float64]]:
    """Votes of the k nearest; classes with equally many votes, also with none, in the order of their nearest video."""
    asked, offered = features.comparable(test, train.rows)
    count = min(max(int(max(settings)), _FARTHER_NEIGHBOURS), len(train.rows))
    similarity, place = nearest(asked, offered, count)
    number_NM = train.numbers[place.numpy()]
    closeness_NK = np.full((len(test), train.classes), -np.inf)
    row_N1 = np.arange(len(test))[:, None]
    np.maximum.at(closeness_NK, (row_N1, number_NM), similarity.numpy().astype(np.float64))
    # Similarities lie between -1 and 1: a third of them never outweighs a vote.
    closeness_NK = closeness_NK / 3
    found = {}
    for setting in settings:
        votes_NK = np.zeros((len(test), train.classes))
        np.add.at(votes_NK, (row_N1, number_NM[:, : int(setting)]), 1.0)
        found[setting] = votes_NK + closeness_NK
    return found


def choose_setting(method: str, features: Features, train: TrainingRows, *, seed: int = 0) -> Validation:
    """Tries all settings of a method on parts of the training videos, each part left out once.

    Args:
        method: one of ``METHODS``.
        features: of all videos.
        train: the training videos; where they have two groups or more, no group is parted, unless every answer is
            wrong then, as it must be where each label lies in one group.
        seed: decides the parts.

    Raises:
        ValueError: no class has two videos, so that nothing can be left out.
    """
    groups = _group_numbers(train.groups)
    found = _validate(method, features, train, _validation_folds(train, groups, seed), grouped=groups is not None)
    if groups is None or any(found.accuracy.values()):
        return found
    parted = _validate(method, features, train, _validation_folds(train, None, seed), grouped=False)
    return replace(parted, one_group_labels=True)


def _validate(
    method: str, features: Features, train: TrainingRows, folds: Sequence[tuple[Places, Places]], *, grouped: bool
) -> Validation:
    smallest = min(len(kept) for kept, _ in folds)
    settings = [s for s in SETTINGS[method] if method != "knn" or s <= smallest]
    right = dict.fromkeys(settings, 0)
    for kept, left_out in folds:
        with warnings.catch_warnings():
            # A probe that has not settled after so many steps is overfitting at a C that will hardly be chosen.
            warnings.simplefilter("ignore", ConvergenceWarning)
            by_setting = scores(method, features, train.subset(kept), train.rows[left_out], settings)
        for setting, score_NK in by_setting.items():
            right[setting] += int((score_NK.argmax(axis=1) == train.numbers[left_out]).sum())
    accuracy = {setting: hits / len(train.rows) for setting, hits in right.items()}
    return Validation(folds=len(folds), grouped=grouped, accuracy=accuracy)


def _validation_folds(train: TrainingRows, groups: Places | None, seed: int) -> list[tuple[Places, Places]]:
    """(kept, left out) places of each part; groups stay whole if they are given."""
    most = max(Counter(train.numbers.tolist()).values())
    if most < 2:
        raise ValueError(
            f"train: no class of the {len(train.rows)} training videos has two, so no setting can be chosen; "
            "name a larger training part"
        )
    if groups is not None:
        splitter: StratifiedGroupKFold | StratifiedKFold = StratifiedGroupKFold(
            min(VALIDATION_FOLDS, len(set(groups)), most), shuffle=True, random_state=seed
        )
    else:
        splitter = StratifiedKFold(min(VALIDATION_FOLDS, most), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # Rare classes are missing from some parts, whatever is done.
        warnings.filterwarnings("ignore", message="The least populated class")
        folds = list(splitter.split(np.zeros((len(train.rows), 1)), train.numbers, groups))
    return [(kept, left_out) for kept, left_out in folds if len(kept) and len(left_out)]


def _group_numbers(groups: Sequence[str] | None) -> NDArray[np.int64] | None:
    """Numbers of groups, a video without one being its own; None if no two groups are named."""
    if groups is None or len(set(groups) - {""}) < 2:
        return None
    names = [name or f"\0{place}" for place, name in enumerate(groups)]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)
