"""How workers tell the main process how far they are: small files, no channel that a dead worker could block."""

from __future__ import annotations

import json
from pathlib import Path

from cmd_extract.errors import VideoError
from cmd_extract.schema import VideoRecord

_COUNTS = ".progress"
_FAILURES = ".failures"


class ShardJournal:
    """What a worker notes of one shard.

    Args:
        folder: the run's scratch folder.
        name: the shard's file name.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._counts_file = folder / f"{name}{_COUNTS}"
        self._failures_file = folder / f"{name}{_FAILURES}"
        self._counts = [0, 0, 0]

    def add_video(self, frames: int) -> None:
        """Notes a video that came out well."""
        self._count(frames, failures=0)

    def add_failure(self, record: VideoRecord, error: VideoError) -> None:
        """Notes a row that gave no video."""
        with self._failures_file.open("a") as stream:
            stream.write(json.dumps([record.row, record.path, error.stage, error.reason]) + "\n")
        self._count(0, failures=1)

    def add_shard(self, frames: int, rows: int, failures: list[tuple[int, str, str, str]]) -> None:
        """Notes a whole shard that was made out of this run's sight."""
        with self._failures_file.open("a") as stream:
            stream.writelines(json.dumps(failure) + "\n" for failure in failures)
        self._count(frames, failures=len(failures), rows=rows)

    def _count(self, frames: int, failures: int, rows: int = 1) -> None:
        self._counts = [c + n for c, n in zip(self._counts, (rows, frames, failures), strict=True)]
        self._counts_file.write_text(" ".join(map(str, self._counts)))


def count_progress(folder: Path) -> tuple[int, int, int]:
    """Videos, frames and failures of a run so far; videos includes failures."""
    totals = [0, 0, 0]
    for path in folder.glob(f"*{_COUNTS}"):
        # A file caught between opening and writing is empty; the next look sees it whole.
        counts = path.read_text().split() or ["0", "0", "0"]
        totals = [t + int(c) for t, c in zip(totals, counts, strict=True)]
    return totals[0], totals[1], totals[2]


def read_failures(folder: Path) -> list[tuple[int, str, str, str]]:
    """Row, path, stage and reason of every failure of a run so far, finished shards or not."""
    lines = [line for path in folder.glob(f"*{_FAILURES}") for line in path.read_text().splitlines(keepends=True)]
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [(int(row), str(path), str(stage), str(reason)) for row, path, stage, reason in rows]


def count_failures(folder: Path) -> int:
    """Number of ``read_failures``."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob(f"*{_FAILURES}"))
