"""Tests a fine-tuned checkpoint: classifier and videos in, figures and everything for the result file out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmd_eval.data.leakage import Rows, group_notes, refuse_trained, training_notes, training_sets
from cmd_eval.data.table import VideoTable
from cmd_eval.features.classify import classify_videos
from cmd_eval.features.source import name_words, run_folder, short_notes, unique
from cmd_eval.metrics.classification import TOP, Recognition, judge
from cmd_eval.results.schema import EVAL_FOLDER, Provenance, mean_and_spread, result_name, result_record
from cmd_extract.schema import VideoEntry
from cmd_extract.shard.reader import ShardSet
from cmd_train.checkpoints.files import Checkpoint, load_checkpoint
from cmd_train.config import TrainConfig, config_from_dict
from cmd_train.distributed.process_group import process_group
from cmd_train.models.build import build_classifier
from cmd_train.models.supervised import SupervisedModel

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
        name = file_name(self.split["split_column"], self.split["test_part"], name_words(self.provenance))
        return run_folder(self.checkpoint) / EVAL_FOLDER / name


def file_name(split_column: str, part: str, words: Sequence[str]) -> str:
    """The result file's name: the split, a part other than ``test``, and what else tells it from others.

    Args:
        split_column, part: tested on.
        words: as ``cmd_eval.features.source.name_words`` gives them.
    """
    return result_name("recognition", split_column, "" if part == "test" else part, *words)


def recognise(checkpoint: Path, test: RecognitionTest, *, command: str, progress: Progress) -> RecognitionRun:
    """Classifies the labelled videos of a part with a fine-tuned checkpoint.

    Args:
        checkpoint: a checkpoint, or a training's folder for its last one.
        test: what to test on.
        command: the command line; recorded.
        progress: called with (videos done, all videos).

    Raises:
        ValueError: the checkpoint has no classifier, the split or part does not exist, no video has a label, or the
            checkpoint was trained on tested videos or copies of them.
    """
    loaded = load_checkpoint(checkpoint)
    config = config_from_dict(loaded.config["settings"])
    classes, model = load_classifier(loaded, config)
    column = test.split_column or config.data.split_column
    if column is None:
        raise ValueError(f"split_column: {loaded.path} was trained on all videos; name the split to test on")
    shards = ShardSet(test.shards)
    videos = VideoTable.of(shards.videos)
    tested = labelled_part(videos, column, test.part)
    provenance = _provenance(loaded, test, shards, command)
    notes = check_tested(videos, tested, provenance)
    entries = [shards.videos[row] for row in tested]
    unlabelled = len(videos.part(column, test.part)) - len(entries)
    if unlabelled:
        notes.append(f"{unlabelled} videos of part {test.part!r} have no label and were left out")
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
    result = judge(probability_NK, [entry.label for entry in entries], classes, loaded.config.get("class_videos"))
    notes += _notes_on_result(result) + short_notes((entry.frame_count for entry in entries), config.sampling)
    return RecognitionRun(
        result=result,
        split=_split_object(result, entries, column, test, config, loaded),
        provenance=provenance,
        notes=tuple(unique(notes)),
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
    model = build_classifier(config.model, len(classes), seed=config.run.seed)
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
        "checkpoint": str(checkpoint.path.resolve()),
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
        shards=str(test.shards.resolve()),
        data_hash=shards.data_hash,
        features="classifier, softmax averaged over clips",
        checkpoint=str(checkpoint.path.resolve()),
        checkpoint_sha256=checkpoint.weights_hash,
        trained_on=checkpoint.config["data_hash"],
        step=checkpoint.step,
        began_from=checkpoint.config.get("init"),
        settings=checkpoint.config["settings"],
        clips=test.clips,
        pretext=checkpoint.load_state()["recent_metrics"],
    )


def labelled_part(videos: VideoTable, column: str, part: str) -> Rows:
    """The labelled videos of a part.

    Raises:
        ValueError: the split or part does not exist, or no video has a label.
    """
    return videos.labelled(videos.part(column, part), "label", f"{column}'s part {part!r}")


def check_tested(videos: VideoTable, tested: Rows, provenance: Provenance) -> list[str]:
    """What to know of the tested videos and the classifier's training; refuses ones that it was trained on.

    Args:
        videos: all videos of the shards.
        tested: the ones to be tested on.
        provenance: of the checkpoint: its settings and what they were used on.

    Raises:
        ValueError: the checkpoint was trained on tested videos, or on copies of them.
    """
    own, *_ = training_sets(provenance)
    trained = own.rows(videos, provenance.data_hash)
    notes = []
    if trained is not None:
        # Videos without a label are left out by the training.
        trained = trained[[bool(videos.labels[row]) for row in trained]]
        refuse_trained(videos, tested, trained)
        notes = group_notes(videos, tested, trained, own.split_column or "all videos", "test videos")
    return notes + training_notes(provenance, videos, tested, own.split_column or "all videos", "test videos")


def _notes_on_result(result: Recognition) -> list[str]:
    notes = []
    if result.unknown:
        strange = ", ".join(result.classes[result.known :])
        notes.append(
            f"warning: {result.unknown} test videos are of classes that the classifier does not know ({strange}); "
            "they count as wrong"
        )
    if result.known <= TOP:
        notes.append(f"top-5 says nothing: the classifier has {result.known} classes")
    return notes
