"""Dry run: checks settings and data and reports what a run would do, without writing a file or taking a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from cmd_extract.console.progress import ProgressDisplay
from cmd_extract.schema import VideoEntry
from cmd_train.config import TrainConfig
from cmd_train.data.dataset import VideoSource
from cmd_train.data.sampling_report import SamplingReport
from cmd_train.distributed.process_group import RankContext
from cmd_train.engine.loop import TrainingResult
from cmd_train.engine.setup import batch_dataset, prepare_run
from cmd_train.engine.step import Objective

_OPTIMIZER_TENSORS = {"sgd": 1, "adamw": 2}  # each of the size of the parameters


def perform_dry_run(
    model: nn.Module,
    objective: Objective,
    shards: VideoSource,
    entries: Sequence[VideoEntry],
    config: TrainConfig,
    run_dir: Path,
    context: RankContext,
    *,
    data_hash: str,
    record: Mapping[str, Any] | None = None,
    log: Callable[[str], None],
    progress: ProgressDisplay | None = None,
    deadline: float = math.inf,
) -> TrainingResult:
    """Do what ``cmd_train.engine.loop.train`` does before its first step, read one batch, and report the run.

    Arguments and errors are those of ``train``; ``objective``, ``progress`` and ``deadline`` are not used.
    """
    start = prepare_run(model, shards, entries, config, run_dir, context, data_hash=data_hash, record=record, log=log)
    sampler = start.sampler
    log(
        f"steps       {sampler.total_steps}: {config.optim.epochs} epochs of {sampler.steps_per_epoch} steps, "
        f"{config.optim.batch_size} samples per step; processes: {context.world_size}"
    )
    _log_sizes(model, config, run_dir, log)
    if start.resumed.step == sampler.total_steps:
        log("All steps are completed")
    else:
        remaining = replace(sampler, first_step=start.resumed.step)
        batch = batch_dataset(shards, entries, config)[next(iter(remaining))]
        start.damage.update(batch.unpack(), start.resumed.step, context)
        log(f"next batch  {batch.block.nbytes / 1e6:.1f} MB, read successfully; data.workers: {config.data.workers}")
        log(batch.report.text())
    log("Dry run: nothing was written")
    return TrainingResult(steps=start.resumed.step, finished=False, report=SamplingReport(), metrics={})


def _log_sizes(model: nn.Module, config: TrainConfig, run_dir: Path, log: Callable[[str], None]) -> None:
    trainable = [p for p in model.parameters() if p.requires_grad]
    weights = sum(t.nbytes for t in model.state_dict().values())
    state = _OPTIMIZER_TENSORS[config.optim.optimizer] * sum(p.nbytes for p in trainable)
    log(f"network     {sum(p.numel() for p in trainable) / 1e6:.2f} million parameters")
    kept = f"{run_dir} keeps the newest {config.run.keep_checkpoints} and the best"
    if config.run.milestone_epochs:
        kept += f", and one every {config.run.milestone_epochs} epochs"
    log(f"checkpoint  about {(weights + state) / 1e6:.1f} MB each; {kept}")
