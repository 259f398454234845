"""One table of several retrieval results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def comparison_table(paths: Sequence[Path]) -> str:
    """R@k of several result files by label kind, with chance below and the pretext accuracies of the trained ones.

    Args:
        paths: files that ``cmd-eval retrieval`` has written.

    Raises:
        ValueError: a file is not one of these.
    """
    records = [_read(path) for path in paths]
    names = [_name(path, record) for path, record in zip(paths, records, strict=True)]
    width = max(len(name) for name in (*names, "chance")) + 4
    lines = []
    for kind in dict.fromkeys(result["label"] for record in records for result in record["results"]):
        lines += _kind_table(kind, names, records, width)
    for name, record in zip(names, records, strict=True):
        if not record["untrained"]:
            lines += _pretext_lines(name, record["pretext"])
    return "\n".join(lines)


def _name(path: Path, record: dict[str, Any]) -> str:
    """The file's name; it may not pass off an untrained network as another one."""
    hidden = record["untrained"] and "untrained" not in path.stem
    return f"{path.stem} (untrained)" if hidden else path.stem


def _read(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return {key: record[key] for key in ("results", "untrained", "pretext")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a result of `cmd-eval retrieval` ({error})") from error


def _kind_table(kind: str, names: Sequence[str], records: Sequence[dict[str, Any]], width: int) -> list[str]:
    rows: list[tuple[str, dict[str, float]]] = []
    chance: dict[str, float] = {}
    for name, record in zip(names, records, strict=True):
        for result in record["results"]:
            if result["label"] == kind:
                rows.append((name, result["recall"]))
                chance = result["chance"]
    ranks = list(chance)
    head = f"retrieval by {kind}".ljust(max(width, 22)) + "".join(rank.rjust(8) for rank in ranks)
    body = [
        f"  {name}".ljust(max(width, 22)) + "".join(f"{values[rank]:8.1%}" for rank in ranks)
        for name, values in [*rows, ("chance", chance)]
    ]
    return [head, *body]


def _pretext_lines(name: str, pretext: dict[str, float]) -> list[str]:
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
