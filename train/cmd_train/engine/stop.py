"""How a training is asked to stop between two steps: by a signal, by a file in its folder, or by the time it was given.

What has come of it is said by a file as well: batch scripts decide by ``finished`` and ``stopped``, since exit codes of
several processes on several hosts get lost.
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

from cmd_train.checkpoints.files import FINISHED_NAME
from cmd_train.distributed.process_group import Placement

STOP_NAME = "stop"
STOPPED_NAME = "stopped"

# Shared file systems answer slowly, and a step may take a hundredth of a second.
_LOOK_SECONDS = 1.0
# A launcher that hands a signal on doubles the one that the whole process group has got.
_HURRY_SECONDS = 1.0


class StopRequest:
    """Whether this process has been asked to stop; the loop looks at it between steps.

    Args:
        file: asks as soon as it exists; None: there is none to look for.
        deadline: ``time.monotonic()`` from which on the time is up.
    """

    def __init__(self, file: Path | None = None, deadline: float = math.inf) -> None:
        self._file, self._deadline = file, deadline
        self._reason = ""
        self._looked, self._interrupted = -math.inf, math.inf

    def on_signal(self, number: int, _: object = None) -> None:
        """Handles a signal; says at once that the first Ctrl-C was heard, since a step may take long.

        Raises:
            KeyboardInterrupt: the second Ctrl-C: somebody is in a hurry.
        """
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._interrupted == math.inf and self._file:
                # Not print: a signal may come while the very stream is being written to.
                os.write(2, b"Ctrl-C: ends this step and saves; once more ends without saving\n")
            self._interrupted = min(self._interrupted, now)
            if now - self._interrupted >= _HURRY_SECONDS:
                raise KeyboardInterrupt
        self._reason = self._reason or signal.Signals(number).name

    def reason(self) -> str:
        """Why it is to stop; empty as long as it is not."""
        now = time.monotonic()
        if not self._reason and now >= self._deadline:
            self._reason = "the time is up"
        if not self._reason and self._file and now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            if self._file.exists():
                self._reason = f"{self._file} was there"
        return self._reason


@contextmanager
def stop_requests(run_dir: Path, deadline: float, placement: Placement) -> Iterator[StopRequest]:
    """Listens for as long as the context lasts, and removes what an earlier run has said of its end.

    Args:
        run_dir: the training's folder; a file ``stop`` in it asks to stop, and is removed at the end.
        deadline: ``time.monotonic()`` from which on the time is up.
        placement: this process among all; one of them looks for the file, and at the clock, so that it knows why.
    """
    if placement.is_main:
        for name in (FINISHED_NAME, STOPPED_NAME):
            (run_dir / name).unlink(missing_ok=True)
    request = StopRequest(run_dir / STOP_NAME, deadline) if placement.is_main else StopRequest()
    numbers = [signal.SIGTERM, signal.SIGINT]
    # NCCL may have taken it for itself.
    if signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
        numbers.append(signal.SIGUSR1)
    before = {number: signal.signal(number, request.on_signal) for number in numbers}
    try:
        yield request
        if placement.is_main:
            (run_dir / STOP_NAME).unlink(missing_ok=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def mark_end(run_dir: Path, *, finished: bool, step: int, reason: str) -> None:
    """Says in ``run_dir`` how a training has ended, once everything is saved.

    Args:
        run_dir: the training's folder.
        finished: whether all steps are done.
        step: steps done.
        reason: why it has stopped.
    """
    content = {"step": step} if finished else {"step": step, "reason": reason}
    path = run_dir / (FINISHED_NAME if finished else STOPPED_NAME)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content) + "\n", "utf-8")
    temporary.replace(path)
