"""Run a probe on features: choose its parameter, fit it, test it; over splits, or over folds of all videos.

Shape legend: N test videos, K classes.
"""

# ruff: noqa: N815 (field names carry the shapes of their arrays)

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from cmd_eval.data.leakage import training_notes
from cmd_eval.data.splits import EvalSplit, EvalSplitSpec, eval_splits, split_notes
from cmd_eval.data.table import VideoTable
from cmd_eval.features.source import length_notes, result_provenance, unique
from cmd_eval.features.store import Features
from cmd_eval.metrics.classification import TOP, accuracy_record, most_likely, top_k_hits
from cmd_eval.metrics.retrieval import chance_recall_at
from cmd_eval.results.schema import mean_and_spread, result_record
from cmd_eval.tasks.fit_probe import ProbeSettings, fit_probe
from cmd_eval.tasks.probe import MAX_ITER, Validation, stratified_folds, unit_group_numbers

TEST_FOLDS = 5
DRAWS = 5


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """Test result of a probe.

    Attributes:
        split: test videos (``query``) and training videos (``gallery``).
        method: ``logistic``, ``sgd`` or ``knn``.
        classes: names of the K classes of both parts.
        truth_N: class number of each test video.
        score_NK: score of each class; minus infinity for classes without training videos.
        chance: top-1 accuracy of predicting the class of a random training video.
        chosen: selected parameters.
        validation: how they were selected.
        converged: whether the final fit converged.
    """

    split: EvalSplit
    method: str
    classes: tuple[str, ...]
    truth_N: NDArray[np.int64]
    score_NK: NDArray[np.float64]
    chance: float
    chosen: Mapping[str, float]
    validation: Validation
    converged: bool = True

    @property
    def notes(self) -> list[str]:
        """Notes on how the probe was fitted."""
        where, notes = self.split.split_column, []
        if self.validation.groups_divided:
            notes.append(
                f"{where}: {' and '.join(self.chosen)} was chosen on folds that share groups: with whole groups left "
                "out no prediction was correct, as when each label occurs in a single group"
            )
        if not self.converged:
            notes.append(
                f"{where}: logistic regression did not converge (max_iter={MAX_ITER}); its figures may still change"
            )
        return notes

    def hits(self, k: int) -> NDArray[np.float64]:
        """Return 1 for each test video whose true class is among the k most likely ones, else 0."""
        return top_k_hits(self.score_NK, self.truth_N, k).astype(np.float64)

    def predictions(self, videos: VideoTable) -> list[dict[str, Any]]:
        """Return the prediction for each test video."""
        hits = (top_k_hits(self.score_NK, self.truth_N, k).tolist() for k in (1, TOP))
        numbers = self.truth_N.tolist(), most_likely(self.score_NK).tolist()
        rows = zip(self.split.query.tolist(), *numbers, *hits, strict=True)
        return [
            {
                "video": videos.ids[row],
                "class": self.classes[truth],
                "group": videos.units[row],
                "predicted": self.classes[predicted],
                "top1": first,
                "top5": fifth,
            }
            for row, truth, predicted, first, fifth in rows
        ]

    def as_json(self, videos: VideoTable, seed: int = 0) -> dict[str, Any]:
        """Return the split's entry in a result file."""
        return {
            "split_column": self.split.split_column,
            "train_part": self.split.train_part,
            "test_part": self.split.test_part,
            "target": self.split.target,
            "classes": list(self.classes),
            "train": len(self.split.gallery),
            "test": len(self.split.query),
            "unlabeled_left_out": self.split.unlabeled,
            "copies_left_out": self.split.copies,
            "chance": self.chance,
            **accuracy_record(
                self.classes,
                self.truth_N,
                most_likely(self.score_NK),
                top_k_hits(self.score_NK, self.truth_N, 1),
                top_k_hits(self.score_NK, self.truth_N, TOP),
                [videos.units[row] for row in self.split.query],
                seed=seed,
            ),
            "videos": self.predictions(videos),
            "chosen": dict(self.chosen),
            "validation": self.validation.as_json(),
        }


def probe(features: Features, split: EvalSplit, method: str, *, seed: int = 0, device: str = "auto") -> ProbeResult:
    """Fit a probe to the training videos of a split and test it.

    Args:
        features: features of all videos.
        split: test videos, training videos and target.
        method: one of ``cmd_eval.tasks.fit_probe.METHODS``.
        seed: random seed of the validation folds, and of the SGD probe.
        device: device of the SGD probe: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ValueError: there are too few training videos to choose the parameter.
    """
    videos, names = features.videos, features.videos.names(split.target)
    train_names, test_names = ([names[row] for row in rows] for rows in (split.gallery, split.query))
    classes = tuple(sorted({*train_names, *test_names}))
    number_of = {name: number for number, name in enumerate(classes)}
    train_T, truth_N = (np.array([number_of[name] for name in part], np.int64) for part in (train_names, test_names))
    groups = _validation_groups(videos, split.gallery, split.target)
    settings = ProbeSettings(method=method, seed=seed, device=device)
    fitted = fit_probe(features, split.gallery, split.query, train_T, groups, settings)
    assert fitted.validation is not None
    score_NK = np.full((len(truth_N), len(classes)), -np.inf)
    score_NK[:, fitted.classes] = fitted.score_NK
    return ProbeResult(
        split=split,
        method=method,
        classes=classes,
        truth_N=truth_N,
        score_NK=score_NK,
        chance=chance_recall_at(test_names, train_names, 1),
        chosen=fitted.chosen,
        validation=fitted.validation,
        converged=fitted.converged,
    )


def _validation_groups(videos: VideoTable, rows: NDArray[np.int64], target: str) -> list[str]:
    """Return what is kept in one validation fold: a group, or the segments of a file if the group is predicted."""
    names = videos.units if target == "label" else videos.fingerprints
    return [names[row] for row in rows]


@dataclass(frozen=True, kw_only=True)
class LowLabelSpec:
    """Training with few labels.

    Attributes:
        percents: percent of the training videos of each class to use, at least one video.
        draws: random draws of these videos for each value.
    """

    percents: Sequence[float] = ()
    draws: int = DRAWS

    @property
    def name(self) -> str:
        """Part of the name of the result file; empty without percents."""
        if not self.percents:
            return ""
        draws = [] if self.draws == DRAWS else [f"{self.draws}-draws"]
        return "-".join(["low-label", *(f"{percent:g}" for percent in self.percents), *draws])


def low_label(
    features: Features, split: EvalSplit, method: str, spec: LowLabelSpec, *, seed: int = 0, device: str = "auto"
) -> list[dict[str, Any]]:
    """Return top-1 of probes that are trained on a few percent of the training videos, for a result file.

    Parameters are chosen on the drawn videos only. Where no class has two of them, they are fixed, see
    ``cmd_eval.tasks.fit_probe.FIXED``.
    """
    names = np.array(features.videos.names(split.target), dtype=object)
    _, number_T = np.unique(names[split.gallery].astype(str), return_inverse=True)
    label_of = {int(number): name for number, name in zip(number_T, names[split.gallery], strict=True)}
    found = []
    for percent in spec.percents:
        draws: list[dict[str, Any]] = []
        for draw in range(spec.draws):
            rng = np.random.default_rng((seed, draw))
            kept = np.sort(np.concatenate([_draw(np.flatnonzero(number_T == n), percent, rng) for n in label_of]))
            rows = split.gallery[kept]
            groups = _validation_groups(features.videos, rows, split.target)
            settings = ProbeSettings(method=method, seed=seed, device=device, fixed_if_needed=True)
            fitted = fit_probe(features, rows, split.query, number_T[kept], groups, settings)
            predicted = [label_of[int(fitted.classes[best])] for best in fitted.score_NK.argmax(axis=1)]
            draws.append(
                {
                    "train": len(rows),
                    "top1": float(np.mean(np.array(predicted, dtype=object) == names[split.query])),
                    "chosen": fitted.chosen,
                    "validated": fitted.validation is not None,
                }
            )
        top1 = mean_and_spread([draw["top1"] for draw in draws])
        found.append({"percent": percent, "top1": top1, "draws": draws})
    return found


def _draw(places: NDArray[np.int64], percent: float, rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.choice(places, max(1, round(len(places) * percent / 100)), replace=False)


def run_probe(
    features: Features,
    spec: EvalSplitSpec,
    method: str,
    command: str,
    *,
    few: LowLabelSpec | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Probe features over one or several splits and return the content of the result file.

    Args:
        features: features of all videos.
        spec: splits, parts and targets.
        method: one of ``cmd_eval.tasks.fit_probe.METHODS``.
        command: command line, recorded as provenance.
        few: also train on few labels.
        device: device of the SGD probe.

    Raises:
        ValueError: a split, a part or a label does not exist, or a video is in both parts.
    """
    results, few_labels, notes = [], [], length_notes(features)
    for split in eval_splits(features.videos, spec):
        notes += split_notes(features.videos, split, what="test videos")
        notes += training_notes(features.provenance, features.videos, split.query, split.split_column, "test videos")
        results.append(probe(features, split, method, seed=spec.seed, device=device))
        notes += results[-1].notes
        own = low_label(features, split, method, few or LowLabelSpec(), seed=spec.seed, device=device)
        few_labels.append(own)
        notes += [
            f"{split.split_column}: with {one['percent']:g} % of the labels, there are too few videos to leave some "
            f"out, so that {' and '.join(one['draws'][0]['chosen'])} is fixed"
            for one in own
            if not all(draw["validated"] for draw in one["draws"])
        ]
    return result_record(
        "probe",
        result_provenance(features, command, spec.seed),
        method=method,
        splits=[
            result.as_json(features.videos, spec.seed) | {"low_label": own}
            for result, own in zip(results, few_labels, strict=True)
        ],
        mean=mean_over_splits(results),
        notes=unique(notes),
    )


def mean_over_splits(results: Sequence[ProbeResult]) -> list[dict[str, Any]]:
    """Return for each target the means of top-1 and top-5 accuracy over splits with their standard deviations."""
    means = []
    for target in dict.fromkeys(result.split.target for result in results):
        own = [result for result in results if result.split.target == target]
        figures = {f"top{k}": mean_and_spread([float(result.hits(k).mean()) for result in own]) for k in (1, TOP)}
        means.append({"target": target, **figures})
    return means


def fold_splits(
    videos: VideoTable, target: str, *, seed: int = 0, rows: NDArray[np.int64] | None = None
) -> list[EvalSplit]:
    """Return stratified folds of labeled videos as splits, so that each video is tested once.

    There are ``TEST_FOLDS``, or fewer if no label has as many videos (files, if these are divided into segments).
    Segments of one file are in the same fold.

    Args:
        videos: the videos.
        target: ``label`` or ``group``.
        seed: random seed of the folds.
        rows: rows of labeled videos to use; None for all labeled videos.

    Raises:
        ValueError: no video has a label, or no two videos (files) share one.
    """
    if rows is None:
        rows = videos.labeled(np.arange(len(videos)), target, "the shards")
    names = [videos.names(target)[row] for row in rows]
    files = [videos.fingerprints[row] for row in rows]
    count = min(TEST_FOLDS, max(Counter(name for name, _ in set(zip(names, files, strict=True))).values(), default=0))
    if count < 2:
        raise ValueError(f"{target}: no two videos from different files share a {target}, so there is nothing to learn")
    file_numbers = unit_group_numbers(files)
    kind = StratifiedKFold if file_numbers is None else StratifiedGroupKFold
    found = stratified_folds(kind(count, shuffle=True, random_state=seed), names, file_numbers)
    found = [(kept, left_out) for kept, left_out in found if len(kept) and len(left_out)]
    return [
        EvalSplit(
            split_column=f"fold {number} of {len(found)}",
            test_part="left out",
            train_part="kept",
            target=target,
            query=rows[left_out],
            gallery=rows[kept],
            unlabeled=0,
        )
        for number, (kept, left_out) in enumerate(found, start=1)
    ]
