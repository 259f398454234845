"""Pre-training from a folder of shards: selects the videos, builds the network, runs the loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from extract.schema import VideoEntry
from extract.shard_reader import ShardSet
from train.config import TrainConfig
from train.distributed import process_group
from train.loop import TrainingResult, train
from train.model import PretrainModel
from train.objective import PretrainObjective


def select_training_videos(shards: ShardSet, config: TrainConfig) -> tuple[VideoEntry, ...]:
    """The videos to train on: one part of a split, or all.

    Raises:
        ValueError: the split column or part does not exist.
    """
    column, part = config.data.split_column, config.data.part
    if column is None:
        return shards.videos
    columns = sorted({name for entry in shards.videos for name in entry.splits})
    if column not in columns:
        raise ValueError(f"split_column: {column!r} is not in {shards.folder}; it has {', '.join(columns) or 'none'}")
    chosen = tuple(entry for entry in shards.videos if entry.splits.get(column) == part)
    if not chosen:
        parts = sorted({entry.splits.get(column, "") for entry in shards.videos} - {""})
        raise ValueError(f"part: no video of {column} is in {part!r}; its parts are {', '.join(parts) or 'all empty'}")
    return chosen


def build_model(config: TrainConfig) -> PretrainModel:
    """The freshly initialised network; its weights depend on the seed alone."""
    torch.manual_seed(config.run.seed)
    return PretrainModel(config.model)


def run_pretraining(
    folder: Path, run_dir: Path, config: TrainConfig, *, device: str, say: Callable[[str], None]
) -> TrainingResult:
    """Pre-trains on the shards in ``folder``; see ``train.loop.train``."""
    with process_group(device) as placement:
        shards = ShardSet(folder)
        entries = select_training_videos(shards, config)
        if placement.is_main:
            say(f"{len(entries)} videos, {config.model.backbone} on {placement.device}")
        result = train(
            build_model(config),
            PretrainObjective(config, shards.header),
            shards,
            entries,
            config,
            run_dir,
            placement,
            data_hash=shards.data_hash,
            say=say if placement.is_main else lambda _: None,
        )
        if placement.is_main and result.report.samples:
            say(result.report.text())
        return result
