"""Tests a fine-tuned checkpoint: classifier and videos in, figures and everything for the result file out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.classify import classify_videos
from eval.feature_source import run_folder
from eval.recognition import TOP, Recognition, judge
from eval.results import EVAL_FOLDER, Provenance, mean_and_spread, result_record
from extract.schema import VideoEntry
from extract.shard_reader import ShardSet
from train.build import build_classifier
from train.checkpoint import Checkpoint, load_checkpoint
from train.config import TrainConfig, config_from_dict
from train.distributed import process_group
from train.sampling_report import SamplingReport
from train.selection import select_videos
from train.supervised import SupervisedModel

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class RecognitionTest:
    """What to test on.

    Attributes:
        shards: folder of shards.
        split_column: split column of the manifest; None: the one that the checkpoint was trained on.
        part: its part.
        clips: clips a video.
        device: ``auto``, ``cpu`` or ``cuda``.
        workers: decoding processes.
    """

    shards: Path
    split_column: str | None = None
    part: str = "test"
    clips: int = 10
    device: str = "auto"
    workers: int = 0


@dataclass(frozen=True, kw_only=True)
class RecognitionRun:
    """What the test of one checkpoint gives.

    Attributes:
        result: the figures.
        split: everything of them for a result file.
        provenance: where they come from.
        notes: what the user should know, a line each.
        checkpoint: the checkpoint's folder.
    """

    result: Recognition
    split: Mapping[str, Any]
    provenance: Provenance
    notes: tuple[str, ...]
    checkpoint: Path

    @property
    def target(self) -> Path:
        """Where the result file belongs: beside the training's other results."""
        return run_folder(self.checkpoint) / EVAL_FOLDER / f"recognition-{self.split['split_column']}.json"


def recognise(checkpoint: Path, test: RecognitionTest, *, command: str, progress: Progress) -> RecognitionRun:
    """Classifies the labelled videos of a part with a fine-tuned checkpoint.

    Args:
        checkpoint: a checkpoint, or a training's folder for its last one.
        test: what to test on.
        command: the command line; recorded.
        progress: called with (videos done, all videos).

    Raises:
        ValueError: the checkpoint has no classifier, the split or part does not exist, no video has a label, or a
            file is in both the training's part and the tested one.
    """
    loaded = load_checkpoint(checkpoint)
    config = config_from_dict(loaded.config["settings"])
    classes, model = load_classifier(loaded, config)
    column = test.split_column or config.data.split_column
    if column is None:
        raise ValueError(f"split_column: {loaded.path} was trained on all videos; name the split to test on")
    shards = ShardSet(test.shards)
    inside = select_videos(shards.videos, column, test.part)
    entries = [entry for entry in inside if entry.label]
    if not entries:
        raise ValueError(f"label: no video of {column}'s part {test.part!r} has one")
    notes = _notes_on_videos(loaded, config, shards, column, test.part, entries)
    if len(entries) < len(inside):
        notes.append(f"{len(inside) - len(entries)} videos of part {test.part!r} have no label and were left out")
    with process_group(test.device) as placement:
        probability_NK = classify_videos(
            model,
            shards,
            entries,
            sampling=config.sampling,
            crop_size=config.model.crop_size,
            clips=test.clips,
            device=placement.device,
            workers=test.workers,
            progress=progress,
        )
    result = judge(probability_NK, [entry.label for entry in entries], classes)
    notes += _notes_on_result(result, SamplingReport.of_evaluation((e.frame_count for e in entries), config.sampling))
    return RecognitionRun(
        result=result,
        split=_split_object(result, entries, column, test, config, loaded),
        provenance=_provenance(loaded, test, shards, command),
        notes=tuple(notes),
        checkpoint=loaded.path,
    )


def load_classifier(checkpoint: Checkpoint, config: TrainConfig) -> tuple[tuple[str, ...], SupervisedModel]:
    """The classes and the network of a fine-tuned checkpoint.

    Raises:
        ValueError: it is one of pre-training, which has no classifier.
    """
    if "classes" not in checkpoint.config:
        raise ValueError(
            f"{checkpoint.path}: a checkpoint of pre-training has no classifier; "
            f"run `cmd-train finetune SHARDS RUN_DIR --from {checkpoint.path}` first"
        )
    classes = tuple(checkpoint.config["classes"])
    model = build_classifier(config, len(classes))
    model.load_state_dict(checkpoint.weights)
    return classes, model


def recognition_record(runs: Sequence[RecognitionRun]) -> dict[str, Any]:
    """One or several tests as a result file; of several, the provenance of each stands beside its split."""
    splits = [dict(run.split) for run in runs]
    provenance = runs[0].provenance
    if len(runs) > 1:
        splits = [split | {"provenance": run.provenance.as_json()} for split, run in zip(splits, runs, strict=True)]
        provenance = Provenance(
            command=provenance.command,
            shards=provenance.shards,
            data_hash=provenance.data_hash,
            features=provenance.features,
            clips=provenance.clips,
        )
    mean = {name: mean_and_spread([split[name]["value"] for split in splits]) for name in ("top1", "top5")}
    return result_record(
        "recognition",
        provenance,
        method="finetuned",
        clips=provenance.clips,
        splits=splits,
        mean=[{"label": "label", **mean}],
        notes=[note for run in runs for note in run.notes],
    )


def _split_object(
    result: Recognition,
    entries: Sequence[VideoEntry],
    column: str,
    test: RecognitionTest,
    config: TrainConfig,
    checkpoint: Checkpoint,
) -> dict[str, Any]:
    rows = zip(entries, result.predicted_N, result.confidence_N, result.top1_N, result.top5_N, strict=True)
    return {
        "split_column": column,
        "train_part": config.data.part,
        "test_part": test.part,
        "label": "label",
        "train": checkpoint.config["videos"],
        "clips": test.clips,
        "trained_on_split_column": config.data.split_column,
        "seed": config.run.seed,
        "checkpoint": str(checkpoint.path),
        **result.as_json(),
        "videos": [
            {
                "video": entry.video_id,
                "class": entry.label,
                "predicted": result.classes[predicted],
                "confidence": float(confidence),
                "top1": bool(first),
                "top5": bool(fifth),
            }
            for entry, predicted, confidence, first, fifth in rows
        ],
    }


def _provenance(checkpoint: Checkpoint, test: RecognitionTest, shards: ShardSet, command: str) -> Provenance:
    return Provenance(
        command=command,
        shards=str(test.shards),
        data_hash=shards.data_hash,
        features="classifier, softmax averaged over clips",
        checkpoint=str(checkpoint.path),
        checkpoint_sha256=checkpoint.weights_hash,
        trained_on=checkpoint.config["data_hash"],
        step=checkpoint.step,
        settings=checkpoint.config["settings"],
        clips=test.clips,
        pretext=checkpoint.load_state()["recent_metrics"],
    )


def _notes_on_videos(
    checkpoint: Checkpoint,
    config: TrainConfig,
    shards: ShardSet,
    column: str,
    part: str,
    tested: Sequence[VideoEntry],
) -> list[str]:
    """Warnings about videos that the network has seen.

    Raises:
        ValueError: a file is in both parts of the split, under two names.
    """
    train_part = config.data.part
    rivals = [entry for entry in shards.videos if entry.splits.get(column) == train_part and part != train_part]
    _refuse_twins(tested, rivals)
    notes = []
    groups = sorted(({entry.group for entry in tested} & {entry.group for entry in rivals}) - {""})
    if groups:
        notes.append(f"warning: {len(groups)} groups are in both {train_part!r} and {part!r}, {groups[0]} for one")
    if checkpoint.config["data_hash"] != shards.data_hash:
        notes.append("the checkpoint was trained on other shards; whether they held test videos is not known")
    elif seen := _count_of(tested, shards, config.data.split_column, train_part):
        notes.append(
            f"warning: the checkpoint was trained on {seen} of the {len(tested)} test videos; "
            "train with --split-column to avoid it"
        )
    before = (checkpoint.config.get("init") or {}).get("trained_on")
    if before and before["data_hash"] == shards.data_hash:
        seen = _count_of(tested, shards, before["split_column"], before["part"])
        if seen:
            notes.append(
                f"warning: the checkpoint that this training began from was trained on {seen} of the {len(tested)} "
                "test videos"
            )
    return notes


def _count_of(tested: Sequence[VideoEntry], shards: ShardSet, split_column: str | None, part: str) -> int:
    """How many of the tested videos, or copies of them, were trained on."""
    trained = {entry.fingerprint for entry in select_videos(shards.videos, split_column, part)}
    return sum(entry.fingerprint in trained for entry in tested)


def _refuse_twins(tested: Sequence[VideoEntry], trained: Sequence[VideoEntry]) -> None:
    by_print = {entry.fingerprint: entry for entry in trained}
    for entry in tested:
        twin = by_print.get(entry.fingerprint)
        if twin is not None:
            raise ValueError(
                f"test video {entry.video_id} and training video {twin.video_id} are the same file; "
                "the figure would mean nothing: remove one of them from its part"
            )


def _notes_on_result(result: Recognition, report: SamplingReport) -> list[str]:
    notes = []
    if result.unknown:
        strange = ", ".join(result.classes[result.known :])
        notes.append(
            f"warning: {result.unknown} test videos are of classes that the classifier does not know ({strange}); "
            "they count as wrong"
        )
    if result.known <= TOP:
        notes.append(f"top-5 says nothing: the classifier has {result.known} classes")
    if report.stride_shrunk:
        notes.append(
            f"{report.stride_shrunk} of {report.samples} videos are short: their clips' stride was lowered, "
            f"{report.clip_padded} also repeat the last frame"
        )
    return notes
