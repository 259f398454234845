"""Results side by side: values of each method, and paired differences on the same videos.

Shape legend: R runs of a method, N test videos.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmd_eval.metrics.paired import runs_difference
from cmd_eval.results.files import read_result
from cmd_eval.results.formats import Cell, Table, number_cell
from cmd_eval.results.schema import mean_and_spread
from cmd_eval.results.tables import interval_heading, split_name

Record = Mapping[str, Any]

COMPARED = ("retrieval", "probe", "recognition")
"""Kinds of results that can be compared; probes and recognition with each other, too."""
_ACCURACIES = {"top1": "top-1", "top5": "top-5"}


@dataclass(frozen=True, kw_only=True)
class Method:
    """One or several results of a method, which differ in the seed.

    Attributes:
        name: name in the tables.
        records: the results.
    """

    name: str
    records: Sequence[Record]


def read_methods(arguments: Sequence[str]) -> list[Method]:
    """Read the results given on the command line, each as ``FILE`` or ``NAME=FILE``.

    Results with the same name are runs of one method with different seeds. Without a name, it is the file's stem.

    Raises:
        ValueError: a file does not exist, is not a result that can be compared, or two files without a name have the
            same stem.
    """
    found: dict[str, list[Record]] = {}
    for argument in arguments:
        name, separator, file = argument.partition("=")
        named = bool(separator) and not Path(argument).exists()
        path = Path(file if named else argument)
        if not path.is_file():
            raise ValueError(f"{path}: no such file; give result files, or NAME=FILE")
        record = read_result(path)
        if record["kind"] not in COMPARED:
            raise ValueError(f"{path}: contains {record['kind']} results; only {', '.join(COMPARED)} can be compared")
        name = name if named else _default_name(path, record)
        if not named and name in found:
            raise ValueError(f"{path}: another result is also named {name}; tell them apart with NAME=FILE")
        found.setdefault(name, []).append(record)
    return [Method(name=name, records=records) for name, records in found.items()]


def _default_name(path: Path, record: Record) -> str:
    """Return the file's stem, which is marked if the network is untrained and the file name does not say so."""
    unmarked = record["provenance"]["untrained"] and "untrained" not in path.stem
    return f"{path.stem} (untrained)" if unmarked else path.stem


def comparison_tables(methods: Sequence[Method]) -> list[Table]:
    """Return a table of values, with chance, and one of differences for each dataset, target and splits.

    A method with one result of one split has its interval, several splits or results have their mean and standard
    deviation. Each method is compared with the first one in the table, see ``cmd_eval.metrics.paired.runs_difference``.
    Figures of different datasets, targets or splits are not comparable and have separate tables.

    Raises:
        ValueError: results of one method are of different datasets, targets or splits.
    """
    comparable: dict[tuple[str, ...], list[tuple[str, list[_Run]]]] = {}
    for method in methods:
        runs: dict[tuple[str, ...], list[_Run]] = {}
        for record in method.records:
            for run in _runs(record):
                runs.setdefault(run.key, []).append(run)
        if len({len(own) for own in runs.values()}) > 1 or len(method.records) not in map(len, runs.values()):
            raise ValueError(
                f"{method.name}: its results are on different data, targets or splits; give them different names"
            )
        for key, own in runs.items():
            comparable.setdefault(key, []).append((method.name, own))
    several_datasets = len({data_hash for _, data_hash, *_ in comparable}) > 1
    tables = []
    # By label first, as in the results.
    for (task, data_hash, target, where), group in sorted(comparable.items(), key=lambda item: item[0][2] != "label"):
        title = f"{task} by {target}, {where}" + (f", data {data_hash[:8]}" if several_datasets else "")
        tables.append(_values_table(title, group))
        if len(group) > 1:
            tables.append(_differences_table(title, group))
    return tables


@dataclass(frozen=True)
class _Run:
    """One result for one target, over its splits."""

    key: tuple[str, ...]
    splits: Sequence[Record]

    @property
    def measures(self) -> list[str]:
        return list(self.splits[0].get("recall", _ACCURACIES))

    def figure(self, split: Record, measure: str) -> Mapping[str, Any]:
        figure: Mapping[str, Any] = split["recall"][measure] if "recall" in split else split[measure]
        return figure

    def mean(self, measure: str) -> Mapping[str, Any]:
        return mean_and_spread([self.figure(split, measure)["value"] for split in self.splits])

    def chance(self, measure: str) -> float | None:
        values = [split["chance"][measure] if "recall" in split else split["chance"] for split in self.splits]
        return None if None in values or measure == "top5" else statistics.fmean(values)

    def hits(self, measure: str) -> dict[str, float]:
        """Return the hit rate of each video over the splits that tested it."""
        found: dict[str, list[bool]] = {}
        for split in self.splits:
            for row in split["videos"]:
                found.setdefault(row["video"], []).append(_is_hit(row, measure))
        return {video: statistics.fmean(hits) for video, hits in sorted(found.items())}

    def groups(self) -> list[str]:
        """Return the group of each video, in the order of ``hits``."""
        rows = (row for split in self.splits for row in split["videos"])
        return [group for _, group in sorted({row["video"]: row["group"] for row in rows}.items())]


def _is_hit(row: Record, measure: str) -> bool:
    if "rank" in row:
        return row["rank"] is not None and row["rank"] <= int(measure.removeprefix("R@"))
    return bool(row[measure])


def _runs(record: Record) -> list[_Run]:
    task = "retrieval" if record["kind"] == "retrieval" else "accuracy"
    by_target: dict[str, list[Record]] = {}
    for split in record["splits"]:
        by_target.setdefault(split["target"], []).append(split)
    return [
        _Run((task, record["provenance"]["data_hash"], target, ", ".join(map(split_name, splits))), splits)
        for target, splits in by_target.items()
    ]


def _values_table(title: str, group: Sequence[tuple[str, Sequence[_Run]]]) -> Table:
    first = group[0][1][0]
    measures = first.measures
    rows, figures = [], []
    for name, runs in group:
        label = name if len(runs) == 1 else f"{name} ({len(runs)} runs)"
        if len(runs) == len(runs[0].splits) == 1:
            own = [runs[0].figure(runs[0].splits[0], measure) for measure in measures]
            figures += own[:1]
        elif len(runs) == 1:
            own = [runs[0].mean(measure) for measure in measures]
        else:
            own = [mean_and_spread([run.mean(measure)["value"] for run in runs]) for measure in measures]
        rows.append([Cell(label), *map(number_cell, own)])
    chances = (first.chance(measure) for measure in measures)
    rows.append([Cell("chance"), *(Cell("") if c is None else number_cell({"value": c}) for c in chances)])
    heading = f"{title}, {interval_heading(figures)}" if figures else f"{title}, % (+- standard deviation)"
    return Table(title=title, columns=[heading, *(_ACCURACIES.get(m, m) for m in measures)], rows=rows)


def _differences_table(title: str, group: Sequence[tuple[str, Sequence[_Run]]]) -> Table:
    (reference, first_runs), *others = group
    measures = first_runs[0].measures
    rows: list[list[Cell]] = []
    units: dict[str, None] = {}
    for name, runs in others:
        label = f"{name} minus {reference}"
        videos = [set(run.hits(measures[0])) for run in (*first_runs, *runs)]
        if any(own != videos[0] for own in videos):
            common = len(set.intersection(*videos))
            rows.append([Cell(f"{label}: not paired, {common} of {len(videos[0])} videos in common")])
            continue
        found = [
            runs_difference(_hits(runs, measure), _hits(first_runs, measure), first_runs[0].groups())
            for measure in measures
        ]
        units[f"{found[0].units} {found[0].unit}"] = None
        rows.append([Cell(label), *(number_cell(one.as_json(), signed=True) for one in found)])
    over = f" over {', '.join(units)}" if units else ""
    seeds = " and seeds" if any(len(runs) > 1 for _, runs in group) else ""
    heading = f"paired difference, mean over videos, percentage points (95 % interval{over}{seeds})"
    columns = [heading, *(_ACCURACIES.get(m, m) for m in measures)]
    return Table(title=f"{title}, paired differences", columns=columns, rows=rows)


def _hits(runs: Sequence[_Run], measure: str) -> NDArray[np.float64]:
    """Return the hit rates of each run and video, (R, N)."""
    return np.array([list(run.hits(measure).values()) for run in runs])


def pretext_lines(methods: Sequence[Method]) -> list[str]:
    """Return the accuracies of the pretext tasks of trained networks, in their last training batches."""
    lines = []
    for method in methods:
        for record in method.records:
            if record["kind"] == "retrieval" and not record["provenance"]["untrained"]:
                lines += _pretext_lines(method.name, record["provenance"]["pretext"])
    return lines


def _pretext_lines(name: str, pretext: Mapping[str, float]) -> list[str]:
    lines = []
    for head in ("context", "motion"):
        what = f"{head} task of {name}, last training batches"
        if f"{head}_majority" in pretext:
            top1, majority = pretext[f"{head}_top1"], pretext[f"{head}_majority"]
            lines.append(f"{what}: top-1 {top1:.1%} at moving positions (most frequent direction: {majority:.1%})")
        elif f"{head}_top1" in pretext:
            candidates = pretext[f"{head}_candidates"]
            top1, top5 = pretext[f"{head}_top1"], pretext[f"{head}_top5"]
            lines.append(
                f"{what}: top-1 {top1:.1%}, top-5 {top5:.1%} "
                f"of {candidates:.0f} candidates (chance {1 / candidates:.2%}, {5 / candidates:.2%})"
            )
    return lines
