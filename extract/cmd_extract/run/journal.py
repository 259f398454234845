"""Journals of a run's workers: small files in the scratch folder, from which the main process reads the progress.

Each worker process has two, however many shards it builds: a record of its counts, and a list of its failures. Unlike a
pipe or a queue, a file cannot be blocked by a dead worker.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cmd_extract.errors import VideoError
from cmd_extract.schema import FailedRow, VideoRecord

_COUNTS = ".progress"
_FAILURES = ".failures"
_RECORD = "{:>20} {:>20} {:>20}\n"
"""Counts as text of constant length, so that one write replaces them and a reader never finds a part."""


class Counts(NamedTuple):
    """Progress of a run.

    Attributes:
        videos: finished videos, failures included.
        frames: extracted frames.
        failures: failed videos.
    """

    videos: int = 0
    frames: int = 0
    failures: int = 0


class WorkerJournal:
    """Journal of this process. Another object for the same folder continues its counts.

    Args:
        folder: the run's scratch folder.
    """

    def __init__(self, folder: Path) -> None:
        self._counts_file = folder / f"worker-{os.getpid()}{_COUNTS}"
        self._failures_file = folder / f"worker-{os.getpid()}{_FAILURES}"
        self._counts = _read_counts(self._counts_file)

    def add_video(self, frames: int) -> None:
        """Record an extracted video."""
        self._count(Counts(videos=1, frames=frames))

    def add_failure(self, record: VideoRecord, error: VideoError) -> None:
        """Record a failed video."""
        self._write_failures([FailedRow(record.row, record.path, error.stage, error.reason)])
        self._count(Counts(videos=1, failures=1))

    def add_shard(self, frames: int, rows: int, failures: Sequence[FailedRow]) -> None:
        """Record a complete shard whose worker keeps its journal elsewhere."""
        self._write_failures(failures)
        self._count(Counts(videos=rows, frames=frames, failures=len(failures)))

    def _write_failures(self, failures: Sequence[FailedRow]) -> None:
        with self._failures_file.open("a") as stream:
            stream.writelines(json.dumps(failure) + "\n" for failure in failures)

    def _count(self, new: Counts) -> None:
        self._counts = _add(self._counts, new)
        handle = os.open(self._counts_file, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            os.pwrite(handle, _RECORD.format(*self._counts).encode(), 0)
        finally:
            os.close(handle)


def count_progress(folder: Path) -> Counts:
    """Return the sum over all journals in a scratch folder."""
    total = Counts()
    for path in folder.glob(f"*{_COUNTS}"):
        total = _add(total, _read_counts(path))
    return total


def read_failures(folder: Path) -> list[FailedRow]:
    """Return all failures of a run so far, including those of unfinished shards."""
    return [FailedRow(*json.loads(line)) for line in _failure_lines(folder)]


def _read_counts(path: Path) -> Counts:
    """Return the counts in a file; zeros if it does not exist or was created a moment ago."""
    try:
        return Counts(*map(int, path.read_text().split()))
    except FileNotFoundError:
        return Counts()


def _add(a: Counts, b: Counts) -> Counts:
    return Counts(*(x + y for x, y in zip(a, b, strict=True)))


def _failure_lines(folder: Path) -> Iterator[bytes]:
    for path in folder.glob(f"*{_FAILURES}"):
        # The last line may be incomplete.
        yield from (line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n"))
