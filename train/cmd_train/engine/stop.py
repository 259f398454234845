"""Stopping a run between two steps: on a signal, by a file ``stop`` in the run folder, or at a time limit.

The files ``finished`` and ``stopped`` record the outcome. Batch scripts rely on them, since the exit codes of several
processes on several hosts get lost.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cmd_extract.system.files import write_atomically
from cmd_train.checkpoints.files import FINISHED_NAME
from cmd_train.distributed.process_group import RankContext

STOP_NAME = "stop"
STOPPED_NAME = "stopped"

TIME_LIMIT_REASON = "time limit reached"

# Shared file systems respond slowly, and a step may take as little as 10 ms.
_POLL_SECONDS = 1.0
# A launcher that forwards a signal duplicates the one that the process group received.
_DUPLICATE_SECONDS = 1.0


class StopRequest:
    """Request to stop this process, checked by the training loop between steps.

    Args:
        file: requests a stop once it exists; None checks no file.
        deadline: time limit as a value of ``time.monotonic()``.
    """

    def __init__(self, file: Path | None = None, deadline: float = math.inf) -> None:
        self._file, self._deadline = file, deadline
        self._reason = ""
        self._polled_at, self._interrupted_at = -math.inf, math.inf

    def on_signal(self, number: int, _: object = None) -> None:
        """Handle a signal; acknowledge the first Ctrl-C at once, since a step may take long.

        Raises:
            KeyboardInterrupt: this is the second Ctrl-C.
        """
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._interrupted_at == math.inf and self._file:
                # Do not print: the signal may arrive during a write to the same stream.
                os.write(2, b"Finishing this step, then saving. Press Ctrl-C again to quit without saving.\n")
            self._interrupted_at = min(self._interrupted_at, now)
            if now - self._interrupted_at >= _DUPLICATE_SECONDS:
                raise KeyboardInterrupt
        self._reason = self._reason or signal.Signals(number).name

    def reason(self) -> str:
        """Return the reason to stop, or an empty string if there is none."""
        now = time.monotonic()
        if not self._reason and now >= self._deadline:
            self._reason = TIME_LIMIT_REASON
        if not self._reason and self._file and now - self._polled_at >= _POLL_SECONDS:
            self._polled_at = now
            if self._file.exists():
                self._reason = f"found {self._file}"
        return self._reason


@contextmanager
def stop_requests(run_dir: Path, deadline: float, context: RankContext) -> Iterator[StopRequest]:
    """Listen for stop requests while the context is active, after removing the outcome of earlier runs.

    Args:
        run_dir: run folder; a file ``stop`` in it requests a stop and is removed at the end.
        deadline: time limit as a value of ``time.monotonic()``.
        context: this process among all; rank 0 checks the file and the time limit, so that it can report the reason.
    """
    if context.is_main:
        for name in (FINISHED_NAME, STOPPED_NAME):
            (run_dir / name).unlink(missing_ok=True)
    request = StopRequest(run_dir / STOP_NAME, deadline) if context.is_main else StopRequest()
    numbers = [signal.SIGTERM, signal.SIGINT]
    # NCCL may have installed its own handler.
    if signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
        numbers.append(signal.SIGUSR1)
    before = {number: signal.signal(number, request.on_signal) for number in numbers}
    try:
        yield request
        if context.is_main:
            (run_dir / STOP_NAME).unlink(missing_ok=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write_outcome(run_dir: Path, *, finished: bool, step: int, reason: str) -> None:
    """Record how a run ended; call this after everything is saved.

    Args:
        run_dir: run folder.
        finished: whether all steps are completed.
        step: completed steps.
        reason: reason for the stop; unused if finished.
    """
    content = {"step": step} if finished else {"step": step, "reason": reason}
    write_atomically(run_dir / (FINISHED_NAME if finished else STOPPED_NAME), json.dumps(content) + "\n")
