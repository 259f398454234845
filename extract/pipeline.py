"""Runs an extraction: plans shards, lets joblib spread them over processes, writes the index.

A shard is a pure function of its manifest rows and the configuration. Finished shards are recognised by what they say
of both, so that a run that was stopped continues where it was.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import joblib

from extract.index import (
    RunJob,
    RunSummary,
    claim_folder,
    is_finished,
    software_versions,
    write_index,
    write_run_record,
)
from extract.manifest import resolve_path
from extract.plan import ShardPlan, plan_shards
from extract.progress import ProgressReport
from extract.schema import VideoRecord
from extract.shard_writer import ShardWriter, WrittenShard
from extract.source import VideoError
from extract.video import extract_video

_POLL_SECONDS = 0.5


def extract_shard(plan: ShardPlan, job: RunJob, scratch: Path) -> WrittenShard:
    """Extracts the videos of one shard and writes it. Runs in a worker process.

    Args:
        plan: the shard's rows.
        job: folders and configuration.
        scratch: the run's folder for temporary files.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"{plan.name}-", dir=scratch))
    progress = _ShardProgress(scratch / f"{plan.name}.progress")
    try:
        with ShardWriter(
            job.out / plan.name,
            workdir=folder,
            config=job.config,
            described=job.described,
            software=software_versions(job.binary),
            rows_hash=plan.rows_hash,
        ) as writer:
            for record in plan.records:
                frames = _extract_record(record, job, folder, writer)
                progress.add(frames)
            return writer.finish()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _extract_record(record: VideoRecord, job: RunJob, folder: Path, writer: ShardWriter) -> int:
    """Adds one video or one failure to the shard; returns its frames."""
    workdir = folder / "video"
    workdir.mkdir()
    try:
        video = extract_video(resolve_path(record, job.root), job.config, workdir, job.binary)
        writer.add_video(record, video)
        return video.frame_count
    except VideoError as error:
        writer.add_failure(record, error)
        return 0
    finally:
        shutil.rmtree(workdir, ignore_errors=True)


class _ShardProgress:
    """Tells the main process how far a worker is, through a small file; no channel that a dead worker could block."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._counts = [0, 0, 0]

    def add(self, frames: int) -> None:
        self._counts[0] += 1
        self._counts[1] += frames
        self._counts[2] += frames == 0
        self._path.write_text(" ".join(map(str, self._counts)))


class _ProgressWatcher(threading.Thread):
    """Adds up the workers' progress files and shows the sum."""

    def __init__(self, folder: Path, report: ProgressReport) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self._report = report
        self._stop_event = threading.Event()

    def run(self) -> None:
        while not self._stop_event.wait(_POLL_SECONDS):
            self.show()

    def show(self) -> None:
        totals = [0, 0, 0]
        for path in self._folder.glob("*.progress"):
            # A file caught between opening and writing is empty; the next look sees it whole.
            counts = path.read_text().split() or ["0", "0", "0"]
            totals = [t + int(c) for t, c in zip(totals, counts, strict=True)]
        self._report.update(*totals)

    def stop(self) -> None:
        self._stop_event.set()
        self.join()
        self.show()


def run_extraction(
    records: Sequence[VideoRecord], job: RunJob, *, workers: int, videos_per_shard: int | None = None
) -> RunSummary:
    """Extracts a manifest into ``job.out``, continuing what an earlier run has left.

    Args:
        records: all manifest rows.
        job: folders and configuration.
        workers: processes.
        videos_per_shard: see ``plan_shards``.

    Raises:
        ShardError: the folder holds an extraction of another manifest or configuration.
        OSError: the folder cannot be written.
    """
    start = time.monotonic()
    plans = plan_shards(records, videos_per_shard)
    job.out.mkdir(parents=True, exist_ok=True)
    claim_folder(job, records, plans)
    done = {plan.number for plan in plans if is_finished(plan, job)}
    todo = [plan for plan in plans if plan.number not in done]
    written = _extract_all(todo, job, workers, already_done=sum(len(plans[n].records) for n in done))
    index = write_index(plans, job, {w.name: w for w in written})
    summary = RunSummary(
        **index["totals"],
        shards=len(plans),
        new_videos=sum(w.videos for w in written),
        new_frames=sum(w.frames for w in written),
        seconds=time.monotonic() - start,
    )
    write_run_record(job, records, plans, summary)
    return summary


def _extract_all(todo: Sequence[ShardPlan], job: RunJob, workers: int, already_done: int) -> list[WrittenShard]:
    scratch = _make_scratch(job.scratch)
    written: list[WrittenShard] = []
    try:
        with ProgressReport(sum(len(p.records) for p in todo), already_done) as report:
            watcher = _ProgressWatcher(scratch, report)
            watcher.start()
            try:
                # One shard a task, handed out as workers become free.
                pool = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", batch_size=1)
                written.extend(pool(joblib.delayed(extract_shard)(plan, job, scratch) for plan in todo))
            finally:
                watcher.stop()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return written


def _make_scratch(parent: Path) -> Path:
    """A fresh folder named after this process; those of processes that no longer run are removed."""
    parent.mkdir(parents=True, exist_ok=True)
    prefix = f".extract-{socket.gethostname()}-"
    for stale in parent.glob(f"{prefix}*"):
        pid = stale.name.removeprefix(prefix).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(stale, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=parent))
