"""What a training would do, told without doing it: nothing is written, no step is taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from cmd_extract.schema import VideoEntry
from cmd_train.config import TrainConfig
from cmd_train.data.dataset import VideoSource
from cmd_train.data.sampling_report import SamplingReport
from cmd_train.distributed.process_group import Placement
from cmd_train.engine.damage import DamageTally
from cmd_train.engine.loop import TrainingResult
from cmd_train.engine.setup import begin, training_batches
from cmd_train.engine.step import Objective
from cmd_train.monitoring.live_line import LiveLine

_OPTIMIZER_TENSORS = {"sgd": 1, "adamw": 2}  # of the parameters' size each


def rehearse(
    model: nn.Module,
    objective: Objective,
    shards: VideoSource,
    entries: Sequence[VideoEntry],
    config: TrainConfig,
    run_dir: Path,
    placement: Placement,
    *,
    data_hash: str,
    record: Mapping[str, Any] | None = None,
    say: Callable[[str], None],
    live: LiveLine | None = None,
    deadline: float = math.inf,
) -> TrainingResult:
    """Does what ``cmd_train.engine.loop.train`` does before its first step, reads the first batch, and tells of it.

    Arguments and errors are those of ``train``; ``objective``, ``live`` and ``deadline`` are for steps, of which there
    are none.
    """
    stored = {"settings": config.as_dict(), "data_hash": data_hash, **(record or {})}
    start = begin(model, entries, config, run_dir, placement, stored=stored, say=say)
    sampler = start.sampler
    say(
        f"steps       {sampler.total_steps}: {config.optim.epochs} epochs of {sampler.steps_per_epoch}, "
        f"{config.optim.batch_size} samples each; processes: {placement.world_size}"
    )
    _tell_sizes(model, config, run_dir, say)
    if start.first_step == sampler.total_steps:
        say("all steps are done")
    else:
        damage = DamageTally(config.data.max_damaged, config.optim.accumulate, start.state.get("damaged", {}), say)
        left = replace(sampler, first_step=start.first_step)
        batch = training_batches(shards, entries, config)[next(iter(left))]
        report = damage.take(batch.open(), start.first_step, placement).report
        say(f"next batch  {batch.block.nbytes / 1e6:.1f} MB, read here; data.workers: {config.data.workers}")
        say(report.text())
    say("nothing was written")
    return TrainingResult(steps=start.first_step, finished=False, report=SamplingReport(), metrics={})


def _tell_sizes(model: nn.Module, config: TrainConfig, run_dir: Path, say: Callable[[str], None]) -> None:
    learned = [p for p in model.parameters() if p.requires_grad]
    weights = sum(t.nbytes for t in model.state_dict().values())
    state = _OPTIMIZER_TENSORS[config.optim.optimizer] * sum(p.nbytes for p in learned)
    say(f"network     {sum(p.numel() for p in learned) / 1e6:.2f} million parameters")
    kept = f"the newest {config.run.keep_checkpoints} and the best stay in {run_dir}"
    if config.run.milestone_epochs:
        kept += f", and one every {config.run.milestone_epochs} epochs"
    say(f"checkpoint  about {(weights + state) / 1e6:.1f} MB each; {kept}")
