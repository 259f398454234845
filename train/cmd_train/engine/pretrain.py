"""Pre-training from a folder of shards: selects the videos, builds the network, runs the loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmd_extract.shard.reader import ShardSet
from cmd_train.checkpoints.files import CheckpointError, list_checkpoints, load_checkpoint
from cmd_train.checkpoints.initial import load_initial
from cmd_train.config import TrainConfig
from cmd_train.data.selection import select_videos
from cmd_train.distributed import errors as rank_errors
from cmd_train.distributed.process_group import process_group
from cmd_train.engine.dry_run import rehearse
from cmd_train.engine.loop import TrainingResult, train
from cmd_train.engine.objective import PretrainObjective
from cmd_train.models.build import build_model
from cmd_train.models.pretrain import PretrainModel
from cmd_train.monitoring.live_line import LiveLine


@dataclass(frozen=True, kw_only=True)
class InitRequest:
    """Which weights to start from.

    Attributes:
        source: a published file, or a checkpoint of this project.
        part: ``auto``, ``all`` or ``backbone``; see ``cmd_train.checkpoints.initial.load_initial``.
    """

    source: Path
    part: str = "auto"


def run_pretraining(
    folder: Path,
    run_dir: Path,
    config: TrainConfig,
    *,
    device: str,
    say: Callable[[str], None],
    live: LiveLine | None = None,
    init: InitRequest | None = None,
    recipe: str | None = None,
    deadline: float = math.inf,
    dry_run: bool = False,
) -> TrainingResult:
    """Pre-trains on the shards in ``folder``; see ``cmd_train.engine.loop.train``.

    Args:
        folder: of shards.
        run_dir: where checkpoints, metrics and configuration go.
        config: the settings.
        device: ``auto``, ``cpu`` or ``cuda``.
        say: prints a line for the user.
        live: shows how it goes, on a terminal.
        init: weights to start from; not read again where ``run_dir`` has a checkpoint to continue from.
        recipe: name of the preset that ``config`` was made from; recorded.
        deadline: ``time.monotonic()`` from which on it stops by itself.
        dry_run: tell what would be done, and write nothing; see ``cmd_train.engine.dry_run.rehearse``.

    Raises:
        ValueError: settings, shards or initial weights that do not fit.
    """
    with process_group(device, None if dry_run else run_dir / rank_errors.FOLDER_NAME) as placement:
        speak = say if placement.is_main else lambda _: None
        shards = ShardSet(folder)
        entries = select_videos(shards.videos, config.data.split_column, config.data.part)
        objective = PretrainObjective(config, shards.header)
        speak(f"{len(entries)} videos, {config.model.backbone} on {placement.device}")
        model = build_model(config.model, seed=config.run.seed)
        record = {"recipe": recipe, "init": _initialise(model, run_dir, init)}
        result = (rehearse if dry_run else train)(
            model,
            objective,
            shards,
            entries,
            config,
            run_dir,
            placement,
            data_hash=shards.data_hash,
            record=record,
            say=speak,
            live=live if placement.is_main else None,
            deadline=deadline,
        )
        if result.report.samples:
            speak(result.report.text())
        return result


def _initialise(model: PretrainModel, run_dir: Path, init: InitRequest | None) -> dict[str, Any] | None:
    """Loads the weights to start from, unless the training has started already; returns what to record of them."""
    if not list_checkpoints(run_dir):
        return load_initial(model, init.source, init.part) if init else None
    record: dict[str, Any] | None = load_checkpoint(run_dir).config.get("init")
    if init and (record is None or Path(record["source"]).resolve() != init.source.resolve()):
        began = f"from {record['source']}" if record else "without --init"
        raise CheckpointError(f"{run_dir} holds a training that began {began}; choose another folder")
    return record
