"""Test fine-tuned checkpoints: top-1 and top-5 accuracy of action recognition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmd_eval.data.leakage import Rows, check_not_trained_on, group_notes, training_notes, training_sets, without_copies
from cmd_eval.data.table import VideoTable
from cmd_eval.features.classify import classify_videos
from cmd_eval.features.clips import ClipProtocol
from cmd_eval.features.source import name_suffixes, run_folder, short_video_notes, unique
from cmd_eval.metrics.classification import TOP, RecognitionResult, score_predictions
from cmd_eval.results.schema import (
    DEFAULT_CLIPS,
    EVAL_FOLDER,
    Provenance,
    mean_and_spread,
    result_name,
    result_record,
)
from cmd_extract.schema import VideoEntry
from cmd_extract.shard.folders import Folders, join_paths, open_folders
from cmd_extract.shard.reader import ShardSet
from cmd_train.checkpoints.files import Checkpoint, load_checkpoint
from cmd_train.config import TrainConfig, config_from_dict
from cmd_train.distributed.process_group import process_group
from cmd_train.models.build import build_classifier
from cmd_train.models.supervised import SupervisedModel

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class RecognitionSpec:
    """Data and settings of a recognition test.

    Attributes:
        shards: folders of shards.
        split_column: split column of the manifest.
        test_part: part to test on.
        clips: clips per video.
        device: ``auto``, ``cpu`` or ``cuda``.
        workers: number of decoding processes; 0 decodes in this process.
        skip_copies: whether to leave out test videos that are copies of training videos, instead of rejecting the part.
    """

    shards: Folders
    split_column: str
    test_part: str = "test"
    clips: int = DEFAULT_CLIPS
    device: str = "auto"
    workers: int = 0
    skip_copies: bool = False


@dataclass(frozen=True, kw_only=True)
class RecognitionRun:
    """Test of one checkpoint.

    Attributes:
        result: the predictions.
        split: entry in the result file.
        provenance: origin of the figures.
        notes: notes for the user.
        checkpoint: folder of the checkpoint.
    """

    result: RecognitionResult
    split: Mapping[str, Any]
    provenance: Provenance
    notes: tuple[str, ...]
    checkpoint: Path

    @property
    def result_path(self) -> Path:
        """Default path of the result file, in the run's folder."""
        suffixes = name_suffixes(self.provenance)
        name = recognition_file_name(self.split["split_column"], self.split["test_part"], suffixes)
        return run_folder(self.checkpoint) / EVAL_FOLDER / name


def recognition_file_name(split_column: str, test_part: str, suffixes: Sequence[str]) -> str:
    """Return the name of a result file.

    Args:
        split_column, test_part: split and part; the part is omitted if it is ``test``.
        suffixes: as returned by ``cmd_eval.features.source.name_suffixes``.
    """
    return result_name("recognition", split_column, "" if test_part == "test" else test_part, *suffixes)


def evaluate_recognition(
    checkpoint: Path, spec: RecognitionSpec, *, command: str, progress: Progress
) -> RecognitionRun:
    """Classify the labeled videos of the test part with a fine-tuned checkpoint.

    Args:
        checkpoint: a checkpoint, or a run's folder for its last checkpoint.
        spec: data and settings.
        command: command line, recorded as provenance.
        progress: called with (videos done, total videos).

    Raises:
        ValueError: the checkpoint has no classifier, the split or part does not exist, no video has a label, or the
            checkpoint was trained on test videos or copies of them.
    """
    loaded = load_checkpoint(checkpoint)
    config = config_from_dict(loaded.config["settings"])
    classes, model = load_classifier(loaded, config)
    shards = open_folders(spec.shards)
    videos = VideoTable.of(shards.videos)
    tested = labeled_part(videos, spec.split_column, spec.test_part)
    provenance = _provenance(loaded, spec, shards, command)
    labeled = len(tested)
    trained_videos = loaded.config["videos"]
    tested = _without_copies(videos, tested, provenance, trained_videos) if spec.skip_copies else tested
    notes = check_test_videos(videos, tested, provenance, trained_videos)
    if len(tested) < labeled:
        notes.append(f"{labeled - len(tested)} test videos were left out as copies of training videos")
    entries = shards.videos.select(tested)
    unlabeled = len(videos.part(spec.split_column, spec.test_part)) - labeled
    if unlabeled:
        notes.append(f"{unlabeled} videos of part {spec.test_part!r} without a label were left out")
    with process_group(spec.device) as context:
        protocol = ClipProtocol.of(config, clips=spec.clips, device=context.device, workers=spec.workers)
        probability_NK = classify_videos(model, shards, entries, protocol, progress)
    labels = list(entries.names("label").texts())
    result = score_predictions(probability_NK, labels, classes, loaded.config.get("class_videos"))
    notes += _notes_on_result(result) + short_video_notes(entries.numbers("frame_count").tolist(), config.sampling)
    return RecognitionRun(
        result=result,
        split=_split_record(result, entries, [videos.units[row] for row in tested], spec, config, loaded)
        | {"unlabeled_left_out": unlabeled, "copies_left_out": labeled - len(tested)},
        provenance=provenance,
        notes=tuple(unique(notes)),
        checkpoint=loaded.path,
    )


def load_classifier(checkpoint: Checkpoint, config: TrainConfig) -> tuple[tuple[str, ...], SupervisedModel]:
    """Return the classes and the network of a fine-tuned checkpoint.

    Raises:
        ValueError: it is a pre-training checkpoint, which has no classifier.
    """
    if "classes" not in checkpoint.config:
        raise ValueError(
            f"{checkpoint.path}: a pre-training checkpoint has no classifier; "
            f"run `cmd-train finetune SHARDS RUN_DIR --from {checkpoint.path}` first"
        )
    classes = tuple(checkpoint.config["classes"])
    model = build_classifier(config.model, len(classes), seed=config.run.seed)
    model.load_state_dict(checkpoint.weights)
    return classes, model


def recognition_record(runs: Sequence[RecognitionRun]) -> dict[str, Any]:
    """Return the content of the result file of one or several tests; each of several splits has its own provenance."""
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
        mean=[{"target": "label", **mean}],
        notes=[note for run in runs for note in run.notes],
    )


def _split_record(
    result: RecognitionResult,
    entries: Sequence[VideoEntry],
    groups: Sequence[str],
    spec: RecognitionSpec,
    config: TrainConfig,
    checkpoint: Checkpoint,
) -> dict[str, Any]:
    rows = zip(entries, groups, result.predicted_N, result.confidence_N, result.top1_N, result.top5_N, strict=True)
    return {
        "split_column": spec.split_column,
        "train_part": config.data.train_part,
        "test_part": spec.test_part,
        "target": "label",
        "train": checkpoint.config["videos"],
        "clips": spec.clips,
        "trained_on_split_column": config.data.split_column,
        "seed": config.run.seed,
        "checkpoint": str(checkpoint.path.resolve()),
        **result.as_json(groups),
        "videos": [
            {
                "video": entry.video_id,
                "class": entry.label,
                "group": group,
                "predicted": result.classes[predicted],
                "confidence": float(confidence),
                "top1": bool(first),
                "top5": bool(fifth),
            }
            for entry, group, predicted, confidence, first, fifth in rows
        ],
    }


def _provenance(checkpoint: Checkpoint, spec: RecognitionSpec, shards: ShardSet, command: str) -> Provenance:
    return Provenance(
        command=command,
        shards=join_paths(spec.shards),
        data_hash=shards.data_hash,
        features="classifier, softmax averaged over clips",
        checkpoint=str(checkpoint.path.resolve()),
        checkpoint_sha256=checkpoint.weights_hash,
        trained_on=checkpoint.config["data_hash"],
        step=checkpoint.step,
        initial_weights=checkpoint.config.get("init"),
        settings=checkpoint.config["settings"],
        clips=spec.clips,
        pretext=checkpoint.load_state()["recent_metrics"],
    )


def labeled_part(videos: VideoTable, column: str, part: str) -> Rows:
    """Return the rows of the labeled videos of a part.

    Raises:
        ValueError: the split or part does not exist, or no video has a label.
    """
    return videos.labeled(videos.part(column, part), "label", f"part {part!r} of {column}")


def _without_copies(
    videos: VideoTable, tested: Rows, provenance: Provenance, trained_videos: int | None = None
) -> Rows:
    own, *_ = training_sets(provenance, classifier=True, trained_videos=trained_videos)
    trained = own.rows(videos, provenance.data_hash)
    return tested if trained is None else without_copies(videos, tested, trained)


def check_test_videos(
    videos: VideoTable, tested: Rows, provenance: Provenance, trained_videos: int | None = None
) -> list[str]:
    """Check that a classifier was not trained on its test videos, and return notes on its training data.

    Args:
        videos: all videos of the shards.
        tested: rows of the test videos.
        provenance: provenance of the checkpoint.
        trained_videos: number of videos that it was trained on, if known.

    Raises:
        ValueError: the checkpoint was trained on test videos, or on copies of them.
    """
    own, *_ = training_sets(provenance, classifier=True, trained_videos=trained_videos)
    trained = own.rows(videos, provenance.data_hash)
    notes = []
    if trained is not None:
        check_not_trained_on(videos, tested, trained)
        notes = group_notes(videos, tested, trained, own.split_column or "all videos", "test videos")
    where = own.split_column or "all videos"
    return notes + training_notes(
        provenance, videos, tested, where, "test videos", classifier=True, trained_videos=trained_videos
    )


def _notes_on_result(result: RecognitionResult) -> list[str]:
    notes = []
    if result.unknown:
        unknown = ", ".join(result.classes[result.known :])
        notes.append(
            f"warning: {result.unknown} test videos belong to classes unknown to the classifier ({unknown}); "
            "they count as wrong"
        )
    if result.known <= TOP:
        notes.append(f"top-5 is not meaningful: the classifier has {result.known} classes")
    return notes
