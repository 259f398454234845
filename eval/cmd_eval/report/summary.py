"""The head of a report: what was run, on what, with which versions; and the main figures at a glance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cmd_eval.report.inputs import RunInputs
from cmd_eval.report.report_figures import features_name, percent
from cmd_eval.results.tables import split_name
from cmd_extract.shard.reader import ShardSet

_SHORT_HASH = 12


@dataclass(frozen=True, kw_only=True)
class MainFigure:
    """One of the main figures, drawn as a dot with its interval and a tick at chance.

    Attributes:
        what: the measure.
        how: of which network and which videos.
        value, low, high, chance: shares from 0 to 1; the interval and chance may be missing.
    """

    what: str
    how: str
    value: float
    low: float | None
    high: float | None
    chance: float | None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a report says first.

    Attributes:
        name: of the training.
        task: ``Pre-training``, ``Fine-tuning``, or ``Evaluation`` of something that was not trained here.
        facts: name and value of each fact, for the table of what was run.
        commands: the commands that made the results.
        settings: all settings as ``section.field`` and value.
        figures: the main figures.
        pretext: sentences on the training's own tasks, or that no step of it was made.
    """

    name: str
    task: str
    facts: Sequence[tuple[str, str]]
    commands: Sequence[str]
    settings: Sequence[tuple[str, str]]
    figures: Sequence[MainFigure]
    pretext: Sequence[str]


def summarise(inputs: RunInputs, shards: ShardSet | None) -> Summary:
    """The head of a training's report."""
    settings = inputs.config["settings"]
    return Summary(
        name=inputs.run_dir.resolve().name,
        task=task_of(inputs),
        facts=[*_run_facts(inputs), *_data_facts(inputs, shards), *_software_facts(inputs)],
        commands=list(dict.fromkeys(record["provenance"]["command"] for record in inputs.all_results)),
        settings=[
            (f"{section}.{field}", str(value))
            for section, values in sorted(settings.items())
            for field, value in sorted(values.items())
        ],
        figures=main_figures(inputs.results),
        pretext=pretext_sentences(inputs.metrics) + _no_step_sentences(inputs),
    )


def task_of(inputs: RunInputs) -> str:
    """What was done, told by what the metrics hold; imported weights and comparisons have none."""
    if not inputs.metrics:
        return "Evaluation"
    return "Fine-tuning" if "classification_loss" in inputs.metrics[-1] else "Pre-training"


def _run_facts(inputs: RunInputs) -> list[tuple[str, str]]:
    config, settings = inputs.config, inputs.config["settings"]
    facts = [("folder", str(inputs.run_dir))]
    if config.get("recipe"):
        facts.append(("recipe", config["recipe"]))
    if config.get("init"):
        facts.append(("started from", _start_of(config["init"])))
    optim, data = settings["optim"], settings["data"]
    model = f"{settings['model']['backbone']}, {settings['model']['clip_frames']} frames of "
    model += f"{settings['model']['crop_size']} x {settings['model']['crop_size']} pixels"
    facts.append(("network", model))
    # The settings of imported weights name a training that nobody has run.
    if not config.get("imported"):
        steps = [line["step"] for line in inputs.metrics[-1:]]
        done = f"{steps[0]:,.0f} steps, " if steps else ""
        where = f"{data['part']} of {data['split_column']}" if data["split_column"] else "all videos"
        facts.append(("training", f"{done}{optim['epochs']} epochs planned, batch of {optim['batch_size']}"))
        facts += [("trained on", where), ("seed", str(settings["run"]["seed"]))]
    for digest in _checkpoint_hashes(inputs):
        facts.append(("checkpoint", digest))
    return facts


def _no_step_sentences(inputs: RunInputs) -> list[str]:
    """That nothing was trained here, for a page on imported weights would else look as if something were missing."""
    imported = inputs.config.get("imported")
    if not imported:
        return []
    sentence = f"No step of training was made here: these are weights imported from {_start_of(imported)}."
    return [sentence if inputs.all_results else f"{sentence} No result of them is here yet."]


def _start_of(init: Mapping[str, Any]) -> str:
    """The weights that a training began with."""
    text = str(init.get("source"))
    if init.get("sha256"):
        text += f" (sha256 {init['sha256'][:_SHORT_HASH]})"
    if init.get("part"):
        text += f", {init['part']}"
    before = init.get("trained_on")
    if not before:
        return text
    # Imported weights do not say what they were trained on.
    digest = before.get("data_hash")
    return text + (
        f", trained on data hash {digest[:_SHORT_HASH]}" if digest else ", trained on data that is not known"
    )


def _checkpoint_hashes(inputs: RunInputs) -> list[str]:
    """Checkpoints that the results are of, each with the start of its weights' hash."""
    found: dict[str, None] = {}
    for record in inputs.all_results:
        provenance = record["provenance"]
        if provenance["checkpoint"] and provenance["checkpoint_sha256"]:
            name = "/".join(str(provenance["checkpoint"]).replace("\\", "/").split("/")[-3:])
            found[f"{name} (sha256 {provenance['checkpoint_sha256'][:_SHORT_HASH]})"] = None
    return list(found)


def _data_facts(inputs: RunInputs, shards: ShardSet | None) -> list[tuple[str, str]]:
    trained_on = inputs.config.get("data_hash")
    facts = [("training data", f"data hash {trained_on[:_SHORT_HASH]}" if trained_on else "not known")]
    others = {record["provenance"]["data_hash"]: None for record in inputs.all_results}
    for digest in others:
        same = ", the training's" if digest == trained_on else ", not the training's"
        facts.append(("evaluated on", f"data hash {digest[:_SHORT_HASH]}{same if trained_on else ''}"))
    if shards is not None:
        labels = {entry.label for entry in shards.videos} - {""}
        groups = {entry.group for entry in shards.videos} - {""}
        frames = sum(entry.frame_count for entry in shards.videos)
        text = f"{len(shards.videos):,} videos, {frames:,} frames, {len(labels)} labels, {len(groups)} groups"
        facts.append(("shards", f"{shards.folder}: {text}"))
    return facts


def _software_facts(inputs: RunInputs) -> list[tuple[str, str]]:
    found: dict[str, None] = {}
    for record in inputs.all_results:
        found[", ".join(f"{name} {number}" for name, number in sorted(record["provenance"]["versions"].items()))] = None
    facts = [("versions", text) for text in found]
    times = sorted(str(record["provenance"]["created"]) for record in inputs.all_results)
    if times:
        span = dict.fromkeys(datetime.fromisoformat(time).strftime("%Y-%m-%d %H:%M") for time in (times[0], times[-1]))
        facts.append(("results made", f"{' to '.join(span)} UTC"))
    return facts


def main_figures(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[MainFigure]:
    """R@1 of every retrieval and top-1 of every probe and fine-tuned network, of the first split of each.

    Of the newest evidence R@1 of every row, over all splits.
    """
    figures: list[MainFigure | None] = []
    for kind in ("recognition", "probe", "retrieval"):
        for record in results.get(kind, ()):
            name = features_name(record["provenance"])
            # One split for each kind of name; papers quote the first.
            firsts = {split["label"]: split for split in reversed(record["splits"])}
            for split in reversed(firsts.values()):
                where = f"{name}, {split_name(split)}"
                if kind == "retrieval":
                    what = f"Retrieval by {split['label']}, R@1"
                    figures.append(_main(what, where, split["recall"]["R@1"], split["chance"]["R@1"]))
                else:
                    method = {"knn": "k-NN", "linear": "Linear probe"}.get(record["method"], "Fine-tuned")
                    what = f"{method} by {split['label']}, top-1"
                    figures.append(_main(what, where, split["top1"], split["chance"]))
    for record in results.get("evidence", ())[-1:]:
        for by in ("label", "group"):
            what, chance = f"Retrieval by {by}, R@1", record["chance"][f"by_{by}"]["R@1"]
            figures += [
                _main(what, f"{row['model']}, all splits", row[f"by_{by}"]["R@1"], chance) for row in record["rows"]
            ]
    # Of the same question asked twice the newer answer counts.
    return list({(figure.what, figure.how): figure for figure in figures if figure}.values())


def _main(what: str, how: str, figure: Mapping[str, Any], chance: float | None) -> MainFigure | None:
    if figure["value"] is None:
        return None
    return MainFigure(
        what=what, how=how, value=figure["value"], low=figure.get("low"), high=figure.get("high"), chance=chance
    )


def pretext_sentences(metrics: Sequence[Mapping[str, float]]) -> list[str]:
    """What the last 50 steps say of the training's own tasks, beside chance."""
    last = metrics[-50:]
    sentences = []
    for head in ("context", "motion"):
        rows = [line for line in last if f"{head}_top1" in line and f"{head}_candidates" in line]
        if rows:
            top1 = sum(line[f"{head}_top1"] for line in rows) / len(rows)
            candidates = sum(line[f"{head}_candidates"] for line in rows) / len(rows)
            sentences.append(
                f"{head.capitalize()} task over the last {len(rows)} steps: top-1 {percent(top1)} % of "
                f"{candidates:,.0f} candidates (chance {100 / candidates:.2g} %)."
            )
    return sentences
