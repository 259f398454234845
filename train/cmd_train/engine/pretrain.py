"""Pre-training on folders of shards."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cmd_extract.console.progress import ProgressDisplay
from cmd_extract.shard.folders import Folders
from cmd_extract.shard.remote import RemoteFolder, open_shards
from cmd_train.checkpoints.initial import initialize, load_initial
from cmd_train.config import TrainConfig
from cmd_train.distributed import errors as rank_errors
from cmd_train.distributed.process_group import process_group
from cmd_train.engine.dry_run import perform_dry_run
from cmd_train.engine.loop import TrainingResult, train
from cmd_train.engine.objective import PretrainObjective
from cmd_train.engine.setup import TrainingTask, choose_shuffling, select_training_videos
from cmd_train.models.build import build_model


@dataclass(frozen=True, kw_only=True)
class InitRequest:
    """Initial weights to load.

    Attributes:
        source: published weights, or checkpoint of this project.
        part: ``auto``, ``all`` or ``backbone``; see ``cmd_train.checkpoints.initial.load_initial``.
    """

    source: Path
    part: str = "auto"


def run_pretraining(
    folders: Folders | RemoteFolder,
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
        folders: folder of shards, several that were extracted with the same settings, or published shards.
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
        CacheError: published shards cannot be read through the cache.
        ValueError: the settings, shards or initial weights do not fit together.
    """
    with process_group(device, None if dry_run else run_dir / rank_errors.FOLDER_NAME) as context:
        log_once = log if context.is_main else lambda _: None
        shards = open_shards(folders)
        chosen = select_training_videos(shards.videos, config)
        config = choose_shuffling(shards, chosen.entries, chosen.config, log_once)
        objective = PretrainObjective(config, shards.header)
        log_once(chosen.description)
        log_once(f"Pre-training {config.model.backbone} on {context.device}")
        model = build_model(config.model, seed=config.run.seed)
        part = init.part if init else "auto"
        initial = initialize(
            run_dir, init.source if init else None, lambda source: load_initial(model, source, part), may_omit=True
        )
        task = TrainingTask(
            model=model,
            objective=objective,
            shards=shards,
            entries=chosen.entries,
            config=config,
            run_dir=run_dir,
            context=context,
            data_hash=shards.data_hash,
            record={"recipe": recipe, "init": initial},
            log=log_once,
            progress=progress if context.is_main else None,
            deadline=deadline,
        )
        return perform_dry_run(task) if dry_run else train(task)
