"""Training loop, shared by pre-training and fine-tuning.

A step depends only on the seed, its number and the data: they determine the order of samples, their augmentation and
dropout. A stopped run therefore continues exactly as if it had not been stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from cmd_train.checkpoints.files import save_checkpoint
from cmd_train.checkpoints.retention import CheckpointPolicy
from cmd_train.data.batch import Batch, PackedBatch, unpack_batches
from cmd_train.data.epoch_sampler import EpochSampler
from cmd_train.data.loading import DeviceCopier, iterate_samples
from cmd_train.data.sampling_report import SamplingReport
from cmd_train.distributed.process_group import any_rank, gather_texts
from cmd_train.engine.claim import claim_run
from cmd_train.engine.damaged_samples import DamageTracker
from cmd_train.engine.finite_check import FiniteCheck
from cmd_train.engine.optim import learning_rate, set_learning_rate, skip_update
from cmd_train.engine.setup import TrainingTask, batch_dataset, batch_sampler, prepare_run
from cmd_train.engine.step import GradientStep
from cmd_train.engine.stop import StopRequest, stop_requests, write_outcome
from cmd_train.monitoring.batch_picture import draw_batch
from cmd_train.monitoring.knn import RetrievalMonitor
from cmd_train.monitoring.metrics import MetricsLogger, TrainingError

FAILED_NAME = "failed"
PICTURE_NAME = "first_batch.png"


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """Outcome of a run.

    Attributes:
        steps: completed steps, including those before an interruption.
        finished: whether all steps are completed.
        reason: reason for the stop, as in the file ``stopped``; empty if finished.
        report: statistics of the sampling rules over the steps since the last start.
        metrics: means over the last steps; empty if no steps were taken since the last start.
    """

    steps: int
    finished: bool
    report: SamplingReport
    metrics: dict[str, float]
    reason: str = ""


def train(task: TrainingTask) -> TrainingResult:
    """Train for the configured number of steps, continuing from the last checkpoint in the run folder.

    Raises:
        ValueError: the settings or shards do not allow a first step.
        CheckpointError: another run is or was made in the folder, or ranks see different checkpoints.
        TrainingError: the loss is not finite, or too many videos are damaged.
    """
    config, context, run_dir = task.config, task.context, task.run_dir
    with claim_run(run_dir, context, task.log):
        start = prepare_run(task)
        sampler, first_step, stored = start.sampler, start.resumed.step, start.stored
        start.resumed.set_aside_damaged(context)
        loop = _TrainingLoop(
            task=task,
            gradients=GradientStep(task.model, task.objective, config, context),
            optimizer=start.optimizer,
            sampler=sampler,
            stored=stored,
            policy=CheckpointPolicy(config.run, sampler.steps_per_epoch, start.resumed.state.get("best")),
            damage=start.damage,
            metrics=MetricsLogger(run_dir, stored, first_step, sampler, config, context, task.log, task.progress),
            monitor=RetrievalMonitor(task.shards, task.entries, config, context),
            step=first_step,
        )
        return loop.run(_load_batches(task, sampler, first_step))


@dataclass(kw_only=True)
class _TrainingLoop:
    """State of a run in progress."""

    task: TrainingTask
    gradients: GradientStep
    optimizer: torch.optim.Optimizer
    sampler: EpochSampler
    stored: dict[str, Any]
    policy: CheckpointPolicy
    damage: DamageTracker
    metrics: MetricsLogger
    monitor: RetrievalMonitor
    step: int
    retrieval: float | None = None

    def __post_init__(self) -> None:
        self.finite, self.last_saved = FiniteCheck(self.task.context), self.step
        self.copy_to_device = DeviceCopier(self.task.context.device)

    def run(self, loader: Iterable[PackedBatch]) -> TrainingResult:
        """Train until all steps are completed or a stop is requested, and record the outcome in the run folder."""
        first_step = self.step
        with stop_requests(self.task.run_dir, self.task.deadline, self.task.context) as stop:
            self._take_steps(loader, stop)
            finished = self.step == self.sampler.total_steps
            reason = "" if finished else stop.reason() or "requested on another rank"
            if self.task.context.is_main:
                write_outcome(self.task.run_dir, finished=finished, step=self.step, reason=reason)
        if self.metrics.report.samples:
            self.task.log(self.metrics.report.text())
        return TrainingResult(
            steps=self.step,
            finished=finished,
            report=self.metrics.report,
            metrics=self.metrics.recent_metrics() if self.step > first_step else {},
            reason=reason,
        )

    def _take_steps(self, loader: Iterable[PackedBatch], stop: StopRequest) -> None:
        """Take the remaining steps until a stop is requested, and save the last one."""
        waited_from = time.monotonic()
        for batch in unpack_batches(loader):
            stopping, saving = self._advance(batch, time.monotonic() - waited_from, stop)
            if stopping or saving:
                self._save()
            if stopping:
                break
            waited_from = time.monotonic()
        if self.last_saved != self.step:
            self._save()
        if self.task.context.is_main:
            self.metrics.flush()

    def _advance(self, host_batch: Batch, waiting: float, stop: StopRequest) -> tuple[bool, bool]:
        """Take one step; return whether a stop was requested, and whether to save."""
        if self.step == 0 and self.task.context.is_main and self.task.config.run.batch_picture:
            ids = [self.task.entries[int(video)].video_id for video in host_batch.video_B]
            draw_batch(host_batch, ids, self.task.run_dir / PICTURE_NAME)
        batch = self.copy_to_device(host_batch)
        rate = learning_rate(self.step, self.sampler.steps_per_epoch, self.task.config.optim)
        set_learning_rate(self.optimizer, rate)
        output, norm = self.gradients(batch, self.step)
        # Signals and clocks differ between ranks, but all must stop, read and save after the same step.
        saving, due = self.policy.should_save(self.step + 1), self.metrics.is_due(self.step + 1)
        flags = bool(stop.reason()), saving, due, bool(host_batch.damaged)
        stopping, saving, due, damaged = any_rank(flags, self.task.context)
        if damaged:
            self.damage.update(host_batch, self.step, self.task.context)
        self.finite.watch(self.step, output.metrics["loss"], norm, host_batch)
        skip_update(self.optimizer, self.finite.failed)
        self.optimizer.step()
        self.step += 1
        evaluated = self.monitor(self.task.model) if self.policy.should_evaluate(self.step) else {}
        self.retrieval = evaluated.get("retrieval_r1")
        self.metrics.add(self.step, output, batch, rate=rate, norm=norm, waiting=waiting, evaluated=evaluated)
        if stopping or saving or due:
            self.metrics.read()
            self._check_finite()
        return stopping, saving

    def _check_finite(self) -> None:
        """Raise ``TrainingError`` if a step has failed; its weights are those from before that step."""
        failure = self.finite.failure()
        if failure is None:
            return
        videos = (self.task.entries[int(video)].video_id for video in failure.video_B)
        own = ", ".join(f"{video_id} {key}" for video_id, key in zip(videos, failure.keys, strict=True))
        samples = ", ".join(gather_texts(own, self.task.context))
        if self.task.context.is_main:
            self.metrics.flush()
            state = {"optimizer": self.optimizer.state_dict(), "step": failure.step, "samples": samples}
            folder = self.task.run_dir / FAILED_NAME
            weights = self.task.model.state_dict()
            save_checkpoint(folder, step=failure.step, weights=weights, state=state, config=self.stored)
        what = f"the gradient norm is {failure.norm}" if math.isfinite(failure.loss) else f"the loss is {failure.loss}"
        if math.isfinite(failure.loss) and math.isfinite(failure.norm):
            what = "the loss is not finite on another rank"
        raise TrainingError(
            f"step {failure.step + 1}: {what}; the weights before this step are in {self.task.run_dir / FAILED_NAME}. "
            "Lower optim.lr_per_sample, or check the videos of this batch, listed with their (epoch, position): "
            f"{samples}"
        )

    def _save(self) -> None:
        if self.task.context.is_main:
            # Write the metrics first: if the process is killed in between, the steps are repeated and logged again.
            self.metrics.flush()
            recent = self.metrics.recent_metrics()
            self.policy.score(self.step, self.retrieval)
            state = {
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "recent_metrics": recent,
                "best": self.policy.state(),
                "damaged": self.damage.known,
            }
            weights = self.task.model.state_dict()
            save_checkpoint(self.task.run_dir, step=self.step, weights=weights, state=state, config=self.stored)
            self.policy.prune(self.task.run_dir)
        self.last_saved = self.step


def _load_batches(task: TrainingTask, sampler: EpochSampler, first_step: int) -> Iterator[PackedBatch]:
    return iterate_samples(
        batch_dataset(task),
        # The sampler yields whole batches.
        sampler=batch_sampler(task, sampler, first_step),
        workers=task.config.data.workers,
        timeout_seconds=task.config.data.timeout_seconds,
        pin_memory=task.context.device.type == "cuda",
    )
