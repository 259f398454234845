"""Status of a distributed extraction, read from its output folder without opening shards or the manifest."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cmd_extract import schema
from cmd_extract.errors import ShardError
from cmd_extract.run.plan import Share
from cmd_extract.run.record import read_record
from cmd_extract.run.task_log import DONE, FAILED, RUNNING, STALE, STOPPED, Attempt, read_attempts
from cmd_extract.system.claims import Claims
from cmd_extract.system.liveness import file_system_time

WAITING = "waiting"
STATES = (DONE, RUNNING, STALE, FAILED, WAITING)
"""States of a shard."""


@dataclass(frozen=True, kw_only=True)
class TaskStatus:
    """Status of one task.

    Attributes:
        share: the task.
        attempts: number of attempts.
        last: the latest attempt.
        done, total: number of finished shards in its share, and of all shards in it.
        videos, failures, damaged: counts over the shards built by its attempts.
    """

    share: Share
    attempts: int
    last: Attempt
    done: int
    total: int
    videos: int
    failures: int
    damaged: int

    @property
    def state(self) -> str:
        """``done`` if all shards of the share exist, no matter who built them; otherwise the state of the last attempt.

        ``stale`` if the last attempt is done but shards have since been removed: no process is building them.
        """
        if self.done == self.total:
            return DONE
        return STALE if self.last.state == DONE else self.last.state


@dataclass(frozen=True, kw_only=True)
class FolderStatus:
    """Status of an output folder.

    Attributes:
        shards: state of each shard by name: ``done``, ``running``, ``stale`` (its builder no longer responds),
            ``failed`` (its task ended without it, and no task is running) or ``waiting``.
        tasks: all tasks that have been started.
        merged: whether the index exists.
    """

    shards: dict[str, str]
    tasks: tuple[TaskStatus, ...]
    merged: bool

    def count(self, state: str) -> int:
        """Return the number of shards in a state."""
        return Counter(self.shards.values())[state]


def read_status(out: Path, claims: Claims) -> FolderStatus:
    """Return the status of an output folder.

    Raises:
        ShardError: the folder contains no extraction.
    """
    record = read_record(out)
    if record is None:
        raise ShardError(f"{out}: no {schema.RUN_NAME} found; pass the output folder of `cmd-extract run`")
    total = record.identity.shards
    now = _current_time(out)
    attempts = read_attempts(out, now, claims.stale_seconds)
    present = {entry.name for entry in os.scandir(out)}
    tasks = _task_statuses(attempts, present, total)
    attempt_states = _attempt_states(total, tasks)
    running = any(task.last.state == RUNNING for task in tasks)
    shards, claimed = {}, set(claims.names())
    for number in range(total):
        name = schema.SHARD_PATTERN.format(number)
        if name in present:
            shards[name] = DONE
        elif name in claimed and (claim := claims.read(name, now)):
            shards[name] = STALE if claims.is_stale(claim) else RUNNING
        else:
            shards[name] = WAITING if running else _unclaimed_state(attempt_states.get(number, set()))
    return FolderStatus(shards=shards, tasks=tasks, merged=schema.INDEX_NAME in present)


def _current_time(out: Path) -> float:
    """Return the time by the clock that stamps heartbeats, or by the local clock if the folder is read-only."""
    try:
        return file_system_time(out)
    except OSError:
        return time.time()


def _task_statuses(attempts: Sequence[Attempt], present: set[str], total: int) -> tuple[TaskStatus, ...]:
    by_share: dict[Share, list[Attempt]] = {}
    for attempt in attempts:
        by_share.setdefault(attempt.share, []).append(attempt)
    statuses = []
    for share, history in sorted(by_share.items(), key=lambda item: (item[0].num_tasks, item[0].task)):
        names = [schema.SHARD_PATTERN.format(n) for n in share.shard_numbers(total)]
        written = {w.name: w for a in history for w in a.written}.values()
        statuses.append(
            TaskStatus(
                share=share,
                attempts=len(history),
                last=history[-1],
                done=sum(name in present for name in names),
                total=len(names),
                videos=sum(w.videos for w in written),
                failures=sum(w.failures for w in written),
                damaged=sum(w.damaged for w in written),
            )
        )
    return tuple(statuses)


def _attempt_states(total: int, tasks: Sequence[TaskStatus]) -> dict[int, set[str]]:
    """Return, by shard number, the states of the last attempts at all tasks that share the shard."""
    states: dict[int, set[str]] = {}
    for task in tasks:
        for number in task.share.shard_numbers(total):
            states.setdefault(number, set()).add(task.last.state)
    return states


def _unclaimed_state(attempt_states: set[str]) -> str:
    """Return the state of a missing, unclaimed shard while no task is running."""
    if not attempt_states:
        return WAITING
    return FAILED if attempt_states & {FAILED, STOPPED} else STALE
