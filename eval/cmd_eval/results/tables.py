"""Results as plain text: figures in per cent with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cmd_eval.results.schema import LEAVE_ONE_OUT

_CELL = 20


def retrieval_table(record: Mapping[str, Any]) -> str:
    """R@k of a retrieval result: a line a split with its intervals, chance below it, means over splits at the end."""
    splits = record["splits"]
    names = [f"{split['split_column']} by {split['label']}" for split in splits]
    ranks = list(splits[0]["recall"])
    width = max(len(name) for name in (*names, "mean of 00 splits by label")) + 2
    lines = [_line("%, with 95 % interval", ranks, width)]
    for name, split in zip(names, splits, strict=True):
        lines.append(_line(name, [figure(split["recall"][rank]) for rank in ranks], width))
        lines.append(_line("  chance", [f"{100 * split['chance'][rank]:.1f}" for rank in ranks], width))
    for mean in record["mean"]:
        if mean["recall"][ranks[0]]["splits"] > 1:
            name = f"mean of {mean['recall'][ranks[0]]['splits']} splits by {mean['label']}"
            lines.append(_line(name, [spread(mean["recall"][rank]) for rank in ranks], width))
    lines += unique_sizes(splits, "queries", "gallery", "{} queries, {} in the gallery")
    return "\n".join(lines)


def class_table(record: Mapping[str, Any]) -> str:
    """R@1 and R@5 of each class of a retrieval result."""
    lines = []
    for split in record["splits"]:
        ranks = list(split["per_class"][0]["recall"])
        width = max(len(item["class"]) for item in split["per_class"]) + 4
        head = f"{split['split_column']} by {split['label']}"
        lines.append(_line(head, ["queries", *ranks], max(width, len(head) + 2)))
        for item in split["per_class"]:
            figures = [figure(item["recall"][rank]) for rank in ranks]
            lines.append(_line(f"  {item['class']}", [str(item["queries"]), *figures], max(width, len(head) + 2)))
    return "\n".join(lines)


def probe_table(record: Mapping[str, Any]) -> str:
    """Top-1 and top-5 of a probe, a line a split with its intervals, chance and what was chosen; means at the end."""
    splits = record["splits"]
    names = [f"{split['split_column']} by {split['label']}" for split in splits]
    width = max(len(name) for name in (*names, "mean of 00 splits by label")) + 2
    lines = [_line(f"{record['method']}, %, 95 % interval", ["top-1", "top-5", "chance", "chosen"], width)]
    for name, split in zip(names, splits, strict=True):
        chosen = ", ".join(f"{key} = {value:g}" for key, value in split["chosen"].items())
        chance = f"{100 * split['chance']:.1f}"
        lines.append(_line(name, [figure(split["top1"]), figure(split["top5"]), chance, chosen], width))
    for mean in record["mean"]:
        if mean["top1"]["splits"] > 1:
            name = f"mean of {mean['top1']['splits']} splits by {mean['label']}"
            lines.append(_line(name, [spread(mean["top1"]), spread(mean["top5"])], width))
    lines += unique_sizes(splits, "test", "train", "{} tested, {} trained on")
    return "\n".join(lines)


def confusion_table(record: Mapping[str, Any]) -> str:
    """Accuracy and confusion of each class of a probe: a row for each true class, a column for each answer."""
    lines = []
    for split in record["splits"]:
        numbers = [str(number) for number in range(len(split["classes"]))]
        cell = max(4, len(numbers[-1]) + 2)
        width = max(len(name) for name in split["classes"]) + len(numbers[-1]) + 6
        head = f"{split['split_column']} by {split['label']}"
        lines.append(head.ljust(width) + "%".rjust(_CELL) + "  " + "".join(n.rjust(cell) for n in numbers))
        for number, row in enumerate(split["per_class"]):
            share = figure({**row, "value": row["accuracy"]}) if row["test"] else "-"
            counts = "".join((str(count) if count else ".").rjust(cell) for count in split["confusion"][number])
            lines.append(f"  {number} {row['class']}".ljust(width) + share.rjust(_CELL) + "  " + counts)
    return "\n".join(lines)


def figure(value: Mapping[str, float]) -> str:
    """A share with its interval, in per cent."""
    return f"{100 * value['value']:.1f} ({100 * value['low']:.1f}-{100 * value['high']:.1f})"


def spread(value: Mapping[str, Any]) -> str:
    """A mean over splits with its spread, in per cent."""
    deviation = f" +- {100 * value['spread']:.1f}" if value["spread"] is not None else ""
    return f"{100 * value['value']:.1f}{deviation}"


def unique_sizes(splits: Sequence[Mapping[str, Any]], first: str, second: str, words: str) -> list[str]:
    """How many videos each split has on its two sides, a line for each split; one line if all agree."""
    sizes = {(split[first], split[second]) for split in splits}
    if len(sizes) == 1:
        return [words.format(*sizes.pop())]
    lines = [f"{s['split_column']} by {s['label']}: {words.format(s[first], s[second])}" for s in splits]
    return list(dict.fromkeys(lines))


def _line(name: str, cells: Sequence[str], width: int) -> str:
    return name.ljust(width) + "".join(cell.rjust(_CELL) for cell in cells)


def split_name(split: Mapping[str, Any]) -> str:
    """A split in words, with its parts if they are not the usual ones."""
    part = part_name(split)
    column = str(split["split_column"])
    return column if part in ("", "test / train") else f"{column} ({part})"


def part_name(split: Mapping[str, Any]) -> str:
    """The parts of a split that a result is of, tested or asking one first; empty for every video among all others."""
    if split["split_column"] == LEAVE_ONE_OUT:
        return ""
    tested = split.get("test_part", split.get("query_part"))
    return f"{tested} / {split.get('train_part', split.get('gallery_part'))}"
