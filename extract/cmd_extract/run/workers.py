"""Worker processes on this machine, managed by joblib."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from typing import TypeVar

from cmd_extract.run.containment import interrupts_blocked
from cmd_extract.system.process import allotted_cores, watch_parent

S = TypeVar("S")
T = TypeVar("T")


def default_workers() -> int:
    """Return the number of cores available to this process, limited by CPU affinity, container and Slurm job."""
    import joblib

    return allotted_cores(os.environ, joblib.cpu_count())


def build_locally(workers: int, build: Callable[[S], T], items: Sequence[S]) -> Generator[T, None, None]:
    """Build, or check, shards in ``workers`` processes on this machine.

    One worker runs in this process.

    Args:
        workers: maximum number of processes.
        build: processes one item; can be pickled.
        items: the items, such as shard plans.

    Yields:
        Results of ``build`` as shards are finished, in any order.

    Raises:
        RuntimeError: a worker was killed from outside.
    """
    count = min(workers, len(items)) or 1
    if count == 1:
        yield from map(build, items)
        return
    import joblib  # a tenth of the start-up time, which one worker does not need
    from joblib.externals.loky.backend import resource_tracker as joblib_tracker

    # Otherwise they are started together with the workers, and unblock the signals that workers must not receive
    # (Python's before 3.14, joblib's before 1.6).
    for tracker in (resource_tracker, joblib_tracker):
        tracker.ensure_running()
    try:
        # One shard per task, so that no worker idles while others have shards queued.
        pool = joblib.Parallel(
            n_jobs=count,
            return_as="generator_unordered",
            batch_size=1,
            initializer=watch_parent,
            initargs=(os.getpid(),),
        )
        with interrupts_blocked():
            results = pool(joblib.delayed(build)(item) for item in items)  # starts the workers
        yield from results
    except BrokenProcessPool:
        raise RuntimeError(
            "a worker process was killed from outside, perhaps because the system ran out of memory; "
            "run the same command again to continue, perhaps with fewer --workers"
        ) from None
