"""Fine-tuning of a classifier on folders of shards."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cmd_extract.console.progress import ProgressDisplay
from cmd_extract.shard.folders import Folders
from cmd_extract.shard.remote import RemoteFolder, open_shards
from cmd_extract.shard.videos import Videos
from cmd_train.checkpoints.initial import initialize
from cmd_train.config import TrainConfig
from cmd_train.distributed import errors as rank_errors
from cmd_train.distributed.process_group import process_group
from cmd_train.engine.dry_run import perform_dry_run
from cmd_train.engine.finetune_start import load_start
from cmd_train.engine.loop import TrainingResult, train
from cmd_train.engine.setup import TrainingTask, TrainingVideos, choose_shuffling, select_training_videos
from cmd_train.engine.supervised_objective import SupervisedObjective
from cmd_train.models.build import build_classifier
from cmd_train.models.supervised import SupervisedModel

MIN_CLASSES = 2


@dataclass(frozen=True, kw_only=True)
class LabeledVideos:
    """Labeled training videos and their classes.

    Attributes:
        entries: the videos that have a label.
        classes: sorted labels; the index is the class number.
        unlabeled: number of videos left out because they have no label.
    """

    entries: Videos
    classes: tuple[str, ...]
    unlabeled: int

    @property
    def class_numbers(self) -> list[int]:
        """Class number of each entry."""
        labels = self.entries.names("label")
        number_of = {name: number for number, name in enumerate(self.classes)}
        numbers = np.array([number_of.get(name, -1) for name in labels.names])
        classes: list[int] = numbers[labels.codes].tolist()
        return classes

    @property
    def record(self) -> dict[str, Any]:
        """Record for checkpoints: ``classes`` by output number, ``class_videos`` per class, ``videos`` in total."""
        counts = Counter(self.class_numbers)
        return {
            "classes": list(self.classes),
            "class_videos": [counts[number] for number in range(len(self.classes))],
            "videos": len(self.entries),
        }


def select_classes(entries: Videos) -> LabeledVideos:
    """Select the videos that have a label, and determine the classes.

    Raises:
        ValueError: there are fewer than two classes.
    """
    labels = entries.names("label")
    labeled = entries.select(np.flatnonzero(np.array(labels.names, object)[labels.codes] != ""))
    classes = tuple(labels.used)
    if len(classes) < MIN_CLASSES:
        found = f"the label {classes[0]!r} only ({len(labeled)} videos)" if classes else "no labels"
        raise ValueError(
            f"the {len(entries)} videos to train on have {found}; fine-tuning needs at least {MIN_CLASSES} classes. "
            "Labels come from the column `label` of the manifest"
        )
    return LabeledVideos(entries=labeled, classes=classes, unlabeled=len(entries) - len(labeled))


def _load_start(
    model: SupervisedModel, config: TrainConfig, log: Callable[[str], None], source: Path
) -> dict[str, Any]:
    record, lines = load_start(model, config, source)
    for line in lines:
        log(line)
    return record


def _log_videos(chosen: TrainingVideos, labeled: LabeledVideos, every: Videos, log: Callable[[str], None]) -> None:
    log(chosen.description)
    if not every.split_columns:
        log(
            "No videos are held out for `cmd-eval recognition`. To hold some out, add a column 'split' with train and "
            "test to the manifest, run `cmd-extract relabel`, and fine-tune in a new folder"
        )
    if labeled.unlabeled:
        log(f"Left out {labeled.unlabeled} videos without a label")


def run_finetuning(
    folders: Folders | RemoteFolder,
    run_dir: Path,
    config: TrainConfig,
    *,
    start: Path | None,
    device: str,
    log: Callable[[str], None],
    progress: ProgressDisplay | None = None,
    recipe: str | None = None,
    deadline: float = math.inf,
    dry_run: bool = False,
) -> TrainingResult:
    """Train a classifier on folders of shards; see ``cmd_train.engine.loop.train``.

    Args:
        folders: folder of shards, several that were extracted with the same settings, or published shards.
        run_dir: folder for checkpoints, metrics and configuration. Checkpoints record ``LabeledVideos.record``.
        config: configuration of the run.
        start: checkpoint, run folder or published weights; None starts from scratch. Not read again when a run is
            continued.
        device: ``auto``, ``cpu`` or ``cuda``.
        log: prints a line for the user.
        progress: progress display for a terminal.
        recipe: name of the recipe that ``config`` is based on; recorded.
        deadline: time limit as a value of ``time.monotonic()``.
        dry_run: only report what would be done; see ``cmd_train.engine.dry_run.perform_dry_run``.

    Raises:
        CacheError, ValueError: the cache fails; the settings, shards, labels or initial weights do not fit together.
    """
    with process_group(device, None if dry_run else run_dir / rank_errors.FOLDER_NAME) as context:
        log_once = log if context.is_main else lambda _: None
        shards = open_shards(folders)
        chosen = select_training_videos(shards.videos, config)
        labeled = select_classes(chosen.entries)
        config = choose_shuffling(shards, labeled.entries, chosen.config, log_once)
        objective = SupervisedObjective(config, shards.header, labeled.class_numbers, len(labeled.classes))
        _log_videos(chosen, labeled, shards.videos, log_once)
        network = f"{config.model.backbone}{' with motion prediction' * config.model.motion_head} on {context.device}"
        log_once(f"Fine-tuning {network}: {len(labeled.entries)} videos, {len(labeled.classes)} classes")
        model = build_classifier(config.model, len(labeled.classes), seed=config.run.seed)
        initial = initialize(run_dir, start, partial(_load_start, model, config, log_once))
        task = TrainingTask(
            model=model,
            objective=objective,
            shards=shards,
            entries=labeled.entries,
            config=config,
            run_dir=run_dir,
            context=context,
            data_hash=shards.data_hash,
            record={"recipe": recipe, "init": initial, **labeled.record},
            log=log_once,
            progress=progress if context.is_main else None,
            deadline=deadline,
        )
        return perform_dry_run(task) if dry_run else train(task)
