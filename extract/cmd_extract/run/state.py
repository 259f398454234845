"""State of an output folder: which shards are finished, what failed in them, which of their sources have changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from cmd_extract.errors import ShardError, VideoError
from cmd_extract.manifest.table import summarize
from cmd_extract.run.finished import FinishedShard, file_stamp, read_finished
from cmd_extract.run.job import RunJob
from cmd_extract.run.plan import ShardPlan, read_each
from cmd_extract.run.task_log import ShardLog, read_logged_shards
from cmd_extract.schema import FailedRow


@dataclass(frozen=True, kw_only=True)
class OutputState:
    """The shards of an output folder, or of a task's share of it, as a run finds them.

    Attributes:
        job: settings of the run.
        plans: all shards.
        finished: the finished shards, by name.
        replaced: size and modification time (ns) of the shards to build again although they look finished, by name.
    """

    job: RunJob
    plans: Sequence[ShardPlan]
    finished: dict[str, FinishedShard]
    replaced: Mapping[str, tuple[int, int]]

    @property
    def done(self) -> list[ShardPlan]:
        """Finished shards."""
        return [plan for plan in self.plans if plan.name in self.finished]

    @cached_property
    def todo(self) -> list[ShardPlan]:
        """Shards to build."""
        todo = (plan for plan in self.plans if plan.name not in self.finished)
        return [
            replace(plan, replaces=self.replaced[plan.name]) if plan.name in self.replaced else plan for plan in todo
        ]

    @property
    def failures(self) -> list[FailedRow]:
        """Failures in finished shards."""
        return [failure for shard in self.finished.values() for failure in shard.failures]

    def check_sources(self) -> None:
        """Check that the sources of finished shards have not changed.

        Raises:
            ShardError: some have, or a remote one cannot be reached.
        """
        done = self.done
        try:
            changed = [
                text
                for plan, records in zip(done, read_each(done), strict=True)
                for text in self.finished[plan.name].changed_sources(records, self.job)
            ]
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
    log: ShardLog | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> OutputState:
    """Read the state of an output folder from its logs; shards that were not logged, or changed since, are read.

    Args:
        plans: shards to look for.
        job: settings of the run.
        redo: names of shards to build again even if they look finished.
        retry_stages: shards with failures of these stages are to be built again.
        log: receives the shards that had to be read; None to write nothing.
        progress: called with the number of shards looked for and their total.

    Raises:
        PermissionError: a shard may not be read.
    """
    logged, config_hash = read_logged_shards(job.out, {plan.name for plan in plans}), job.config_hash
    finished, replaced = {}, {}
    for number, plan in enumerate(plans):
        shard = None if plan.name in redo else logged.get(plan.name)
        known = shard and (shard.rows_hash, shard.config_hash) == (plan.rows_hash, config_hash)
        if plan.name not in redo and not known:
            shard = read_finished(plan, job)
            if shard and log:
                log.add(shard)
        if shard and retry_stages.isdisjoint(failure.stage for failure in shard.failures):
            finished[plan.name] = shard
        elif (shard or plan.name in redo) and (stamp := file_stamp(str(job.out), plan.name)):
            replaced[plan.name] = stamp
        progress(number + 1, len(plans))
    return OutputState(job=job, plans=plans, finished=finished, replaced=replaced)
