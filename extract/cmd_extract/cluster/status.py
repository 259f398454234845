"""How far the tasks of an output folder are: of what lies in it, without opening shard or manifest."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cmd_extract import schema
from cmd_extract.cluster.claims import Claims
from cmd_extract.cluster.shares import Share
from cmd_extract.cluster.task_log import DONE, FAILED, RUNNING, STALE, STOPPED, Attempt, read_attempts
from cmd_extract.errors import ShardError
from cmd_extract.system.liveness import file_system_time

WAITING = "waiting"


@dataclass(frozen=True, kw_only=True)
class TaskStatus:
    """One task.

    Attributes:
        share: which one.
        attempts: how often it was started.
        last: the last attempt.
        done, total: shards of its share that are there, and all of them.
        videos, failures, damaged: what its attempts have made.
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
        """``done`` if all its shards are there, whoever made them; else what the last attempt says.

        ``stale`` if that said it was done, and shards have gone since: nobody is making them.
        """
        if self.done == self.total:
            return DONE
        return STALE if self.last.state == DONE else self.last.state


@dataclass(frozen=True, kw_only=True)
class FolderStatus:
    """An output folder.

    Attributes:
        shards: state of each shard by name: ``done``; ``running`` and ``stale`` (claimed by someone who has fallen
            silent); ``failed`` (its task ended without it); ``waiting``.
        tasks: the tasks that have been started.
        merged: whether there is an index.
    """

    shards: dict[str, str]
    tasks: tuple[TaskStatus, ...]
    merged: bool

    def count(self, state: str) -> int:
        """Number of shards in this state."""
        return Counter(self.shards.values())[state]


def read_status(out: Path, claims: Claims) -> FolderStatus:
    """Looks at an output folder.

    Raises:
        ShardError: no extraction has begun there.
    """
    path = out / schema.RUN_NAME
    if not path.exists():
        raise ShardError(f"{out}: no {schema.RUN_NAME}; give a folder that `cmd-extract run` writes to")
    try:
        total = int(json.loads(path.read_text("utf-8"))["shards"])
    except (OSError, KeyError, ValueError) as error:
        raise ShardError(f"{path}: does not tell of an extraction ({error})") from None
    now = _time_of(out)
    attempts = read_attempts(out, now, claims.stale_seconds)
    there = {entry.name for entry in os.scandir(out)}
    tasks = _tasks(attempts, there, total)
    ends = _states_by_number(total, tasks)
    shards, claimed = {}, set(claims.names())
    for number in range(total):
        name = schema.SHARD_PATTERN.format(number)
        if name in there:
            shards[name] = DONE
        elif name in claimed and (claim := claims.read(name, now)):
            shards[name] = STALE if claims.is_stale(claim) else RUNNING
        else:
            shards[name] = _expected(ends.get(number, set()))
    return FolderStatus(shards=shards, tasks=tasks, merged=schema.INDEX_NAME in there)


def _time_of(out: Path) -> float:
    """The time by the clock that stamps the signs of life; this machine's for who may look, but not write there."""
    try:
        return file_system_time(out)
    except OSError:
        return time.time()


def _tasks(attempts: Sequence[Attempt], there: set[str], total: int) -> tuple[TaskStatus, ...]:
    of_share: dict[Share, list[Attempt]] = {}
    for attempt in attempts:
        of_share.setdefault(attempt.share, []).append(attempt)
    found = []
    for share, ones in sorted(of_share.items(), key=lambda item: (item[0].num_tasks, item[0].task)):
        names = [schema.SHARD_PATTERN.format(n) for n in share.shard_numbers(total)]
        written = {w.name: w for a in ones for w in a.written}.values()
        found.append(
            TaskStatus(
                share=share,
                attempts=len(ones),
                last=ones[-1],
                done=sum(name in there for name in names),
                total=len(names),
                videos=sum(w.videos for w in written),
                failures=sum(w.failures for w in written),
                damaged=sum(w.damaged for w in written),
            )
        )
    return tuple(found)


def _states_by_number(total: int, tasks: Sequence[TaskStatus]) -> dict[int, set[str]]:
    """How the last attempts at the tasks stand that a shard falls to."""
    states: dict[int, set[str]] = {}
    for task in tasks:
        for number in task.share.shard_numbers(total):
            states.setdefault(number, set()).add(task.last.state)
    return states


def _expected(states: set[str]) -> str:
    """State of a shard that is neither there nor claimed: nobody will make it if its tasks have ended."""
    if not states or RUNNING in states:
        return WAITING
    return FAILED if states & {FAILED, STOPPED} else STALE
