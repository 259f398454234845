"""One task of a distributed extraction: builds its share of the shards. ``cmd-extract merge`` writes the index."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial

from cmd_extract.decode.video import extract_video
from cmd_extract.errors import FailureLimitError
from cmd_extract.run.containment import Extract
from cmd_extract.run.finished import FinishedShard, is_finished
from cmd_extract.run.job import RunJob
from cmd_extract.run.pipeline import ShardWork, prepare_folders
from cmd_extract.run.plan import Planned, ShardPlan, Share, count_rows
from cmd_extract.run.progress import watch_journals
from cmd_extract.run.record import add_rows
from cmd_extract.run.state import OutputState, read_state
from cmd_extract.run.task_log import TaskLog
from cmd_extract.run.workers import build_locally
from cmd_extract.system.claims import Claims
from cmd_extract.system.files import remove_leftovers, scratch_folder

_POLLS_PER_STALE_TIME = 20
_MAX_POLL_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class TaskSummary:
    """Totals of a task.

    Attributes:
        shards, videos, frames, failures, damaged: counts for the shards built by this attempt.
        existing: number of shards in the share that were already finished or were built by another task.
        seconds: wall time.
    """

    shards: int
    videos: int
    frames: int
    failures: int
    damaged: int
    existing: int
    seconds: float


def run_task(
    planned: Planned,
    job: RunJob,
    share: Share,
    *,
    workers: int,
    claims: Claims,
    max_failures: int | None = None,
    extract: Extract = extract_video,
) -> TaskSummary:
    """Build the shards of one task; return once all of them are in ``job.out``, no matter who built them.

    Running a task twice, at once or again, does no harm: finished shards are skipped, shards that another process is
    building are waited for, and taken over if that process stops responding.

    Args:
        planned, job, workers, extract: see ``run_extraction``.
        share: the task.
        claims: claims in the output folder.
        max_failures: maximum number of rows in this share that may fail; None for no limit.

    Raises:
        ShardError: the folder contains an extraction of another manifest or configuration, or sources have changed.
        OutputError: the folder cannot be written.
        FailureLimitError: too many videos failed; finished shards are kept.
    """
    start = time.monotonic()
    identity, planned = prepare_folders(job, planned)
    built: list[FinishedShard] = []
    with TaskLog(job.out, share, claims.stale_seconds) as log:
        state = read_state(share.of(planned.plans), job, log=log)
        state.check_sources()
        add_rows(job, identity)
        remaining = _remaining_failures(max_failures, state)
        try:
            with scratch_folder(job.scratch) as scratch:
                work = ShardWork(job=job, scratch=scratch, max_failures=remaining, extract=extract)
                results = _build_all(work, state.todo, claims, workers)
                todo, done = count_rows(state.todo), count_rows(state.done)
                with watch_journals(scratch, todo, done), contextlib.closing(results):
                    built.extend(map(log.add, results))
        finally:
            # An error in one worker kills the others, perhaps in the middle of a shard.
            for folder in {job.out, job.scratch}:
                remove_leftovers(folder)
            claims.remove_ended()
    return TaskSummary(
        shards=len(built),
        videos=sum(shard.written.videos for shard in built),
        frames=sum(shard.written.frames for shard in built),
        failures=sum(shard.written.failures for shard in built),
        damaged=sum(shard.written.damaged for shard in built),
        existing=len(state.plans) - len(built),
        seconds=time.monotonic() - start,
    )


def _remaining_failures(max_failures: int | None, state: OutputState) -> int | None:
    if max_failures is None:
        return None
    before = len(state.failures)
    if before > max_failures:
        raise FailureLimitError(before)
    return max_failures - before


def _build_all(
    work: ShardWork, todo: Sequence[ShardPlan], claims: Claims, workers: int
) -> Generator[FinishedShard, None, None]:
    """Build all unclaimed shards, then wait until the others are finished or their claims expire."""
    remaining = list(todo)
    while remaining:
        free = [plan for plan in remaining if not claims.is_held(plan.name)]
        built = set()
        for written in build_locally(workers, partial(_build_claimed, work, claims), free):
            if written:
                built.add(written.name)
                yield written
        remaining = [plan for plan in remaining if plan.name not in built and not is_finished(plan, work.job)]
        if remaining:
            time.sleep(min(claims.stale_seconds / _POLLS_PER_STALE_TIME, _MAX_POLL_SECONDS))


def _build_claimed(work: ShardWork, claims: Claims, plan: ShardPlan) -> FinishedShard | None:
    """Build a shard in a worker process, unless another process is building or has built it."""
    with claims.hold(plan.name) as acquired:
        return work(plan) if acquired and not is_finished(plan, work.job) else None
