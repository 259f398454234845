"""Builds shards on a Dask cluster, on one machine or many.

Uses plain futures rather than joblib's Dask backend, which hangs when a task kills its workers. No more shards are
submitted than there are worker threads, so that a shard queued on a dying worker is not blamed for its death.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import socket
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import FfmpegBinary, find_ffmpeg
from cmd_extract.decode.video import ExtractedVideo
from cmd_extract.errors import FailureLimitError, FfmpegError, VideoError
from cmd_extract.manifest.table import summarize
from cmd_extract.run.containment import Extract
from cmd_extract.run.finished import FinishedShard
from cmd_extract.run.job import RunJob
from cmd_extract.run.journal import WorkerJournal, count_progress
from cmd_extract.run.plan import ShardPlan
from cmd_extract.run.work import ShardWork
from cmd_extract.system.files import remove, scratch_folder

_POLL_SECONDS = 1.0
_ALLOWED_FAILURES = 3  # workers that may die of one shard
_NO_WORKERS_SECONDS = 300.0
_MIN_DEATHS = 2


@dataclass(frozen=True, kw_only=True)
class DaskCluster:
    """Location of the workers.

    Attributes:
        address: address of the scheduler, such as ``tcp://host:8786``.
        scheduler_file: file to which the scheduler has written its address.
        workers: number of processes to start on this machine if neither is given.
    """

    address: str | None = None
    scheduler_file: Path | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        if self.address and self.scheduler_file:
            raise ValueError("scheduler: give either an address or a scheduler file, not both")

    @contextlib.contextmanager
    def connect(self) -> Iterator[Any]:
        """Connect to the cluster; yields a ``distributed.Client``.

        Raises:
            RuntimeError: Dask is not installed, or its scheduler cannot be reached.
        """
        try:
            import dask
            from distributed import Client, LocalCluster
        except ImportError:
            raise RuntimeError("Dask is not installed; run `pip install '.[cluster]'` in the project folder") from None
        # Daemonic workers could not start the process in which each video is extracted.
        settings: dict[str, Any] = {
            "distributed.worker.daemon": False,
            "distributed.scheduler.allowed-failures": _ALLOWED_FAILURES,
            "distributed.scheduler.worker-saturation": 1.0,
        }
        with dask.config.set(settings), contextlib.ExitStack() as stack:
            try:
                if self.scheduler_file:
                    target = {"scheduler_file": str(self.scheduler_file)}
                elif self.address:
                    target = {"address": self.address}
                else:
                    cluster = LocalCluster(n_workers=self.workers, threads_per_worker=1, dashboard_address=None)
                    target = {"address": stack.enter_context(cluster)}
                client = stack.enter_context(Client(**target))
            except (OSError, ValueError) as error:
                place = self.address or self.scheduler_file or "this machine"
                raise RuntimeError(f"cannot connect to the Dask scheduler at {place}: {error}") from None
            yield client


def build_with_dask(
    cluster: DaskCluster, work: ShardWork, plans: Sequence[ShardPlan]
) -> Generator[FinishedShard, None, None]:
    """Build shards on Dask workers; a ``Backend`` once ``cluster`` is bound.

    If a worker dies, its current shard is built again. If workers keep dying while building the same shard, it is
    rebuilt with tracking: a video at which all of them die is recorded as a failure. If no single video is responsible,
    the shard is skipped, and the run ends with an error after all other shards are finished.

    Args:
        cluster: location of the workers.
        work: builds one shard.
        plans: shards to build.

    Yields:
        Finished shards, in any order.

    Raises:
        RuntimeError: the scheduler cannot be reached, there are no workers, a shard kept killing workers, or a worker
            has other software than this process.
        FailureLimitError: too many videos failed.
    """
    with cluster.connect() as client, contextlib.closing(_results(client, work, plans)) as results:
        # Workers keep their own journals, possibly on other disks; this one counts for the main process.
        journal = WorkerJournal(work.scratch)
        for plan, shard in results:
            journal.add_shard(shard.written.frames, len(plan.rows), shard.failures)
            yield shard
            if work.limit.is_exceeded(counts := count_progress(work.scratch)):
                raise FailureLimitError(counts.failures)


def _results(
    client: Any, work: ShardWork, plans: Sequence[ShardPlan]
) -> Generator[tuple[ShardPlan, FinishedShard], None, None]:
    from distributed import KilledWorker, wait

    waiting, lost = deque((work, plan) for plan in plans), []
    running: dict[Any, tuple[ShardWork, ShardPlan]] = {}
    described = work.job.described
    last_seen = time.monotonic()
    try:
        while waiting or running:
            threads = sum(client.nthreads().values())
            last_seen = time.monotonic() if threads else last_seen
            if time.monotonic() - last_seen > _NO_WORKERS_SECONDS:
                raise RuntimeError(
                    f"Dask has had no workers for {_NO_WORKERS_SECONDS:.0f} s; start some, then run the same command "
                    "again to continue"
                )
            while waiting and len(running) < threads:
                item = waiting.popleft()
                running[client.submit(build_on_worker, *item, described, pure=False)] = item
            if running:
                with contextlib.suppress(TimeoutError):
                    wait(list(running), timeout=_POLL_SECONDS, return_when="FIRST_COMPLETED")
            else:
                time.sleep(_POLL_SECONDS)
            for future in [f for f in running if f.done()]:
                item_work, plan = running.pop(future)
                try:
                    shard = future.result()
                except KilledWorker:
                    if retry := _retry_tracked(item_work, plan):
                        waiting.append((retry, plan))
                    else:
                        lost.append(plan.name)
                except CancelledError:
                    raise RuntimeError(
                        "lost the connection to the Dask scheduler; run the same command again to continue"
                    ) from None
                else:
                    yield plan, shard
    finally:
        client.cancel(list(running))
        for log in work.job.out.glob(f"{work.scratch.name}-*"):
            remove(log)
    if lost:
        raise RuntimeError(
            f"workers died repeatedly while building {summarize(lost, 'shard')}, perhaps because they ran out of "
            "memory. All other shards are finished. Run the same command again, perhaps with a smaller --max-memory-mb"
        )


def _retry_tracked(work: ShardWork, plan: ShardPlan) -> ShardWork | None:
    """Return how to retry a shard that has killed workers: first with tracking, then without the culprit.

    Returns:
        None if tracking has found no single video responsible.
    """
    # On the shared file system. The name starts with that of this run's scratch folder, so that leftovers are removed
    # with it.
    log = work.job.out / f"{work.scratch.name}-{plan.name}.begun"
    tracked = work.extract
    if not isinstance(tracked, TrackedExtract):
        return replace(work, extract=TrackedExtract(extract=tracked, log=log))
    culprit = tracked.culprit()
    remove(log)
    return replace(work, extract=replace(tracked, excluded=tracked.excluded | {culprit})) if culprit else None


def build_on_worker(work: ShardWork, plan: ShardPlan, described: Mapping[str, Any]) -> FinishedShard:
    """Build a shard in a Dask worker, which may run on another machine.

    Args:
        work: builds the shard, with the FFmpeg and the scratch folder of the main process. This function replaces both.
        plan: the shard.
        described: the main process's configuration as stored, see ``ExtractConfig.describe``.

    Raises:
        FfmpegError: the worker does not have the FFmpeg version of the run.
        RuntimeError: the worker's software would produce different shards, or the worker may not start processes.
    """
    if multiprocessing.current_process().daemon:
        raise RuntimeError(
            "Dask workers may not start processes; start them with --no-nanny, or set "
            "DASK_DISTRIBUTED__WORKER__DAEMON=False in their environment"
        )
    job = replace(work.job, binary=_find_own_ffmpeg(work.job.binary))
    _check_software(job, described)
    job.scratch.mkdir(parents=True, exist_ok=True)
    with scratch_folder(job.scratch) as scratch:
        shard = replace(work, job=job, scratch=scratch).build(plan)
    assert shard is not None  # the scheduler alone decides who builds it
    return shard


def _find_own_ffmpeg(submitted: FfmpegBinary) -> FfmpegBinary:
    """Return this worker's FFmpeg: the one at the main process's path or else its default one, of the same version."""
    problems = []
    for explicit in (submitted.path, None):
        try:
            binary = find_ffmpeg(explicit)
        except FfmpegError as error:
            problems.append(str(error))
            continue
        if binary.version == submitted.version:
            return binary
        problems.append(f"{binary.path} is {binary.version}")
    raise FfmpegError(
        f"Dask worker on {socket.gethostname()}: found no {submitted.version}, which this run uses "
        f"({'; '.join(dict.fromkeys(problems))}). Install that version there, or pass the path of a binary that all "
        "hosts can run with --ffmpeg"
    )


def _check_software(job: RunJob, described: Mapping[str, Any]) -> None:
    """Raise a RuntimeError if the configuration, which includes versions, differs from the main process's."""
    own = job.described
    keys = [key for key in {**described, **own} if described.get(key) != own.get(key)]
    if keys:
        differences = "; ".join(f"{key}: {own.get(key)!r}, expected {described.get(key)!r}" for key in keys)
        raise RuntimeError(
            f"Dask worker on {socket.gethostname()}: its software would produce different shards ({differences}). "
            "Install the same versions on all hosts, then run the same command again to continue"
        )


@dataclass(frozen=True, kw_only=True)
class TrackedExtract:
    """An ``Extract`` that finds the video that kills workers; can be pickled.

    It logs each video before extracting it, and refuses videos already known to kill workers.

    Attributes:
        extract: extracts one video.
        log: file visible to all workers, one line per started video.
        excluded: manifest rows, as text, of videos known to kill workers.
    """

    extract: Extract
    log: Path
    excluded: frozenset[str] = frozenset()

    def __call__(self, source: Path, config: ExtractConfig, workdir: Path, binary: FfmpegBinary) -> ExtractedVideo:
        """Extract one video.

        Raises:
            VideoError: as raised by ``extract``, or with stage ``crash`` for an excluded one.
        """
        row = workdir.name  # remote sources and members of tar files are copied to a path that differs in each attempt
        if row in self.excluded:
            raise VideoError("crash", "every worker that extracted it died")
        attempt = workdir.parents[1].name  # the scratch folder, unique to each attempt
        with self.log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps([attempt, row]) + "\n")
        return self.extract(source, config, workdir, binary)

    def culprit(self) -> str | None:
        """Return the row that was being extracted when each of several workers died, or None if they differ."""
        if not self.log.exists():
            return None
        lines = self.log.read_text("utf-8").splitlines(keepends=True)
        last: dict[str, str] = dict(json.loads(line) for line in lines if line.endswith("\n"))
        if len(last) < _MIN_DEATHS or len(set(last.values())) > 1:
            return None
        return next(iter(last.values()))
