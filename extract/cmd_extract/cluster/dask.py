"""Has shards made by the workers of a dask cluster, on this machine or on many.

Plain futures, not joblib's dask backend, which waits for ever when a task kills its workers. Only as many shards are
handed out as there are worker threads, so that when a worker dies no shard that was merely waiting on it is blamed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cmd_extract.cluster.watched_extract import WatchedExtract
from cmd_extract.errors import FailureLimitError
from cmd_extract.manifest.table import summarise
from cmd_extract.run.index import failures_of
from cmd_extract.run.journal import ShardJournal, count_failures
from cmd_extract.run.pipeline import ShardWork
from cmd_extract.run.plan import ShardPlan
from cmd_extract.shard.writer import WrittenShard
from cmd_extract.system.files import remove, scratch_folder

_LOOK_SECONDS = 1.0
_LOSSES = 3  # workers that may die of one shard
_NO_WORKERS_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class DaskCluster:
    """Where the workers are.

    Attributes:
        address: of the scheduler, such as ``tcp://host:8786``.
        scheduler_file: the file in which the scheduler has written its address.
        workers: processes to start on this machine if neither is given.
    """

    address: str | None = None
    scheduler_file: Path | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        if self.address and self.scheduler_file:
            raise ValueError("scheduler: give an address or a scheduler_file, not both")

    @contextlib.contextmanager
    def connect(self) -> Iterator[Any]:
        """Gives a ``distributed.Client``.

        Raises:
            RuntimeError: dask is not installed, or its scheduler does not answer.
        """
        try:
            import dask
            from distributed import Client, LocalCluster
        except ImportError:
            raise RuntimeError("dask is missing; run `pip install '.[cluster]'` in this project's folder") from None
        # Workers must be allowed children: every video is extracted in one.
        settings: dict[str, Any] = {
            "distributed.worker.daemon": False,
            "distributed.scheduler.allowed-failures": _LOSSES,
        }
        settings |= {"distributed.scheduler.worker-saturation": 1.0}
        with dask.config.set(settings), contextlib.ExitStack() as stack:
            try:
                if self.scheduler_file:
                    where = {"scheduler_file": str(self.scheduler_file)}
                elif self.address:
                    where = {"address": self.address}
                else:
                    cluster = LocalCluster(n_workers=self.workers, threads_per_worker=1, dashboard_address=None)
                    where = {"address": stack.enter_context(cluster)}
                client = stack.enter_context(Client(**where))
            except (OSError, ValueError) as error:
                place = self.address or self.scheduler_file or "this machine"
                raise RuntimeError(f"no dask scheduler answers at {place}: {error}") from None
            yield client


def make_with_dask(
    cluster: DaskCluster, work: ShardWork, plans: Sequence[ShardPlan]
) -> Generator[WrittenShard, None, None]:
    """Has shards made by dask's workers; a ``Spread`` once ``cluster`` is bound.

    A worker that dies costs the shard it was at a repetition. A shard of which workers die again and again is made with
    its videos watched: one of which all of them die becomes a failure. If there is no such video the shard is given up,
    and the run ends with an error once all others are finished.

    Args:
        cluster: where the workers are.
        work: makes one shard.
        plans: which ones.

    Raises:
        RuntimeError: there is no scheduler, there are no workers, or workers died of a shard.
        FailureLimitError: too many videos failed.
    """
    with cluster.connect() as client, contextlib.closing(_results(client, work, plans)) as results:
        for plan, written in results:
            failures = failures_of(plan, work.job) if written.failures else []
            # The workers keep journals of their own, perhaps on disks of their own; this one is for this process.
            ShardJournal(work.scratch, plan.name).add_shard(written.frames, len(plan.records), failures)
            yield written
            if work.may_fail is not None and count_failures(work.scratch) > work.may_fail:
                raise FailureLimitError(f"more than {work.may_fail} videos failed")


def _results(
    client: Any, work: ShardWork, plans: Sequence[ShardPlan]
) -> Generator[tuple[ShardPlan, WrittenShard], None, None]:
    from distributed import KilledWorker, wait

    waiting, lost = deque((work, plan) for plan in plans), []
    running: dict[Any, tuple[ShardWork, ShardPlan]] = {}
    last_seen = time.monotonic()
    try:
        while waiting or running:
            threads = sum(client.nthreads().values())
            last_seen = time.monotonic() if threads else last_seen
            if time.monotonic() - last_seen > _NO_WORKERS_SECONDS:
                raise RuntimeError(f"dask has had no workers for {_NO_WORKERS_SECONDS:.0f} s; run again to continue")
            while waiting and len(running) < threads:
                turn = waiting.popleft()
                running[client.submit(_make_elsewhere, *turn, pure=False)] = turn
            if running:
                with contextlib.suppress(TimeoutError):
                    wait(list(running), timeout=_LOOK_SECONDS, return_when="FIRST_COMPLETED")
            else:
                time.sleep(_LOOK_SECONDS)
            for future in [f for f in running if f.done()]:
                mine, plan = running.pop(future)
                try:
                    written = future.result()
                except KilledWorker:
                    if again := _watch(mine, plan):
                        waiting.append((again, plan))
                    else:
                        lost.append(plan.name)
                except CancelledError:
                    raise RuntimeError("dask's scheduler has gone; run the same command again to continue") from None
                else:
                    yield plan, written
    finally:
        client.cancel(list(running))
        for notes in work.job.out.glob(f"{work.scratch.name}-*"):
            remove(notes)
    if lost:
        raise RuntimeError(
            f"several workers died while they made {summarise(lost, 'shard')}; all other shards are finished. Perhaps "
            "they ran out of memory: run the same command again, if need be with a smaller --max-memory-mb"
        )


def _watch(work: ShardWork, plan: ShardPlan) -> ShardWork | None:
    """How to make a shard again of which workers have died: noting its videos, then without the one that does it.

    Returns:
        None if that has been tried, and no single video is to blame.
    """
    watched, notes = work.extract, _notes_of(work, plan)
    if not isinstance(watched, WatchedExtract):
        return replace(work, extract=WatchedExtract(extract=watched, notes=notes))
    culprit = watched.culprit()
    remove(notes)
    return replace(work, extract=replace(watched, blamed=watched.blamed | {culprit})) if culprit else None


def _notes_of(work: ShardWork, plan: ShardPlan) -> Path:
    """A file that all workers see, with the name of this run's scratch folder, so that it goes like other leftovers."""
    return work.job.out / f"{work.scratch.name}-{plan.name}.begun"


def _make_elsewhere(work: ShardWork, plan: ShardPlan) -> WrittenShard:
    """Makes a shard in a dask worker, whose scratch folder need not be the one of the process that asks."""
    if multiprocessing.current_process().daemon:
        raise RuntimeError(
            "dask's workers may not start processes; start them with --no-nanny, or with "
            "DASK_DISTRIBUTED__WORKER__DAEMON=False in their environment"
        )
    work.job.scratch.mkdir(parents=True, exist_ok=True)
    with scratch_folder(work.job.scratch) as scratch:
        return replace(work, scratch=scratch)(plan)
