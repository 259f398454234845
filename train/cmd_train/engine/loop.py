"""The training loop: batches in, checkpoints and metrics out; it does not know what is optimised.

A step depends on the seed, its number and the data alone: the order of samples, their augmentation and dropout are
drawn from those, so that a run that was stopped continues as if it had not been.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn
from torch.utils.data import DataLoader

from cmd_extract.schema import VideoEntry
from cmd_train.checkpoints.files import save_checkpoint
from cmd_train.checkpoints.retention import CheckpointPlan
from cmd_train.config import TrainConfig
from cmd_train.data.batch import Batch, PackedBatch, open_in_turn
from cmd_train.data.dataset import VideoSource, require_frames
from cmd_train.data.epoch_sampler import EpochSampler
from cmd_train.data.sampling_report import SamplingReport
from cmd_train.distributed.process_group import Placement, any_rank, from_all_ranks, ignore_signals
from cmd_train.engine.damage import DamageTally
from cmd_train.engine.optim import learning_rate, set_learning_rate
from cmd_train.engine.setup import begin, training_batches
from cmd_train.engine.step import GradientStep, Objective
from cmd_train.engine.stop import StopRequest, mark_end, stop_requests
from cmd_train.monitoring.batch_picture import draw_batch
from cmd_train.monitoring.knn import RetrievalMonitor
from cmd_train.monitoring.live_line import LiveLine
from cmd_train.monitoring.metrics import RunLog, TrainingError

FAILED_NAME = "failed"
PICTURE_NAME = "first_batch.png"


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How a training ended.

    Attributes:
        steps: steps done, earlier runs included.
        finished: False if it was asked to stop before its end.
        reason: who or what asked, as in the file ``stopped``; empty if it has finished.
        report: what the sampling rules did to the samples of this run.
        metrics: means over the last steps of this run; empty if it had none to do.
    """

    steps: int
    finished: bool
    report: SamplingReport
    metrics: dict[str, float]
    reason: str = ""


def train(
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
    """Trains to the configured end, continuing from the last checkpoint in ``run_dir``.

    Args:
        model: on the CPU, freshly initialised from the seed.
        objective: turns (model, batch) into a loss.
        shards, entries: the data, and the videos of it to train on.
        config: everything else.
        run_dir: where checkpoints, metrics and configuration go.
        placement: this process among all.
        data_hash: identifies the shards; recorded.
        record: whatever else every checkpoint is to say of where it comes from.
        say: prints a line for the user.
        live: shows how it goes.
        deadline: ``time.monotonic()`` from which on it stops by itself.

    Raises:
        ValueError: settings or shards that do not allow a first step.
        CheckpointError: ``run_dir`` holds a training of another configuration or of other data, or ranks do not see
            the same checkpoint there.
        TrainingError: the loss is not finite, or too many videos are damaged.
    """
    require_frames(shards.header)
    stored = {"settings": config.as_dict(), "data_hash": data_hash, **(record or {})}
    start = begin(model, entries, config, run_dir, placement, stored=stored, say=say)
    sampler, first_step = start.sampler, start.first_step
    running = _Training(
        model=model,
        gradients=GradientStep(model, objective, config, placement, say),
        optimizer=start.optimizer,
        sampler=sampler,
        entries=entries,
        config=config,
        placement=placement,
        run_dir=run_dir,
        stored=stored,
        plan=CheckpointPlan(config.run, sampler.steps_per_epoch, start.state.get("best")),
        damage=DamageTally(config.data.max_damaged, config.optim.accumulate, start.state.get("damaged", {}), say),
        log=RunLog(run_dir, stored, first_step, sampler, config, placement, say, live),
        monitor=RetrievalMonitor(shards, entries, config, placement),
        step=first_step,
        last_saved=first_step,
    )
    return running.to_its_end(_make_loader(shards, entries, config, sampler, first_step, placement), deadline)


@dataclass(kw_only=True)
class _Training:
    """A training under way: what its steps read, and how far it is."""

    model: nn.Module
    gradients: GradientStep
    optimizer: torch.optim.Optimizer
    sampler: EpochSampler
    entries: Sequence[VideoEntry]
    config: TrainConfig
    placement: Placement
    run_dir: Path
    stored: dict[str, Any]
    plan: CheckpointPlan
    damage: DamageTally
    log: RunLog
    monitor: RetrievalMonitor
    step: int
    last_saved: int
    retrieval: float | None = None

    def to_its_end(self, loader: Iterable[PackedBatch], deadline: float) -> TrainingResult:
        """Runs until all is done or it is asked to stop, and leaves word in the folder of which it was."""
        first_step = self.step
        with stop_requests(self.run_dir, deadline, self.placement) as stop:
            self._run(loader, stop)
            finished = self.step == self.sampler.total_steps
            reason = "" if finished else stop.reason() or "another rank was asked to"
            if self.placement.is_main:
                mark_end(self.run_dir, finished=finished, step=self.step, reason=reason)
        return TrainingResult(
            steps=self.step,
            finished=finished,
            report=self.log.report,
            metrics=self.log.recent_metrics() if self.step > first_step else {},
            reason=reason,
        )

    def _run(self, loader: Iterable[PackedBatch], stop: StopRequest) -> None:
        """Takes all steps that are left, or as many as it is given time for; then all is saved."""
        waited_from = time.monotonic()
        for batch in open_in_turn(loader):
            stopping = self._advance(batch, time.monotonic() - waited_from, stop)
            if stopping or self.plan.due(self.step):
                self._save()
            if stopping:
                break
            waited_from = time.monotonic()
        if self.last_saved != self.step:
            self._save()
        if self.placement.is_main:
            self.log.flush()

    def _advance(self, host_batch: Batch, waiting: float, stop: StopRequest) -> bool:
        """One step; returns whether it was to be the last."""
        counted = self.damage.take(host_batch, self.step, self.placement)
        if self.step == 0 and self.placement.is_main and self.config.run.batch_picture:
            ids = [self.entries[int(video)].video_id for video in counted.video_B]
            draw_batch(counted, ids, self.run_dir / PICTURE_NAME)
        batch = counted.to(self.placement.device, non_blocking=True)
        rate = learning_rate(self.step, self.sampler.steps_per_epoch, self.config.optim)
        set_learning_rate(self.optimizer, rate)
        output, norm = self.gradients(batch, self.step)
        broken = not bool(torch.isfinite(output.metrics["loss"]) & torch.isfinite(norm))
        # A signal reaches ranks on different sides of a step; all must leave after the same one.
        stopping, broken = any_rank((bool(stop.reason()), broken), self.placement)
        if broken:
            self._fail(batch, float(output.metrics["loss"]), float(norm))
        self.optimizer.step()
        self.step += 1
        watched = self.monitor(self.model) if self.plan.watches(self.step) else {}
        self.retrieval = watched.get("retrieval_r1")
        self.log.add(self.step, output, batch, rate=rate, norm=norm, waiting=waiting, watched=watched)
        return stopping

    def _fail(self, batch: Batch, loss: float, norm: float) -> NoReturn:
        """Saves what the failed step started from, and says so."""
        own = [
            f"{self.entries[int(video)].video_id} {key}" for video, key in zip(batch.video_B, batch.keys, strict=True)
        ]
        samples = ", ".join(from_all_ranks(", ".join(own), self.placement))
        if self.placement.is_main:
            self.log.flush()
            state = {"optimizer": self.optimizer.state_dict(), "step": self.step, "samples": samples}
            folder = self.run_dir / FAILED_NAME
            weights = self.model.state_dict()
            save_checkpoint(folder, step=self.step, weights=weights, state=state, config=self.stored)
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the norm of the gradient is {norm}"
        if math.isfinite(loss) and math.isfinite(norm):
            what = "the loss is not finite on another rank"
        raise TrainingError(
            f"step {self.step + 1}: {what}; the weights before this step are in {self.run_dir / FAILED_NAME}. Lower "
            f"optim.lr_per_sample, or look at these videos, each with its (epoch, position): {samples}"
        )

    def _save(self) -> None:
        if self.placement.is_main:
            # First the numbers, then what they are of: a kill in between costs nothing.
            self.log.flush()
            recent = self.log.recent_metrics()
            self.plan.judge(self.step, recent, self.retrieval)
            state = {
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "recent_metrics": recent,
                "best": self.plan.state(),
                "damaged": self.damage.known,
            }
            weights = self.model.state_dict()
            save_checkpoint(self.run_dir, step=self.step, weights=weights, state=state, config=self.stored)
            self.plan.tidy(self.run_dir)
        self.last_saved = self.step


def _make_loader(
    shards: VideoSource,
    entries: Sequence[VideoEntry],
    config: TrainConfig,
    sampler: EpochSampler,
    first_step: int,
    placement: Placement,
) -> DataLoader[PackedBatch]:
    return DataLoader(
        training_batches(shards, entries, config),
        # Each element of the sampler is a batch already.
        batch_size=None,
        sampler=replace(sampler, first_step=first_step),
        num_workers=config.data.workers,
        pin_memory=placement.device.type == "cuda",
        # Workers ignore the signals that stop the loop between steps.
        worker_init_fn=ignore_signals,
    )
