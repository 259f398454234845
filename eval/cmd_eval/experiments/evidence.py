"""Measurements of ``cmd-eval evidence`` per video, and their means over splits and seeds; pure functions.

Shape legend: N query or test videos.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmd_eval.data.splits import EvalSplit
from cmd_eval.features.readout import ReadoutName
from cmd_eval.features.store import Features
from cmd_eval.metrics.intervals import Interval, mean_interval, paired_interval
from cmd_eval.tasks.retrieval import retrieve
from cmd_eval.tasks.run_probe import probe

RANKS = (1, 5, 10)
PROBE = "probe"
MEASURES: Mapping[str, tuple[str, ...]] = {
    "label": (*(f"R@{k}" for k in RANKS), PROBE),
    "group": tuple(f"R@{k}" for k in RANKS),
}
"""Measures by label (over splits) and by group (leave-one-out)."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Hits and misses of one set of features on one split.

    Attributes:
        target: ``label`` or ``group``.
        split_column: the split; by group, leave-one-out over its videos.
        seed: seed of the training run; 0 if there is none.
        rows: (N,) indices of the query videos.
        hits: (N,) by measure, 1 for a hit and 0 for a miss.
        chance: chance level by measure.
    """

    target: str
    split_column: str
    seed: int
    rows: NDArray[np.int64]
    hits: Mapping[str, NDArray[np.float64]]
    chance: Mapping[str, float]


def measure(features: Features, split: EvalSplit, *, split_column: str, seed: int, probe_seed: int = 0) -> Measurement:
    """Measure R@1, 5 and 10 on a split, and by label the accuracy of logistic regression on the features.

    Args:
        features: features of all videos.
        split: query and gallery, or test and training videos.
        split_column, seed: recorded.
        probe_seed: seed of the folds on which the regularization of the probe is selected.

    Raises:
        ValueError: no query can have a hit, or there are too few training videos for the probe.
    """
    retrieval = retrieve(features, split, ranks=RANKS)
    hits = {f"R@{k}": retrieval.hits[k].astype(np.float64) for k in RANKS}
    chance = {f"R@{k}": retrieval.chance[k] for k in RANKS}
    if PROBE in MEASURES[split.target]:
        result = probe(features, split, "logistic", seed=probe_seed)
        hits[PROBE], chance[PROBE] = result.hits(1), result.chance
    rows = retrieval.split.query
    return Measurement(target=split.target, split_column=split_column, seed=seed, rows=rows, hits=hits, chance=chance)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table: all measurements of one kind of features, over splits and seeds.

    Attributes:
        name: name in the table.
        readout: readout of a network; None for a descriptor.
        measurements: at least one by label and one by group.
        groups: group of each video, over which intervals are computed.
    """

    name: str
    measurements: Sequence[Measurement]
    groups: Sequence[str]
    readout: ReadoutName | None = None

    def per_video(
        self, target: str, measure: str, *, split_column: str | None = None, seed: int | None = None
    ) -> dict[int, float]:
        """Return the mean hit rate of each video over splits and seeds, by video index.

        Args:
            target: ``label`` or ``group``.
            measure: one of ``MEASURES[target]``.
            split_column, seed: use measurements of this split or seed only.
        """
        found: dict[int, list[float]] = defaultdict(list)
        for one in self.measurements:
            if one.target == target and split_column in (None, one.split_column) and seed in (None, one.seed):
                for row, hit in zip(one.rows.tolist(), one.hits[measure].tolist(), strict=True):
                    found[row].append(hit)
        return {row: float(np.mean(found[row])) for row in sorted(found)}

    def value(self, target: str, measure: str, *, split_column: str | None = None, seed: int = 0) -> Interval:
        """Return the mean over videos with its interval over groups; ``seed`` is the seed of the resampling."""
        values = self.per_video(target, measure, split_column=split_column)
        return mean_interval(np.array(list(values.values())), [self.groups[row] for row in values], seed=seed)

    @property
    def seeds(self) -> list[int]:
        """Seeds of the training runs."""
        return sorted({one.seed for one in self.measurements})

    def as_json(self, seed: int = 0) -> dict[str, Any]:
        """Return the values for the result file: over all splits and seeds, per split, and per seed."""
        columns = dict.fromkeys(one.split_column for one in self.measurements if one.target == "label")
        return {
            "model": self.name,
            "readout": self.readout,
            "seeds": self.seeds,
            **{
                f"by_{target}": {measure: self.value(target, measure, seed=seed).as_json() for measure in measures}
                for target, measures in MEASURES.items()
            },
            "by_split": [
                {
                    "split_column": column,
                    "by_label": {
                        measure: self.value("label", measure, split_column=column, seed=seed).as_json()
                        for measure in MEASURES["label"]
                    },
                }
                for column in columns
            ],
            "by_seed": [
                {
                    "seed": own,
                    **{
                        f"by_{target}": {
                            measure: float(np.mean(list(self.per_video(target, measure, seed=own).values())))
                            for measure in measures
                        }
                        for target, measures in MEASURES.items()
                    },
                }
                for own in self.seeds
            ],
        }


def difference(first: Row, second: Row, target: str, measure: str, *, seed: int = 0) -> Interval:
    """Return the mean difference in hit rate, first minus second, with its paired interval over groups of videos.

    Raises:
        ValueError: the rows were measured on different videos.
    """
    a, b = first.per_video(target, measure), second.per_video(target, measure)
    if a.keys() != b.keys():
        raise ValueError(f"{first.name} and {second.name}: measured by {target} on different videos")
    groups = [first.groups[row] for row in a]
    return paired_interval(np.array(list(a.values())), np.array(list(b.values())), groups, seed=seed)


def differences(rows: Sequence[Row], headline: str, *, seed: int = 0) -> list[dict[str, Any]]:
    """Compare the headline with the other rows in R@1 by label and by group and in the probe; for the result file.

    Each readout of the headline is compared with the same readout of the other networks, and with the descriptors.
    """
    return [
        {
            "first": first.name,
            "second": other.name,
            "readout": first.readout,
            "target": target,
            "measure": measure,
            "difference": difference(first, other, target, measure, seed=seed).as_json(),
        }
        for first in rows
        if first.name == headline
        for other in rows
        if other.name != headline and other.readout in (first.readout, None)
        for target, measures in (("label", ("R@1", PROBE)), ("group", ("R@1",)))
        for measure in measures
    ]


def chance(row: Row) -> dict[str, dict[str, float]]:
    """Return the chance level by label and by group, weighted by the number of queries; it is the same for all rows."""
    found = {}
    for target, measures in MEASURES.items():
        own = [one for one in row.measurements if one.target == target]
        weights = [len(one.rows) for one in own]
        found[f"by_{target}"] = {
            measure: float(np.average([one.chance[measure] for one in own], weights=weights)) for measure in measures
        }
    return found
