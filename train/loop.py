"""The training loop: batches in, checkpoints and metrics out; it does not know what is optimised.

A step depends on the seed, its number and the data alone: the order of samples, their augmentation and dropout are
drawn from those, so that a run that was stopped continues as if it had not been.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from extract.schema import VideoEntry
from train.batch import Batch, collate
from train.checkpoint import CheckpointError, list_checkpoints, load_checkpoint, prune_checkpoints, save_checkpoint
from train.config import TrainConfig, changed_fields
from train.dataset import PretrainDataset, VideoSource
from train.distributed import Placement, any_rank
from train.epoch_sampler import EpochSampler
from train.objective import StepOutput
from train.optim import build_optimizer, learning_rate, set_learning_rate
from train.run_log import RunLog
from train.sampling import seed_sequence
from train.sampling_report import SamplingReport

_PURPOSE_STEP = (2,)

Objective = Callable[[nn.Module, Batch], StepOutput]


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How a training ended.

    Attributes:
        steps: steps done, earlier runs included.
        finished: False if it was asked to stop before its end.
        report: what the sampling rules did to the samples of this run.
        metrics: means over the last steps of this run; empty if it had none to do.
    """

    steps: int
    finished: bool
    report: SamplingReport
    metrics: dict[str, float]


class _StopFlag:
    """Set by SIGTERM or SIGINT; the loop looks at it between steps."""

    def __init__(self) -> None:
        self.is_set = False

    def __call__(self, *_: object) -> None:
        if self.is_set:
            # Asked twice: somebody is in a hurry.
            raise KeyboardInterrupt
        self.is_set = True


@contextmanager
def _stop_on_signals() -> Iterator[_StopFlag]:
    flag = _StopFlag()
    before = {number: signal.signal(number, flag) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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

    Raises:
        CheckpointError: ``run_dir`` holds a training of another configuration or of other data.
        TrainingError: the loss is not finite.
    """
    sampler = _make_sampler(len(entries), config, placement)
    model.to(placement.device)
    optimizer = build_optimizer(model, config.optim)
    stored = {"settings": config.as_dict(), "data_hash": data_hash, **(record or {})}
    first_step = _resume(run_dir, model, optimizer, stored, sampler.total_steps)
    if first_step:
        say(f"continuing after step {first_step} of {sampler.total_steps}")
    running = _Training(
        model=model,
        wrapped=_wrap(model, placement),
        objective=objective,
        optimizer=optimizer,
        sampler=sampler,
        config=config,
        placement=placement,
        run_dir=run_dir,
        stored=stored,
        log=RunLog(run_dir, stored, first_step, sampler, config, placement, say),
        step=first_step,
        last_saved=first_step,
    )
    running.run(_make_loader(shards, entries, config, sampler, first_step, placement), entries)
    return TrainingResult(
        steps=running.step,
        finished=running.step == sampler.total_steps,
        report=running.log.report,
        metrics=running.log.recent_metrics() if running.step > first_step else {},
    )


@dataclass(kw_only=True)
class _Training:
    """A training under way: what its steps read, and how far it is."""

    model: nn.Module
    wrapped: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    sampler: EpochSampler
    config: TrainConfig
    placement: Placement
    run_dir: Path
    stored: dict[str, Any]
    log: RunLog
    step: int
    last_saved: int

    def run(self, loader: Iterable[Batch], entries: Sequence[VideoEntry]) -> None:
        """Takes all steps that are left, or as many as it is given time for; then all is saved."""
        every = self.sampler.steps_per_epoch * self.config.run.checkpoint_epochs
        with _stop_on_signals() as stop:
            waited_from = time.monotonic()
            for batch in loader:
                self._advance(batch, time.monotonic() - waited_from, entries)
                # A signal reaches ranks on different sides of a step; all must leave after the same one.
                stopping = any_rank(stop.is_set, self.placement)
                if self.step % every == 0 or stopping:
                    self._save()
                if stopping:
                    break
                waited_from = time.monotonic()
        if self.last_saved != self.step:
            self._save()
        if self.placement.is_main:
            self.log.flush()

    def _advance(self, host_batch: Batch, waiting: float, entries: Sequence[VideoEntry]) -> None:
        batch = host_batch.to(self.placement.device, non_blocking=True)
        rate = learning_rate(self.step, self.sampler.steps_per_epoch, self.config.optim)
        set_learning_rate(self.optimizer, rate)
        _seed_step(self.config.run.seed, self.step, self.placement.rank)
        output, norm = _optimise(self.wrapped, self.objective, batch, self.optimizer, self.config.optim.clip_norm)
        self.step += 1
        self.log.add(self.step, output, batch, rate=rate, norm=norm, waiting=waiting, entries=entries)

    def _save(self) -> None:
        if self.placement.is_main:
            # First the numbers, then what they are of: a kill in between costs nothing.
            self.log.flush()
            recent = self.log.recent_metrics()
            state = {"optimizer": self.optimizer.state_dict(), "step": self.step, "recent_metrics": recent}
            weights = self.model.state_dict()
            save_checkpoint(self.run_dir, step=self.step, weights=weights, state=state, config=self.stored)
            prune_checkpoints(self.run_dir, self.config.run.keep_checkpoints)
        self.last_saved = self.step


def _wrap(model: nn.Module, placement: Placement) -> nn.Module:
    model.train()
    if placement.world_size == 1:
        return model
    if placement.device.type == "cuda":
        # SyncBatchNorm exists for CUDA only; on CPUs each rank normalises its own part.
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call] # torch leaves it bare
        return DistributedDataParallel(model, device_ids=[placement.device])
    return DistributedDataParallel(model)


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Dropout draws from torch's global generator: seeded by the step, it needs no place in the checkpoint."""
    torch.manual_seed(int(seed_sequence(seed, step, rank, purpose=_PURPOSE_STEP).generate_state(1)[0]))


def _optimise(
    model: nn.Module, objective: Objective, batch: Batch, optimizer: torch.optim.Optimizer, clip_norm: float
) -> tuple[StepOutput, torch.Tensor]:
    """One step; returns its output and the norm of the gradient before clipping."""
    optimizer.zero_grad(set_to_none=True)
    output = objective(model, batch)
    output.loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip_norm if clip_norm > 0 else math.inf)
    optimizer.step()
    return output, norm


def _make_sampler(video_count: int, config: TrainConfig, placement: Placement) -> EpochSampler:
    return EpochSampler(
        video_count=video_count,
        global_batch=config.optim.batch_size,
        epochs=config.optim.epochs,
        seed=config.run.seed,
        samples_per_video=config.data.samples_per_video,
        rank=placement.rank,
        world_size=placement.world_size,
    )


def _make_loader(
    shards: VideoSource,
    entries: Sequence[VideoEntry],
    config: TrainConfig,
    sampler: EpochSampler,
    first_step: int,
    placement: Placement,
) -> DataLoader[Batch]:
    dataset = PretrainDataset(shards, entries, config.sampling, seed=config.run.seed)
    return DataLoader(
        dataset,  # type: ignore[arg-type] # the loader's type does not know that collate changes what comes out
        batch_sampler=replace(sampler, first_step=first_step),
        num_workers=config.data.workers,
        collate_fn=collate,
        pin_memory=placement.device.type == "cuda",
        # Workers ignore the signals that stop the loop between steps.
        worker_init_fn=_ignore_signals,
    )


def _ignore_signals(_: int) -> None:
    """Batch systems signal the whole process group; a worker that died of it would take the last steps with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _resume(
    run_dir: Path, model: nn.Module, optimizer: torch.optim.Optimizer, stored: dict[str, Any], total_steps: int
) -> int:
    """Loads the last checkpoint of a folder, if there is one; returns the steps it has done."""
    if not list_checkpoints(run_dir):
        return 0
    checkpoint = load_checkpoint(run_dir)
    if "imported" in checkpoint.config:
        raise CheckpointError(f"{run_dir} holds imported weights; choose another folder and give --init {run_dir}")
    if checkpoint.config.get("data_hash") != stored["data_hash"]:
        raise CheckpointError(f"{run_dir} was trained on other shards; choose another folder")
    # How fast and how often things are done may change; what is computed may not.
    free = ("data.workers", "run.log_seconds", "run.checkpoint_epochs", "run.keep_checkpoints")
    changed = [c for c in changed_fields(checkpoint.config["settings"], stored["settings"]) if not c.startswith(free)]
    if changed:
        raise CheckpointError(
            f"{run_dir} holds a training of another configuration ({'; '.join(changed)}); "
            "choose another folder, or give the same settings to continue it"
        )
    model.load_state_dict(checkpoint.weights)
    optimizer.load_state_dict(checkpoint.load_state()["optimizer"])
    return min(checkpoint.step, total_steps)
