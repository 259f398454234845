"""Results to tables: retrieval, probes, recognition, the auxiliary task, decoupling, published figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cmd_eval.report.report_figures import MISSING, Cell, Table, features_name, figure_cell, percent, spread_cell, words
from cmd_eval.results.published import PUBLISHED
from cmd_eval.results.schema import LEAVE_ONE_OUT
from cmd_eval.results.tables import part_name, split_name

Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Block:
    """A table that is shown, and tables that unfold below it.

    Attributes:
        table: shown.
        details: unfold.
        notes: what to know of the figures, a line each.
    """

    table: Table
    details: Sequence[Table] = ()
    notes: Sequence[str] = ()


def retrieval_blocks(records: Sequence[Record]) -> list[Block]:
    """A table for each question (label kind and split): R@k of all features that were asked it, and chance.

    Args:
        records: results of kind ``retrieval``, oldest first; of two with the same features the newer one counts.
    """
    questions: dict[tuple[str, ...], dict[str, Record]] = {}
    for record in records:
        for split in record["splits"]:
            key = tuple(split[name] for name in ("label", "split_column", "query_part", "gallery_part"))
            questions.setdefault(key, {})[features_name(record["provenance"])] = split
    blocks = [_retrieval_block(by_name) for _, by_name in sorted(questions.items(), key=_label_first)]
    blocks += _mean_blocks(records)
    # The notes are of the data, which the tables share.
    return [*blocks[:-1], replace(blocks[-1], notes=_notes(records))]


def _label_first(item: tuple[tuple[str, ...], Any]) -> tuple[bool, tuple[str, ...]]:
    return item[0][0] != "label", item[0]


def _trained_first(item: tuple[str, Any]) -> int:
    return next((n for n, word in enumerate(("trained network", "the same")) if item[0].startswith(word)), 2)


def _retrieval_block(by_name: Mapping[str, Record]) -> Block:
    ordered = sorted(by_name.items(), key=_trained_first)
    first = ordered[0][1]
    ranks = list(first["recall"])
    rows = [[Cell(text=name), *(figure_cell(split["recall"].get(rank)) for rank in ranks)] for name, split in ordered]
    rows.append(words("chance", *(percent(first["chance"].get(rank)) for rank in ranks)))
    if first["split_column"] == LEAVE_ONE_OUT:
        who = f"each of {first['queries']} videos searches all others"
    else:
        who = f"{first['queries']} videos ({first['query_part']}) search {first['gallery']} ({first['gallery_part']})"
    caption = (
        f"By {first['label']}, {first['split_column']}: {who}. Per cent that find their {first['label']} among the k "
        "nearest; below, the 95 % interval."
    )
    table = Table(caption=caption, columns=["features", *ranks], rows=rows, quiet_rows=1)
    details = [_class_recall_table(name, split) for name, split in ordered if split["per_class"]]
    return Block(table=table, details=details)


def _class_recall_table(name: str, split: Record) -> Table:
    ranks = list(split["per_class"][0]["recall"])
    rows = [
        words(item["class"], str(item["queries"]), *(percent(_value(item["recall"][rank])) for rank in ranks))
        for item in split["per_class"]
    ]
    caption = f"Per cent of the queries of each {split['label']}: {name}, {split_name(split)}."
    return Table(caption=caption, columns=[split["label"], "queries", *ranks], rows=rows)


def _value(figure: Any) -> float | None:
    """A bare number, or the value of a figure with an interval."""
    value: float | None = figure["value"] if isinstance(figure, Mapping) else figure
    return value


def _mean_blocks(records: Sequence[Record]) -> list[Block]:
    rows: dict[tuple[Any, ...], list[Cell]] = {}
    ranks: list[str] = []
    for record in records:
        for mean in record["mean"]:
            splits = max(figure["splits"] for figure in mean["recall"].values())
            if splits > 1:
                ranks = list(mean["recall"])
                name = f"{features_name(record['provenance'])}, by {mean['label']}"
                cells = [Cell(text=name), Cell(text=str(splits)), *map(spread_cell, mean["recall"].values())]
                rows[name, _question_key(record)] = cells
    if not rows:
        return []
    caption = "Mean over splits (%); below, the standard deviation between them."
    return [Block(table=Table(caption=caption, columns=["features", "splits", *ranks], rows=list(rows.values())))]


def accuracy_block(records: Sequence[Record], caption: str) -> Block:
    """Top-1 and top-5 of probes or of fine-tuned networks, a row for each split.

    Args:
        records: results of kind ``probe`` or ``recognition``, oldest first; of two of the same question, method and
            network the newer one counts.
        caption: what the table shows.
    """
    rows: list[list[Cell]] = []
    details = []
    newest = newest_splits(records)
    last_of = {_question_key(record): record for record in records}
    for record in records:
        for split in [split for owner, split in newest if owner is record]:
            name = f"{method_name(record)}, {features_name(split.get('provenance') or record['provenance'])}"
            rows.append(_accuracy_row(name, split))
            if split.get("per_class"):
                details.append(_class_accuracy_table(name, split))
        if last_of[_question_key(record)] is record:
            name = f"{method_name(record)}, {features_name(record['provenance'])}, mean"
            rows += [_mean_row(name, mean) for mean in record.get("mean") or () if mean["top1"]["splits"] > 1]
    columns = ["method", "by", "split", "train", "test", "top-1", "top-5", "chance"]
    table = Table(caption=caption, columns=columns, rows=rows, text_columns=3)
    return Block(table=table, details=details, notes=_notes(records))


def method_name(record: Record) -> str:
    """The classifier of a probe or a fine-tuned network, in words."""
    return {"knn": "k-NN", "finetuned": "fine-tuned"}.get(record["method"], str(record["method"]))


def newest_splits(records: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Results and their splits without those of which there is a newer one: same question, method and network.

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
    return split["label"], split["split_column"], part_name(split)


def _question_key(record: Record) -> tuple[Any, ...]:
    """What two results must have in common for the newer one to count alone."""
    provenance = record["provenance"]
    network = (features_name(provenance), provenance["checkpoint_sha256"])
    return record.get("method"), *network, *(_split_key(split) for split in record["splits"])


def _notes(records: Sequence[Record]) -> list[str]:
    """What results say of their data, each line once."""
    return list(dict.fromkeys(note for record in records for note in record.get("notes") or ()))


def _accuracy_row(name: str, split: Record) -> list[Cell]:
    chosen = ", ".join(f"{knob} = {value:g}" for knob, value in (split.get("chosen") or {}).items())
    return [
        Cell(text=name, note=chosen),
        # A fine-tuned network was trained elsewhere; its result need not know on how many videos.
        Cell(text=split["label"]),
        Cell(text=split["split_column"], note=part_name(split)),
        *words(str(split.get("train", MISSING)), str(split["test"])),
        figure_cell(split["top1"]),
        figure_cell(split.get("top5")),
        Cell(text=percent(split["chance"])),
    ]


def _mean_row(name: str, mean: Record) -> list[Cell]:
    return [
        *words(name, str(mean.get("label", "")), f"{mean['top1']['splits']} splits", "", ""),
        spread_cell(mean["top1"]),
        spread_cell(mean.get("top5")),
        Cell(text=""),
    ]


def _class_accuracy_table(name: str, split: Record) -> Table:
    rows = [words(item["class"], str(item["test"]), percent(item["accuracy"])) for item in split["per_class"]]
    caption = f"Accuracy (%) per {split['label']}: {name}, {split_name(split)}."
    return Table(caption=caption, columns=["class", "test videos", "accuracy"], rows=rows)


def auxiliary_block(record: Record) -> Block:
    """Supervised runs with and without motion prediction, side by side, and their difference."""
    pairs: dict[tuple[int, str], dict[str, Record]] = {}
    for run in record["runs"]:
        pairs.setdefault((run["seed"], run["split_column"]), {})[run["auxiliary"]] = run["top1"]
    rows = []
    for (seed, split), tops in sorted(pairs.items()):
        without, with_motion = tops.get("none"), tops.get("motion")
        before, after = (_value(top) for top in (without, with_motion))
        gain = MISSING if before is None or after is None else points(after - before)
        rows.append([*words(str(seed), split), figure_cell(without), figure_cell(with_motion), Cell(text=gain)])
    caption = (
        "Top-1 (%) of supervised training from scratch, without and with motion prediction as a further loss. "
        f"Mean difference {interval_of_points(record['difference'])} over {record['pairs']} pairs of runs."
    )
    columns = ["seed", "split", "without", "with motion", "difference"]
    table = Table(caption=caption, columns=columns, rows=rows, text_columns=2)
    return Block(table=table, notes=_notes([record]))


def points(share: float) -> str:
    """A difference of shares in points of per cent, signed."""
    return f"{100 * share:+.1f}"


def interval_of_points(figure: Record) -> str:
    """A difference with its interval, in words."""
    if figure.get("value") is None:
        return "not known"
    text = f"{points(figure['value'])} points"
    if figure.get("low") is None or figure.get("high") is None:
        return text
    return f"{text} (95 % interval {points(figure['low'])} to {points(figure['high'])})"


def decoupling_block(record: Record) -> Block:
    """Retrieval and probe by motion label and by context, for networks with both heads or one."""
    parts = (("by_label", "retrieval"), ("by_label", "probe"), ("by_context", "retrieval"), ("by_context", "probe"))
    rows = [
        [Cell(text=row["model"]), *(figure_cell(row[by].get(measure)) for by, measure in parts)]
        for row in record["rows"]
    ]
    chance = record["chance"]
    rows.append([Cell(text="chance"), *(Cell(text=percent(_value(chance[by].get(measure)))) for by, measure in parts)])
    columns = ["network", "label: R@1", "label: probe", "context: R@1", "context: probe"]
    caption = (
        "Do the two tasks separate? Per cent, with 95 % intervals: by motion label, and by context (the group). A head "
        "that teaches motion should raise the first two columns, one that teaches context the last two."
    )
    return Block(table=Table(caption=caption, columns=columns, rows=rows, quiet_rows=1), notes=_notes([record]))


def published_table(dataset: str | None, measures: Sequence[str]) -> Table:
    """Published figures, with a caption that says whether they are of the same data.

    Args:
        dataset: the data set that was evaluated, if it is one of theirs.
        measures: which ones to show.
    """
    datasets = [dataset] if dataset else ["UCF101", "HMDB51"]
    chosen = [f for f in PUBLISHED if f.measure in measures and any(name in f.by_dataset for name in datasets)]
    rows = [
        [
            *words(figure.measure, f"{figure.method} {figure.backbone}".strip(), figure.pretrained_on),
            *words(*(percent(figure.by_dataset.get(name)) for name in datasets)),
        ]
        for figure in chosen
    ]
    sources = "; ".join(dict.fromkeys(f"{figure.method}: {figure.source}" for figure in chosen))
    same = f"Published figures (%) of {dataset}, the data set of this report, split 1."
    other = "Published figures (%), for context only: they are of other data than this report and cannot be compared."
    columns = ["measure", "method", "pre-trained on", *datasets]
    caption = f"{same if dataset else other} Sources: {sources}."
    return Table(caption=caption, columns=columns, rows=rows, text_columns=3)
