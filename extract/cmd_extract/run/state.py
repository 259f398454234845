"""State of an output folder: which shards are finished, what failed in them, which of their sources have changed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmd_extract.errors import ShardError, VideoError
from cmd_extract.manifest.records import resolve_path
from cmd_extract.manifest.table import summarize
from cmd_extract.run.job import RunJob
from cmd_extract.run.plan import ShardPlan
from cmd_extract.schema import DamagedRow, FailedRow, NoteRow, hash_json
from cmd_extract.shard.reader import ShardReader
from cmd_extract.shard.writer import WrittenShard
from cmd_extract.sources.access import fingerprint, sizes


@dataclass(frozen=True, kw_only=True)
class FinishedShard:
    """Content of a finished shard, without its data.

    Attributes:
        plan: its manifest rows.
        path: its file.
        stamp: size and modification time (ns) of the file.
        video_rows: (V,) int64, manifest row of each video; segments of one video share it.
        source_bytes: (V,) int64, size of each source file when it was extracted.
        frames: number of frames.
        failures, damaged, notes: its rows of ``failures.csv``, ``damaged.csv`` and ``notes.csv``.
    """

    plan: ShardPlan
    path: Path
    stamp: tuple[int, int]
    video_rows: NDArray[np.int64]
    source_bytes: NDArray[np.int64]
    frames: int
    failures: tuple[FailedRow, ...]
    damaged: tuple[DamagedRow, ...]
    notes: tuple[NoteRow, ...] = ()

    def has_changed(self) -> bool:
        """Return whether the file was removed or replaced since it was read."""
        try:
            return _stamp(self.path) != self.stamp
        except FileNotFoundError:
            return True

    def has_all_rows(self) -> bool:
        """Return whether the shard has exactly its manifest rows, each as one or more videos or as one failure."""
        videos, failures = set(self.video_rows.tolist()), [failure.row for failure in self.failures]
        rows = sorted([*videos, *failures])
        return rows == [record.row for record in self.plan.records]

    def changed_sources(self, job: RunJob) -> list[str]:
        """Describe the sources whose size has changed since they were extracted.

        Missing sources are not needed any more. ``cmd-extract verify`` also finds changes that keep the size.

        Raises:
            VideoError: a remote source cannot be reached.
        """
        records = {record.row: record for record in self.plan.records}
        before = dict(zip(self.video_rows.tolist(), self.source_bytes.tolist(), strict=True))
        sources = [resolve_path(records[row], job.root) for row in before]
        return [
            f"{source}: {size} bytes when extracted, {now} now"
            for source, size, now in zip(sources, before.values(), sizes(sources, job.limits.sources), strict=True)
            if now is not None and now != size
        ]

    def describe(self) -> WrittenShard:
        """Return the shard's entry in the index; reads the whole file for its checksum."""
        return WrittenShard(
            name=self.path.name,
            sha256=fingerprint(self.path),
            size_bytes=self.path.stat().st_size,
            videos=len(self.video_rows),
            frames=self.frames,
            failures=len(self.failures),
            damaged=len(self.damaged),
        )


@dataclass(frozen=True, kw_only=True)
class OutputState:
    """The shards of an output folder, or of a task's share of it, as a run finds them.

    Attributes:
        job: settings of the run.
        plans: all shards.
        finished: the finished shards, by name.
    """

    job: RunJob
    plans: tuple[ShardPlan, ...]
    finished: dict[str, FinishedShard]

    @property
    def done(self) -> list[ShardPlan]:
        """Finished shards."""
        return [plan for plan in self.plans if plan.name in self.finished]

    @property
    def todo(self) -> list[ShardPlan]:
        """Shards to build."""
        return [plan for plan in self.plans if plan.name not in self.finished]

    @property
    def failures(self) -> list[FailedRow]:
        """Failures in finished shards."""
        return [failure for shard in self.finished.values() for failure in shard.failures]

    def check_sources(self) -> None:
        """Check that the sources of finished shards have not changed.

        Raises:
            ShardError: some have, or a remote one cannot be reached.
        """
        try:
            changed = [text for shard in self.finished.values() for text in shard.changed_sources(self.job)]
        except VideoError as error:
            raise ShardError(
                f"{self.job.out}: cannot check whether remote source files have changed: {error.reason}. Nothing was "
                "changed; run the same command again once they can be reached"
            ) from None
        if changed:
            raise ShardError(
                f"{self.job.out}: source files have changed: {summarize(changed, 'file')}. Nothing was changed; run "
                f"`cmd-extract verify {self.job.out} --repair` to extract them again, or choose another output folder"
            )


def read_state(
    plans: Sequence[ShardPlan],
    job: RunJob,
    *,
    redo: frozenset[str] = frozenset(),
    retry_stages: frozenset[str] = frozenset(),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> OutputState:
    """Read the state of an output folder, opening each shard once.

    Args:
        plans: shards to look for.
        job: settings of the run.
        redo: names of shards to build again even if they look finished.
        retry_stages: shards with failures of these stages are to be built again.
        progress: called with the number of shards looked for and their total.

    Raises:
        PermissionError: a shard may not be read.
    """
    finished = {}
    for number, plan in enumerate(plans):
        shard = None if plan.name in redo else read_finished(plan, job)
        if shard and retry_stages.isdisjoint(failure.stage for failure in shard.failures):
            finished[plan.name] = shard
        progress(number + 1, len(plans))
    return OutputState(job=job, plans=tuple(plans), finished=finished)


def read_finished(plan: ShardPlan, job: RunJob) -> FinishedShard | None:
    """Read a shard; None if it is missing, unreadable, or of other rows or another configuration.

    Raises:
        PermissionError: it may not be read.
    """
    path = job.out / plan.name
    try:
        stamp = _stamp(path)
    except FileNotFoundError:
        return None
    reader = _open(plan, job)
    if reader is None:
        return None
    with contextlib.closing(reader):
        return FinishedShard(
            plan=plan,
            path=path,
            stamp=stamp,
            video_rows=reader.video_rows(),
            source_bytes=reader.source_bytes(),
            frames=reader.frame_count,
            failures=tuple(reader.failures()),
            damaged=tuple(reader.damaged()),
            notes=tuple(reader.notes()),
        )


def is_finished(plan: ShardPlan, job: RunJob) -> bool:
    """Return whether ``read_finished`` finds the shard."""
    reader = _open(plan, job)
    if reader is not None:
        reader.close()
    return reader is not None


def _stamp(path: Path) -> tuple[int, int]:
    file = path.stat()
    return file.st_size, file.st_mtime_ns


def _open(plan: ShardPlan, job: RunJob) -> ShardReader | None:
    path = job.out / plan.name
    if not path.exists():
        return None
    reader = ShardReader(path)
    try:
        if (reader.rows_hash, reader.header.config_hash) == (plan.rows_hash, hash_json(job.described)):
            return reader
    except ShardError:
        return None
    reader.close()
    return None
