"""The evidence as plain text: what was retrieved, what the differences are, and the other two claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cmd_eval.results.tables import figure

CLAIMED_FPS = 500
"""Frames a second on a CPU that the paper claims for extraction."""

_CELL = 20
Record = Mapping[str, Any]


def evidence_table(record: Record) -> str:
    """All of it, in per cent with 95 % intervals."""
    lines = ["per cent; in brackets the 95 % interval, over videos", ""]
    lines += [*_kind_lines(record, "label"), "", *_kind_lines(record, "group"), "", *_split_lines(record), ""]
    lines += [*_difference_lines(record), "", *_auxiliary_lines(record["auxiliary"]), *_speed_lines(record["speed"])]
    return "\n".join(lines)


def _width(record: Record) -> int:
    return max(len(row["model"]) for row in record["rows"]) + 6


def _kind_lines(record: Record, by: str) -> list[str]:
    where = {"label": "by label, over splits", "group": "by group, each among all others"}[by]
    chance = record["chance"][f"by_{by}"]
    width = max(_width(record), len(where) + 2)
    lines = [_line(where, list(chance), width)]
    for row in record["rows"]:
        lines.append(_line(f"  {row['model']}", [figure(row[f"by_{by}"][name]) for name in chance], width))
    lines.append(_line("  chance", [f"{100 * share:.1f}" for share in chance.values()], width))
    return [*lines, f"  {record['videos'][f'by_{by}']} videos"]


def _split_lines(record: Record) -> list[str]:
    columns = [split["split_column"] for split in record["rows"][0]["by_split"]]
    width = max(_width(record), len("R@1 by label, each split") + 2)
    lines = [_line("R@1 by label, each split", [*columns, "each seed"], width)]
    for row in record["rows"]:
        cells = [figure(split["by_label"]["R@1"]) for split in row["by_split"]]
        seeds = [f"{100 * one['by_label']['R@1']:.1f}" for one in row["by_seed"]]
        cells.append(" ".join(seeds) if len(seeds) > 1 else "")
        lines.append(_line(f"  {row['model']}", cells, width))
    return lines


def _difference_lines(record: Record) -> list[str]:
    pairs: dict[tuple[str, str], list[str]] = {}
    heads: dict[str, None] = {}
    for one in record["comparisons"]:
        heads[f"{one['by']}: {one['measure']}"] = None
        pairs.setdefault((one["first"], one["second"]), []).append(points(one["difference"]))
    names = [f"  {first} less {second}" for first, second in pairs]
    width = max(map(len, names)) + 2
    lines = [_line("points, paired", list(heads), width)]
    return lines + [_line(name, cells, width) for name, cells in zip(names, pairs.values(), strict=True)]


def points(value: Mapping[str, float]) -> str:
    """A difference of shares with its interval, in points of per cent, signed."""
    return f"{100 * value['value']:+.1f} ({100 * value['low']:+.1f}..{100 * value['high']:+.1f})"


def _auxiliary_lines(auxiliary: Record | None) -> list[str]:
    if auxiliary is None:
        return ["motion prediction as auxiliary task: not measured"]
    mean = auxiliary["mean"]
    return [
        f"motion prediction as auxiliary task changes supervised top-1 by {points(auxiliary['difference'])} points, "
        f"from {100 * mean['none']['value']:.1f} % to {100 * mean['motion']['value']:.1f} % "
        f"({auxiliary['pairs']} pairs of runs; published: +7.4 to +13.8)"
    ]


def _speed_lines(speed: Sequence[Record] | None) -> list[str]:
    if speed is None:
        return ["extraction speed: not given; --bench takes it from the file of the benchmarks"]
    return [f"{one['name']}: {one['value']:g} {one['unit']} ({one['machine']})" for one in speed] + [
        f"claimed by the paper: above {CLAIMED_FPS} frames a second on a CPU"
    ]


def _line(name: str, cells: Sequence[str], width: int) -> str:
    return (name.ljust(width) + "".join(cell.rjust(max(_CELL, len(cell) + 2)) for cell in cells)).rstrip()
