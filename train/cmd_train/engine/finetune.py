"""Fine-tuning with labels: selects the videos and their classes, builds the network, runs the loop."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmd_extract.schema import VideoEntry
from cmd_extract.shard.reader import ShardSet
from cmd_train.config import TrainConfig
from cmd_train.data.selection import select_videos
from cmd_train.distributed import errors as rank_errors
from cmd_train.distributed.process_group import process_group
from cmd_train.engine.dry_run import rehearse
from cmd_train.engine.finetune_start import has_started, load_start, recorded_start
from cmd_train.engine.loop import TrainingResult, train
from cmd_train.engine.supervised_objective import SupervisedObjective
from cmd_train.models.build import build_classifier
from cmd_train.models.supervised import SupervisedModel
from cmd_train.monitoring.live_line import LiveLine

LEAST_CLASSES = 2


@dataclass(frozen=True, kw_only=True)
class LabelledVideos:
    """What a classifier is trained on.

    Attributes:
        entries: the videos that have a label.
        classes: their labels, sorted; a class's number is its place.
        unlabelled: videos of the part that have no label and were left out.
    """

    entries: tuple[VideoEntry, ...]
    classes: tuple[str, ...]
    unlabelled: int

    @property
    def class_numbers(self) -> list[int]:
        """The class of each entry."""
        number_of = {name: number for number, name in enumerate(self.classes)}
        return [number_of[entry.label] for entry in self.entries]

    @property
    def record(self) -> dict[str, Any]:
        """``classes``, names of the outputs in their order; ``class_videos``, how many of each; ``videos`` in all."""
        counts = Counter(self.class_numbers)
        return {
            "classes": list(self.classes),
            "class_videos": [counts[number] for number in range(len(self.classes))],
            "videos": len(self.entries),
        }


def select_classes(entries: Sequence[VideoEntry]) -> LabelledVideos:
    """The videos with a label, and the classes.

    Raises:
        ValueError: there are fewer than two classes.
    """
    labelled = tuple(entry for entry in entries if entry.label)
    classes = tuple(sorted({entry.label for entry in labelled}))
    if len(classes) < LEAST_CLASSES:
        found = f"all {len(labelled)} that have one are {classes[0]!r}" if classes else "none has one"
        raise ValueError(
            f"label: of the {len(entries)} videos to train on {found}; need at least {LEAST_CLASSES} classes. "
            "Labels come from the manifest's column label"
        )
    return LabelledVideos(entries=labelled, classes=classes, unlabelled=len(entries) - len(labelled))


def _initialise(
    model: SupervisedModel, config: TrainConfig, run_dir: Path, start: Path | None, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """Loads the weights to start from, unless a checkpoint is there to continue from; what they are, recorded."""
    if has_started(run_dir):
        return recorded_start(run_dir, start)
    if start is None:
        return None
    init, lines = load_start(model, config, start)
    for line in lines:
        say(line)
    return init


def run_finetuning(
    folder: Path,
    run_dir: Path,
    config: TrainConfig,
    *,
    start: Path | None,
    device: str,
    say: Callable[[str], None],
    live: LiveLine | None = None,
    recipe: str | None = None,
    deadline: float = math.inf,
    dry_run: bool = False,
) -> TrainingResult:
    """Trains a classifier on the shards in ``folder``; see ``cmd_train.engine.loop.train``.

    Args:
        folder: of shards.
        run_dir: where checkpoints, metrics and configuration go. Checkpoints carry ``LabelledVideos.record``.
        config: the settings.
        start: a checkpoint, a training's folder or a published file; None starts from scratch. Not read again where
            ``run_dir`` has a checkpoint to continue from.
        device: ``auto``, ``cpu`` or ``cuda``.
        say: prints a line for the user.
        live: shows how it goes, on a terminal.
        recipe: name of the preset that ``config`` was made from; recorded.
        deadline: ``time.monotonic()`` from which on it stops by itself.
        dry_run: tell what would be done, and write nothing; see ``cmd_train.engine.dry_run.rehearse``.

    Raises:
        ValueError: settings, shards, labels or initial weights that do not fit.
    """
    with process_group(device, None if dry_run else run_dir / rank_errors.FOLDER_NAME) as placement:
        speak = say if placement.is_main else lambda _: None
        shards = ShardSet(folder)
        chosen = select_classes(select_videos(shards.videos, config.data.split_column, config.data.part))
        objective = SupervisedObjective(config, shards.header, chosen.class_numbers, len(chosen.classes))
        auxiliary = ", with motion prediction" if config.model.motion_head else ""
        network = f"{config.model.backbone} on {placement.device}{auxiliary}"
        speak(f"{len(chosen.entries)} videos of {len(chosen.classes)} classes, {network}")
        if chosen.unlabelled:
            speak(f"{chosen.unlabelled} videos have no label and were left out")
        model = build_classifier(config.model, len(chosen.classes), seed=config.run.seed)
        init = _initialise(model, config, run_dir, start, speak)
        result = (rehearse if dry_run else train)(
            model,
            objective,
            shards,
            chosen.entries,
            config,
            run_dir,
            placement,
            data_hash=shards.data_hash,
            record={"recipe": recipe, "init": init, **chosen.record},
            say=speak,
            live=live if placement.is_main else None,
            deadline=deadline,
        )
        if result.report.samples:
            speak(result.report.text())
        return result
