"""Runs an extraction, or one task of it: plans shards, builds those that no other process builds.

A run on a single machine is task 0 of 1, followed by writing the index; several tasks are followed by a merge.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cmd_extract.decode.video import extract_video
from cmd_extract.errors import FailureLimitError
from cmd_extract.run.containment import Extract
from cmd_extract.run.division import plan_shards
from cmd_extract.run.finished import FinishedShard
from cmd_extract.run.hand_out import OtherShards, build_unclaimed
from cmd_extract.run.index import remove_index, write_failures, write_index
from cmd_extract.run.job import RunJob
from cmd_extract.run.journal import Counts, read_failures
from cmd_extract.run.plan import Planned, Share, count_rows
from cmd_extract.run.plan_file import save_plan
from cmd_extract.run.progress import watch_journals
from cmd_extract.run.record import (
    RunIdentity,
    RunSummary,
    add_rows,
    check_folder,
    claim_folder,
    write_record,
)
from cmd_extract.run.state import OutputState, read_state
from cmd_extract.run.task_log import ShardLog, TaskLog
from cmd_extract.run.work import Backend, FailureLimit, ShardWork
from cmd_extract.run.workers import build_locally
from cmd_extract.schema import FailedRow
from cmd_extract.system.claims import Claims
from cmd_extract.system.files import remove_leftovers, scratch_folder

_ALL = Share(task=0, num_tasks=1)


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """How a process builds shards.

    Attributes:
        workers: number of processes.
        max_failures: maximum number of rows in the share that may fail, over all runs; None for no limit.
        extract: extracts one video, in a separate process.
        claims: claims in the output folder; None for the default.
        backend: builds the shards, without claims; None for ``workers`` processes on this machine.
        redo: names of shards to build again even if they look finished. The old file stays until the new one is
            complete.
        retry_stages: shards with failures of these stages are built again in the same way.
        on_finished: called with each shard that this process has built, as soon as it is logged.
    """

    workers: int
    max_failures: int | None = None
    extract: Extract = extract_video
    claims: Claims | None = None
    backend: Backend | None = None
    redo: frozenset[str] = frozenset()
    retry_stages: frozenset[str] = frozenset()
    on_finished: Callable[[FinishedShard], None] = lambda shard: None


@dataclass(frozen=True, kw_only=True)
class BuiltShare:
    """What a process has built.

    Attributes:
        identity, planned: the run as recorded, and all shards, see ``prepare_folders``.
        state: the share of this process as it was before.
        shards: the shards built, by name; some may belong to other tasks.
    """

    identity: RunIdentity
    planned: Planned
    state: OutputState
    shards: dict[str, FinishedShard]


def run_extraction(planned: Planned, job: RunJob, settings: BuildSettings) -> RunSummary:
    """Extract the videos of a manifest into ``job.out``, continuing earlier runs, and write the index.

    Other processes may work on the same folder. Shards that they are building are waited for.

    Args:
        planned: all shards, see ``plan_run``.
        job: settings of the run.
        settings: how to build shards.

    Raises:
        ShardError: the folder contains an extraction of another manifest or configuration, or sources have changed.
        RunError: the folder cannot be written, or a process cannot be started.
        FailureLimitError: too many videos failed; finished shards and ``failures.csv`` are kept.
    """
    start = time.monotonic()
    built = build_share(planned, job, _ALL, settings)
    with contextlib.closing(ShardLog(job.out)) as log:
        elsewhere = [plan for plan in built.state.todo if plan.name not in built.shards]
        shards = read_state(elsewhere, job, log=log).finished | built.shards
        check_folder(job, built.identity)  # another run may have added rows
        failures = [failure for shard in (shards | built.state.finished).values() for failure in shard.failures]
        if settings.max_failures is not None and len(failures) > settings.max_failures:  # those of other processes, too
            write_failures(job.out, sorted(failures))
            raise FailureLimitError(len(failures), built.planned.rows)
        summary = RunSummary(
            **write_index(built.state, shards, built.planned.manifest_sha256, log),
            shards=len(built.planned.plans),
            new_videos=sum(shard.written.videos for shard in built.shards.values()),
            new_frames=sum(shard.written.frames for shard in built.shards.values()),
            seconds=time.monotonic() - start,
        )
    write_record(job, built.identity, summary)
    return summary


def build_share(planned: Planned, job: RunJob, share: Share, settings: BuildSettings) -> BuiltShare:
    """Build the shards of one task, then help others; return once all shards of the share are finished.

    Raises:
        ShardError, RunError, FailureLimitError: see ``run_extraction``; of several tasks, none writes ``failures.csv``.
    """
    identity, planned = prepare_folders(job, planned)
    with contextlib.ExitStack() as stack:
        claims = settings.claims or Claims(out=job.out)
        log = stack.enter_context(_open_log(job.out, share, claims.stale_seconds))
        state = read_state(
            share.of(planned.plans), job, redo=settings.redo, retry_stages=settings.retry_stages, log=log
        )
        state.check_sources()
        add_rows(job, identity)
        if share == _ALL and state.todo:
            log = stack.enter_context(TaskLog(job.out, share, claims.stale_seconds))
        try:
            shards = _build(planned, state, share, settings, claims, log)
        finally:
            # An error in one worker kills the others, perhaps in the middle of a shard.
            for folder in {job.out, job.scratch}:
                remove_leftovers(folder)
            claims.remove_ended()
    return BuiltShare(identity=identity, planned=planned, state=state, shards=shards)


def _open_log(out: Path, share: Share, stale_seconds: float) -> contextlib.AbstractContextManager[ShardLog]:
    """Open the log for the shards that are read. Only one of several tasks is an attempt even with nothing to build."""
    return contextlib.closing(ShardLog(out)) if share == _ALL else TaskLog(out, share, stale_seconds)


def _build(
    planned: Planned, state: OutputState, share: Share, settings: BuildSettings, claims: Claims, log: ShardLog
) -> dict[str, FinishedShard]:
    """Build the unfinished shards and log each of them."""
    job, todo = state.job, state.todo
    limit = FailureLimit(
        count=settings.max_failures,
        rows=count_rows(state.plans) or planned.rows,
        failures=len(state.failures),
        videos=count_rows(state.plans) - count_rows(todo),
    )
    if limit.is_exceeded(Counts()):
        raise _limit_error(planned, state, share, state.failures)
    if share == _ALL and not todo:
        return {}
    built: dict[str, FinishedShard] = {}
    with scratch_folder(job.scratch) as scratch:
        own_claims = None if settings.backend else claims
        work = ShardWork(job=job, scratch=scratch, extract=settings.extract, limit=limit, claims=own_claims)
        try:
            with watch_journals(scratch, count_rows(todo), limit.videos) as print_line:
                if settings.backend:
                    results = settings.backend(work, todo)
                else:
                    others, build = OtherShards(planned.plans, share, job.out), partial(build_locally, settings.workers)
                    results = build_unclaimed(work, build, todo, others, print_line)
                with contextlib.closing(results):
                    for shard in results:
                        if shard is not None:
                            built[shard.name] = log.add(shard)
                            settings.on_finished(shard)
        except FailureLimitError:
            # Otherwise only helping has failed, or other processes have finished the share.
            if not all(map(work.is_finished, todo)):
                raise _limit_error(planned, state, share, state.failures + read_failures(scratch)) from None
    return built


def _limit_error(
    planned: Planned, state: OutputState, share: Share, failures: Sequence[FailedRow]
) -> FailureLimitError:
    """Return the error of a run in which too many videos failed, and write ``failures.csv`` unless it is a task."""
    if share != _ALL:
        return FailureLimitError(len(failures))
    if state.todo:
        remove_index(state.job.out)  # it does not match the table, whether or not a shard was replaced
    write_failures(state.job.out, sorted(failures))
    return FailureLimitError(len(failures), planned.rows)


def prepare_folders(job: RunJob, planned: Planned) -> tuple[RunIdentity, Planned]:
    """Create the output and scratch folders, record the run, and remove leftovers of killed processes.

    Returns:
        The identity of the run, and the shards: those of another run that has planned the same rows, if the sources
        have changed in between and it was faster.

    Raises:
        ShardError: the output folder contains another extraction.
    """
    job.out.mkdir(parents=True, exist_ok=True)
    job.scratch.mkdir(parents=True, exist_ok=True)
    identity = RunIdentity.of(job, planned)
    recorded = claim_folder(job, identity)
    if any(own.sizes != other.sizes for own, other in zip(planned.parts, recorded.parts, strict=False)):
        planned = plan_shards(planned.plans.source, recorded.parts, planned.limits)
        identity = RunIdentity.of(job, planned)
    save_plan(job.out, planned)
    for folder in {job.out, job.scratch}:
        remove_leftovers(folder)
    return identity, planned
