"""Puts the shards of many tasks together: checks that nothing is missing, writes the one index."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cmd_extract.cluster.claims import Claims
from cmd_extract.cluster.task_log import Attempt, read_attempts
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.errors import ShardError
from cmd_extract.manifest.table import summarise
from cmd_extract.run.index import (
    RunSummary,
    is_finished,
    write_index,
    write_run_record,
)
from cmd_extract.run.job import RunJob
from cmd_extract.run.plan import ShardPlan, plan_shards
from cmd_extract.run.record import RecordedRun
from cmd_extract.shard.reader import ShardReader
from cmd_extract.shard.writer import WrittenShard
from cmd_extract.system.files import remove_leftovers
from cmd_extract.system.liveness import STALE_SECONDS, file_system_time


def merge_tasks(
    out: Path,
    recorded: RecordedRun,
    claims: Claims,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> RunSummary:
    """Writes ``index.json``, ``failures.csv`` and ``run.json`` of an output folder that tasks have filled.

    The index is the one that a run on a single machine writes, byte for byte.

    Args:
        out: the output folder.
        recorded: what its ``run.json`` tells.
        claims: who is still at work.
        progress: told how many of how many shards have been looked at.

    Raises:
        ShardError: shards are missing, or do not hold exactly their rows of the manifest.
    """
    start = time.monotonic()
    plans = plan_shards(recorded.records, recorded.videos_per_shard)
    attempts = read_attempts(out, file_system_time(out), claims.stale_seconds)
    binary = FfmpegBinary(path="", version=recorded.ffmpeg_version)
    job = RunJob(
        root=recorded.root, out=out, scratch=out, config=recorded.config, binary=binary, manifest=recorded.manifest
    )
    _check_complete(plans, job, progress)
    # Of tasks killed on machines that have not come back; whoever is at work here shows it more often than that.
    remove_leftovers(out, max(claims.stale_seconds, STALE_SECONDS))
    index = write_index(plans, job, _attested(plans, attempts, out))
    summary = RunSummary(
        **index["totals"],
        shards=len(plans),
        new_videos=sum(w.videos for a in attempts for w in a.written),
        new_frames=sum(w.frames for a in attempts for w in a.written),
        seconds=sum((a.seconds for a in attempts), time.monotonic() - start),
    )
    write_run_record(job, recorded.records, plans, summary)
    claims.remove_dead()
    with contextlib.suppress(OSError):  # a task that is started again may be at work
        claims.folder.rmdir()
    return summary


def _check_complete(plans: Sequence[ShardPlan], job: RunJob, progress: Callable[[int, int], None]) -> None:
    missing, wrong = [], []
    for number, plan in enumerate(plans):
        if not is_finished(plan, job):
            missing.append(plan.name)
        elif not _holds_its_rows(plan, job.out):
            wrong.append(plan.name)
        progress(number + 1, len(plans))
    if missing:
        raise ShardError(
            f"{job.out}: missing of {len(plans)}: {summarise(missing, 'shard')}. "
            f"`cmd-extract status {job.out}` says why; start their tasks again, then merge again"
        )
    if wrong:
        raise ShardError(
            f"{job.out}: {summarise(wrong, 'shard')} do not hold exactly their rows of the manifest. Remove "
            "them and start their tasks again"
        )


def _holds_its_rows(plan: ShardPlan, out: Path) -> bool:
    """Whether every row is there, once or in several segments, or has failed; and no other."""
    reader = ShardReader(out / plan.name)
    try:
        videos, failures = {e.row for e in reader.entries()}, [row for row, *_ in reader.failures()]
    finally:
        reader.close()
    rows = {record.row for record in plan.records}
    return videos | set(failures) == rows and not videos & set(failures) and len(set(failures)) == len(failures)


def _attested(plans: Sequence[ShardPlan], attempts: Sequence[Attempt], out: Path) -> dict[str, WrittenShard]:
    """What the tasks say of the very files that lie there, where all who made one agree; the rest will be read.

    A retry or a repair writes no log: its shards are told by their time stamps, since their sizes may be the same.
    """
    found = {plan.name: (out / plan.name).stat() for plan in plans}
    said: dict[str, set[WrittenShard]] = {}
    for attempt in attempts:
        for written in attempt.written:
            file = found.get(written.name)
            if file and (file.st_size, file.st_mtime_ns) == (written.size_bytes, attempt.mtimes_ns[written.name]):
                said.setdefault(written.name, set()).add(written)
    return {name: next(iter(ones)) for name, ones in said.items() if len(ones) == 1}
