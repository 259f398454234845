"""Where shards are made: by default in processes of this machine, which joblib keeps busy."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

import joblib

from extract.containment import interrupts_blocked
from extract.limits import watch_parent
from extract.plan import ShardPlan

T = TypeVar("T")


def make_locally(workers: int, make: Callable[[ShardPlan], T], plans: Sequence[ShardPlan]) -> Iterator[T]:
    """Has shards made by ``workers`` processes of this machine; where there is one for each core, it stays there."""
    count = min(workers, len(plans)) or 1
    try:
        with tempfile.TemporaryDirectory() as places:
            # One shard a task, handed out as workers become free.
            pool = joblib.Parallel(
                n_jobs=count,
                return_as="generator_unordered",
                batch_size=1,
                initializer=_start_worker,
                initargs=(os.getpid(), Path(places), count),
            )
            with interrupts_blocked():
                results = pool(joblib.delayed(make)(plan) for plan in plans)  # starts the workers
            yield from results
    except BrokenProcessPool:
        raise RuntimeError(
            "a worker process was killed from outside, perhaps because the system ran out of memory; "
            "run the same command again to continue, if need be with fewer --workers"
        ) from None


def _start_worker(parent: int, places: Path, workers: int) -> None:
    watch_parent(parent)
    keep_to_one_core(places, workers)


def keep_to_one_core(places: Path, workers: int) -> int | None:
    """Binds this process and its children to one of the allowed cores, if there are exactly as many as ``workers``.

    FFmpeg runs decoder, filters and encoders in threads of their own, which hand every picture on. Spread over cores
    they cost a tenth more processor time, and take turns badly with those of other workers.

    Args:
        places: an empty local folder that all workers share, and no others. A worker that has died leaves its core to
            the one that takes its place.
        workers: how many there are.

    Returns:
        The core; None where the process may use any.
    """
    if not hasattr(os, "sched_setaffinity"):  # Linux only
        return None
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) != workers or workers == 1:
        return None
    try:
        core = next((core for core in cores if _take(places / str(core))), None)
        if core is not None:
            os.sched_setaffinity(0, {core})
        return core
    except OSError:
        # Some file systems of clusters know no locks, and old temporary folders get cleared away: any core will do.
        return None


def _take(place: Path) -> bool:
    """Whether a place was free; it is then held until the process ends, however it ends."""
    handle = os.open(place, os.O_CREAT | os.O_RDWR)  # programs that this process starts do not inherit it
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            return False
        raise
    return True
