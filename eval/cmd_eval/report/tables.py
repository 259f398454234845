"""Tables of the report: retrieval, probes, recognition, auxiliary loss, decoupling, published results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cmd_eval.features.readout import READOUTS
from cmd_eval.features.store import display_name
from cmd_eval.results.published import published_figures
from cmd_eval.results.schema import DEFAULT_CLIPS, LEAVE_ONE_OUT
from cmd_eval.results.tables import part_name, split_name

MISSING = _DASH = "\N{EN DASH}"

Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A table cell; ``note`` is shown below the text in a smaller font, for example an interval."""

    text: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table.

    Attributes:
        caption: description of the values.
        columns: column headings.
        rows: cells, one per column.
        text_columns: number of leading columns that hold text; the others hold numbers.
        quiet_rows: number of rows at the end that are for reference only (chance).
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    text_columns: int = 1
    quiet_rows: int = 0

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"rows: {len(row)} cells under {len(self.columns)} columns")

    @property
    def name(self) -> str:
        """The first sentence of the caption, by which screen readers announce the table."""
        return self.caption.partition(". ")[0].rstrip(".")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A table with collapsed detail tables and notes below it."""

    table: Table
    details: Sequence[Table] = ()
    notes: Sequence[str] = ()


def percent(share: float | None) -> str:
    """Format a share as a percentage with one decimal and without the sign; a dash if it is None."""
    return MISSING if share is None else f"{100 * share:.1f}"


def value_cell(value: Record | None) -> Cell:
    """Format a value with its interval as the note."""
    if value is None or value["value"] is None:
        return Cell(text=MISSING)
    if value.get("low") is None or value.get("high") is None:
        return Cell(text=percent(value["value"]))
    return Cell(text=percent(value["value"]), note=f"{percent(value['low'])}{_DASH}{percent(value['high'])}")


def mean_cell(mean: Record | None) -> Cell:
    """Format a mean over splits with the standard deviation as the note."""
    if mean is None or mean["value"] is None:
        return Cell(text=MISSING)
    spread = mean.get("spread")
    return Cell(text=percent(mean["value"]), note="" if spread is None else f"± {percent(spread)}")


def text_cells(*texts: str) -> list[Cell]:
    """Return cells without notes."""
    return [Cell(text=text) for text in texts]


def features_name(provenance: Record) -> str:
    """Return a short name for the features of a result."""
    standardized = ", standardized" if provenance.get("standardized") else ""
    if provenance["checkpoint"] is None:
        return display_name(str(provenance["features"])) + standardized
    clips = provenance.get("clips")
    ending = "" if clips in (None, DEFAULT_CLIPS) else f", {clips} clip{'s' if clips > 1 else ''} per video"
    if provenance.get("readout", "mean") != "mean":
        ending = f", readout {provenance['readout']}{ending}"
    precision = provenance.get("precision", "float32")
    ending += ("" if precision == "float32" else f", {precision}") + standardized
    if provenance["untrained"]:
        return f"untrained network{ending}"
    step = provenance["step"]
    return ("trained network" if step is None else f"trained network, step {step}") + ending


def trained_first(records: Sequence[Record]) -> list[Record]:
    """Return results of trained networks, of untrained ones and of other features, in this order.

    Results of the same kind of network are ordered by readout, and keep their order otherwise.
    """

    def rank(record: Record) -> tuple[int, int]:
        provenance = record["provenance"]
        readout = provenance.get("readout", "mean")
        order = list(READOUTS).index(readout) if readout in READOUTS else len(READOUTS)
        return (2 if provenance["checkpoint"] is None else int(provenance["untrained"])), order

    return sorted(records, key=rank)


def retrieval_blocks(records: Sequence[Record]) -> list[Block]:
    """Return one table per target and split, with R@k of all features and chance, and one with means over splits.

    Args:
        records: results of kind ``retrieval``, oldest first; the newest one of the same features is shown.
    """
    by_split: dict[tuple[str, ...], dict[str, tuple[Record, Record]]] = {}
    records = trained_first(records)
    for record in records:
        for split in record["splits"]:
            names = ("target", "split_column", "test_part", "train_part", "exclude_same")
            key = tuple(split.get(name) or "" for name in names)
            by_split.setdefault(key, {})[features_name(record["provenance"])] = (record, split)
    blocks = [_retrieval_block(by_name) for _, by_name in sorted(by_split.items(), key=_label_first)]
    blocks += _mean_blocks(records)
    # The notes describe the data, which all tables share.
    return [*blocks[:-1], replace(blocks[-1], notes=_notes(records))]


def _label_first(item: tuple[tuple[str, ...], Any]) -> tuple[bool, tuple[str, ...]]:
    return item[0][0] != "label", item[0]


def _features_cells(provenance: Record) -> list[Cell]:
    """Return cells with the name of features and their readout; hand-crafted and imported features have none."""
    if provenance["checkpoint"] is None:
        return text_cells(features_name(provenance), "")
    readout = str(provenance.get("readout", "mean"))
    return text_cells(features_name({**provenance, "readout": "mean"}), readout)


def _retrieval_block(by_name: Mapping[str, tuple[Record, Record]]) -> Block:
    first = next(iter(by_name.values()))[1]
    ranks = list(first["recall"])
    rows = [
        [*_features_cells(record["provenance"]), *(value_cell(split["recall"].get(rank)) for rank in ranks)]
        for record, split in by_name.values()
    ]
    rows.append(text_cells("chance", "", *(percent(first["chance"].get(rank)) for rank in ranks)))
    if first["split_column"] == LEAVE_ONE_OUT:
        sizes = f"{first['queries']} queries, each against all other videos"
    else:
        sizes = f"{first['queries']} queries ({first['test_part']}), {first['gallery']} gallery videos"
        sizes = f"{first['split_column']}, {sizes} ({first['train_part']})"
    sizes += _exclusion(first)
    target = first["target"]
    caption = (
        f"Retrieval by {target}: {sizes}. Percent of the queries with a video of the same {target} among the k "
        "nearest, with 95 % interval over groups of videos, if there are any."
    )
    table = Table(caption=caption, columns=["features", "readout", *ranks], rows=rows, quiet_rows=1, text_columns=2)
    details = [_class_recall_table(name, split) for name, (_, split) in by_name.items() if split["per_class"]]
    return Block(table=table, details=details)


def _exclusion(split: Record) -> str:
    return f", without videos of the query's {split['exclude_same']}" if split.get("exclude_same") else ""


def _class_recall_table(name: str, split: Record) -> Table:
    ranks = list(split["per_class"][0]["recall"])
    rows = [
        text_cells(item["class"], str(item["queries"]), *(percent(_value(item["recall"][rank])) for rank in ranks))
        for item in split["per_class"]
    ]
    caption = f"Recall per {split['target']} (%): {name}, {split_name(split)}."
    return Table(caption=caption, columns=[split["target"], "queries", *ranks], rows=rows)


def _value(value: Any) -> float | None:
    """Return a bare number, or the value of a value with an interval."""
    number: float | None = value["value"] if isinstance(value, Mapping) else value
    return number


def _mean_blocks(records: Sequence[Record]) -> list[Block]:
    rows: dict[tuple[Any, ...], list[Cell]] = {}
    ranks: list[str] = []
    for record in records:
        for mean in record["mean"]:
            splits = max(value["splits"] for value in mean["recall"].values())
            if splits > 1:
                ranks = list(mean["recall"])
                name = f"{features_name(record['provenance'])}, by {mean['target']}{_exclusion(record['splits'][0])}"
                cells = [Cell(text=name), Cell(text=str(splits)), *map(mean_cell, mean["recall"].values())]
                rows[name, _result_key(record)] = cells
    if not rows:
        return []
    caption = "Mean over splits. Percent, with the standard deviation between splits."
    return [Block(table=Table(caption=caption, columns=["features", "splits", *ranks], rows=list(rows.values())))]


def accuracy_block(records: Sequence[Record], caption: str) -> Block:
    """Return a table of top-1 and top-5 of probes or fine-tuned networks, one row per split.

    Args:
        records: results of kind ``probe`` or ``recognition``, oldest first; the newest one of the same splits, method
            and network is shown.
        caption: caption of the table.
    """
    rows: list[list[Cell]] = []
    details = []
    records = trained_first(records)
    newest = newest_splits(records)
    last_with_key = {_result_key(record): record for record in records}
    for record in records:
        for split in [split for owner, split in newest if owner is record]:
            name = f"{method_name(record)}, {features_name(split.get('provenance') or record['provenance'])}"
            rows.append(_accuracy_row(name, split))
            if split.get("per_class"):
                details.append(_class_accuracy_table(name, split))
        if last_with_key[_result_key(record)] is record:
            name = f"{method_name(record)}, {features_name(record['provenance'])}, mean"
            rows += [_mean_row(name, mean) for mean in record.get("mean") or () if mean["top1"]["splits"] > 1]
    columns = ["method", "by", "split", "train", "test", "top-1", "top-5", "chance"]
    table = Table(caption=caption, columns=columns, rows=rows, text_columns=3)
    return Block(table=table, details=details, notes=_notes(records))


def method_name(record: Record) -> str:
    """Return the display name of a probe or of fine-tuning."""
    names = {"knn": "k-NN", "logistic": "logistic regression", "sgd": "linear probe (SGD)", "finetuned": "fine-tuned"}
    return names.get(record["method"], str(record["method"]))


def newest_splits(records: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Return results with their splits, only the newest for the same split, method and network.

    Args:
        records: results of kind ``probe`` or ``recognition``, oldest first.
    """
    found: dict[tuple[Any, ...], tuple[Record, Record]] = {}
    for record in records:
        for split in record["splits"]:
            provenance = split.get("provenance") or record["provenance"]
            network = (features_name(provenance), provenance["checkpoint_sha256"])
            found[record["method"], *network, *_split_key(split)] = (record, split)
    return list(found.values())


def _split_key(split: Record) -> tuple[str, ...]:
    return split["target"], split["split_column"], part_name(split), split.get("exclude_same") or ""


def _result_key(record: Record) -> tuple[Any, ...]:
    """Return a grouping key: of results with equal keys, only the newest is shown."""
    provenance = record["provenance"]
    network = (features_name(provenance), provenance["checkpoint_sha256"])
    return record.get("method"), *network, *(_split_key(split) for split in record["splits"])


def _notes(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(note for record in records for note in record.get("notes") or ()))


def _accuracy_row(name: str, split: Record) -> list[Cell]:
    chosen = ", ".join(f"{knob} = {value:g}" for knob, value in (split.get("chosen") or {}).items())
    return [
        Cell(text=name, note=chosen),
        Cell(text=split["target"]),
        Cell(text=split["split_column"], note=part_name(split)),
        # A fine-tuned network may not record its number of training videos.
        *text_cells(str(split.get("train", MISSING)), str(split["test"])),
        value_cell(split["top1"]),
        value_cell(split.get("top5")),
        Cell(text=percent(split["chance"])),
    ]


def _mean_row(name: str, mean: Record) -> list[Cell]:
    return [
        *text_cells(name, str(mean.get("target", "")), f"{mean['top1']['splits']} splits", "", ""),
        mean_cell(mean["top1"]),
        mean_cell(mean.get("top5")),
        Cell(text=""),
    ]


def _class_accuracy_table(name: str, split: Record) -> Table:
    rows = [text_cells(item["class"], str(item["test"]), percent(item["accuracy"])) for item in split["per_class"]]
    caption = f"Accuracy per {split['target']} (%): {name}, {split_name(split)}."
    return Table(caption=caption, columns=["class", "test videos", "accuracy"], rows=rows)


def auxiliary_block(record: Record) -> Block:
    """Return a table of supervised runs with and without motion prediction, and their difference."""
    pairs: dict[tuple[int, str], dict[str, Record]] = {}
    for run in record["runs"]:
        pairs.setdefault((run["seed"], run["split_column"]), {})[run["auxiliary"]] = run["top1"]
    rows = []
    for (seed, split), tops in sorted(pairs.items()):
        without, with_motion = tops.get("none"), tops.get("motion")
        before, after = (_value(top) for top in (without, with_motion))
        gain = MISSING if before is None or after is None else points(after - before)
        rows.append([*text_cells(str(seed), split), value_cell(without), value_cell(with_motion), Cell(text=gain)])
    caption = (
        "Top-1 (%) of supervised training from scratch, without and with motion prediction as an auxiliary loss. "
        f"Mean difference {points_with_interval(record['difference'])} over {record['pairs']} pairs of runs."
    )
    columns = ["seed", "split", "without", "with motion", "difference"]
    table = Table(caption=caption, columns=columns, rows=rows, text_columns=2)
    return Block(table=table, notes=_notes([record]))


def points(share: float) -> str:
    """Format a difference of shares in percentage points, with its sign."""
    return f"{100 * share:+.1f}"


def points_with_interval(value: Record) -> str:
    """Format a difference of shares and its interval in percentage points."""
    if value.get("value") is None:
        return "unknown"
    text = f"{points(value['value'])} points"
    if value.get("low") is None or value.get("high") is None:
        return text
    return f"{text} (95 % interval {points(value['low'])} to {points(value['high'])})"


def decoupling_block(record: Record) -> Block:
    """Return a table of retrieval and probe by label and by context, for networks with one head or both."""
    parts = (("by_label", "retrieval"), ("by_label", "probe"), ("by_context", "retrieval"), ("by_context", "probe"))
    rows = [
        [Cell(text=row["model"]), *(value_cell(row[by].get(measure)) for by, measure in parts)]
        for row in record["rows"]
    ]
    chance = record["chance"]
    rows.append([Cell(text="chance"), *(Cell(text=percent(_value(chance[by].get(measure)))) for by, measure in parts)])
    columns = ["network", "label: R@1", "label: probe", "context: R@1", "context: probe"]
    caption = (
        "Do the two tasks separate? Percent, with 95 % interval over groups, by motion label and by context (the "
        "group). The motion head should raise the first two columns, the context head the last two."
    )
    return Block(table=Table(caption=caption, columns=columns, rows=rows, quiet_rows=1), notes=_notes([record]))


def published_table(dataset: str | None, measures: Sequence[str]) -> Table:
    """Return published results, with a caption that says whether they are on the same data.

    Args:
        dataset: the evaluated dataset if it is a published one, else None.
        measures: measures to show.
    """
    datasets = [dataset] if dataset else ["UCF101", "HMDB51"]
    chosen = [
        f for f in published_figures() if f.measure in measures and any(name in f.by_dataset for name in datasets)
    ]
    rows = [
        [
            *text_cells(row.measure, row.method, row.backbone, f"{row.input_px} px" if row.input_px else MISSING),
            Cell(text=row.pretrained_on or MISSING),
            *text_cells(*(percent(row.by_dataset.get(name)) for name in datasets)),
        ]
        for row in chosen
    ]
    sources = "; ".join(dict.fromkeys(f"{row.method}: {row.source}" for row in chosen))
    same = f"Published results (%) on {dataset}, the dataset of this report, split 1."
    other = "Published results (%), for context only: they are on other data than this report and cannot be compared."
    columns = ["measure", "method", "backbone", "input", "pre-trained on", *datasets]
    caption = f"{same if dataset else other} Sources: {sources}."
    return Table(caption=caption, columns=columns, rows=rows, text_columns=5)
