"""Shows how a run goes: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from cmd_extract.run.journal import count_progress

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_PLAIN_EVERY_SECONDS = 10.0
_LOOK_EVERY_SECONDS = 0.5


class ProgressReport:
    """Counts videos, frames and failures, and says the rate and the time left.

    Args:
        total: videos to do in this run.
        already_done: videos that an earlier run has finished.
    """

    def __init__(self, total: int, already_done: int = 0) -> None:
        self._total = total
        self._done_before = already_done
        self._start = time.monotonic()
        self._last_plain = self._start
        self._last_said = 0
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if sys.stderr.isatty():
            self._bar = _live_bar()

    def __enter__(self) -> ProgressReport:
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task("extract", total=self._total, note="")
        elif self._done_before:
            _say(f"{self._done_before} videos done by an earlier run, {self._total} to go")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, videos: int, frames: int, failures: int) -> None:
        """Shows the counts so far; ``videos`` includes ``failures``."""
        elapsed = max(time.monotonic() - self._start, 1e-6)
        note = f"{frames} frames, {frames / elapsed:.0f} frames/s, {failures} failed"
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=videos, note=note)
            return
        now = time.monotonic()
        # The last count comes twice; nothing to do is no line at all.
        if now - self._last_plain >= _PLAIN_EVERY_SECONDS or videos == self._total != self._last_said:
            self._last_plain, self._last_said = now, videos
            left = f", about {elapsed / videos * (self._total - videos):.0f} s left" if videos else ""
            _say(f"extract {videos}/{self._total} videos, {note}{left}")


def _live_bar() -> Progress:
    # Slow to import, and of use on a terminal only.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("extract"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


class _JournalWatcher(threading.Thread):
    """Adds up the workers' progress files and shows the sum."""

    def __init__(self, folder: Path, report: ProgressReport) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self._report = report
        self._stop_event = threading.Event()

    def run(self) -> None:
        while not self._stop_event.wait(_LOOK_EVERY_SECONDS):
            self.show()

    def show(self) -> None:
        self._report.update(*count_progress(self._folder))

    def stop(self) -> None:
        self._stop_event.set()
        self.join()
        self.show()


@contextmanager
def watch_journals(folder: Path, todo: int, done: int) -> Iterator[None]:
    """Shows, while it lasts, what the workers' journals say.

    Args:
        folder: where they lie.
        todo: videos to do in this run.
        done: videos that an earlier run has finished.
    """
    with ProgressReport(todo, done) as report:
        watcher = _JournalWatcher(folder, report)
        watcher.start()
        try:
            yield
        finally:
            watcher.stop()


class CountReport:
    """Shows how many of some things are done, and the time left.

    Args:
        what: the name of the work.
        things: what is counted.
    """

    def __init__(self, what: str, things: str = "videos") -> None:
        self._what = what
        self._things = things
        self._start = self._last = time.monotonic()
        self._first: int | None = None

    def __enter__(self) -> CountReport:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if sys.stderr.isatty() and kind is None:
            print(file=sys.stderr)

    def update(self, done: int, total: int) -> None:
        """Shows the counts so far; what was done before the first call does not count for the rate."""
        now = time.monotonic()
        self._first = done if self._first is None else self._first
        live = sys.stderr.isatty()
        if not live and now - self._last < _PLAIN_EVERY_SECONDS and done != total:
            return
        self._last = now
        here = done - self._first
        left = f", about {(now - self._start) / here * (total - done):.0f} s left" if here else ""
        text = f"{self._what} {done}/{total} {self._things}{left}"
        print(f"\r{text:<70}" if live else text, end="" if live else "\n", file=sys.stderr, flush=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
