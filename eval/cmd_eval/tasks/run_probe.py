"""Run a probe on features: choose its parameter, fit it, test it; over splits, or over folds of all videos.

Shape legend: N test videos, K classes.
"""

# ruff: noqa: N815 (field names carry the shapes of their arrays)

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold

from cmd_eval.data.leakage import training_notes
from cmd_eval.data.splits import EvalSplit, EvalSplitSpec, eval_splits, split_notes
from cmd_eval.data.table import VideoTable
from cmd_eval.features.source import length_notes, result_provenance, unique
from cmd_eval.features.store import Features
from cmd_eval.metrics.classification import TOP, accuracy_record, most_likely, top_k_hits
from cmd_eval.metrics.retrieval import chance_recall_at
from cmd_eval.results.schema import mean_and_spread, result_record
from cmd_eval.tasks.probe import MAX_ITER, PARAMETERS, Validation, cross_validate, make_probe, stratified_folds

TEST_FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """Test result of a probe.

    Attributes:
        split: test videos (``query``) and training videos (``gallery``).
        method: ``linear`` or ``knn``.
        classes: names of the K classes of both parts.
        truth_N: class number of each test video.
        score_NK: score of each class; minus infinity for classes without training videos.
        chance: top-1 accuracy of predicting the class of a random training video.
        validation: how the parameter was chosen.
        converged: whether the final fit converged.
    """

    split: EvalSplit
    method: str
    classes: tuple[str, ...]
    truth_N: NDArray[np.int64]
    score_NK: NDArray[np.float64]
    chance: float
    validation: Validation
    converged: bool = True

    @property
    def notes(self) -> list[str]:
        """Notes on how the probe was fitted."""
        where, notes = self.split.split_column, []
        if self.validation.groups_divided:
            notes.append(
                f"{where}: {PARAMETERS[self.method]} was chosen on folds that share groups: with whole groups left out "
                "no prediction was correct, as when each label occurs in a single group"
            )
        if not self.converged:
            notes.append(
                f"{where}: the linear probe did not converge (max_iter={MAX_ITER}); its figures may still change"
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
            "chosen": {PARAMETERS[self.method]: self.validation.best},
            "validation": {
                "folds": self.validation.folds,
                "grouped": self.validation.grouped,
                "top1": {f"{value:g}": accuracy for value, accuracy in self.validation.accuracy.items()},
            },
        }


def probe(features: Features, split: EvalSplit, method: str, *, seed: int = 0) -> ProbeResult:
    """Fit a probe to the training videos of a split and test it.

    Args:
        features: features of all videos.
        split: test videos, training videos and target.
        method: ``linear`` or ``knn``.
        seed: random seed of the validation folds.

    Raises:
        ValueError: there are too few training videos to choose the parameter.
    """
    videos, names = features.videos, features.videos.names(split.target)
    train_names, test_names = ([names[row] for row in rows] for rows in (split.gallery, split.query))
    classes = tuple(sorted({*train_names, *test_names}))
    number_of = {name: number for number, name in enumerate(classes)}
    train_T, truth_N = (np.array([number_of[name] for name in part], np.int64) for part in (train_names, test_names))
    feature_TF = features.rows(split.gallery).read()
    model = make_probe(method, scale=features.provenance.standardized)
    groups = [videos.units[row] for row in split.gallery] if split.target == "label" else None
    validation = cross_validate(method, model, feature_TF, train_T, groups, seed=seed)
    model.set_params(**{PARAMETERS[method]: validation.best}).fit(feature_TF, train_T)
    score_NK = np.full((len(truth_N), len(classes)), -np.inf)
    score_NK[:, model.classes_] = model.decision_function(features.rows(split.query).read())
    return ProbeResult(
        split=split,
        method=method,
        classes=classes,
        truth_N=truth_N,
        score_NK=score_NK,
        chance=chance_recall_at(test_names, train_names, 1),
        validation=validation,
        converged=model.converged_,
    )


def run_probe(features: Features, spec: EvalSplitSpec, method: str, command: str) -> dict[str, Any]:
    """Probe features over one or several splits and return the content of the result file.

    Args:
        features: features of all videos.
        spec: splits, parts and targets.
        method: ``linear`` or ``knn``.
        command: command line, recorded as provenance.

    Raises:
        ValueError: a split, a part or a label does not exist, or a video is in both parts.
    """
    results, notes = [], length_notes(features)
    for split in eval_splits(features.videos, spec):
        notes += split_notes(features.videos, split, what="test videos")
        notes += training_notes(features.provenance, features.videos, split.query, split.split_column, "test videos")
        results.append(probe(features, split, method, seed=spec.seed))
        notes += results[-1].notes
    return result_record(
        "probe",
        result_provenance(features, command, spec.seed),
        method=method,
        splits=[result.as_json(features.videos, spec.seed) for result in results],
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
    videos: VideoTable, target: str, *, seed: int = 0, folds: int = TEST_FOLDS, rows: NDArray[np.int64] | None = None
) -> list[EvalSplit]:
    """Return stratified folds of labeled videos as splits, so that each video is tested once.

    Args:
        videos: the videos.
        target: ``label`` or ``group``.
        seed: random seed of the folds.
        folds: number of folds; reduced if no label has as many videos.
        rows: rows of labeled videos to use; None for all labeled videos.

    Raises:
        ValueError: no video has a label, or no two videos share one.
    """
    if rows is None:
        rows = videos.labeled(np.arange(len(videos)), target, "the shards")
    names = [videos.names(target)[row] for row in rows]
    count = min(folds, max(Counter(names).values(), default=0))
    if count < 2:
        raise ValueError(f"{target}: no two videos share one, so nothing can be learned")
    splitter = StratifiedKFold(count, shuffle=True, random_state=seed)
    return [
        EvalSplit(
            split_column=f"fold {number} of {count}",
            test_part="left out",
            train_part="kept",
            target=target,
            query=rows[left_out],
            gallery=rows[kept],
            unlabeled=0,
        )
        for number, (kept, left_out) in enumerate(stratified_folds(splitter, names), start=1)
    ]
