"""Fit one of the probes to training videos, with parameters chosen by cross-validation, and score test videos.

Shape legend: T training videos, N test videos, K classes with training videos.
"""

# ruff: noqa: N815 (field names carry the shapes of their arrays)

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cmd_eval.features.store import Features
from cmd_eval.tasks.probe import (
    PARAMETERS,
    Validation,
    cross_validate,
    make_probe,
    unit_group_numbers,
    validation_folds,
)
from cmd_eval.tasks.sgd_probe import ClipFeatures, SgdProbe, SgdSettings, grid

METHODS = ("logistic", "sgd", "knn")
FIXED: Mapping[str, tuple[float, ...]] = {"logistic": (1.0,), "sgd": (0.03, 1e-4), "knn": (1,)}
"""Parameters where there are too few labels to choose them."""
ONE_FOLD_ABOVE = 20_000
"""Number of training videos above which the SGD probe is validated on one fold only."""
_SGD_MINIMUM = 2  # training videos, for the statistics of BatchNorm


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """How to fit a probe.

    Attributes:
        method: one of ``METHODS``.
        seed: random seed.
        device: device of the SGD probe: ``auto``, ``cpu`` or ``cuda``.
        fixed_if_needed: use the parameters of ``FIXED`` instead of an error if no class has two training videos, or
            the SGD probe has two training videos, of which none can be left out.
    """

    method: str
    seed: int = 0
    device: str = "auto"
    fixed_if_needed: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method: {self.method!r} is not one of {', '.join(METHODS)}")


@dataclass(frozen=True, kw_only=True)
class FittedProbe:
    """Scores of a fitted probe.

    Attributes:
        classes: (K,) class numbers of the training videos.
        score_NK: score of each class; higher means more likely.
        chosen: parameters by name.
        validation: how they were chosen; None if they are fixed.
        converged: whether the fit converged.
    """

    classes: NDArray[np.int64]
    score_NK: NDArray[np.float64]
    chosen: Mapping[str, float]
    validation: Validation | None
    converged: bool = True


def fit_probe(
    features: Features,
    train_rows: NDArray[np.int64],
    test_rows: NDArray[np.int64],
    number_T: NDArray[np.int64],
    groups: Sequence[str] | None,
    settings: ProbeSettings,
) -> FittedProbe:
    """Choose the parameters on the training videos, fit the probe to all of them, and score the test videos.

    Args:
        features: features of all videos.
        train_rows, test_rows: rows of the T training and the N test videos.
        number_T: class numbers of the training videos.
        groups: T names of groups that are kept in one validation fold; None if there are none.
        settings: method, seed and device.

    Raises:
        ValueError: no class has two training videos, or the SGD probe has only two, unless ``fixed_if_needed``; or the
            SGD probe has a single one.
    """
    few = max(Counter(number_T.tolist()).values()) < 2 or (settings.method == "sgd" and len(number_T) <= _SGD_MINIMUM)
    fixed = settings.fixed_if_needed and few
    if settings.method == "sgd":
        return _fit_sgd(features, train_rows, test_rows, number_T, groups, settings, fixed=fixed)
    name = PARAMETERS[settings.method]
    model = make_probe(settings.method, scale=features.provenance.standardized)
    feature_TF = features.rows(train_rows).read()
    validation = None
    if not fixed:
        validation = cross_validate(settings.method, model, feature_TF, number_T, groups, seed=settings.seed)
    value = FIXED[settings.method][0] if validation is None else validation.best
    model.set_params(**{name: value}).fit(feature_TF, number_T)
    return FittedProbe(
        classes=model.classes_,
        score_NK=model.decision_function(features.rows(test_rows).read()),
        chosen={name: value},
        validation=validation,
        converged=model.converged_,
    )


def _fit_sgd(
    features: Features,
    train_rows: NDArray[np.int64],
    test_rows: NDArray[np.int64],
    number_T: NDArray[np.int64],
    groups: Sequence[str] | None,
    settings: ProbeSettings,
    *,
    fixed: bool,
) -> FittedProbe:
    training = SgdSettings(device=settings.device, seed=settings.seed)
    validation = None if fixed else _validate_sgd(features, train_rows, number_T, groups, training)
    rate, decay = FIXED["sgd"] if validation is None else validation.best
    model = SgdProbe([(rate, decay)], training).fit(ClipFeatures(features, train_rows), number_T)
    return FittedProbe(
        classes=model.classes_,
        score_NK=model.probabilities(ClipFeatures(features, test_rows))[0],
        chosen={"learning rate": rate, "weight decay": decay},
        validation=validation,
    )


def _validate_sgd(
    features: Features,
    rows: NDArray[np.int64],
    number_T: NDArray[np.int64],
    groups: Sequence[str] | None,
    training: SgdSettings,
) -> Validation:
    """Return the accuracy of all learning rates and weight decays on left-out training videos, groups kept whole."""
    group_numbers = unit_group_numbers(groups)
    found = _accuracy_sgd(features, rows, number_T, group_numbers, training)
    if group_numbers is None or any(found.accuracy.values()):
        return found
    # As for the other probes: each label occurs in a single group.
    return replace(_accuracy_sgd(features, rows, number_T, None, training), groups_divided=True)


def _accuracy_sgd(
    features: Features,
    rows: NDArray[np.int64],
    number_T: NDArray[np.int64],
    group_numbers: NDArray[np.int64] | None,
    training: SgdSettings,
) -> Validation:
    folds = validation_folds(number_T, group_numbers, training.seed)
    folds = [(kept, left_out) for kept, left_out in folds if len(kept) >= _SGD_MINIMUM]
    if not folds:
        raise ValueError(
            f"train: {len(rows)} videos are too few to select the hyperparameters of the SGD probe; "
            "use a larger training part"
        )
    if len(rows) > ONE_FOLD_ABOVE:
        folds = folds[:1]
    pairs = grid()
    right, left_out_videos = np.zeros(len(pairs)), 0
    for kept, left_out in folds:
        model = SgdProbe(pairs, training).fit(ClipFeatures(features, rows[kept]), number_T[kept])
        best = model.classes_[model.probabilities(ClipFeatures(features, rows[left_out])).argmax(axis=2)]
        right += (best == number_T[left_out]).sum(axis=1)
        left_out_videos += len(left_out)
    accuracy = dict(zip(pairs, (right / left_out_videos).tolist(), strict=True))
    return Validation(folds=len(folds), grouped=group_numbers is not None, accuracy=accuracy)
