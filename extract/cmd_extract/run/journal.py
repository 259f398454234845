"""Journals of a run's workers: small files in the scratch folder, from which the main process reads the progress.

Unlike a pipe or a queue, a file cannot be blocked by a dead worker.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cmd_extract.errors import VideoError
from cmd_extract.schema import FailedRow, VideoRecord

_COUNTS = ".progress"
_FAILURES = ".failures"


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


class ShardJournal:
    """Journal of one shard, written by its worker.

    Args:
        folder: the run's scratch folder.
        name: file name of the shard.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._counts_file = folder / f"{name}{_COUNTS}"
        self._failures_file = folder / f"{name}{_FAILURES}"
        self._counts = Counts()

    def add_video(self, frames: int) -> None:
        """Record an extracted video."""
        self._count(Counts(videos=1, frames=frames))

    def add_failure(self, record: VideoRecord, error: VideoError) -> None:
        """Record a failed video."""
        self._write_failures([FailedRow(record.row, record.path, error.stage, error.reason)])
        self._count(Counts(videos=1, failures=1))

    def add_shard(self, frames: int, rows: int, failures: list[FailedRow]) -> None:
        """Record a complete shard whose worker keeps its journal elsewhere."""
        self._write_failures(failures)
        self._count(Counts(videos=rows, frames=frames, failures=len(failures)))

    def _write_failures(self, failures: list[FailedRow]) -> None:
        with self._failures_file.open("a") as stream:
            stream.writelines(json.dumps(failure) + "\n" for failure in failures)

    def _count(self, new: Counts) -> None:
        self._counts = _add(self._counts, new)
        self._counts_file.write_text(" ".join(map(str, self._counts)))


def count_progress(folder: Path) -> Counts:
    """Return the sum over all journals in a scratch folder."""
    total = Counts()
    for path in folder.glob(f"*{_COUNTS}"):
        # A file that is just being rewritten may be empty; the next call will read it.
        if numbers := path.read_text().split():
            total = _add(total, Counts(*map(int, numbers)))
    return total


def read_failures(folder: Path) -> list[FailedRow]:
    """Return all failures of a run so far, including those of unfinished shards."""
    return [FailedRow(*json.loads(line)) for line in _failure_lines(folder)]


def count_failures(folder: Path) -> int:
    """Return the number of ``read_failures``."""
    return sum(1 for _ in _failure_lines(folder))


def _add(a: Counts, b: Counts) -> Counts:
    return Counts(*(x + y for x, y in zip(a, b, strict=True)))


def _failure_lines(folder: Path) -> Iterator[bytes]:
    for path in folder.glob(f"*{_FAILURES}"):
        # The last line may be incomplete.
        yield from (line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n"))
