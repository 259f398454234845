"""Metrics of a run: log lines, a progress bar, ``metrics.jsonl`` and a tracking tool."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from cmd_extract.console.progress import ProgressDisplay
from cmd_extract.system.files import remove_leftovers, write_atomically
from cmd_train.config import TrainConfig
from cmd_train.data.batch import Batch
from cmd_train.data.epoch_sampler import EpochSampler
from cmd_train.data.sampling_report import SamplingReport
from cmd_train.distributed.process_group import RankContext
from cmd_train.losses.outputs import StepOutput
from cmd_train.monitoring.loggers import MetricLogger, open_logger

METRICS_NAME = "metrics.jsonl"
CONFIG_NAME = "config.json"

_RECENT_STEPS = 50
_DISPLAY_SECONDS = 1.0
# Fields of a line that are not metrics of its batch.
_OTHER_FIELDS = (
    *("step", "epoch", "lr", "grad_norm", "clips_per_second", "data_wait_share"),
    *("retrieval_r1", "retrieval_r5"),
)


class TrainingError(RuntimeError):
    """The run cannot continue; the message names the step and the cause."""


class GpuMonitor:
    """Reads the utilization of the GPU from its driver; needs the extra ``gpu``.

    Args:
        device: device of the run.
        log: prints a line for the user.
    """

    def __init__(self, device: torch.device, log: Callable[[str], None]) -> None:
        self._device: torch.device | None = device if device.type == "cuda" and _has_pynvml() else None
        self._log = log

    def utilization(self) -> float | None:
        """Return the share of the last second (or less) in which the GPU was busy, with work of any process.

        Returns None on a CPU, without the extra, and if the driver does not report it, as for a part of a GPU; the
        latter is logged once.
        """
        if self._device is None:
            return None
        import pynvml

        try:
            return torch.cuda.utilization(self._device) / 100
        except (RuntimeError, pynvml.NVMLError) as error:
            self._device = None
            self._log(f"GPU utilization is not available from the driver: {error}")
            return None


def _has_pynvml() -> bool:
    try:
        import pynvml  # noqa: F401 -- only its presence matters
    except ImportError:
        return False
    return True


class MetricsLogger:
    """Logs the progress of a run and appends its metrics to ``metrics.jsonl``.

    Args:
        run_dir: run folder.
        stored: the configuration to write to ``config.json``.
        first_step: steps completed by earlier runs in this folder.
        sampler: batches of the run.
        config: configuration of the run.
        context: this process among all; only rank 0 writes.
        log: prints a line for the user.
        progress: shows the latest metrics on a terminal; None logs lines only.
    """

    def __init__(
        self,
        run_dir: Path,
        stored: Mapping[str, Any],
        first_step: int,
        sampler: EpochSampler,
        config: TrainConfig,
        context: RankContext,
        log: Callable[[str], None],
        progress: ProgressDisplay | None = None,
    ) -> None:
        self._sampler, self._config, self._log = sampler, config, log
        self._main = context.is_main
        self._progress = progress if progress and progress.live else None
        self._logger: MetricLogger | None = None
        self._first_step = first_step
        self._start = self._last_line = time.monotonic()
        self._waiting = 0.0
        self._gpu = GpuMonitor(context.device, log)
        self._gpu_busy: float | None = None
        self._lines: list[str] = []
        self._unread: list[dict[str, float | Tensor]] = []
        self._always_read = context.device.type == "cpu"
        self._last_read = self._start
        # A live display should not stand still between log lines.
        self._read_seconds = min(config.run.log_seconds, _DISPLAY_SECONDS) if self._progress else config.run.log_seconds
        self._path = run_dir / METRICS_NAME
        self.report = SamplingReport()
        self._recent: deque[dict[str, float]] = deque(maxlen=_RECENT_STEPS)
        if self._main:
            remove_leftovers(run_dir)
            write_atomically(run_dir / CONFIG_NAME, json.dumps(stored, indent=1, sort_keys=True) + "\n")
            self._drop_later_lines(first_step)
            self._logger = open_logger(config.run.logger, run_dir, first_step, config.as_dict())

    def _drop_later_lines(self, first_step: int) -> None:
        """Remove the lines of steps that an interrupted run logged but did not save; they are about to be repeated."""
        if not self._path.exists():
            return
        kept = []
        for number, line in enumerate(self._path.read_bytes().splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                continue  # cut off by a crash
            try:
                values = json.loads(line)
                step = values["step"]
            except (ValueError, TypeError, KeyError):
                self._log(f"Warning: {self._path}, line {number}: damaged, removed ({line[:40]!r})")
                continue
            if step <= first_step:
                kept.append(line)
                self._recent.append({name: value for name, value in values.items() if name not in _OTHER_FIELDS})
        write_atomically(self._path, b"".join(kept))

    def add(
        self,
        step: int,
        output: StepOutput,
        batch: Batch,
        *,
        rate: float,
        norm: Tensor,
        waiting: float,
        evaluated: Mapping[str, float],
    ) -> None:
        """Record one step, without waiting for the device.

        Args:
            step: completed steps, this one included.
            output: loss and metrics of the step.
            batch: batch of the step.
            rate: learning rate.
            norm: gradient norm before clipping.
            waiting: seconds spent waiting for the batch.
            evaluated: retrieval metrics, if they were evaluated after the step.
        """
        self.report += batch.report
        self._waiting += waiting
        elapsed = max(time.monotonic() - self._start, 1e-9)
        done = step - self._first_step
        line: dict[str, float | Tensor] = {
            "step": step,
            "epoch": step / self._sampler.steps_per_epoch,
            **output.metrics,
            **evaluated,
            "lr": rate,
            "grad_norm": norm,
            "clips_per_second": done * self._config.optim.batch_size / elapsed,
            "data_wait_share": self._waiting / elapsed,
        }
        self._unread.append(line)

    def is_due(self, step: int) -> bool:
        """Return whether to call ``read`` after a step: always on a CPU, every ``run.log_seconds`` on a GPU."""
        return self._always_read or self._is_last(step) or time.monotonic() - self._last_read >= self._read_seconds

    def _is_last(self, step: float) -> bool:
        return step == self._sampler.total_steps

    def read(self) -> None:
        """Transfer the values of all steps since the last call from the device at once, and log them."""
        if not self._unread:
            return
        self._last_read = now = time.monotonic()
        newest = self._transfer()
        if self._main and (self._is_last(newest["step"]) or now - self._last_line >= self._config.run.log_seconds):
            self._last_line = now
            self._gpu_busy = self._gpu.utilization()
            left = self._sampler.total_steps - newest["step"]
            self._print(newest, left * self._config.optim.batch_size / newest["clips_per_second"])
            self.flush()

    def _transfer(self) -> dict[str, float]:
        """Replace the tensors in all lines since the last call by their values; return the newest line."""
        places = [(line, name) for line in self._unread for name, value in line.items() if isinstance(value, Tensor)]
        values = torch.stack([line[name].float() for line, name in places]).tolist()  # type: ignore[union-attr] # tensors
        for (line, name), value in zip(places, values, strict=True):
            line[name] = value
        lines, self._unread = cast(list[dict[str, float]], self._unread), []
        for one in lines:
            self._recent.append({name: value for name, value in one.items() if name not in _OTHER_FIELDS})
            if self._main:
                self._lines.append(json.dumps(one))
            if self._logger:
                self._logger.write(int(one["step"]), one)
        if self._progress and self._main:
            newest = lines[-1]
            self._progress.update(int(newest["step"]), self._sampler.total_steps, ", ".join(self._describe(newest)))
        return lines[-1]

    def _print(self, line: dict[str, float], seconds_left: float) -> None:
        if not self._progress:
            step = f"step {line['step']}/{self._sampler.total_steps}"
            self._log(", ".join([step, *self._describe(line), f"about {seconds_left:.0f} s left"]))

    def _describe(self, line: dict[str, float]) -> list[str]:
        parts = [f"loss {line['loss']:.3f}"]
        for name in ("classification", "context", "motion"):
            if f"{name}_top1" in line:
                majority = line.get(f"{name}_majority")
                among = f"of {line[f'{name}_candidates']:.0f}" if majority is None else f"(majority {majority:.1%})"
                parts.append(f"{name} top-1 {line[f'{name}_top1']:.1%} {among}")
        parts += [f"{line['clips_per_second']:.1f} clips/s", f"data wait {line['data_wait_share']:.0%}"]
        return parts if self._gpu_busy is None else [*parts, f"GPU busy {self._gpu_busy:.0%}"]

    def flush(self) -> None:
        """Append buffered lines to ``metrics.jsonl``, and wait until they are on the disk."""
        self.read()
        with self._path.open("a", encoding="utf-8") as stream:
            stream.writelines(line + "\n" for line in self._lines)
            stream.flush()
            os.fsync(stream.fileno())
        self._lines.clear()
        if self._logger:
            self._logger.flush()

    def recent_metrics(self) -> dict[str, float]:
        """Return means over the last 50 steps (or fewer), including steps before an interruption."""
        self.read()
        return {name: sum(m[name] for m in self._recent) / len(self._recent) for name in self._recent[0]}
