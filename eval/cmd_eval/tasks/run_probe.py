"""Runs a probe on features: chooses its setting, fits it, tests it; over splits, or over folds of all videos.

Shape legend: N tested videos, K classes.
"""

# ruff: noqa: N815 (carriers name the shapes of their arrays)

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold

from cmd_eval.data.leakage import training_notes
from cmd_eval.data.splits import Pairing, pairing_notes
from cmd_eval.data.table import VideoTable
from cmd_eval.features.source import length_notes, provenance_of, unique
from cmd_eval.features.store import Features
from cmd_eval.metrics.intervals import (
    bootstrap_interval,
    chance_recall_at,
    confusion_matrix,
    per_class_accuracy,
    top_k_hits,
)
from cmd_eval.results.schema import mean_and_spread, result_record
from cmd_eval.tasks.probe import SETTING_NAMES, TrainingRows, Validation, choose_setting, scores
from cmd_eval.tasks.run_retrieval import Question, pairings

OUTER_FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """A probe that was fitted to one part and tested on another.

    Attributes:
        pairing: tested videos (``query``) and training videos (``gallery``).
        method: ``linear`` or ``knn``.
        classes: names of the K classes, of both parts.
        truth_N: number of each tested video's class.
        score_NK: score of each class.
        chance: what naming the class of a training video drawn at random would reach.
        validation: how the setting was chosen.
        settled: whether the fit has come to its end.
    """

    pairing: Pairing
    method: str
    classes: tuple[str, ...]
    truth_N: NDArray[np.int64]
    score_NK: NDArray[np.float64]
    chance: float
    validation: Validation
    settled: bool = True

    @property
    def notes(self) -> list[str]:
        """What to know of the fit, a line each."""
        where, found = self.pairing.split_column, []
        if self.validation.one_group_labels:
            found.append(
                f"{where}: {SETTING_NAMES[self.method]} was chosen on parts that share groups: with whole groups left "
                "out nothing was right, as where each label lies in one group"
            )
        if not self.settled:
            found.append(
                f"{where}: the linear probe had not settled after its last step; more of them may change its figures"
            )
        return found

    def hits(self, k: int) -> NDArray[np.float64]:
        """(N,) 1 where the true class is among the k likeliest."""
        return top_k_hits(self.score_NK, self.truth_N, k).astype(np.float64)

    def as_json(self, seed: int = 0) -> dict[str, Any]:
        """For a result file."""
        confusion_KK = confusion_matrix(self.truth_N, self.score_NK.argmax(axis=1), len(self.classes))
        return {
            "split_column": self.pairing.split_column,
            "train_part": self.pairing.gallery_part,
            "test_part": self.pairing.query_part,
            "label": self.pairing.kind,
            "classes": list(self.classes),
            "train": len(self.pairing.gallery),
            "test": len(self.pairing.query),
            "unlabelled_left_out": self.pairing.unlabelled,
            "top1": bootstrap_interval(self.hits(1), seed=seed).as_json(),
            "top5": bootstrap_interval(self.hits(5), seed=seed).as_json(),
            "chance": self.chance,
            "per_class": self._per_class(confusion_KK, seed),
            "confusion": confusion_KK.tolist(),
            "chosen": {SETTING_NAMES[self.method]: self.validation.best},
            "validation": {
                "folds": self.validation.folds,
                "grouped": self.validation.grouped,
                "top1": {f"{setting:g}": value for setting, value in self.validation.accuracy.items()},
            },
        }

    def _per_class(self, confusion_KK: NDArray[np.int64], seed: int) -> list[dict[str, Any]]:
        hits_N, table = self.hits(1), []
        for number, accuracy in enumerate(per_class_accuracy(confusion_KK).tolist()):
            own = hits_N[self.truth_N == number]
            row: dict[str, Any] = {"class": self.classes[number], "test": len(own), "accuracy": accuracy}
            if len(own):
                found = bootstrap_interval(own, seed=seed)
                row |= {"low": found.low, "high": found.high}
            table.append(row)
        return table


def probe(features: Features, pairing: Pairing, method: str, *, seed: int = 0) -> ProbeResult:
    """Fits a probe to the gallery of a pairing and tests it on the queries.

    Args:
        features: of all videos.
        pairing: tested and training videos, and whether their label or their group is to be told.
        method: ``linear`` or ``knn``.
        seed: decides the parts on which the setting is chosen.

    Raises:
        ValueError: too few training videos to choose a setting.
    """
    videos = features.videos
    names = videos.names(pairing.kind)
    classes = tuple(sorted({names[row] for row in (*pairing.gallery, *pairing.query)}))
    number_of = {name: number for number, name in enumerate(classes)}
    numbers = np.array([number_of[names[row]] for row in pairing.gallery], np.int64)
    truth_N = np.array([number_of[names[row]] for row in pairing.query], np.int64)
    train = TrainingRows(
        rows=pairing.gallery,
        numbers=numbers,
        classes=len(classes),
        groups=[videos.groups[row] for row in pairing.gallery] if pairing.kind == "label" else None,
    )
    validation = choose_setting(method, features, train, seed=seed)
    best = validation.best
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ConvergenceWarning)
        score_NK = scores(method, features, train, pairing.query, [best])[best]
    return ProbeResult(
        pairing=pairing,
        method=method,
        classes=classes,
        truth_N=truth_N,
        score_NK=score_NK,
        chance=chance_recall_at([names[row] for row in pairing.query], [names[row] for row in pairing.gallery], 1),
        validation=validation,
        settled=not any(issubclass(warning.category, ConvergenceWarning) for warning in told),
    )


def run_probe(features: Features, question: Question, method: str, command: str) -> dict[str, Any]:
    """Probes features over one or several splits; the record for the result file.

    Args:
        features: of all videos.
        question: its query part is tested, its gallery part trained on.
        method: ``linear`` or ``knn``.
        command: recorded.

    Raises:
        ValueError: a split, a part or a label does not exist, or a video is in both parts.
    """
    results, notes = [], length_notes(features)
    for pairing in pairings(features.videos, question):
        notes += pairing_notes(features.videos, pairing)
        notes += training_notes(features.provenance, features.videos, pairing.query, pairing.split_column, "queries")
        results.append(probe(features, pairing, method, seed=question.seed))
        notes += results[-1].notes
    return result_record(
        "probe",
        provenance_of(features, command, question.seed),
        method=method,
        splits=[result.as_json(question.seed) for result in results],
        mean=mean_over_splits(results),
        notes=unique(notes),
    )


def mean_over_splits(results: Sequence[ProbeResult]) -> list[dict[str, Any]]:
    """For each kind of label, the mean of top-1 and top-5 over splits with their spread."""
    means = []
    for kind in dict.fromkeys(result.pairing.kind for result in results):
        own = [result for result in results if result.pairing.kind == kind]
        figures = {f"top{k}": mean_and_spread([float(result.hits(k).mean()) for result in own]) for k in (1, 5)}
        means.append({"label": kind, **figures})
    return means


def fold_pairings(
    videos: VideoTable, kind: str, *, seed: int = 0, folds: int = OUTER_FOLDS, rows: NDArray[np.int64] | None = None
) -> list[Pairing]:
    """All labelled videos, or some, in parts of which each has its share of every label; each part is tested once.

    Args:
        videos: the videos.
        kind: ``label`` or ``group``.
        seed: decides the parts.
        folds: how many parts; fewer if no label has as many videos.
        rows: numbers of the videos to take, all of them labelled; None for all that are.

    Raises:
        ValueError: no video has the label, or no two share one.
    """
    if rows is None:
        rows = videos.labelled(np.arange(len(videos)), kind, "the shards")
    names = [videos.names(kind)[row] for row in rows]
    count = min(folds, max(Counter(names).values(), default=0))
    if count < 2:
        raise ValueError(f"{kind}: no two videos share one, so nothing can be told from others")
    splitter = StratifiedKFold(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A rare label is missing from some parts, whatever is done.
        warnings.filterwarnings("ignore", message="The least populated class")
        parts = list(splitter.split(np.zeros((len(rows), 1)), names))
    return [
        Pairing(
            split_column=f"fold {number} of {count}",
            query_part="left out",
            gallery_part="kept",
            kind=kind,
            query=rows[left_out],
            gallery=rows[kept],
            unlabelled=0,
        )
        for number, (kept, left_out) in enumerate(parts, start=1)
    ]
