"""Progress of a long command: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PLAIN_SECONDS = 10.0
"""Time between two plain lines."""


class ProgressDisplay:
    """Shows how many items are done, a note, and the estimated time left, on standard error.

    Args:
        description: the name of the work, such as ``embed``.
        unit: what is counted.
        plain_seconds: time between two lines where standard error is no terminal; None prints none there.
    """

    def __init__(self, description: str, unit: str = "videos", *, plain_seconds: float | None = PLAIN_SECONDS) -> None:
        self._description, self._unit, self._plain_seconds = description, unit, plain_seconds
        self.live = sys.stderr.isatty()
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

    def update(self, done: int, total: int, note: str = "") -> None:
        """Shows the counts so far.

        The rate is measured from the first call on, so that neither earlier runs nor the start-up count. A count that
        falls starts the measurement again.
        """
        now = time.monotonic()
        if self._last[0] < 0 or done < self._last[0]:
            self._first, self._start, self._last_line = done, now, now
        repeated, self._last = (done, total) == self._last, (done, total)
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, note=note)
            return
        due = self._plain_seconds is not None and (now - self._last_line >= self._plain_seconds or done == total)
        if due and not repeated:
            self._last_line = now
            text = f"{self._description} {done}/{total} {self._unit}"
            self.log(", ".join(part for part in (text, note, self._estimate(done, total, now)) if part))

    def log(self, text: str) -> None:
        """Prints a line that stays; a live bar moves below it."""
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def _estimate(self, done: int, total: int, now: float) -> str:
        here, seconds = done - self._first, now - self._start
        if here <= 0 or seconds <= 0:
            return ""
        return f"{here / seconds:.1f} {self._unit}/s, about {seconds / here * (total - done):.0f} s left"


def _live_bar() -> Progress:
    # Slow to import, and needed on a terminal only.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}", markup=False),
        TextColumn("{task.fields[note]}", markup=False),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
