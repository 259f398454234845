"""Head of the report: run details (settings, data, versions) and the main results at a glance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cmd_eval.report.inputs import RunInputs
from cmd_eval.report.tables import Record, features_name, method_name, percent, trained_first
from cmd_eval.results.tables import split_name
from cmd_extract.schema import is_relabeled
from cmd_extract.shard.reader import ShardSet

_SHORT_HASH = 12


@dataclass(frozen=True, kw_only=True)
class MainResult:
    """A main result, drawn as a dot with its interval and a line at chance.

    Attributes:
        measure: the measure.
        details: network and split.
        value, low, high, chance: shares from 0 to 1; interval and chance may be missing.
    """

    measure: str
    details: str
    value: float
    low: float | None
    high: float | None
    chance: float | None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Head of a report.

    Attributes:
        name: name of the run.
        task: ``Pre-training``, ``Fine-tuning``, or ``Evaluation`` if nothing was trained here.
        facts: name and value of each run detail.
        commands: commands that produced the results.
        settings: training configuration as ``section.field`` and value.
        results: main results.
        pretext: sentences on the pretext tasks, or on the absence of training.
    """

    name: str
    task: str
    facts: Sequence[tuple[str, str]]
    commands: Sequence[str]
    settings: Sequence[tuple[str, str]]
    results: Sequence[MainResult]
    pretext: Sequence[str]


def summarize(inputs: RunInputs, shards: ShardSet | None) -> Summary:
    """Summarize a run for the head of its report."""
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
        results=main_results(inputs.results),
        pretext=pretext_sentences(inputs.metrics) + _imported_sentences(inputs),
    )


def task_of(inputs: RunInputs) -> str:
    """Return the task, inferred from the metrics; imported weights and experiments over several runs have none."""
    if not inputs.metrics:
        return "Evaluation"
    return "Fine-tuning" if "classification_loss" in inputs.metrics[-1] else "Pre-training"


def _run_facts(inputs: RunInputs) -> list[tuple[str, str]]:
    config, settings = inputs.config, inputs.config["settings"]
    facts = [("folder", str(inputs.run_dir))]
    if config.get("recipe"):
        facts.append(("recipe", config["recipe"]))
    if config.get("init"):
        facts.append(("initial weights", _start_of(config["init"])))
    optim, data = settings["optim"], settings["data"]
    model = f"{settings['model']['backbone']}, {settings['model']['clip_frames']} frames of "
    model += f"{settings['model']['crop_size']} x {settings['model']['crop_size']} pixels"
    facts.append(("network", model))
    # The recorded settings of imported weights do not describe a run.
    if not config.get("imported"):
        steps = [line["step"] for line in inputs.metrics[-1:]]
        done = f"{steps[0]:,.0f} steps, " if steps else ""
        videos = f"part {data['train_part']} of {data['split_column']}" if data["split_column"] else "all videos"
        facts.append(("training", f"{done}{optim['epochs']} epochs planned, batch size {optim['batch_size']}"))
        facts += [("training videos", videos), ("seed", str(settings["run"]["seed"]))]
    for digest in _checkpoint_hashes(inputs):
        facts.append(("checkpoint", digest))
    return facts


def _imported_sentences(inputs: RunInputs) -> list[str]:
    """Explain the absence of training curves on the page of imported weights."""
    imported = inputs.config.get("imported")
    if not imported:
        return []
    sentence = f"Nothing was trained here: the weights were imported from {_start_of(imported)}."
    return [sentence if inputs.all_results else f"{sentence} There are no results yet."]


def _start_of(init: Mapping[str, Any]) -> str:
    """Describe the initial weights of a run."""
    text = str(init.get("source"))
    if init.get("sha256"):
        text += f" (sha256 {init['sha256'][:_SHORT_HASH]})"
    if init.get("part"):
        text += f", {init['part']}"
    before = init.get("trained_on")
    if not before:
        return text
    # The training data of imported weights are unknown.
    digest = before.get("data_hash")
    return text + (f", trained on data hash {digest[:_SHORT_HASH]}" if digest else ", trained on unknown data")


def _checkpoint_hashes(inputs: RunInputs) -> list[str]:
    """Return the checkpoints of the results, each with the beginning of the hash of its weights."""
    found: dict[str, None] = {}
    for record in inputs.all_results:
        provenance = record["provenance"]
        if provenance["checkpoint"] and provenance["checkpoint_sha256"]:
            name = "/".join(str(provenance["checkpoint"]).replace("\\", "/").split("/")[-3:])
            found[f"{name} (sha256 {provenance['checkpoint_sha256'][:_SHORT_HASH]})"] = None
    return list(found)


def _data_facts(inputs: RunInputs, shards: ShardSet | None) -> list[tuple[str, str]]:
    trained_on = inputs.config.get("data_hash")
    facts = [("training data", f"data hash {trained_on[:_SHORT_HASH]}" if trained_on else "unknown")]
    others = {record["provenance"]["data_hash"]: None for record in inputs.all_results}
    for digest in others:
        same = "same as the training data" if digest == trained_on else "not the training data"
        same = "the training data, relabeled since" if is_relabeled(digest, trained_on) else same
        note = f" ({same})" if trained_on else ""
        facts.append(("evaluation data", f"data hash {digest[:_SHORT_HASH]}{note}"))
    if shards is not None:
        labels, groups = shards.videos.names("label").used, shards.videos.names("group").used
        frames = int(shards.videos.numbers("frame_count").sum())
        text = f"{len(shards.videos):,} videos, {frames:,} frames, {len(labels)} labels, {len(groups)} groups"
        facts.append(("shards", f"{', '.join(map(str, shards.folders))}: {text}"))
    return facts


def _software_facts(inputs: RunInputs) -> list[tuple[str, str]]:
    found: dict[str, None] = {}
    for record in inputs.all_results:
        found[", ".join(f"{name} {number}" for name, number in sorted(record["provenance"]["versions"].items()))] = None
    facts = [("versions", text) for text in found]
    times = sorted(str(record["provenance"]["created"]) for record in inputs.all_results)
    if times:
        span = dict.fromkeys(datetime.fromisoformat(time).strftime("%Y-%m-%d %H:%M") for time in (times[0], times[-1]))
        facts.append(("results created", f"{' to '.join(span)} UTC"))
    return facts


def main_results(results: Mapping[str, Sequence[Record]]) -> list[MainResult]:
    """Return R@1 of each retrieval and top-1 of each probe and fine-tuned network, on the first split of each.

    The newest evidence adds R@1 of its rows over all splits: all readouts of the method, and the published readout of
    the other networks.
    """
    found: list[MainResult | None] = []
    for kind in ("recognition", "probe", "retrieval"):
        for record in trained_first(results.get(kind, ())):
            name = features_name(record["provenance"])
            # One split per target; papers report the first.
            firsts = {split["target"]: split for split in reversed(record["splits"])}
            for split in reversed(firsts.values()):
                details = f"{name}, {split_name(split)}"
                if kind == "retrieval":
                    measure = f"Retrieval by {split['target']}, R@1"
                    found.append(_main_result(measure, details, split["recall"]["R@1"], split["chance"]["R@1"]))
                else:
                    method = method_name(record)
                    measure = f"{method[0].upper()}{method[1:]} by {split['target']}, top-1"
                    found.append(_main_result(measure, details, split["top1"], split["chance"]))
    for record in results.get("evidence", ())[-1:]:
        for target in ("label", "group"):
            measure, chance = f"Retrieval by {target}, R@1", record["chance"][f"by_{target}"]["R@1"]
            found += [
                _main_result(measure, _evidence_details(row), row[f"by_{target}"]["R@1"], chance)
                for row in record["rows"]
                if row["readout"] in (None, "mean") or row["model"] == record["rows"][0]["model"]
            ]
    # Of equal measures and details, the newest counts.
    newest = {(result.measure, result.details): result for result in found if result}
    # All results of one measure together, in the order in which the measures occur first.
    measures = list(dict.fromkeys(measure for measure, _ in newest))
    return sorted(newest.values(), key=lambda result: measures.index(result.measure))


def _evidence_details(row: Record) -> str:
    readout = f" ({row['readout']})" if row["readout"] else ""
    return f"{row['model']}{readout}, all splits"


def _main_result(measure: str, details: str, value: Record, chance: float | None) -> MainResult | None:
    if value["value"] is None:
        return None
    return MainResult(
        measure=measure,
        details=details,
        value=value["value"],
        low=value.get("low"),
        high=value.get("high"),
        chance=chance,
    )


def pretext_sentences(metrics: Sequence[Mapping[str, float]]) -> list[str]:
    """Describe the accuracy of the pretext tasks over the last 50 steps, with chance."""
    last = metrics[-50:]
    sentences = []
    for head in ("context", "motion"):
        # Directions are compared with the most frequent one, features with the number of candidates.
        compared = next((name for name in ("majority", "candidates") if any(f"{head}_{name}" in x for x in last)), "")
        rows = [line for line in last if f"{head}_top1" in line and f"{head}_{compared}" in line]
        if rows:
            top1 = sum(line[f"{head}_top1"] for line in rows) / len(rows)
            level = sum(line[f"{head}_{compared}"] for line in rows) / len(rows)
            among = f"among {level:,.0f} candidates (chance {100 / level:.2g} %)"
            if compared == "majority":
                among = f"at moving positions (most frequent direction: {percent(level)} %)"
            sentences.append(
                f"{head.capitalize()} task, last {len(rows)} steps: top-1 accuracy {percent(top1)} % {among}."
            )
    return sentences
