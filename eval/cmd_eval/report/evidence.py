"""Tables and learning curves of ``cmd-eval evidence`` in the report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cmd_eval.report.curves import Chart, Metrics, Series, accuracy_chart, loss_chart
from cmd_eval.report.inputs import METRICS_NAME, read_metrics
from cmd_eval.report.tables import Block, Cell, Record, Table, percent, points_with_interval, text_cells, value_cell

_CAPTIONS = {
    "label": "By label: test videos of each split are queries, its training videos the gallery; the probe (logistic "
    "regression) is trained on the latter. Percent of the test videos over all splits and seeds, with 95 % interval "
    "over groups of videos.",
    "group": "By group, leave-one-out: each video is a query against all others. Percent, with 95 % interval over "
    "groups of videos.",
}
_DIFFERENCES = "Paired differences over the same videos, in points, with 95 % interval over groups of videos."
_FEATURES = ("features", "readout")
_BOTH_HEADS = "both heads"
_SINGLE_HEADS = {"context": "context head only", "motion": "motion head only"}


def evidence_blocks(record: Record) -> list[Block]:
    """Return tables of retrieval by label and by group, of single splits, of differences and of extraction speed."""
    tables = [_target_table(record, "label"), _split_table(record), _target_table(record, "group")]
    tables.append(_difference_table(record["comparisons"]))
    if record["speed"]:
        tables.append(_speed_table(record["speed"]))
    blocks = [Block(table=table) for table in tables]
    return [*blocks[:-1], Block(table=tables[-1], notes=record["notes"])]


def _target_table(record: Record, target: str) -> Table:
    chance = record["chance"][f"by_{target}"]
    rows = [
        [*_features_cells(row), *(value_cell(row[f"by_{target}"][measure]) for measure in chance)]
        for row in record["rows"]
    ]
    rows.append(text_cells("chance", "", *map(percent, chance.values())))
    caption = f"{_CAPTIONS[target]} {record['videos'][f'by_{target}']} videos."
    return Table(caption=caption, columns=[*_FEATURES, *chance], rows=rows, quiet_rows=1, text_columns=2)


def _features_cells(row: Record) -> list[Cell]:
    return text_cells(row["model"], row["readout"] or "")


def _split_table(record: Record) -> Table:
    columns = [split["split_column"] for split in record["rows"][0]["by_split"]]
    rows = []
    for row in record["rows"]:
        seeds = [percent(one["by_label"]["R@1"]) for one in row["by_seed"]]
        values = [value_cell(split["by_label"]["R@1"]) for split in row["by_split"]]
        rows.append([*_features_cells(row), *values, Cell(text=", ".join(seeds) if len(seeds) > 1 else "")])
    caption = "R@1 by label (%): each split over all seeds, and each seed over all splits."
    return Table(caption=caption, columns=[*_FEATURES, *columns, "each seed"], rows=rows, text_columns=2)


def _difference_table(comparisons: Sequence[Record]) -> Table:
    rows = []
    for one in comparisons:
        names = f"{one['first']} minus {one['second']}", one["readout"], f"{one['target']}: {one['measure']}"
        rows.append(text_cells(*names, points_with_interval(one["difference"])))
    return Table(caption=_DIFFERENCES, columns=["rows", "readout", "measure", "difference"], rows=rows, text_columns=3)


def _speed_table(speed: Sequence[Record]) -> Table:
    rows = [
        text_cells(one["name"], str(one["versus"] or ""), str(one["machine"]), f"{one['value']:g} {one['unit']}")
        for one in speed
    ]
    caption = "Extraction speed, from the benchmarks. The paper claims more than 500 frames per second on a CPU."
    return Table(caption=caption, columns=["benchmark", "versus", "machine", "value"], rows=rows, text_columns=3)


def evidence_charts(records: Sequence[Record], folder: Path, left_out: list[str]) -> list[Chart]:
    """Return charts of loss and accuracy: with both heads for each split, with a single head over all splits.

    Args:
        records: results of kind ``evidence``, oldest first; the newest is shown.
        folder: folder to which run folders are relative.
        left_out: receives a line for each run whose metrics cannot be read.
    """
    if not records:
        return []
    both_heads: dict[str, list[Metrics]] = defaultdict(list)
    single_head: dict[str, list[Metrics]] = defaultdict(list)
    for run in records[-1]["runs"]:
        try:
            lines = read_metrics(folder / run["run_dir"] / METRICS_NAME, needed=True)
        except (ValueError, OSError) as error:
            left_out.append(f"learning curves of {run['run_dir']}: {error}")
            continue
        if run["network"] == _BOTH_HEADS:
            both_heads[run["split_column"]].append(lines)
        else:
            single_head[run["network"]].append(lines)
    both = [(f"{_BOTH_HEADS}, {column}", runs) for column, runs in both_heads.items()]
    charts = [loss_chart("Loss, both heads", [_mean_series(name, runs, "loss") for name, runs in both])]
    for head, name in _SINGLE_HEADS.items():
        rows = [*both, (name, single_head[name])]
        runs_of_all = [lines for _, runs in rows for lines in runs]
        counts = _mean_series("chance", runs_of_all, f"{head}_candidates")
        majority = replace(_mean_series("most frequent direction", runs_of_all, f"{head}_majority"), dashed=True)
        series = [*(_mean_series(name, runs, f"{head}_top1") for name, runs in rows), majority]
        charts.append(accuracy_chart(f"{head.capitalize()} task, top-1", series, counts))
    return [chart for chart in charts if chart]


def _mean_series(name: str, runs: Sequence[Metrics], key: str) -> Series:
    """Average a metric at each step over the runs that have it."""
    found: dict[float, list[float]] = defaultdict(list)
    for lines in runs:
        for line in lines:
            if key in line:
                found[line["step"]].append(line[key])
    steps = sorted(found)
    return Series(name=name, steps=steps, values=[sum(found[step]) / len(found[step]) for step in steps])
