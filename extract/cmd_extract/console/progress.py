"""Progress of a long command: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PLAIN_SECONDS = 10.0
"""Interval of plain lines."""
_SPEED_SECONDS = 3600.0
_DUMB_TERMINALS = ("dumb", "unknown")


class ProgressDisplay:
    """Context manager that shows the number of finished items, a note and the ETA on standard error.

    Args:
        description: short name of the work, such as ``embed``.
        unit: plural noun for the items.
        plain_seconds: interval of plain lines where standard error is not a terminal; None prints no lines there.

    Attributes:
        live: whether a bar is shown instead of plain lines.
    """

    def __init__(self, description: str, unit: str = "videos", *, plain_seconds: float | None = PLAIN_SECONDS) -> None:
        self._description, self._unit, self._plain_seconds = description, unit, plain_seconds
        self.live = sys.stderr.isatty() and os.environ.get("TERM", "") not in _DUMB_TERMINALS
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._last = (-1, -1)
        self._first = 0
        self._start = self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        if self.live:
            self._bar = _live_bar()
            self._task = self._bar.add_task(self._description, total=None, note="", unit=self._unit)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def update(self, done: int, total: int, note: str = "") -> None:
        """Show the current counts.

        The rate is measured from the first call on, so that items of earlier runs and the start-up time do not count.
        A ``done`` below the previous one restarts the measurement.
        """
        now = time.monotonic()
        restarted = done < self._last[0]
        if self._last[0] < 0 or restarted:
            self._first, self._start, self._last_line = done, now, now
        repeated, self._last = (done, total) == self._last, (done, total)
        if self._bar and self._task is not None:
            if restarted:
                self._bar.reset(self._task, completed=done, total=total, note=note, unit=self._unit)
            self._bar.update(self._task, completed=done, total=total, note=note)
            return
        due = self._plain_seconds is not None and (now - self._last_line >= self._plain_seconds or done == total)
        if due and not repeated:
            self._last_line = now
            text = f"{self._description} {done}/{total} {self._unit}"
            self.log(", ".join(part for part in (text, note, self._estimate(done, total, now)) if part))

    def log(self, text: str) -> None:
        """Print a line; a live bar stays below it."""
        if self._bar:
            self._bar.console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)
            return
        with contextlib.suppress(OSError):  # a closed standard error must not end hours of work
            print(text, file=sys.stderr, flush=True)

    def _estimate(self, done: int, total: int, now: float) -> str:
        new, seconds = done - self._first, now - self._start
        if new <= 0 or seconds <= 0:
            return ""
        rate = f"{new / seconds:.1f} {self._unit}/s"
        return rate if done == total else f"{rate}, about {seconds / new * (total - done):.0f} s left"


def _live_bar() -> Progress:
    # Slow to import, and needed on a terminal only.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}", markup=False),
        TimeRemainingColumn(),
        # The note takes the remaining width, so that a long one is cut instead of pushing the counts out.
        TextColumn("{task.fields[note]}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
        expand=True,
        console=Console(stderr=True, force_terminal=True),
        speed_estimate_period=_SPEED_SECONDS,
        # Standard output may be a file, and a forked worker would inherit the lock of a redirected stream.
        redirect_stdout=False,
        redirect_stderr=False,
    )
