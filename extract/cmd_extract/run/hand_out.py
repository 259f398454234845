"""Hands out the shards of an extraction to the processes that work on it, by claims in the output folder.

A task first looks for shards in its own share. Then it helps: it builds any other shard that is neither finished nor
claimed, so that a task that is slow, dead or not started yet does not hold back the others.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path

from cmd_extract.run.finished import FinishedShard
from cmd_extract.run.plan import ShardPlan, ShardPlans, Share
from cmd_extract.run.work import Backend, ShardWork
from cmd_extract.schema import SHARD_PATTERN
from cmd_extract.system.claims import Claim

_POLLS_PER_STALE_TIME = 20
_MIN_POLL_SECONDS, _MAX_POLL_SECONDS = 0.1, 10.0


def build_unclaimed(
    work: ShardWork,
    backend: Backend,
    own: Sequence[ShardPlan],
    others: OtherShards,
    on_wait: Callable[[str], None],
) -> Generator[FinishedShard, None, None]:
    """Build the shards that no other process builds, and wait for those that others build.

    Shards of the own share are waited for until they are finished; if their builder stops responding, they are built
    here. For other shards, it is enough that their builder has renewed its claim since this process ran out of work.

    Args:
        work: builds one shard, with claims.
        backend: builds several of them.
        own: unfinished shards in the share of this task.
        others: the shards of other tasks.
        on_wait: called with a message when this process begins to wait.

    Yields:
        The shards built here, as they are finished.
    """
    claims = work.claims
    assert claims is not None
    missing, idle_since = list(own), None
    while True:
        missing = [plan for plan in missing if not work.is_finished(plan)]
        unfinished: list[ShardPlan] = []
        held = claims.read_all()
        free = [plan for plan in missing if plan.name not in held]
        if not free:
            unfinished = others.unfinished()
            free = [plan for plan in unfinished if plan.name not in held]
        built = set()
        for shard in backend(work, free) if free else ():
            if shard is not None:
                built.add(shard.name)
                yield shard
        if built:
            idle_since, missing = None, [plan for plan in missing if plan.name not in built]
            continue
        now = time.monotonic()
        if idle_since is None:
            idle_since = now
        idle_seconds = now - idle_since
        # A claim of the past, or none because it has just been released, says nothing about now.
        waiting = missing + [p for p in unfinished if p.name not in held or held[p.name].age_seconds >= idle_seconds]
        if not waiting:
            return
        if idle_since == now:
            on_wait(_describe(waiting, held))
        # Rarely if the wait is long, because many processes may wait on one file system.
        longest = min(claims.stale_seconds / _POLLS_PER_STALE_TIME, _MAX_POLL_SECONDS)
        time.sleep(min(max(idle_seconds, _MIN_POLL_SECONDS), longest))


class OtherShards:
    """The shards that do not belong to a task.

    The shards of the next task come first, and each share from its end, where its own task arrives last, so that
    processes that help rarely meet.

    Args:
        plans: all shards of the extraction.
        share: the task.
        out: output folder.
    """

    def __init__(self, plans: ShardPlans, share: Share, out: Path) -> None:
        self._plans, self._out = plans, out
        tasks = ((share.task + offset) % share.num_tasks for offset in range(1, share.num_tasks))
        shares = (Share(task=task, num_tasks=share.num_tasks).shard_numbers(len(plans)) for task in tasks)
        self._numbers = [number for numbers in shares for number in reversed(numbers)]

    def unfinished(self) -> list[ShardPlan]:
        """Return the shards that do not exist."""
        if not self._numbers:
            return []
        present = {entry.name for entry in os.scandir(self._out)}
        self._numbers = [number for number in self._numbers if SHARD_PATTERN.format(number) not in present]
        return list(self._plans.pick(self._numbers))


def _describe(plans: Sequence[ShardPlan], held: Mapping[str, Claim]) -> str:
    claim = held.get(plans[0].name)
    owner = f" ({claim.owner.host}, process {claim.owner.pid})" if claim and claim.owner else ""
    more = f" and {len(plans) - 1} more" if len(plans) > 1 else ""
    return f"waiting for {plans[0].name}{more}, claimed by another process{owner}"
