"""Merges the shards of all tasks: checks that they are complete and writes the index."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.errors import ShardError
from cmd_extract.manifest.table import summarize
from cmd_extract.run.index import write_index
from cmd_extract.run.record import RunIdentity, RunSummary, write_record
from cmd_extract.run.recorded_run import RecordedRun
from cmd_extract.run.state import OutputState, read_state
from cmd_extract.run.task_log import ShardLog, read_attempts
from cmd_extract.system.claims import Claims
from cmd_extract.system.files import remove_leftovers
from cmd_extract.system.liveness import STALE_SECONDS, file_system_time


def merge_tasks(
    out: Path,
    recorded: RecordedRun,
    claims: Claims,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> RunSummary:
    """Write ``index.json``, ``failures.csv``, ``damaged.csv`` and ``run.json`` for an output folder filled by tasks.

    The index is byte-identical to that of a run on a single machine.

    Args:
        out: output folder.
        recorded: content of its ``run.json``.
        claims: claims in the folder.
        progress: called with the number of checked shards and their total.

    Raises:
        ShardError: shards are missing, or do not contain exactly their manifest rows.
    """
    start = time.monotonic()
    plans = recorded.planned.plans
    attempts = read_attempts(out, file_system_time(out), claims.stale_seconds)
    job = recorded.job(out, FfmpegBinary(path="", version=recorded.ffmpeg_version))
    with contextlib.closing(ShardLog(out)) as log:
        state = read_state(plans, job, log=log, progress=progress)
        _check_complete(state)
        # Leftovers of tasks killed on machines that are no longer in use. Running processes renew their timestamps more
        # often than this.
        remove_leftovers(out, max(claims.stale_seconds, STALE_SECONDS))
        totals = write_index(state, {}, recorded.planned.manifest_sha256, log)
    written = {shard.name: shard for attempt in attempts for shard in attempt.written}  # some were built twice
    summary = RunSummary(
        **totals,
        shards=len(plans),
        new_videos=sum(shard.videos for shard in written.values()),
        new_frames=sum(shard.frames for shard in written.values()),
        seconds=sum((a.seconds for a in attempts), time.monotonic() - start),
    )
    write_record(job, RunIdentity.of(job, recorded.planned), summary)
    claims.remove_ended()
    return summary


def _check_complete(state: OutputState) -> None:
    out, missing = state.job.out, [plan.name for plan in state.todo]
    wrong = [plan.name for plan in state.done if not state.finished[plan.name].has_all_rows(plan)]
    if missing:
        raise ShardError(
            f"{out}: incomplete; missing {summarize(missing, 'shard')} of {len(state.plans)}. Run "
            f"`cmd-extract status {out}` to see why, restart the tasks that build them, then merge again"
        )
    if wrong:
        raise ShardError(
            f"{out}: rows do not match the manifest in {summarize(wrong, 'shard')}. Delete these files, restart "
            "the tasks that build them, then merge again"
        )
