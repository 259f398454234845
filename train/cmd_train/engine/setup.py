"""Setup of a run before its first step: training videos, preflight checks, optimizer, last checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Sampler

from cmd_extract.console.progress import ProgressDisplay
from cmd_extract.shard.reader import ShardSet
from cmd_extract.shard.remote import CachedShardSet
from cmd_extract.shard.videos import Videos
from cmd_train.config import TrainConfig
from cmd_train.data.dataset import PretrainDataset, VideoSource, require_frames
from cmd_train.data.epoch_sampler import EpochSampler
from cmd_train.data.read_ahead import ReadAhead, shards_per_block
from cmd_train.data.selection import resolve_split_columns, select_videos
from cmd_train.distributed.process_group import RankContext, gather_texts
from cmd_train.engine.damaged_samples import DamageTracker, TolerantDataset
from cmd_train.engine.optim import build_optimizer, warmup_warning
from cmd_train.engine.resume import Resumed, resume
from cmd_train.engine.step import Objective
from cmd_train.monitoring.loggers import require_logger


@dataclass(frozen=True, kw_only=True)
class TrainingVideos:
    """The videos to train on.

    Attributes:
        entries: the videos.
        config: the configuration with its ``data`` section resolved: either a split column or ``all_videos``.
        description: the selection in words, for the log.
    """

    entries: Videos
    config: TrainConfig
    description: str


def select_training_videos(videos: Videos, config: TrainConfig) -> TrainingVideos:
    """Select the videos to train on: one part of a split, or all videos.

    Args:
        videos: all videos of the shards.
        config: configuration of the run. Without ``data.split_column`` and ``data.all_videos``, the only split column
            of the shards is used, or all videos if they have none.

    Raises:
        ValueError: the split column or its part does not exist, or the shards have several split columns to choose
            from.
    """
    data = config.data
    column: str | None
    if data.all_videos:
        column, reason = None, "--all-videos"
    else:
        columns = resolve_split_columns(sorted(videos.split_columns), [data.split_column] if data.split_column else [])
        column = columns[0] if columns else None
        reason = "the shards have no split columns"
        if column is None and data.train_part != "train":
            raise ValueError(f"data.train_part: cannot select part {data.train_part!r}, {reason}")
    entries = select_videos(videos, column, data.train_part)
    description = (
        f"Training on all {len(entries)} videos ({reason})"
        if column is None
        else f"Training on part {data.train_part!r} of split column {column!r}: {len(entries)} of {len(videos)} videos"
    )
    resolved = replace(config, data=replace(data, split_column=column, all_videos=column is None))
    return TrainingVideos(entries=entries, config=resolved, description=description)


def choose_shuffling(shards: ShardSet, entries: Videos, config: TrainConfig, log: Callable[[str], None]) -> TrainConfig:
    """Return the configuration with ``data.shuffle_shards`` resolved, if the shards are read through a cache.

    Raises:
        CacheError: the cache is too small for the shards of the videos.
    """
    if not isinstance(shards, CachedShardSet):
        return config
    sizes = [shards.remote_shards[number].size_bytes for number in np.unique(entries.numbers("shard"))]
    count = config.data.shuffle_shards or shards_per_block(sizes, shards.cache.max_bytes)
    log(
        f"Reading {len(sizes)} shards of {sum(sizes) / 1e9:.3g} GB through a cache of "
        f"{shards.cache.max_bytes / 1e9:.3g} GB; shuffling the videos of {count or 'all'} shards at a "
        "time (data.shuffle_shards)"
    )
    return replace(config, data=replace(config.data, shuffle_shards=count))


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """A run to perform.

    Attributes:
        model: network on the CPU, freshly initialized from the seed.
        objective: computes the loss from (model, batch).
        shards, entries: the shards, and the videos to train on.
        config: configuration of the run.
        run_dir: folder for checkpoints, metrics and configuration.
        context: this process among all.
        data_hash: hash that identifies the shards; recorded.
        record: additional information to record in every checkpoint.
        log: prints a line for the user.
        progress: progress display for a terminal.
        deadline: time limit as a value of ``time.monotonic()``.
    """

    model: nn.Module
    objective: Objective
    shards: VideoSource
    entries: Videos
    config: TrainConfig
    run_dir: Path
    context: RankContext
    data_hash: str
    record: Mapping[str, Any] = field(default_factory=dict)
    log: Callable[[str], None]
    progress: ProgressDisplay | None = None
    deadline: float = math.inf


@dataclass(frozen=True, kw_only=True)
class RunStart:
    """State of a run before its next step.

    Attributes:
        sampler: batches of the whole run.
        optimizer: optimizer of the network's parameters.
        resumed: state of the run before, if it is continued.
        stored: configuration to be recorded in checkpoints of this run.
        damage: counts damaged videos.
    """

    sampler: EpochSampler
    optimizer: torch.optim.Optimizer
    resumed: Resumed
    stored: dict[str, Any]
    damage: DamageTracker


def prepare_run(task: TrainingTask) -> RunStart:
    """Run the preflight checks, build the optimizer and load the last checkpoint; writes nothing.

    Raises:
        ValueError: the shards contain no small frames, the logger is not installed, or the settings do not fit the
            videos or the number of ranks.
        CheckpointError: see ``cmd_train.engine.loop.train``.
    """
    config, context, model, header = task.config, task.context, task.model, task.shards.header
    require_frames(header)
    require_logger(config.run.logger)
    stored = {"settings": config.as_dict(), "data_hash": task.data_hash, **task.record}
    # With these settings, single files can later be decoded to the frames that the network was trained on.
    stored["extraction"] = dict(header.config)
    sampler = EpochSampler(
        video_count=len(task.entries),
        global_batch=config.optim.batch_size,
        epochs=config.optim.epochs,
        seed=config.run.seed,
        samples_per_video=config.data.samples_per_video,
        shards=tuple(task.entries.numbers("shard").tolist()) if config.data.shuffle_shards else (),
        shuffle_shards=config.data.shuffle_shards,
        rank=context.rank,
        world_size=context.world_size,
    )
    preflight(config, task.entries, task.data_hash, context)
    if warning := warmup_warning(config.optim, sampler.steps_per_epoch):
        task.log(f"Warning: {warning}")
    layout = torch.channels_last_3d if config.run.channels_last else torch.preserve_format
    model.to(context.device, memory_format=layout)  # type: ignore[call-overload] # torch's overload covers 4D only
    optimizer = build_optimizer(model, config.optim)
    resumed = resume(task.run_dir, model, optimizer, stored, sampler.total_steps, context, task.log)
    if resumed.step:
        task.log(f"Continuing after step {resumed.step} of {sampler.total_steps}")
    damage = DamageTracker(config.data.max_damaged, resumed.state.get("damaged", {}), task.log)
    return RunStart(sampler=sampler, optimizer=optimizer, resumed=resumed, stored=stored, damage=damage)


def preflight(config: TrainConfig, entries: Videos, data_hash: str, context: RankContext) -> None:
    """Reject settings that would fail later, or from which nothing could be learned; a collective operation.

    Args:
        config: configuration of the run.
        entries: videos to train on.
        data_hash: hash that identifies the shards read by this rank.
        context: this process among all.

    Raises:
        ValueError: there is only one video, so that clips have no negatives; a micro-batch is too small for BatchNorm;
            ``run.knn_epochs`` is set without two labels; or ranks read different shards.
    """
    if len(entries) < 2:
        raise ValueError(f"only one video to train on ({entries[0].video_id}); clips need at least 2 for negatives")
    batch, parts = config.optim.batch_size, config.optim.accumulate
    shares = context.world_size * parts
    if batch % shares or batch // shares < 2:
        raise ValueError(
            f"optim.batch_size: must be a multiple of {shares} and at least {2 * shares}, got {batch}; the number of "
            f"ranks is {context.world_size}, optim.accumulate is {parts}, and a micro-batch needs at least 2 clips"
        )
    if config.run.knn_epochs and len(entries.names("label").used) < 2:
        raise ValueError("run.knn_epochs: needs videos with at least 2 different labels; set it to 0")
    hashes = gather_texts(data_hash, context)
    others = [str(rank) for rank, other in enumerate(hashes) if other != hashes[0]]
    if others:
        raise ValueError(f"shards: ranks {', '.join(others)} read different shards than rank 0")


def batch_dataset(task: TrainingTask) -> TolerantDataset:
    """Build the dataset of batches; without heads, it reads neither keyframes nor motion."""
    config = task.config
    clips_only = not (config.model.context_head or config.model.motion_head)
    return TolerantDataset(
        PretrainDataset(task.shards, task.entries, config.sampling, seed=config.run.seed, clips_only=clips_only)
    )


def batch_sampler(task: TrainingTask, sampler: EpochSampler, first_step: int) -> Sampler[list[tuple[int, int]]]:
    """Return the batches from a step on; if shards are read through a cache, they are downloaded ahead.

    Raises:
        CacheError: the cache is too small.
    """
    remaining = replace(sampler, first_step=first_step)
    if not isinstance(task.shards, CachedShardSet):
        return remaining
    numbers = task.entries.numbers("shard")
    return ReadAhead(remaining, numbers, task.shards.remote_shards, task.shards.cache, task.config.data.workers)
