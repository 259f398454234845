"""Write the report of a run: one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cmd_eval.report.confusion import ConfusionView, view_confusion
from cmd_eval.report.curves import training_charts
from cmd_eval.report.embedding_map import MappedFeatures, read_maps
from cmd_eval.report.evidence import evidence_blocks, evidence_charts
from cmd_eval.report.inputs import RunInputs, find_shards, read_run
from cmd_eval.report.pictures import COLOR_KEY, Example, MotionView, choose_videos, draw_motion, read_examples
from cmd_eval.report.render import render_page
from cmd_eval.report.search import SearchDemo, search_demo
from cmd_eval.report.summary import summarize
from cmd_eval.report.tables import (
    Block,
    Record,
    Table,
    accuracy_block,
    auxiliary_block,
    decoupling_block,
    features_name,
    method_name,
    newest_splits,
    published_table,
    retrieval_blocks,
    trained_first,
)
from cmd_eval.results.published import identify_dataset
from cmd_eval.results.tables import split_name
from cmd_extract.shard.folders import Folders
from cmd_extract.shard.reader import ShardSet
from cmd_extract.system.files import remove_leftovers, write_atomically

_MAX_MOTION_PICTURES = 6
_ACCURACY_CAPTION = (
    "Percent of the test videos, with 95 % interval over groups of videos, if there are any. Chance is the accuracy of "
    "predicting the class of a random training video."
)
_PROBE_CAPTION = f"Classifiers on frozen features. {_ACCURACY_CAPTION}"
_RECOGNITION_CAPTION = f"Networks fine-tuned with labels. {_ACCURACY_CAPTION}"


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of tables."""

    anchor: str
    title: str
    blocks: Sequence[Block]
    published: Table | None = None


@dataclass(frozen=True, kw_only=True)
class WrittenReport:
    """A written report.

    Attributes:
        path: the page.
        bytes: its size.
        left_out: what is missing in the report and why, one line each.
    """

    path: Path
    bytes: int
    left_out: Sequence[str]


def write_report(run_dir: Path, output: Path, folders: Folders = ()) -> WrittenReport:
    """Write the report of a run.

    Args:
        run_dir: run folder.
        output: file to write.
        folders: folders of the shards; empty for the paths recorded in the results.

    Raises:
        ValueError: not a run folder, or not its shards.
    """
    content = gather(read_run(run_dir), folders)
    # File names need not be UTF-8.
    page = render_page(content).encode("utf-8", errors="backslashreplace")
    remove_leftovers(output.parent)
    write_atomically(output, page)
    return WrittenReport(path=output, bytes=len(page), left_out=content["left_out"])


def gather(inputs: RunInputs, folders: Folders) -> dict[str, Any]:
    """Collect the content of the template."""
    left_out = list(inputs.unread)
    shards, reason = find_shards(folders, inputs)
    labels = _labels(inputs, shards)
    charts = training_charts(inputs.metrics) + evidence_charts(_evidence(inputs), inputs.run_dir, left_out)
    if not charts:
        left_out.append("training curves: no metrics.jsonl; imported weights have none")
    examples, confusions, maps = _examples(inputs, shards, left_out), _confusions(inputs), _maps(inputs, left_out)
    left_out += _missing_results(inputs)
    motion = _motion(shards, left_out) if shards else []
    demo = _search_demo(inputs, shards, left_out)
    if shards is None:
        left_out.append(f"retrieval examples and motion vectors: {reason}; give the shards with `--shards`")
    return {
        "summary": summarize(inputs, shards),
        "version": version("context-motion-decoupling"),
        "sections": result_sections(inputs.results, identify_dataset(labels)),
        "charts": charts,
        "examples": examples,
        "demo": demo,
        "motion": motion,
        "color_key": COLOR_KEY,
        "confusions": confusions,
        "maps": maps,
        "left_out": left_out,
    }


def _evidence(inputs: RunInputs) -> Sequence[Record]:
    return inputs.results.get("evidence", ())


def _labels(inputs: RunInputs, shards: ShardSet | None) -> set[str]:
    """Return the names of all classes, from the shards or else from the results."""
    if shards is not None:
        return set(shards.videos.names("label").texts())
    splits = [split for record in inputs.all_results for split in record.get("splits", ())]
    listed = {name for split in splits if split["target"] == "label" for name in split.get("classes", ())}
    return listed | {row["class"] for split in splits if split["target"] == "label" for row in split["per_class"]}


def result_sections(results: Mapping[str, Sequence[Record]], dataset: str | None) -> list[Section]:
    """Return the tables of all results, with published results where they apply.

    Args:
        results: results by kind.
        dataset: the evaluated dataset if it is a published one, else None.
    """
    sections = []
    if results.get("evidence"):
        # All are of this folder, so the newest contains everything in older ones.
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
        sections.append(Section(anchor="auxiliary", title="Motion prediction as auxiliary loss", blocks=blocks))
    if results.get("decoupling"):
        blocks = [decoupling_block(record) for record in results["decoupling"]]
        sections.append(Section(anchor="decoupling", title="Decoupling", blocks=blocks))
    return sections


def _examples(inputs: RunInputs, shards: ShardSet | None, left_out: list[str]) -> list[Example]:
    if shards is None:
        return []
    newest_first = list(inputs.results.get("retrieval", ()))[::-1]
    candidates = [
        (record, split)
        for record in newest_first
        for split in record["splits"]
        if split.get("examples") and record["provenance"]["data_hash"] == shards.data_hash
    ]
    if candidates:
        examples, problems = read_examples(*min(candidates, key=_example_rank), shards)
        left_out += problems
        return examples
    if newest_first:
        left_out.append("retrieval examples: no result has examples for these shards")
    return []


def _example_rank(candidate: tuple[Record, Record]) -> tuple[bool, bool, bool]:
    """Rank label before group, and the trained network before others."""
    record, split = candidate
    provenance = record["provenance"]
    return split["target"] != "label", provenance["checkpoint"] is None, provenance["untrained"]


def _search_demo(inputs: RunInputs, shards: ShardSet | None, left_out: list[str]) -> SearchDemo | None:
    if shards is None:
        return None
    demo, problems = search_demo(inputs.eval_dir, shards)
    left_out += problems
    return demo


def _motion(shards: ShardSet, left_out: list[str]) -> list[MotionView]:
    views = []
    for entry in choose_videos(shards.videos, _MAX_MOTION_PICTURES):
        try:
            views.append(draw_motion(shards, entry))
        except (ValueError, OSError) as error:
            left_out.append(f"motion vectors of {entry.video_id}: {error}")
    return views


def _confusions(inputs: RunInputs) -> list[ConfusionView]:
    return [
        view_confusion(
            f"{method_name(record)} by {split['target']}, "
            f"{features_name(split.get('provenance') or record['provenance'])}, {split_name(split)}",
            split,
            first=split is record["splits"][0],
        )
        for kind in ("recognition", "probe")
        for record, split in newest_splits(trained_first(inputs.results.get(kind, ())))
        if split.get("confusion")
    ]


def _maps(inputs: RunInputs, left_out: list[str]) -> list[MappedFeatures]:
    maps, problems = read_maps(inputs.eval_dir)
    left_out += problems
    if not maps and not problems and not _evidence(inputs):
        command = f"cmd-eval retrieval {inputs.run_dir} SHARDS"
        left_out.append(f"embedding map: no features; `{command}` computes and keeps them")
    return maps


def _missing_results(inputs: RunInputs) -> list[str]:
    run = inputs.run_dir
    if _evidence(inputs):
        # It covers many runs, each with its own folder and report.
        return []
    commands = {
        "retrieval": f"cmd-eval retrieval {run} SHARDS",
        "probe": f"cmd-eval probe {run} SHARDS",
    }
    if "classes" in inputs.config:
        commands["recognition"] = f"cmd-eval recognition {run} SHARDS"
    return [f"{kind}: no result; run `{command}`" for kind, command in commands.items() if kind not in inputs.results]
