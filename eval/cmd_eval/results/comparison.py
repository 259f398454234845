"""One table of several retrieval results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmd_eval.results.schema import read_result
from cmd_eval.results.tables import figure, split_name, spread

_CELL = 20


def comparison_table(paths: Sequence[Path]) -> str:
    """R@k of several result files by label kind, split and data, chance below; pretext accuracies of the trained ones.

    Of a result over several splits the mean with its spread is shown, of one over one split the figure with its
    interval.

    Args:
        paths: files that ``cmd-eval retrieval`` or ``cmd-eval baseline`` has written.

    Raises:
        ValueError: a file is not one of these.
    """
    records = [read_result(path, "retrieval") for path in paths]
    names = [_name(path, record) for path, record in zip(paths, records, strict=True)]
    width = max(len(name) for name in (*names, "retrieval by group", "chance")) + 4
    lines = []
    for kind in dict.fromkeys(mean["label"] for record in records for mean in record["mean"]):
        lines += _kind_tables(kind, names, records, width)
    for name, record in zip(names, records, strict=True):
        if not record["provenance"]["untrained"]:
            lines += _pretext_lines(name, record["provenance"]["pretext"])
    return "\n".join(lines)


def _name(path: Path, record: Mapping[str, Any]) -> str:
    """The file's name; it may not pass off an untrained network as another one."""
    hidden = record["provenance"]["untrained"] and "untrained" not in path.stem
    return f"{path.stem} (untrained)" if hidden else path.stem


def _kind_tables(kind: str, names: Sequence[str], records: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    """A table for each question and data set, each with its own chance: figures of others cannot be compared."""
    asked: dict[tuple[str, str], list[tuple[str, Mapping[str, Any]]]] = {}
    for name, record in zip(names, records, strict=True):
        splits = [split for split in record["splits"] if split["label"] == kind]
        if splits:
            where = ", ".join(split_name(split) for split in splits)
            asked.setdefault((record["provenance"]["data_hash"], where), []).append((name, record))
    several_sets = len({data_hash for data_hash, _ in asked}) > 1
    lines = []
    for (data_hash, where), found in asked.items():
        head = f"retrieval by {kind}, {where}" + (f", data {data_hash[:8]}" if several_sets else "")
        lines += _table(head, kind, found, width)
    return lines


def _table(head: str, kind: str, found: Sequence[tuple[str, Mapping[str, Any]]], width: int) -> list[str]:
    rows: list[tuple[str, list[str]]] = []
    ranks: list[str] = []
    chance: dict[str, float] = {}
    for name, record in found:
        splits = [split for split in record["splits"] if split["label"] == kind]
        ranks = list(splits[0]["recall"])
        chance = {rank: sum(split["chance"][rank] for split in splits) / len(splits) for rank in ranks}
        mean = next(mean["recall"] for mean in record["mean"] if mean["label"] == kind)
        one = len(splits) == 1
        rows.append((name, [figure(splits[0]["recall"][rank]) if one else spread(mean[rank]) for rank in ranks]))
    rows.append(("chance", [f"{100 * chance[rank]:.1f}" for rank in ranks]))
    width = max(width, len(head) + 2)
    first = head.ljust(width) + "".join(rank.rjust(_CELL) for rank in ranks)
    return [first, *(f"  {name}".ljust(width) + "".join(cell.rjust(_CELL) for cell in cells) for name, cells in rows)]


def _pretext_lines(name: str, pretext: Mapping[str, float]) -> list[str]:
    lines = []
    for head in ("context", "motion"):
        if f"{head}_top1" in pretext:
            candidates = pretext[f"{head}_candidates"]
            top1, top5 = pretext[f"{head}_top1"], pretext[f"{head}_top5"]
            lines.append(
                f"{head} task of {name}, on its last training batches: top-1 {top1:.1%}, top-5 {top5:.1%} "
                f"of {candidates:.0f} candidates (chance {1 / candidates:.2%}, {5 / candidates:.2%})"
            )
    return lines
