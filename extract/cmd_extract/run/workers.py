"""Where shards are made: by default in processes of this machine, which joblib keeps busy."""

from __future__ import annotations

import os
import socket
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from typing import TypeVar

from cmd_extract.run.containment import interrupts_blocked
from cmd_extract.run.plan import ShardPlan
from cmd_extract.system.process import allotted_cores, watch_parent

T = TypeVar("T")


def default_workers() -> int:
    """As many as there are cores for this process: by its affinity, its container, its Slurm job."""
    import joblib

    return allotted_cores(os.environ, joblib.cpu_count())


def make_locally(workers: int, make: Callable[[ShardPlan], T], plans: Sequence[ShardPlan]) -> Iterator[T]:
    """Has shards made by ``workers`` processes of this machine; where there is one for each core, it stays there.

    Yields what ``make`` returns, as shards are finished, in any order.

    Raises:
        RuntimeError: a worker was killed from outside.
    """
    count = min(workers, len(plans)) or 1
    if count == 1:
        yield from map(make, plans)
        return
    import joblib  # a tenth of the start, which one worker does without
    from joblib.externals.loky.backend import resource_tracker as joblib_tracker

    # Else they are started together with the workers, and let through the signals that these are to be spared: Python's
    # before 3.14, joblib's own before 1.6.
    for tracker in (resource_tracker, joblib_tracker):
        tracker.ensure_running()
    try:
        # One shard a task, handed out as workers become free.
        pool = joblib.Parallel(
            n_jobs=count,
            return_as="generator_unordered",
            batch_size=1,
            initializer=_start_worker,
            initargs=(os.getpid(), uuid.uuid4().hex, count),
        )
        with interrupts_blocked():
            results = pool(joblib.delayed(make)(plan) for plan in plans)  # starts the workers
        yield from results
    except BrokenProcessPool:
        raise RuntimeError(
            "a worker process was killed from outside, perhaps because the system ran out of memory; "
            "run the same command again to continue, if need be with fewer --workers"
        ) from None


def _start_worker(parent: int, run: str, workers: int) -> None:
    watch_parent(parent)
    keep_to_one_core(run, workers)


def keep_to_one_core(run: str, workers: int) -> int | None:
    """Binds this process and its children to one of the allowed cores, if there are exactly as many as ``workers``.

    FFmpeg runs decoder, filters and encoders in threads of their own, which hand every picture on. Spread over cores
    they cost a tenth more processor time, and take turns badly with those of other workers.

    Args:
        run: a name that the workers of this run share, and no others. A worker that has died leaves its core to the one
            that takes its place.
        workers: how many there are.

    Returns:
        The core; None where the process may use any.
    """
    if sys.platform != "linux":
        return None
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) != workers or workers == 1:
        return None
    core = next((core for core in cores if _take(f"{run}-{core}")), None)
    if core is not None:
        os.sched_setaffinity(0, {core})
    return core


def _take(name: str) -> bool:
    """Whether a name was free; it is then held until the process ends, however it ends.

    A socket of a name without a file: nothing is left behind, and no file system needs to know locks.
    """
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        holder.bind(f"\0cmd-extract-{name}")
    except OSError:
        holder.close()
        return False
    holder.detach()
    return True
