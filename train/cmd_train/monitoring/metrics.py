"""What a training says of itself: lines for people, ``metrics.jsonl`` for programs."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cmd_train.config import TrainConfig
from cmd_train.data.batch import Batch
from cmd_train.data.epoch_sampler import EpochSampler
from cmd_train.data.sampling_report import SamplingReport
from cmd_train.distributed.process_group import Placement
from cmd_train.losses.pretrain import StepOutput
from cmd_train.monitoring.gpu_use import GpuUse
from cmd_train.monitoring.live_line import LiveLine

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS_NAME = "metrics.jsonl"
CONFIG_NAME = "config.json"
BOARD_NAME = "tensorboard"

_RECENT_STEPS = 50
_NOT_MEASURED_ON_BATCHES = (
    *("step", "epoch", "lr", "grad_norm", "clips_per_second", "data_wait_share"),
    *("retrieval_r1", "retrieval_r5"),
)


class TrainingError(RuntimeError):
    """A training that cannot go on; the message says at which step and why."""


class RunLog:
    """Prints how a training goes and appends its numbers to ``metrics.jsonl``."""

    def __init__(
        self,
        run_dir: Path,
        stored: dict[str, Any],
        first_step: int,
        sampler: EpochSampler,
        config: TrainConfig,
        placement: Placement,
        say: Callable[[str], None],
        live: LiveLine | None = None,
    ) -> None:
        self._sampler, self._config, self._say = sampler, config, say
        self._main = placement.is_main
        self._live = live if live and live.shown else None
        self._board: SummaryWriter | None = None
        self._first_step = first_step
        self._start = self._last_line = time.monotonic()
        self._waiting = 0.0
        self._gpu = GpuUse(placement.device, say)
        self._gpu_busy: float | None = None
        self._lines: list[str] = []
        self._path = run_dir / METRICS_NAME
        self.report = SamplingReport()
        self._recent: deque[dict[str, float]] = deque(maxlen=_RECENT_STEPS)
        if self._main:
            run_dir.mkdir(parents=True, exist_ok=True)
            (run_dir / CONFIG_NAME).write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n", "utf-8")
            self._drop_later_lines(first_step)
            if config.run.tensorboard:
                self._board = _open_board(run_dir / BOARD_NAME, first_step)

    def _drop_later_lines(self, first_step: int) -> None:
        """Forgets steps that an interrupted run has logged but not saved; they are about to be done again."""
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text("utf-8").splitlines(keepends=True):
            # A line without its end was cut off by a crash.
            if line.endswith("\n") and json.loads(line)["step"] <= first_step:
                kept.append(line)
        for line in kept[-_RECENT_STEPS:]:
            self._recent.append({k: v for k, v in json.loads(line).items() if k not in _NOT_MEASURED_ON_BATCHES})
        temporary = self._path.with_name(f".{METRICS_NAME}.{os.getpid()}.tmp")
        temporary.write_text("".join(kept), "utf-8")
        temporary.replace(self._path)

    def add(
        self,
        step: int,
        output: StepOutput,
        batch: Batch,
        *,
        rate: float,
        norm: torch.Tensor,
        waiting: float,
        watched: Mapping[str, float],
    ) -> None:
        """Takes one step's numbers, and those of retrieval if it was tried after the step."""
        self.report += batch.report
        self._waiting += waiting
        # One transfer from the device for all of them.
        values = torch.stack([value.float() for value in output.metrics.values()]).tolist()
        metrics = dict(zip(output.metrics, values, strict=True))
        self._recent.append(metrics)
        if not self._main:
            return
        elapsed = max(time.monotonic() - self._start, 1e-9)
        done = step - self._first_step
        line = {
            "step": step,
            "epoch": step / self._sampler.steps_per_epoch,
            **metrics,
            **watched,
            "lr": rate,
            "grad_norm": float(norm),
            "clips_per_second": done * self._config.optim.batch_size / elapsed,
            "data_wait_share": self._waiting / elapsed,
        }
        self._lines.append(json.dumps(line))
        if self._board:
            for name, value in line.items():
                self._board.add_scalar(_board_name(name), value, step)
        if self._live:
            self._live.update(step, self._sampler.total_steps, ", ".join(self._describe(line)))
        if time.monotonic() - self._last_line >= self._config.run.log_seconds or step == self._sampler.total_steps:
            self._last_line = time.monotonic()
            self._gpu_busy = self._gpu.share()
            self._print(line, elapsed / done * (self._sampler.total_steps - step))
            self.flush()

    def _print(self, line: dict[str, float], seconds_left: float) -> None:
        if not self._live:
            step = f"step {line['step']}/{self._sampler.total_steps}"
            self._say(", ".join([step, *self._describe(line), f"about {seconds_left:.0f} s left"]))

    def _describe(self, line: dict[str, float]) -> list[str]:
        parts = [f"loss {line['loss']:.3f}"]
        for name in ("classification", "context", "motion"):
            if f"{name}_top1" in line:
                parts.append(f"{name} top-1 {line[f'{name}_top1']:.1%} of {line[f'{name}_candidates']:.0f}")
        parts += [f"{line['clips_per_second']:.1f} clips/s", f"data wait {line['data_wait_share']:.0%}"]
        return parts if self._gpu_busy is None else [*parts, f"GPU busy {self._gpu_busy:.0%}"]

    def flush(self) -> None:
        """Writes what is still held back to ``metrics.jsonl``."""
        with self._path.open("a", encoding="utf-8") as stream:
            stream.writelines(line + "\n" for line in self._lines)
        self._lines.clear()
        if self._board:
            self._board.flush()

    def recent_metrics(self) -> dict[str, float]:
        """Means over the last 50 steps, or all if there are fewer, those before an interruption included."""
        return {name: sum(m[name] for m in self._recent) / len(self._recent) for name in self._recent[0]}


def _open_board(folder: Path, first_step: int) -> SummaryWriter:
    # It loads a lot, which a training without it need not wait for.
    from torch.utils.tensorboard import SummaryWriter

    # Steps that an interrupted run has logged but not saved are forgotten here as well.
    return SummaryWriter(folder, purge_step=first_step + 1)


def _board_name(metric: str) -> str:
    """Groups the metrics of a head, and those of the run."""
    head, _, rest = metric.partition("_")
    return f"{head}/{rest}" if head in ("classification", "context", "motion", "retrieval") else f"run/{metric}"
