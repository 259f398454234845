"""Writes the report of a training: one HTML page that holds everything it shows and asks the network for nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cmd_eval.report.confusion import ConfusionView, view_confusion
from cmd_eval.report.curves import training_charts
from cmd_eval.report.inputs import RunInputs, open_shards, read_run
from cmd_eval.report.pictures import MotionView, choose_videos, color_key, draw_motion
from cmd_eval.report.render import check_template_engine, render_page
from cmd_eval.report.report_evidence import evidence_blocks, evidence_charts
from cmd_eval.report.report_examples import Example, read_examples
from cmd_eval.report.report_figures import Table, features_name
from cmd_eval.report.report_maps import MappedFeatures, read_maps
from cmd_eval.report.summary import summarise
from cmd_eval.report.tables import (
    Block,
    accuracy_block,
    auxiliary_block,
    decoupling_block,
    method_name,
    newest_splits,
    published_table,
    retrieval_blocks,
)
from cmd_eval.results.published import recognise_dataset
from cmd_eval.results.tables import split_name
from cmd_extract.shard.reader import ShardSet

_MOST_MOTION_PICTURES = 6
_PROBE_CAPTION = (
    "Classifiers on frozen features. Per cent of the test videos; below, the 95 % interval. Chance is what naming "
    "the class of a training video drawn at random reaches."
)
_RECOGNITION_CAPTION = (
    "Networks fine-tuned with labels. Per cent of the test videos; below, the 95 % interval. Chance is what naming "
    "the class of a training video drawn at random reaches."
)


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of tables."""

    anchor: str
    title: str
    blocks: Sequence[Block]
    published: Table | None = None


@dataclass(frozen=True, kw_only=True)
class WrittenReport:
    """What was written.

    Attributes:
        path: the page.
        bytes: its size.
        left_out: what is not in it, a line each.
    """

    path: Path
    bytes: int
    left_out: Sequence[str]


def write_report(run_dir: Path, output: Path, shards_dir: Path | None = None) -> WrittenReport:
    """Writes the page of a training.

    Args:
        run_dir: the training's folder.
        output: the file to write.
        shards_dir: folder of the shards; None looks where the results say they were.

    Raises:
        ValueError: it is no training's folder, the shards are others, or jinja2 is missing.
    """
    check_template_engine()
    content = gather(read_run(run_dir), shards_dir)
    page = render_page(content)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        # Names of files need not be UTF-8.
        temporary.write_text(page, "utf-8", errors="backslashreplace")
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
    return WrittenReport(path=output, bytes=output.stat().st_size, left_out=content["left_out"])


def gather(inputs: RunInputs, shards_dir: Path | None) -> dict[str, Any]:
    """All that the template shows."""
    left_out = list(inputs.unread)
    usable = _usable(inputs, left_out)
    shards, reason = open_shards(shards_dir, usable)
    labels = _labels(usable, shards)
    charts = training_charts(usable.metrics) + evidence_charts(_evidence(usable), inputs.run_dir, left_out)
    if not charts:
        left_out.append("training curves: no metrics.jsonl; weights that were imported have none")
    examples, confusions, maps = _examples(usable, shards, left_out), _confusions(usable), _maps(usable, left_out)
    left_out += _missing_results(usable)
    motion = _motion(shards, left_out) if shards else []
    if shards is None:
        left_out.append(f"pictures of retrieval and of motion vectors: {reason}; `cmd-eval report` --shards says where")
    return {
        "summary": summarise(usable, shards),
        "version": version("context-motion-decoupling"),
        "sections": result_sections(usable.results, recognise_dataset(labels)),
        "charts": charts,
        "examples": examples,
        "motion": motion,
        "color_key": color_key(),
        "confusions": confusions,
        "maps": maps,
        "left_out": left_out,
    }


def _usable(inputs: RunInputs, left_out: list[str]) -> RunInputs:
    """The same without results that lack what the report shows of their kind; each is named in ``left_out``."""
    kept: dict[str, list[Mapping[str, Any]]] = {}
    for kind, records in inputs.results.items():
        for record in records:
            try:
                result_sections({kind: [record]}, None)
                _confusion_views(kind, [record])
                summarise(replace(inputs, results={kind: [record]}), None)
            except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
                left_out.append(
                    f"{inputs.eval_dir / record['file']}: not a whole result of kind {kind} "
                    f"({type(error).__name__}: {error}); make it again"
                )
            else:
                kept.setdefault(kind, []).append(record)
    return replace(inputs, results=kept)


def _evidence(inputs: RunInputs) -> Sequence[Mapping[str, Any]]:
    return inputs.results.get("evidence", ())


def _labels(inputs: RunInputs, shards: ShardSet | None) -> set[str]:
    """Names of all classes, as the shards or else the results have them."""
    if shards is not None:
        return {entry.label for entry in shards.videos}
    splits = [split for record in inputs.all_results for split in record.get("splits", ())]
    named = {name for split in splits if split["label"] == "label" for name in split.get("classes", ())}
    return named | {row["class"] for split in splits if split["label"] == "label" for row in split["per_class"]}


def result_sections(results: Mapping[str, Sequence[Mapping[str, Any]]], dataset: str | None) -> list[Section]:
    """The tables of all results, published figures beside those they belong to.

    Args:
        results: by kind.
        dataset: the published data set that was evaluated, if it is one.
    """
    sections = []
    if results.get("evidence"):
        # Of the same folder: the newest holds all that older ones did.
        sections.append(Section(anchor="evidence", title="Evidence", blocks=evidence_blocks(results["evidence"][-1])))
    if results.get("retrieval"):
        published = published_table(dataset, ("retrieval R@10", "retrieval R@1"))
        blocks = retrieval_blocks(results["retrieval"])
        sections.append(Section(anchor="retrieval", title="Retrieval", blocks=blocks, published=published))
    if results.get("recognition"):
        published = published_table(dataset, ("fine-tuned top-1",))
        blocks = [accuracy_block(results["recognition"], _RECOGNITION_CAPTION)]
        sections.append(Section(anchor="recognition", title="Recognition", blocks=blocks, published=published))
    if results.get("probe"):
        blocks = [accuracy_block(results["probe"], _PROBE_CAPTION)]
        sections.append(Section(anchor="probe", title="Probes", blocks=blocks))
    if results.get("auxiliary"):
        blocks = [auxiliary_block(record) for record in results["auxiliary"]]
        sections.append(Section(anchor="auxiliary", title="Motion prediction as auxiliary task", blocks=blocks))
    if results.get("decoupling"):
        blocks = [decoupling_block(record) for record in results["decoupling"]]
        sections.append(Section(anchor="decoupling", title="Decoupling", blocks=blocks))
    return sections


def _examples(inputs: RunInputs, shards: ShardSet | None, left_out: list[str]) -> list[Example]:
    if shards is None:
        return []
    newest_first = list(inputs.results.get("retrieval", ()))[::-1]
    offered = [
        (record, split)
        for record in newest_first
        for split in record["splits"]
        if split.get("examples") and record["provenance"]["data_hash"] == shards.data_hash
    ]
    if offered:
        examples, problems = read_examples(*min(offered, key=_example_rank), shards)
        left_out += problems
        return examples
    if newest_first:
        left_out.append("retrieval examples: no result holds any for these shards")
    return []


def _example_rank(offered: tuple[Mapping[str, Any], Mapping[str, Any]]) -> tuple[bool, bool, bool]:
    """By label before by group, the trained network before others."""
    record, split = offered
    provenance = record["provenance"]
    return split["label"] != "label", provenance["checkpoint"] is None, provenance["untrained"]


def _motion(shards: ShardSet, left_out: list[str]) -> list[MotionView]:
    views = []
    for entry in choose_videos(shards.videos, _MOST_MOTION_PICTURES):
        try:
            views.append(draw_motion(shards, entry))
        except (ValueError, OSError) as error:
            left_out.append(f"motion vectors of {entry.video_id}: {error}")
    return views


def _confusions(inputs: RunInputs) -> list[ConfusionView]:
    views = []
    for kind in ("recognition", "probe"):
        views += _confusion_views(kind, inputs.results.get(kind, ()))
    return views


def _confusion_views(kind: str, records: Sequence[Mapping[str, Any]]) -> list[ConfusionView]:
    if kind not in ("recognition", "probe"):
        return []
    return [
        view_confusion(
            f"{method_name(record)} by {split['label']}, "
            f"{features_name(split.get('provenance') or record['provenance'])}, {split_name(split)}",
            split,
            first=split is record["splits"][0],
        )
        for record, split in newest_splits(records)
        if split.get("confusion")
    ]


def _maps(inputs: RunInputs, left_out: list[str]) -> list[MappedFeatures]:
    maps, problems = read_maps(inputs.eval_dir)
    left_out += problems
    if not maps and not problems and not _evidence(inputs):
        command = f"cmd-eval retrieval {inputs.run_dir} SHARDS"
        left_out.append(f"map of the embeddings: no features; `{command}` makes and keeps them")
    return maps


def _missing_results(inputs: RunInputs) -> list[str]:
    run = inputs.run_dir
    if _evidence(inputs):
        # Of many trainings; each has a folder and a report of its own.
        return []
    commands = {
        "retrieval": f"cmd-eval retrieval {run} SHARDS",
        "probe": f"cmd-eval probe {run} SHARDS",
        "recognition": f"cmd-eval recognition {run} SHARDS",
        "auxiliary": "cmd-eval auxiliary SHARDS OUT",
        "decoupling": f"cmd-eval decoupling SHARDS --both {run} ...",
    }
    return [
        f"{kind}: no result; `{command}` makes one" for kind, command in commands.items() if kind not in inputs.results
    ]
