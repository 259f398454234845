"""Extraction with Slurm job arrays: whatever happens to the tasks, the output equals that of a single machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import cmd_extract.cluster
from tests.cluster.extraction import SHARD_OPTIONS, SHARDS, SOME_FAILED, SmallExtraction, attempts, built, results
from tests.cluster.slurm import SlurmCluster, wait_until

SCRIPT = Path(cmd_extract.cluster.__file__).parent / "slurm" / "extract.sbatch"
SMALL = ("--cpus-per-task=1", "--mem=500M", "--time=5")
LIMIT = 180.0


def start(slurm: SlurmCluster, small: SmallExtraction, out: Path, array: str, tasks: int) -> str:
    """Submit the script of the package with an explicit number of tasks, as for resubmitted single tasks."""
    return submit(slurm, small, out, array, SCRIPT, "--num-tasks", str(tasks))


def submit(slurm: SlurmCluster, small: SmallExtraction, out: Path, array: str, script: Path, *options: str) -> str:
    log = f"--output={out.parent}/{out.name}-%A_%a.log"
    arguments = [small.manifest, out, *SHARD_OPTIONS, "--ffmpeg", small.ffmpeg, *options]
    return slurm.sbatch(f"--array={array}", *SMALL, log, script, *arguments)


def merge(slurm: SlurmCluster, out: Path) -> None:
    done = subprocess.run(
        ["cmd-extract", "merge", out], env=slurm.environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == SOME_FAILED, done.stdout + done.stderr


def test_four_tasks_produce_the_same_output_as_one_machine(
    slurm: SlurmCluster, small_extraction: SmallExtraction, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    script = tmp_path / "job.sh"
    script.write_text('#!/bin/bash\nexec cmd-extract run --array "$@"\n')
    job = submit(slurm, small_extraction, out, "1-7:2%3", script)  # starts at 1, in steps of 2, at most three at once
    slurm.wait(job, LIMIT)
    for task in range(4):
        assert slurm.job(f"{job}_{2 * task + 1}")["JobState"] == "COMPLETED"
        (attempt,) = attempts(out, task)
        assert attempt[0]["share"] == {"task": task, "num_tasks": 4}
        assert attempt[-1]["state"] == "done"
    assert built(out) == [f"shard-{n:05d}.h5" for n in range(SHARDS)], "each shard is built once, by any task"
    assert not (out / "index.json").exists()
    merge(slurm, out)
    assert results(out) == results(small_extraction.reference)


def test_killed_and_requeued_task_continues(
    slurm: SlurmCluster, small_extraction: SmallExtraction, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    gate = small_extraction.close_gate(10)  # the first video of shard 5
    job = start(slurm, small_extraction, out, "0-3", 4)
    claim = out / "claims" / "shard-00005.h5"
    wait_until(lambda: claim.exists() and len(list(out.glob("shard-*.h5"))) == SHARDS - 1, LIMIT, "all other shards")
    owner = json.loads(claim.read_text())
    (task,) = [n for n in range(4) if slurm.job(f"{job}_{n}")["JobId"] == owner["job"]]
    before = {path: path.stat().st_mtime_ns for path in out.glob("shard-*.h5")}
    os.kill(owner["pid"], signal.SIGKILL)
    wait_until(lambda: f"{job}_{task}" not in slurm.queued(job), LIMIT, "exit of the killed task")
    gate.unlink()
    slurm.command("scontrol", "requeue", f"{job}_{task}")
    slurm.wait(job, LIMIT)
    assert slurm.job(f"{job}_{task}")["Restarts"] == "1"
    killed, requeued = attempts(out, task)
    assert [killed[0]["owner"]["restart"], requeued[0]["owner"]["restart"]] == [0, 1]
    assert killed[-1]["event"] != "end"
    assert requeued[-1]["state"] == "done"
    assert built(out) == [f"shard-{n:05d}.h5" for n in range(SHARDS)], "finished shards are not rebuilt"
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    merge(slurm, out)
    assert results(out) == results(small_extraction.reference)


def test_overlapping_tasks_build_each_shard_once(
    slurm: SlurmCluster, small_extraction: SmallExtraction, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    gate = small_extraction.close_gate(0)
    # The same array twice, and one with a different number of tasks.
    jobs = [start(slurm, small_extraction, out, f"0-{tasks - 1}", tasks) for tasks in (2, 2, 3)]
    wait_until(
        lambda: len(list((out / "tasks").glob("*.jsonl"))) == 7 if out.exists() else False, LIMIT, "7 tasks at once"
    )
    assert (out / "claims" / "shard-00000.h5").exists()
    gate.unlink()
    for job in jobs:
        slurm.wait(job, LIMIT)
    assert all(attempt[-1]["state"] == "done" for task in range(3) for attempt in attempts(out, task))
    assert built(out) == [f"shard-{n:05d}.h5" for n in range(SHARDS)]
    merge(slurm, out)
    assert results(out) == results(small_extraction.reference)


def test_submit_waits_for_array_and_merge(
    slurm: SlurmCluster, small_extraction: SmallExtraction, tmp_path: Path
) -> None:
    out = tmp_path / "my out"
    options = ["--partition", "main", "--array-parallelism", "2", "--num-tasks", "3", "--time", "5", "--mem", "500M"]
    command = ["cmd-extract", "submit", small_extraction.manifest, out, *options, "--cpus", "1", "--wait", "--"]
    done = subprocess.run(
        [*command, "--videos-per-shard", "2"],
        env=slurm.environ,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == SOME_FAILED, done.stdout + done.stderr
    assert f"{SHARDS} shards" in done.stdout
    submitted = re.search(r"submitted job array (\d+) and merge job (\d+)", done.stdout)
    assert submitted, done.stdout
    merge_job = slurm.job(submitted[2])
    assert merge_job["ExitCode"] == f"{SOME_FAILED}:0"
    assert merge_job["MinMemoryNode"] == "1025M"
    assert results(out) == results(small_extraction.reference)
    logs = sorted(path.name.partition("-")[0] for path in (out / "jobs" / "logs").glob("*.log"))
    assert logs == ["extract"] * 3 + ["merge"]
    status = subprocess.run(
        ["cmd-extract", "status", out], env=slurm.environ, capture_output=True, text=True, timeout=60
    )
    assert f"{SHARDS} shards: {SHARDS} done, 0 running, 0 stale, 0 failed, 0 waiting; merged" in status.stdout


def test_jobs_depend_on_the_result_of_the_merge(
    slurm: SlurmCluster, small_extraction: SmallExtraction, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    gate = small_extraction.close_gate(0)
    options = ["--num-tasks", "2", "--time", "5", "--mem", "500M", "--allow-failures", "--"]
    command = ["cmd-extract", "submit", small_extraction.manifest, out, *options, "--ffmpeg", small_extraction.ffmpeg]
    done = subprocess.run(
        [*command, *SHARD_OPTIONS], env=slurm.environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    array, merge_job = re.findall(r"job (?:array )?(\d+)", done.stdout)
    after = slurm.sbatch(f"--dependency=afterok:{merge_job}", f"--output={tmp_path}/after.log", "--wrap=echo merged")
    gate.unlink()
    for job in (array, merge_job, after):
        slurm.wait(job, LIMIT)
    assert slurm.job(merge_job)["ExitCode"] == "0:0"
    assert (tmp_path / "after.log").read_text() == "merged\n"
    assert results(out) == results(small_extraction.reference)


def test_size_limit_of_arrays_is_read_from_slurm(slurm: SlurmCluster) -> None:
    program = "from cmd_extract.cluster.slurm import choose_num_tasks; print(choose_num_tasks(5000, 5000))"
    done = subprocess.run(
        [sys.executable, "-c", program], env=slurm.environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert "this cluster allows at most 1001 tasks per job array" in done.stderr
