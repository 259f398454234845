"""A line at the bottom of the terminal that shows how a training goes."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn


class LiveLine:
    """A progress bar with numbers; other lines appear above it. Where there is no terminal, only those.

    Args:
        console: where to draw; standard error if None.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self.shown = self._console.is_terminal
        columns = (SpinnerColumn(), MofNCompleteColumn(), BarColumn(20), TimeRemainingColumn())
        numbers = TextColumn("{task.description}", markup=False)
        self._progress = Progress(*columns, numbers, console=self._console, transient=True, disable=not self.shown)
        self._task = self._progress.add_task("waiting for data", total=None)

    def __enter__(self) -> Self:
        if self.shown:
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.shown:  # else rich before 15 ends it with an empty line
            self._progress.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def update(self, step: int, total: int, numbers: str) -> None:
        """Shows how far the training is."""
        self._progress.update(self._task, completed=step, total=total, description=numbers)
