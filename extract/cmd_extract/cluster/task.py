"""One task of a distributed extraction: builds its share of the shards, then helps other tasks.

``cmd-extract merge`` writes the index.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from cmd_extract.run.job import RunJob
from cmd_extract.run.pipeline import BuildSettings, build_share
from cmd_extract.run.plan import Planned, Share


@dataclass(frozen=True, kw_only=True)
class TaskSummary:
    """Totals of a task.

    Attributes:
        shards, videos, frames, failures, damaged: counts for the shards built by this attempt.
        helped: how many of these shards belong to other tasks.
        existing: number of shards in the share that were already finished or were built by another task.
        seconds: wall time.
    """

    shards: int
    videos: int
    frames: int
    failures: int
    damaged: int
    helped: int
    existing: int
    seconds: float


def run_task(planned: Planned, job: RunJob, share: Share, settings: BuildSettings) -> TaskSummary:
    """Build the shards of one task, and those of other tasks that no process is building.

    Running a task twice, at once or again, does no harm: finished shards are skipped, shards that another process is
    building are waited for, and taken over if that process stops responding.

    Args:
        planned, job: see ``run_extraction``.
        share: the task.
        settings: how to build shards.

    Raises:
        ShardError: the folder contains an extraction of another manifest or configuration, or sources have changed.
        OutputError: the folder cannot be written.
        FailureLimitError: too many videos failed; finished shards are kept.
    """
    start = time.monotonic()
    found = build_share(planned, job, share, settings)
    built = [shard.written for shard in found.shards.values()]
    own = sum(plan.name in found.shards for plan in found.state.plans)
    return TaskSummary(
        shards=len(built),
        videos=sum(shard.videos for shard in built),
        frames=sum(shard.frames for shard in built),
        failures=sum(shard.failures for shard in built),
        damaged=sum(shard.damaged for shard in built),
        helped=len(built) - own,
        existing=len(found.state.plans) - own,
        seconds=time.monotonic() - start,
    )
