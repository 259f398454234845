"""What features get right, video by video, and what several trainings of a kind come to: pure functions.

Shape legend: N videos that ask or are tested.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmd_eval.data.splits import Pairing
from cmd_eval.features.store import Features
from cmd_eval.metrics.intervals import Interval, bootstrap_interval, paired_bootstrap
from cmd_eval.tasks.retrieval import retrieve
from cmd_eval.tasks.run_probe import probe

RANKS = (1, 5, 10)
PROBE = "probe"
MEASURES: Mapping[str, tuple[str, ...]] = {
    "label": (*(f"R@{k}" for k in RANKS), PROBE),
    "group": tuple(f"R@{k}" for k in RANKS),
}
"""What is measured by label (over splits), and by group (each video among all others)."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one set of features got right on one question.

    Attributes:
        by: ``label`` or ``group``.
        split_column: the split whose test videos asked; by group, the split whose train part the network has seen.
        seed: of the network's training; 0 where there is none.
        rows: (N,) numbers of the videos that asked.
        right: measure to (N,), 1 where the video was right.
        chance: measure to what chance would reach.
    """

    by: str
    split_column: str
    seed: int
    rows: NDArray[np.int64]
    right: Mapping[str, NDArray[np.float64]]
    chance: Mapping[str, float]


def ask(features: Features, pairing: Pairing, *, split_column: str, seed: int, probe_seed: int = 0) -> Answer:
    """R@1, 5 and 10 of a pairing, and by label the linear probe.

    Args:
        features: of all videos.
        pairing: which videos ask, and which are found or trained on.
        split_column, seed: recorded.
        probe_seed: decides on which parts the probe's setting is chosen.

    Raises:
        ValueError: nothing can be found, or there are too few training videos for a probe.
    """
    found = retrieve(features, pairing, ranks=RANKS)
    right = {f"R@{k}": found.hits[k].astype(np.float64) for k in RANKS}
    chance = {f"R@{k}": found.chance[k] for k in RANKS}
    if PROBE in MEASURES[pairing.kind]:
        told = probe(features, pairing, "linear", seed=probe_seed)
        right[PROBE], chance[PROBE] = told.hits(1), told.chance
    rows = found.pairing.query
    return Answer(by=pairing.kind, split_column=split_column, seed=seed, rows=rows, right=right, chance=chance)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A kind of features: all its answers, over splits and seeds.

    Attributes:
        name: what the table calls it.
        answers: at least one by label and one by group.
    """

    name: str
    answers: Sequence[Answer]

    def per_video(
        self, by: str, measure: str, *, split_column: str | None = None, seed: int | None = None
    ) -> dict[int, float]:
        """Number of each video to the share of its answers that were right.

        A video that several trainings answered for counts once, with their mean.

        Args:
            by: ``label`` or ``group``.
            measure: one of ``MEASURES[by]``.
            split_column, seed: answers of these alone.
        """
        found: dict[int, list[float]] = defaultdict(list)
        for answer in self.answers:
            wanted = answer.by == by and split_column in (None, answer.split_column) and seed in (None, answer.seed)
            if wanted:
                for row, right in zip(answer.rows.tolist(), answer.right[measure].tolist(), strict=True):
                    found[row].append(right)
        return {row: float(np.mean(found[row])) for row in sorted(found)}

    def figure(self, by: str, measure: str, *, split_column: str | None = None, seed: int = 0) -> Interval:
        """Mean over videos with its bootstrap interval; ``seed`` decides the draws."""
        values = self.per_video(by, measure, split_column=split_column)
        return bootstrap_interval(np.array(list(values.values())), seed=seed)

    @property
    def seeds(self) -> list[int]:
        """Seeds of the trainings."""
        return sorted({answer.seed for answer in self.answers})

    def as_json(self, seed: int = 0) -> dict[str, Any]:
        """For the result file: pooled over splits and seeds, of each split, and of each seed."""
        columns = dict.fromkeys(answer.split_column for answer in self.answers if answer.by == "label")
        return {
            "model": self.name,
            "seeds": self.seeds,
            **{
                f"by_{by}": {measure: self.figure(by, measure, seed=seed).as_json() for measure in measures}
                for by, measures in MEASURES.items()
            },
            "by_split": [
                {
                    "split_column": column,
                    "by_label": {
                        measure: self.figure("label", measure, split_column=column, seed=seed).as_json()
                        for measure in MEASURES["label"]
                    },
                }
                for column in columns
            ],
            "by_seed": [
                {
                    "seed": one,
                    **{
                        f"by_{by}": {
                            measure: float(np.mean(list(self.per_video(by, measure, seed=one).values())))
                            for measure in measures
                        }
                        for by, measures in MEASURES.items()
                    },
                }
                for one in self.seeds
            ],
        }


def difference(first: Row, second: Row, by: str, measure: str, *, seed: int = 0) -> Interval:
    """Mean of what ``first`` gets right less what ``second`` does, with the paired bootstrap interval over videos.

    Raises:
        ValueError: they have not answered for the same videos.
    """
    a, b = first.per_video(by, measure), second.per_video(by, measure)
    if a.keys() != b.keys():
        raise ValueError(f"{first.name} and {second.name}: answered by {by} for different videos")
    return paired_bootstrap(np.array(list(a.values())), np.array(list(b.values())), seed=seed)


def differences(first: Row, others: Sequence[Row], *, seed: int = 0) -> list[dict[str, Any]]:
    """Of one row against each other one, by label and by group: R@1, and by label the probe; for the result file."""
    return [
        {
            "first": first.name,
            "second": other.name,
            "by": by,
            "measure": measure,
            "difference": difference(first, other, by, measure, seed=seed).as_json(),
        }
        for other in others
        for by, measures in (("label", ("R@1", PROBE)), ("group", ("R@1",)))
        for measure in measures
    ]


def chance(row: Row) -> dict[str, dict[str, float]]:
    """What chance would reach by label and by group, each answer weighted by its videos; the same for every row."""
    found = {}
    for by, measures in MEASURES.items():
        own = [answer for answer in row.answers if answer.by == by]
        weights = [len(answer.rows) for answer in own]
        found[f"by_{by}"] = {
            measure: float(np.average([answer.chance[measure] for answer in own], weights=weights))
            for measure in measures
        }
    return found
