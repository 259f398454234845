"""Extraction with real Dask processes on loopback."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cmd_extract.cluster.dask import DaskCluster, build_with_dask
from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.decode.video import ExtractedVideo, extract_video
from cmd_extract.manifest.rows import ListedRows
from cmd_extract.run.job import RunJob
from cmd_extract.run.pipeline import BuildSettings, run_extraction
from cmd_extract.run.record import plan_run
from cmd_extract.schema import VideoRecord
from tests.cluster.extraction import SHARD_OPTIONS, SHARDS, SOME_FAILED, SmallExtraction, results
from tests.cluster.slurm import wait_until
from tests.paths import ROOT

BIN = Path(sys.executable).parent
LIMIT = 180.0
# Workers must be allowed to start processes, also under a nanny, and must be able to import these tests. Two deaths are
# enough for these tests, instead of Dask's default of four.
ENVIRON = os.environ | {
    "DASK_DISTRIBUTED__WORKER__DAEMON": "False",
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
    "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
}


class DaskProcesses:
    """A scheduler and its workers, stopped by process ID; their logs are in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.scheduler_file = folder / "scheduler.json"
        self.workers: list[subprocess.Popen[bytes]] = []
        self._folder = folder
        self._all: list[subprocess.Popen[bytes]] = []

    def start(self, workers: int, *options: str) -> None:
        network = ("--host", "127.0.0.1", "--no-dashboard")
        self._spawn("scheduler", *network, "--port", "0", "--scheduler-file", str(self.scheduler_file))
        wait_until(lambda: self.scheduler_file.exists() and self.scheduler_file.read_text(), LIMIT, "Dask scheduler")
        rest = ("--scheduler-file", str(self.scheduler_file), "--nthreads", "1", "--death-timeout", "60", *options)
        local = ("--local-directory", str(self._folder / "local"))
        self.workers = [self._spawn("worker", *network, *rest, *local) for _ in range(workers)]

    def stop(self) -> None:
        for process in reversed(self._all):
            process.terminate()
        for process in self._all:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)

    def _spawn(self, role: str, *options: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{role}-{len(self._all)}.log").open("wb") as log:
            environ = ENVIRON | {"DASK_ROLE": role}
            process = subprocess.Popen([BIN / "dask", role, *options], env=environ, stdout=log, stderr=log)
        self._all.append(process)
        return process


@contextlib.contextmanager
def dask_processes(folder: Path, workers: int, *options: str) -> Iterator[DaskProcesses]:
    processes = DaskProcesses(folder)
    try:
        processes.start(workers, *options)
        yield processes
    finally:
        processes.stop()


def test_shard_of_a_killed_worker_is_rebuilt(small_extraction: SmallExtraction, tmp_path: Path) -> None:
    out = tmp_path / "out"
    gates = [small_extraction.close_gate(video) for video in (4, 6)]
    command = [BIN / "cmd-extract", "run", small_extraction.manifest, out, "--ffmpeg", small_extraction.ffmpeg]
    with dask_processes(tmp_path, 2, "--no-nanny") as dask:
        dask_options = ["--backend", "dask", "--scheduler-file", dask.scheduler_file]
        run = subprocess.Popen([*command, *SHARD_OPTIONS, *dask_options], env=ENVIRON)
        try:
            # Both workers are now waiting at a gate, each in the middle of a shard.
            wait_until(lambda: len(list(out.glob("shard-*.h5"))) == 2, LIMIT, "two shards")
            wait_until(lambda: len(list(out.glob(".extract-*/shard-*.videos/*"))) == 2, LIMIT, "two more started")
            dask.workers[0].kill()
            dask.workers[0].wait(20)
            for gate in gates:
                gate.unlink()
            assert run.wait(LIMIT) == SOME_FAILED
        finally:
            run.kill()
            run.wait(20)
    assert results(out) == results(small_extraction.reference)
    assert {p.name for p in out.iterdir()} == {*results(out), "run.json", "tasks"} | {
        p.name
        for p in out.glob(".extract-*")  # left by the killed worker; the next run removes them
    }


def hostile_extract(source: Path, config: ExtractConfig, workdir: Path, binary: FfmpegBinary) -> ExtractedVideo:
    """Kill the own process at one video, and the parent Dask worker at another."""
    if source.stem == "v02":
        os.kill(os.getpid(), signal.SIGKILL)
    if source.stem == "v05":
        os.kill(os.getppid(), signal.SIGKILL)
    return extract_video(source, config, workdir, binary)


def test_video_that_kills_workers_fails_without_affecting_other_videos(
    small_extraction: SmallExtraction, ffmpeg: FfmpegBinary, tmp_path: Path
) -> None:
    out, videos = tmp_path / "out", small_extraction.manifest.parent
    rows = [VideoRecord(row=i, video_id=f"v{i:02d}", path=f"v{i:02d}.mp4") for i in range(8)]
    job = RunJob(root=videos, out=out, scratch=out, config=ExtractConfig(), binary=ffmpeg)
    with dask_processes(tmp_path, 2) as dask:  # with nannies, which restart workers
        backend = partial(build_with_dask, DaskCluster(scheduler_file=dask.scheduler_file))
        summary = run_extraction(
            plan_run(job.out, ListedRows(rows), 4),
            job,
            BuildSettings(workers=1, extract=hostile_extract, backend=backend),
        )
    assert (summary.videos, summary.failures, summary.shards) == (6, 2, 2)
    with (out / "failures.csv").open() as stream:
        assert [(row["row"], row["stage"]) for row in csv.DictReader(stream)] == [("2", "crash"), ("5", "crash")]
    assert not list(out.glob("*.begun"))


def deadly_extract(source: Path, config: ExtractConfig, workdir: Path, binary: FfmpegBinary) -> ExtractedVideo:
    """Kill the worker at any video; every second attempt gets as far as its second video."""
    begun = workdir.parent.parent.parent / "begun"
    with begun.open("a") as stream:
        stream.write(f"{source.stem}\n")
    if source.stem == "v01" or begun.read_text().count("v00") % 2:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(LIMIT)
    return extract_video(source, config, workdir, binary)


def test_worker_deaths_without_a_single_culprit_are_an_error(
    small_extraction: SmallExtraction, ffmpeg: FfmpegBinary, tmp_path: Path
) -> None:
    out, videos = tmp_path / "out", small_extraction.manifest.parent
    rows = [VideoRecord(row=i, video_id=f"v{i:02d}", path=f"v{i:02d}.mp4") for i in range(2)]
    job = RunJob(root=videos, out=out, scratch=out, config=ExtractConfig(), binary=ffmpeg)
    with dask_processes(tmp_path, 1) as dask:
        backend = partial(build_with_dask, DaskCluster(scheduler_file=dask.scheduler_file))
        with pytest.raises(RuntimeError, match=r"workers died repeatedly while building 1 shard \(shard-00000\.h5\)"):
            run_extraction(
                plan_run(job.out, ListedRows(rows), 2),
                job,
                BuildSettings(workers=1, extract=deadly_extract, backend=backend),
            )
    assert not list(out.glob("shard-*.h5"))


def test_worker_with_another_ffmpeg_is_named(small_extraction: SmallExtraction, tmp_path: Path) -> None:
    program = tmp_path / "ffmpeg"  # has another version on the worker's "machine"
    program.write_text('#!/bin/sh\necho "ffmpeg version 9.${DASK_ROLE:-submitter} Copyright"\n')
    program.chmod(0o755)
    command = [BIN / "cmd-extract", "run", small_extraction.manifest, tmp_path / "out", "--ffmpeg", program]
    with dask_processes(tmp_path, 1, "--no-nanny") as dask:
        command += ["--backend", "dask", "--scheduler-file", dask.scheduler_file]
        done = subprocess.run(command, env=ENVIRON, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Error: Dask worker on ")
    assert f"found no ffmpeg version 9.submitter, which this run uses ({program} is ffmpeg version 9.worker; " in last
    assert not list((tmp_path / "out").glob("shard-*"))


def test_local_workers_start_without_a_scheduler(small_extraction: SmallExtraction, tmp_path: Path) -> None:
    command = [BIN / "cmd-extract", "run", small_extraction.manifest, tmp_path / "out", "--videos-per-shard", "2"]
    command += ["--workers", "2", "--backend", "dask", "--scratch", tmp_path / "scratch"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == SOME_FAILED, done.stderr
    assert f"shards    {SHARDS}" in done.stdout
    assert results(tmp_path / "out") == results(small_extraction.reference)
    assert not list((tmp_path / "scratch").iterdir())


def test_missing_scheduler_is_reported_in_one_line(small_extraction: SmallExtraction, tmp_path: Path) -> None:
    command = [BIN / "cmd-extract", "run", small_extraction.manifest, tmp_path / "out", "--backend", "dask"]
    command += ["--scheduler", "tcp://127.0.0.1:9"]
    environ = os.environ | {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "1s"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 1
    assert "cannot connect to the Dask scheduler at tcp://127.0.0.1:9" in done.stderr.splitlines()[-1]
