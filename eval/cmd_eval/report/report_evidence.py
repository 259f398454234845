"""The evidence in a report: its tables, and the learning curves of its runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmd_eval.report.curves import Chart, Metrics, Series, accuracy_chart, loss_chart
from cmd_eval.report.inputs import METRICS_NAME, read_metrics
from cmd_eval.report.report_figures import Cell, Table, figure_cell, percent, words
from cmd_eval.report.tables import Block, interval_of_points

_CAPTIONS = {
    "label": "By label: test videos search the training videos of each split; a linear probe learns from these. "
    "Per cent over all tested videos of all splits and seeds; below, the 95 % interval over videos.",
    "group": "By group: each video searches all others. Per cent; below, the 95 % interval over videos.",
}
_DIFFERENCES = (
    "Paired differences over the same videos, in points; a difference is clear where its interval leaves out 0."
)
_SINGLE = {"context": "context head only", "motion": "motion head only"}

Record = Mapping[str, Any]


def evidence_blocks(record: Record) -> list[Block]:
    """Retrieval by label and by group, each split, paired differences, and the speed of extraction."""
    tables = [_kind_table(record, "label"), _split_table(record), _kind_table(record, "group")]
    tables.append(_difference_table(record["comparisons"]))
    if record["speed"]:
        tables.append(_speed_table(record["speed"]))
    blocks = [Block(table=table) for table in tables]
    return [*blocks[:-1], Block(table=tables[-1], notes=record["notes"])]


def _kind_table(record: Record, by: str) -> Table:
    chance = record["chance"][f"by_{by}"]
    rows = [
        [Cell(text=row["model"]), *(figure_cell(row[f"by_{by}"][measure]) for measure in chance)]
        for row in record["rows"]
    ]
    rows.append(words("chance", *map(percent, chance.values())))
    caption = f"{_CAPTIONS[by]} {record['videos'][f'by_{by}']} videos."
    return Table(caption=caption, columns=["features", *chance], rows=rows, quiet_rows=1)


def _split_table(record: Record) -> Table:
    columns = [split["split_column"] for split in record["rows"][0]["by_split"]]
    rows = []
    for row in record["rows"]:
        seeds = [percent(one["by_label"]["R@1"]) for one in row["by_seed"]]
        figures = [figure_cell(split["by_label"]["R@1"]) for split in row["by_split"]]
        rows.append([Cell(text=row["model"]), *figures, Cell(text=", ".join(seeds) if len(seeds) > 1 else "")])
    caption = "R@1 by label of each split, over seeds; and of each seed, over splits."
    return Table(caption=caption, columns=["features", *columns, "each seed"], rows=rows)


def _difference_table(comparisons: Sequence[Record]) -> Table:
    rows = []
    for one in comparisons:
        names = f"{one['first']} less {one['second']}", f"{one['by']}: {one['measure']}"
        rows.append(words(*names, interval_of_points(one["difference"])))
    return Table(caption=_DIFFERENCES, columns=["rows", "measure", "difference"], rows=rows, text_columns=2)


def _speed_table(speed: Sequence[Record]) -> Table:
    rows = [
        words(one["name"], str(one["versus"] or ""), str(one["machine"]), f"{one['value']:g} {one['unit']}")
        for one in speed
    ]
    caption = "Extraction, from the benchmarks. The paper claims more than 500 frames a second on a CPU."
    return Table(caption=caption, columns=["benchmark", "versus", "machine", "value"], rows=rows, text_columns=3)


def evidence_charts(records: Sequence[Record], folder: Path, left_out: list[str]) -> list[Chart]:
    """Loss and accuracies over steps: of both heads on each split, of either head alone over all splits.

    Args:
        records: results of kind ``evidence``; the newest counts.
        folder: the folder that runs are named relative to.
        left_out: gets a line for each run whose numbers cannot be read.
    """
    if not records:
        return []
    headline: dict[str, list[Metrics]] = defaultdict(list)
    single: dict[str, list[Metrics]] = defaultdict(list)
    for run in records[-1]["runs"]:
        try:
            lines = read_metrics(folder / run["run_dir"] / METRICS_NAME, needed=True)
        except (ValueError, OSError) as error:
            left_out.append(f"learning curves of {run['run_dir']}: {error}")
            continue
        if run["heads"] in _SINGLE.values():
            single[run["heads"]].append(lines)
        else:
            headline[run["split_column"]].append(lines)
    both = [(f"both heads, {column}", runs) for column, runs in headline.items()]
    charts = [loss_chart("Loss, both heads", [_mean_series(name, runs, "loss") for name, runs in both])]
    for head, alone in _SINGLE.items():
        key, runs = f"{head}_top1", [*both, (alone, single[alone])]
        counts = _mean_series("chance", [one for _, several in runs for one in several], f"{head}_candidates")
        title = f"{head.capitalize()} task, top-1"
        charts.append(accuracy_chart(title, [_mean_series(name, several, key) for name, several in runs], counts))
    return [chart for chart in charts if chart]


def _mean_series(name: str, runs: Sequence[Metrics], key: str) -> Series:
    """A quantity at each step, the mean over runs that have it there."""
    found: dict[float, list[float]] = defaultdict(list)
    for lines in runs:
        for line in lines:
            if key in line:
                found[line["step"]].append(line[key])
    steps = sorted(found)
    return Series(name=name, steps=steps, values=[sum(found[step]) / len(found[step]) for step in steps])
