"""Several retrieval results in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmd_eval.results.files import read_result
from cmd_eval.results.tables import format_mean, format_percent, format_share, split_name
from cmd_extract.console.tables import format_table

Record = Mapping[str, Any]


def comparison_table(paths: Sequence[Path]) -> str:
    """Format R@k of several result files by target, split and dataset, with chance, and the pretext accuracies.

    A result of one split is shown with its interval, a result of several splits as their mean and standard deviation.

    Args:
        paths: files written by ``cmd-eval retrieval`` or ``cmd-eval baseline``.

    Raises:
        ValueError: A file is not a retrieval result.
    """
    records = [read_result(path, "retrieval") for path in paths]
    named = [(_name(path, record), record) for path, record in zip(paths, records, strict=True)]
    lines = []
    for target in dict.fromkeys(mean["target"] for record in records for mean in record["mean"]):
        lines += _target_tables(target, named)
    for name, record in named:
        if not record["provenance"]["untrained"]:
            lines += _pretext_lines(name, record["provenance"]["pretext"])
    return "\n".join(lines)


def _name(path: Path, record: Record) -> str:
    """Return the file's stem, which is marked if the network is untrained and the file name does not say so."""
    unmarked = record["provenance"]["untrained"] and "untrained" not in path.stem
    return f"{path.stem} (untrained)" if unmarked else path.stem


def _target_tables(target: str, named: Sequence[tuple[str, Record]]) -> list[str]:
    """Return a table for each combination of dataset and splits; figures of different ones are not comparable."""
    comparable: dict[tuple[str, str], list[tuple[str, Record]]] = {}
    for name, record in named:
        splits = _splits(record, target)
        if splits:
            where = ", ".join(split_name(split) for split in splits)
            comparable.setdefault((record["provenance"]["data_hash"], where), []).append((name, record))
    several_datasets = len({data_hash for data_hash, _ in comparable}) > 1
    tables = []
    for (data_hash, where), group in comparable.items():
        heading = f"retrieval by {target}, {where}" + (f", data {data_hash[:8]}" if several_datasets else "")
        tables.append(_table(heading, target, group))
    return tables


def _splits(record: Record, target: str) -> list[Record]:
    return [split for split in record["splits"] if split["target"] == target]


def _table(heading: str, target: str, group: Sequence[tuple[str, Record]]) -> str:
    splits = _splits(group[0][1], target)
    ranks = list(splits[0]["recall"])
    rows: list[list[str]] = []
    for name, record in group:
        if len(splits) == 1:
            recall = _splits(record, target)[0]["recall"]
            rows.append([name, *(format_share(recall[rank]) for rank in ranks)])
        else:
            recall = next(mean["recall"] for mean in record["mean"] if mean["target"] == target)
            rows.append([name, *(format_mean(recall[rank]) for rank in ranks)])
    chance = [sum(split["chance"][rank] for split in splits) / len(splits) for rank in ranks]
    return format_table([heading, *ranks], [*rows, ["chance", *map(format_percent, chance)]])


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
