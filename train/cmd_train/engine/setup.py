"""What happens before the first step of a training: checks, the last checkpoint, where batches come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cmd_extract.schema import VideoEntry
from cmd_train.config import TrainConfig
from cmd_train.data.dataset import PretrainDataset, VideoSource
from cmd_train.data.epoch_sampler import EpochSampler
from cmd_train.distributed.process_group import Placement
from cmd_train.engine.damage import TolerantDataset
from cmd_train.engine.optim import build_optimizer
from cmd_train.engine.readiness import check_before_start
from cmd_train.engine.resume import resume


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """Where a training begins, or goes on.

    Attributes:
        sampler: all batches of the training.
        optimizer: over the network's parameters.
        first_step: steps done already.
        state: what else the last checkpoint holds; empty without one.
    """

    sampler: EpochSampler
    optimizer: torch.optim.Optimizer
    first_step: int
    state: dict[str, Any]


def begin(
    model: nn.Module,
    entries: Sequence[VideoEntry],
    config: TrainConfig,
    run_dir: Path,
    placement: Placement,
    *,
    stored: dict[str, Any],
    say: Callable[[str], None],
) -> Beginning:
    """Checks what can be checked before the first step, and takes up the last checkpoint; writes nothing.

    Args:
        model, entries, config, run_dir, placement, say: see ``cmd_train.engine.loop.train``.
        stored: what checkpoints of this training say of where they come from.

    Raises:
        ValueError: the settings do not fit the videos or the number of processes.
        CheckpointError: see ``cmd_train.engine.loop.train``.
    """
    sampler = EpochSampler(
        video_count=len(entries),
        global_batch=config.optim.batch_size,
        epochs=config.optim.epochs,
        seed=config.run.seed,
        samples_per_video=config.data.samples_per_video,
        rank=placement.rank,
        world_size=placement.world_size,
    )
    check_before_start(config, entries, stored["data_hash"], placement)
    layout = torch.channels_last_3d if config.run.channels_last else torch.preserve_format
    model.to(placement.device, memory_format=layout)  # type: ignore[call-overload] # torch's overload knows 4D only
    optimizer = build_optimizer(model, config.optim)
    first_step, state = resume(run_dir, model, optimizer, stored, sampler.total_steps, placement)
    if first_step:
        say(f"continuing after step {first_step} of {sampler.total_steps}")
    return Beginning(sampler=sampler, optimizer=optimizer, first_step=first_step, state=state)


def training_batches(shards: VideoSource, entries: Sequence[VideoEntry], config: TrainConfig) -> TolerantDataset:
    """Batches of a training by the keys of their samples; what no head asks for is left unread."""
    clips_only = not (config.model.context_head or config.model.motion_head)
    return TolerantDataset(
        PretrainDataset(shards, entries, config.sampling, seed=config.run.seed, clips_only=clips_only)
    )
