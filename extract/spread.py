"""Where shards are made: by default in processes of this machine, which joblib keeps busy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import joblib

from extract.containment import interrupts_blocked
from extract.limits import watch_parent
from extract.plan import ShardPlan

T = TypeVar("T")


def make_locally(workers: int, make: Callable[[ShardPlan], T], plans: Sequence[ShardPlan]) -> Iterator[T]:
    """Has shards made by ``workers`` processes of this machine."""
    try:
        # One shard a task, handed out as workers become free.
        pool = joblib.Parallel(
            n_jobs=min(workers, len(plans)) or 1,
            return_as="generator_unordered",
            batch_size=1,
            initializer=watch_parent,
        )
        with interrupts_blocked():
            results = pool(joblib.delayed(make)(plan) for plan in plans)  # starts the workers
        yield from results
    except BrokenProcessPool:
        raise RuntimeError(
            "a worker process was killed from outside, perhaps because the system ran out of memory; "
            "run the same command again to continue, if need be with fewer --workers"
        ) from None
