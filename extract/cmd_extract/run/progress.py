"""Progress of a run, read from its workers' journals."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cmd_extract.console.progress import ProgressDisplay
from cmd_extract.run.journal import count_progress

_POLL_SECONDS = 0.5


class _JournalWatcher(threading.Thread):
    """Background thread that shows the sum over the journals."""

    def __init__(self, folder: Path, todo: int, done: int, display: ProgressDisplay) -> None:
        super().__init__(daemon=True, name="journal-watcher")
        self._folder, self._todo, self._done, self._display = folder, todo, done, display
        self._start = time.monotonic()
        self._stop_event = threading.Event()

    def run(self) -> None:
        while not self._stop_event.wait(_POLL_SECONDS):
            self.show()

    def show(self) -> None:
        counts = count_progress(self._folder)
        rate = counts.frames / max(time.monotonic() - self._start, 1e-6)
        note = f"{counts.frames} frames, {rate:.0f} frames/s, {counts.failures} failed"
        if self._todo or counts.videos:
            videos = self._done + counts.videos
            self._display.update(videos, max(videos, self._done + self._todo), note)

    def stop(self) -> None:
        self._stop_event.set()
        self.join()
        self.show()


@contextmanager
def watch_journals(folder: Path, todo: int, done: int) -> Iterator[Callable[[str], None]]:
    """Show the progress of the workers during the block.

    Args:
        folder: the run's scratch folder.
        todo: number of videos to extract in this run; it may extract more, for other tasks.
        done: number of videos finished by earlier runs.

    Yields:
        Prints a line.
    """
    with ProgressDisplay("extract") as display:
        watcher = _JournalWatcher(folder, todo, done, display)
        watcher.show()
        watcher.start()
        try:
            yield display.log
        finally:
            watcher.stop()
