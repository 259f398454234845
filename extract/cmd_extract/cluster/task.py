"""One task of many: makes its share of the shards, and leaves the index to ``cmd_extract.cluster.merge``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial

from cmd_extract.cluster.claims import Claims
from cmd_extract.cluster.shares import Share
from cmd_extract.cluster.task_log import TaskLog
from cmd_extract.decode.video import extract_video
from cmd_extract.errors import FailureLimitError
from cmd_extract.run.containment import Extract
from cmd_extract.run.index import failures_of, is_finished
from cmd_extract.run.job import RunJob
from cmd_extract.run.pipeline import ShardWork, divide_work, prepare_folders
from cmd_extract.run.plan import ShardPlan, count_rows, plan_shards
from cmd_extract.run.progress import watch_journals
from cmd_extract.run.workers import make_locally
from cmd_extract.schema import VideoRecord
from cmd_extract.shard.writer import WrittenShard
from cmd_extract.system.files import remove_leftovers, scratch_folder

_LOOKS = 20  # at claims of others, within the time that makes them stale
_LONGEST_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class TaskSummary:
    """What became of a task.

    Attributes:
        shards, videos, frames, failures, damaged: what this attempt has made.
        found: shards of the share that were there already, or that another task has made meanwhile.
        seconds: wall time.
    """

    shards: int
    videos: int
    frames: int
    failures: int
    damaged: int
    found: int
    seconds: float


def run_share(
    records: Sequence[VideoRecord],
    job: RunJob,
    share: Share,
    *,
    workers: int,
    claims: Claims,
    videos_per_shard: int | None = None,
    max_failures: int | None = None,
    extract: Extract = extract_video,
) -> TaskSummary:
    """Makes the shards of one task; returns when all of them lie in ``job.out``, whoever has made them.

    A task that is started twice, or again, does harm to none: finished shards are left alone, shards that someone else
    is making are waited for, and taken over when the other falls silent.

    Args:
        records: all manifest rows.
        job: folders, configuration, limits.
        share: which task this is.
        workers: processes.
        claims: who makes what.
        videos_per_shard: see ``plan_shards``.
        max_failures: how many rows of this share may fail; None for any number.
        extract: what extracts one video, in a process of its own.

    Raises:
        ShardError: the folder holds an extraction of another manifest or configuration.
        OutputError: the folder cannot be written.
        FailureLimitError: too many videos failed; finished shards stay.
    """
    start = time.monotonic()
    plans = plan_shards(records, videos_per_shard)
    prepare_folders(job, records, plans)
    made: list[WrittenShard] = []
    with TaskLog(job.out, share, claims.stale_seconds) as log:
        done, todo = divide_work(share.of(plans), job)
        may_fail = _failures_left(max_failures, done, job)
        try:
            with scratch_folder(job.scratch) as scratch:
                work = ShardWork(job=job, scratch=scratch, may_fail=may_fail, extract=extract)
                results = _make_all(work, todo, claims, workers)
                with watch_journals(scratch, count_rows(todo), count_rows(done)), contextlib.closing(results):
                    for written in results:
                        log.add(written)
                        made.append(written)
        finally:
            # An error in one worker ends the others wherever they are, perhaps in the middle of a shard.
            for folder in {job.out, job.scratch}:
                remove_leftovers(folder)
            claims.remove_dead()
    return TaskSummary(
        shards=len(made),
        videos=sum(w.videos for w in made),
        frames=sum(w.frames for w in made),
        failures=sum(w.failures for w in made),
        damaged=sum(w.damaged for w in made),
        found=len(share.of(plans)) - len(made),
        seconds=time.monotonic() - start,
    )


def _failures_left(max_failures: int | None, done: Sequence[ShardPlan], job: RunJob) -> int | None:
    if max_failures is None:
        return None
    before = sum(len(failures_of(plan, job)) for plan in done)
    if before > max_failures:
        raise FailureLimitError(f"{before} videos have failed")
    return max_failures - before


def _make_all(
    work: ShardWork, todo: Sequence[ShardPlan], claims: Claims, workers: int
) -> Generator[WrittenShard, None, None]:
    """Makes what nobody else makes; waits for the rest to be finished, or given up."""
    left = list(todo)
    while left:
        free = [plan for plan in left if not claims.is_held(plan.name)]
        made = set()
        for written in make_locally(workers, partial(_make_claimed, work, claims), free):
            if written:
                made.add(written.name)
                yield written
        left = [plan for plan in left if plan.name not in made and not is_finished(plan, work.job)]
        if left:
            time.sleep(min(claims.stale_seconds / _LOOKS, _LONGEST_SECONDS))


def _make_claimed(work: ShardWork, claims: Claims, plan: ShardPlan) -> WrittenShard | None:
    """Makes a shard unless someone else is at it, or has been. Runs in a worker process."""
    with claims.hold(plan.name) as mine:
        return work(plan) if mine and not is_finished(plan, work.job) else None
