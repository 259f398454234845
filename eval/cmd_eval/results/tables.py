"""Results as tables: figures in percent with their 95 % intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cmd_eval.results.schema import LEAVE_ONE_OUT
from cmd_extract.console.tables import format_table

CLAIMED_FPS = 500
"""Extraction speed on a CPU claimed by the paper, in frames per second."""

Record = Mapping[str, Any]
Format = Callable[[Sequence[str], Sequence[Sequence[str]]], str]
"""``format_table`` or ``format_markdown``."""


def interval_heading(values: Iterable[Record]) -> str:
    """Return ``% (95 % interval over 14 groups)`` for figures with intervals over these units."""
    units = dict.fromkeys(f"{value['units']} {value['unit']}" for value in values)
    return f"% (95 % interval over {', '.join(units)})"


def retrieval_table(record: Record) -> str:
    """Format R@k of a retrieval result: a row for each split, chance below it, and the means over splits."""
    splits = record["splits"]
    ranks = list(splits[0]["recall"])
    rows = []
    for split in splits:
        rows.append([_row_name(split), *(format_share(split["recall"][rank]) for rank in ranks)])
        rows.append(["  chance", *(format_percent(split["chance"][rank]) for rank in ranks)])
    for mean in record["mean"]:
        splits_averaged = mean["recall"][ranks[0]]["splits"]
        if splits_averaged > 1:
            name = f"mean of {splits_averaged} splits by {mean['target']}"
            rows.append([name, *(format_mean(mean["recall"][rank]) for rank in ranks)])
    sizes = _split_sizes(splits, "queries", "gallery", "{} queries, {} in the gallery")
    heading = interval_heading(split["recall"][ranks[0]] for split in splits)
    return "\n".join([format_table([heading, *ranks], rows), *sizes])


def class_table(record: Record) -> str:
    """Format R@1 and R@5 of each class of a retrieval result."""
    tables = []
    for split in record["splits"]:
        ranks = list(split["per_class"][0]["recall"])
        rows = [
            [item["class"], str(item["queries"]), *(format_share(item["recall"][rank]) for rank in ranks)]
            for item in split["per_class"]
        ]
        tables.append(format_table([_row_name(split), "queries", *ranks], rows))
    return "\n".join(tables)


def probe_table(record: Record) -> str:
    """Format top-1 and top-5 accuracy of a probe: a row for each split, and the means over splits."""
    splits = record["splits"]
    rows = []
    for split in splits:
        chosen = ", ".join(f"{key} = {value:g}" for key, value in split["chosen"].items())
        figures = format_share(split["top1"]), format_share(split["top5"]), format_percent(split["chance"])
        rows.append([_row_name(split), *figures, chosen])
        for few in split.get("low_label", ()):
            name = f"  {few['percent']:g} % of the labels, {len(few['draws'])} draws"
            rows.append([name, format_mean(few["top1"])])
    for mean in record["mean"]:
        if mean["top1"]["splits"] > 1:
            name = f"mean of {mean['top1']['splits']} splits by {mean['target']}"
            rows.append([name, format_mean(mean["top1"]), format_mean(mean["top5"])])
    heading = interval_heading(split["top1"] for split in splits)
    columns = [f"{record['method']}, {heading}", "top-1", "top-5", "chance", "chosen"]
    sizes = _split_sizes(splits, "test", "train", "{} test videos, {} training videos")
    return "\n".join([format_table(columns, rows), *sizes])


def confusion_table(record: Record) -> str:
    """Format accuracy and confusion matrix of a probe: a row for each true class, a column for each prediction."""
    tables = []
    for split in record["splits"]:
        rows = []
        for number, row in enumerate(split["per_class"]):
            share = format_share({**row, "value": row["accuracy"]}) if row["test"] else "-"
            counts = (str(count) if count else "." for count in split["confusion"][number])
            rows.append([f"{number} {row['class']}", share, *counts])
        tables.append(format_table([_row_name(split), "%", *map(str, range(len(rows)))], rows))
    return "\n".join(tables)


def evidence_table(record: Record, format: Format = format_table) -> str:
    """Format a result of ``cmd-eval evidence``: retrieval and probes, differences, and the other two claims."""
    tables = [
        *(_evidence_table(record, target, format) for target in ("label", "group")),
        _by_split_table(record, format),
        _difference_table(record, format),
        "\n".join([*_auxiliary_lines(record["auxiliary"]), *_speed_lines(record["speed"])]),
    ]
    return "\n\n".join(tables)


def _evidence_table(record: Record, target: str, format: Format) -> str:
    unit = interval_heading(record["rows"][0][f"by_{target}"].values())
    heading = {"label": "by label, over splits", "group": "by group, leave-one-out"}[target]
    heading += f", {record['videos'][f'by_{target}']} videos, {unit}"
    chance = record["chance"][f"by_{target}"]
    rows = [
        [_features_name(row), *(format_share(row[f"by_{target}"][measure]) for measure in chance)]
        for row in record["rows"]
    ]
    return format([heading, *chance], [*rows, ["chance", *map(format_percent, chance.values())]])


def _features_name(row: Record) -> str:
    return f"{row['model']}, {row['readout']}" if row["readout"] else row["model"]


def _by_split_table(record: Record, format: Format) -> str:
    columns = [split["split_column"] for split in record["rows"][0]["by_split"]]
    rows = []
    for row in record["rows"]:
        seeds = [format_percent(seed["by_label"]["R@1"]) for seed in row["by_seed"]]
        shares = [split["by_label"]["R@1"]["value"] for split in row["by_split"]]
        cells = map(format_percent, [*shares, sum(shares) / len(shares)])
        rows.append([_features_name(row), *cells, " ".join(seeds) if len(seeds) > 1 else ""])
    return format(["R@1 by label, per split", *columns, "mean of splits", "per seed"], rows)


def _difference_table(record: Record, format: Format) -> str:
    rows: dict[tuple[str, str, str], list[str]] = {}
    for item in record["comparisons"]:
        key = item["first"], item["second"], item["readout"]
        rows.setdefault(key, []).append(format_difference(item["difference"]))
    columns = dict.fromkeys(f"{item['target']}: {item['measure']}" for item in record["comparisons"])
    return format(
        ["paired difference, percentage points", *columns],
        [[f"{first} minus {second}, {readout}", *cells] for (first, second, readout), cells in rows.items()],
    )


def _auxiliary_lines(auxiliary: Record | None) -> list[str]:
    if auxiliary is None:
        return ["motion prediction as an auxiliary task: not measured"]
    mean, pretraining = auxiliary["mean"], auxiliary["pretraining"]
    lines = [
        f"motion prediction as an auxiliary task changes supervised top-1 by "
        f"{format_difference(auxiliary['difference'])} percentage points, from {format_percent(mean['none']['value'])} "
        f"% to {format_percent(mean['motion']['value'])} % ({auxiliary['pairs']} pairs of runs; "
        "published: +7.4 to +13.8)"
    ]
    if pretraining is not None:
        lines.append(
            f"starting from the pre-trained weights (both heads) changes it by "
            f"{format_difference(pretraining['difference'])} percentage points, to "
            f"{format_percent(mean['pretrained']['value'])} % ({pretraining['pairs']} pairs of runs)"
        )
    return lines


def _speed_lines(speed: Sequence[Record] | None) -> list[str]:
    if speed is None:
        return ["extraction speed: not measured; pass the benchmark results with --bench"]
    lines = [f"{item['name']}: {item['value']:g} {item['unit']} ({item['machine']})" for item in speed]
    return [*lines, f"claimed by the paper: more than {CLAIMED_FPS} frames per second on a CPU"]


def format_percent(share: float) -> str:
    """Format a fraction in percent."""
    return f"{100 * share:.1f}"


def format_share(value: Mapping[str, float]) -> str:
    """Format a fraction with its interval, in percent."""
    return f"{100 * value['value']:.1f} ({100 * value['low']:.1f}-{100 * value['high']:.1f})"


def format_mean(value: Record) -> str:
    """Format a mean over splits with its standard deviation, in percent."""
    deviation = f" +- {100 * value['spread']:.1f}" if value["spread"] is not None else ""
    return f"{100 * value['value']:.1f}{deviation}"


def format_difference(value: Mapping[str, float]) -> str:
    """Format a difference of fractions with its interval, in signed percentage points."""
    return f"{100 * value['value']:+.1f} ({100 * value['low']:+.1f}..{100 * value['high']:+.1f})"


def split_name(split: Record) -> str:
    """Return the name of a split, with what is excluded, and with its parts unless they are ``test`` and ``train``."""
    part = part_name(split)
    column = str(split["split_column"])
    if split.get("exclude_same"):
        column += f" without the same {split['exclude_same']}"
    return column if part in ("", "test / train") else f"{column} ({part})"


def part_name(split: Record) -> str:
    """Return the test part and the training part of a split; empty for leave-one-out."""
    return "" if split["split_column"] == LEAVE_ONE_OUT else f"{split['test_part']} / {split['train_part']}"


def _row_name(split: Record) -> str:
    return f"{split['split_column']} by {split['target']}"


def _split_sizes(splits: Sequence[Record], first: str, second: str, template: str) -> list[str]:
    """Format the numbers of videos on the two sides: one line if all splits agree, else one for each split."""
    sizes = {(split[first], split[second]) for split in splits}
    if len(sizes) == 1:
        return [template.format(*sizes.pop())]
    lines = [f"{_row_name(split)}: {template.format(split[first], split[second])}" for split in splits]
    return list(dict.fromkeys(lines))
