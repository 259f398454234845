"""Pre-training on folders of shards."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmd_extract.console.progress import ProgressDisplay
from cmd_extract.shard.folders import Folders, open_folders
from cmd_train.checkpoints.files import list_checkpoints
from cmd_train.checkpoints.initial import check_same_initial, load_initial, recorded_initial
from cmd_train.config import TrainConfig
from cmd_train.distributed import errors as rank_errors
from cmd_train.distributed.process_group import process_group
from cmd_train.engine.dry_run import perform_dry_run
from cmd_train.engine.loop import TrainingResult, train
from cmd_train.engine.objective import PretrainObjective
from cmd_train.engine.setup import select_training_videos
from cmd_train.models.build import build_model
from cmd_train.models.pretrain import PretrainModel


@dataclass(frozen=True, kw_only=True)
class InitRequest:
    """Initial weights to load.

    Attributes:
        source: published file, or checkpoint of this project.
        part: ``auto``, ``all`` or ``backbone``; see ``cmd_train.checkpoints.initial.load_initial``.
    """

    source: Path
    part: str = "auto"


def run_pretraining(
    folders: Folders,
    run_dir: Path,
    config: TrainConfig,
    *,
    device: str,
    log: Callable[[str], None],
    progress: ProgressDisplay | None = None,
    init: InitRequest | None = None,
    recipe: str | None = None,
    deadline: float = math.inf,
    dry_run: bool = False,
) -> TrainingResult:
    """Pre-train a network on folders of shards; see ``cmd_train.engine.loop.train``.

    Args:
        folders: folder of shards, or several that were extracted with the same settings.
        run_dir: folder for checkpoints, metrics and configuration.
        config: configuration of the run.
        device: ``auto``, ``cpu`` or ``cuda``.
        log: prints a line for the user.
        progress: progress display for a terminal.
        init: initial weights; not read again when a run is continued.
        recipe: name of the recipe that ``config`` is based on; recorded.
        deadline: time limit as a value of ``time.monotonic()``.
        dry_run: only report what would be done; see ``cmd_train.engine.dry_run.perform_dry_run``.

    Raises:
        ValueError: the settings, shards or initial weights do not fit together.
    """
    with process_group(device, None if dry_run else run_dir / rank_errors.FOLDER_NAME) as context:
        log_once = log if context.is_main else lambda _: None
        shards = open_folders(folders)
        chosen = select_training_videos(shards.videos, config)
        config = chosen.config
        objective = PretrainObjective(config, shards.header)
        log_once(chosen.description)
        log_once(f"Pre-training {config.model.backbone} on {context.device}")
        model = build_model(config.model, seed=config.run.seed)
        record = {"recipe": recipe, "init": _initialize(model, run_dir, init)}
        return (perform_dry_run if dry_run else train)(
            model,
            objective,
            shards,
            chosen.entries,
            config,
            run_dir,
            context,
            data_hash=shards.data_hash,
            record=record,
            log=log_once,
            progress=progress if context.is_main else None,
            deadline=deadline,
        )


def _initialize(model: PretrainModel, run_dir: Path, init: InitRequest | None) -> dict[str, Any] | None:
    """Load the initial weights unless the run is continued; return the record of the initial weights."""
    if not list_checkpoints(run_dir):
        return load_initial(model, init.source, init.part) if init else None
    record = recorded_initial(run_dir)
    if init:
        check_same_initial(run_dir, record, init.source)
    return record
