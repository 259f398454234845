"""Finished shards: what a run needs to know about them, without their data.

It is read from the file once and logged (``cmd_extract.run.task_log``). A file of the logged size and modification time
is not opened again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmd_extract.errors import ShardError
from cmd_extract.manifest.records import resolve_path
from cmd_extract.run.job import RunJob
from cmd_extract.run.plan import ShardPlan
from cmd_extract.schema import DamagedRow, FailedRow, NoteRow, VideoRecord
from cmd_extract.shard.reader import ShardReader
from cmd_extract.shard.writer import WrittenShard
from cmd_extract.sources.access import fingerprint, sizes
from cmd_extract.system.reading import FileStamp

_WRITTEN_FIELDS = tuple(f.name for f in fields(WrittenShard))


@dataclass(frozen=True, kw_only=True)
class FinishedShard:
    """Content of a finished shard, without its data.

    Attributes:
        written: its entry in the index.
        mtime_ns: modification time of the file.
        rows_hash: hash of the manifest rows that it was made from.
        config_hash: hash of the configuration that it was made with.
        rows: (R,) int64, the manifest rows that were extracted.
        source_bytes: (R,) int64, size of their source files when they were extracted.
        failures, damaged, notes: its rows of ``failures.csv``, ``damaged.csv`` and ``notes.csv``.
    """

    written: WrittenShard
    mtime_ns: int
    rows_hash: str
    config_hash: str
    rows: NDArray[np.int64]
    source_bytes: NDArray[np.int64]
    failures: tuple[FailedRow, ...]
    damaged: tuple[DamagedRow, ...]
    notes: tuple[NoteRow, ...]

    @property
    def name(self) -> str:
        """File name of the shard."""
        return self.written.name

    @property
    def stamp(self) -> FileStamp:
        """Size and modification time of the file, see ``file_stamp``."""
        return FileStamp(self.written.size_bytes, self.mtime_ns)

    def has_all_rows(self, plan: ShardPlan) -> bool:
        """Return whether the shard has exactly its manifest rows, each as one or more videos or as one failure."""
        found = sorted([*self.rows.tolist(), *(failure.row for failure in self.failures)])
        return found == list(plan.rows)

    def changed_sources(self, records: Sequence[VideoRecord], job: RunJob) -> list[str]:
        """Describe the sources whose size has changed since they were extracted.

        Missing sources are no longer needed. ``cmd-extract verify`` also finds changes that keep the size.

        Args:
            records: all manifest rows of the shard.
            job: settings of the run.

        Raises:
            VideoError: a remote source cannot be reached.
        """
        sources = [resolve_path(records[row - records[0].row], job.root) for row in self.rows.tolist()]
        return [
            f"{source}: {size} bytes when extracted, {now} now"
            for source, size, now in zip(
                sources, self.source_bytes.tolist(), sizes(sources, job.limits.sources), strict=True
            )
            if now is not None and now != size
        ]

    def as_json(self) -> dict[str, Any]:
        """Return the content as JSON values, the file name first."""
        lists = {"rows": self.rows.tolist(), "source_bytes": self.source_bytes.tolist()}
        lists |= {"failures": self.failures, "damaged": self.damaged, "notes": self.notes}
        # The index calls the number of failures and damaged videos "failures" and "damaged".
        entry = {"name": self.name, "entry": vars(self.written), "mtime_ns": self.mtime_ns}
        return entry | {"rows_hash": self.rows_hash, "config_hash": self.config_hash} | lists

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> FinishedShard:
        """Return the content that ``as_json`` has described."""
        return cls(
            written=WrittenShard(**{name: values["entry"][name] for name in _WRITTEN_FIELDS}),
            mtime_ns=values["mtime_ns"],
            rows_hash=values["rows_hash"],
            config_hash=values["config_hash"],
            rows=np.array(values["rows"], np.int64),
            source_bytes=np.array(values["source_bytes"], np.int64),
            failures=tuple(FailedRow(*row) for row in values["failures"]),
            damaged=tuple(DamagedRow(*row) for row in values["damaged"]),
            notes=tuple(NoteRow(*row) for row in values["notes"]),
        )


def file_stamp(folder: str, name: str) -> FileStamp | None:
    """Return size and modification time of the file ``name`` in a folder, None if it does not exist."""
    try:
        file = os.stat(f"{folder}/{name}")  # noqa: PTH116 (a Path takes longer than stat)
    except FileNotFoundError:
        return None
    return FileStamp(file.st_size, file.st_mtime_ns)


def describe_shard(path: Path, written: WrittenShard) -> FinishedShard:
    """Describe a shard that this process has just written.

    Raises:
        ShardError: it is no longer a shard.
    """
    stamp = file_stamp(str(path.parent), path.name)
    if stamp is None:
        raise ShardError(f"{path}: removed during the run; run the same command again")
    with contextlib.closing(ShardReader(path)) as reader:
        return _describe(reader, written, stamp)


def read_finished(plan: ShardPlan, job: RunJob) -> FinishedShard | None:
    """Read a shard, all its bytes for the checksum.

    Returns:
        None if it is missing, unreadable, or of other rows or another configuration.

    Raises:
        PermissionError: it may not be read.
    """
    path = job.out / plan.name
    stamp, reader = file_stamp(str(path.parent), path.name), _open(plan, job)
    if stamp is None or reader is None:
        return None
    with contextlib.closing(reader):
        written = WrittenShard(
            name=path.name,
            sha256=fingerprint(path),
            size_bytes=stamp.size_bytes,
            videos=len(reader.video_rows()),
            frames=reader.frame_count,
            failures=len(reader.failures()),
            damaged=len(reader.damaged()),
        )
        return _describe(reader, written, stamp)


def is_finished(plan: ShardPlan, job: RunJob) -> bool:
    """Return whether the shard exists and is of the same rows and configuration."""
    reader = _open(plan, job)
    if reader is not None:
        reader.close()
    return reader is not None


def extracted_rows(plan: ShardPlan, job: RunJob) -> frozenset[int]:
    """Return the manifest rows of which an existing shard of the same rows and configuration has videos.

    Empty if there is no such shard, or it cannot be read.
    """
    try:
        reader = _open(plan, job)
        if reader is None:
            return frozenset()
        with contextlib.closing(reader):
            return frozenset(reader.video_rows().tolist())
    except (OSError, KeyError, ValueError, RuntimeError):  # damaged
        return frozenset()


def _describe(reader: ShardReader, written: WrittenShard, stamp: FileStamp) -> FinishedShard:
    sources = dict(zip(reader.video_rows().tolist(), reader.source_bytes().tolist(), strict=True))
    return FinishedShard(
        written=written,
        mtime_ns=stamp.mtime_ns,
        rows_hash=reader.rows_hash,
        config_hash=reader.header.config_hash,
        rows=np.array(list(sources), np.int64),
        source_bytes=np.array(list(sources.values()), np.int64),
        failures=tuple(reader.failures()),
        damaged=tuple(reader.damaged()),
        notes=tuple(reader.notes()),
    )


def _open(plan: ShardPlan, job: RunJob) -> ShardReader | None:
    path = job.out / plan.name
    if not path.exists():
        return None
    reader = ShardReader(path)
    try:
        if (reader.rows_hash, reader.header.config_hash) == (plan.rows_hash, job.config_hash):
            return reader
    except ShardError:
        return None
    reader.close()
    return None
