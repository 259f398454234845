"""`cmd-extract submit` with stand-ins for Slurm's commands; tests/cluster submits to a real Slurm."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cmd_extract.cluster import slurm as submission
from cmd_extract.errors import SlurmError
from tests.fake_slurm import FakeSlurm
from tests.integration.cmd_extract.extraction import MakeVideo, all_files, call

OPTIONS = ("--videos-per-shard", "2", "--workers", "1", "--size", "64x48", "--frame-short-side", "24")


def write_manifest(folder: Path, rows: int) -> Path:
    path = folder / "manifest.csv"
    path.write_text("id,path\n" + "".join(f"v{i},v{i}.mp4\n" for i in range(rows)))
    return path


def test_submit_shows_its_scripts_and_rejects_invalid_options_of_run(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, 9)
    out = tmp_path / "it's 100% mine"
    options = ("--partition", "main", "--array-parallelism", 2, "--num-tasks", 3, "--time", "1:00", "--mem", "2G")
    code, output = call("submit", manifest, out, *options, "--dry-run", "--", "--videos-per-shard", 2)
    assert code == 0, output
    lines = output.splitlines()
    expected = ("--array=0-2%2", "--partition=main", "--time=1:00", "--mem=2G", "--requeue")
    assert all(f"#SBATCH {option}" in lines for option in expected)
    assert f'#SBATCH --output="{tmp_path}/it\'s 100%% mine/jobs/logs/extract-%A_%a.log"' in lines
    assert any(
        line.startswith("exec ") and line.endswith("--array --num-tasks 3 --videos-per-shard 2") for line in lines
    )
    assert not out.exists()
    code, output = call("submit", manifest, out, "--dry-run", "--", "--videos-per-shrad", 2)
    assert code == 2
    assert "--videos-per-shrad" in output
    code, output = call("submit", manifest, out, "--dry-run", "--", "--transcode", "never", "--fps", 25)
    assert code == 2, "values are checked, not only names"
    assert "fps" in output


@pytest.mark.parametrize(
    "arguments",
    [("--task", 0), ("--num-tasks", 4), ("--array",), ("--backend", "dask"), ("--retry-failures", "all")],
)
def test_submit_rejects_options_that_contradict_an_array(tmp_path: Path, arguments: tuple[object, ...]) -> None:
    manifest = write_manifest(tmp_path, 9)
    code, output = call("submit", manifest, tmp_path / "out", "--dry-run", "--", *arguments)
    assert code == 2
    assert f"{arguments[0]}: cannot be passed to the tasks" in output


def test_submit_rejects_a_folder_with_another_extraction(make_video: MakeVideo, tmp_path: Path) -> None:
    make_video(tmp_path / "v0.mp4", "-c:v", "libx264", frames=6, size="64x48")
    manifest, out = write_manifest(tmp_path, 1), tmp_path / "out"
    assert call("run", manifest, out, *OPTIONS)[0] == 0
    before = all_files(out)
    code, output = call("submit", manifest, out, "--dry-run", "--", *OPTIONS)
    assert code == 0, output
    code, output = call("submit", manifest, out, "--dry-run", "--", *OPTIONS, "--gop", 6)
    assert code == 1
    assert "gop: 12 is now 6" in output
    assert all_files(out) == before


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    slurm = FakeSlurm.install(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{slurm.bin}:{os.environ['PATH']}")
    monkeypatch.setattr(submission, "_POLL_SECONDS", 0.01)
    return slurm


def test_submitted_jobs_extract_and_merge(make_video: MakeVideo, fake_slurm: FakeSlurm, tmp_path: Path) -> None:
    for i in range(3):  # the fourth file is missing
        make_video(tmp_path / f"v{i}.mp4", "-c:v", "libx264", frames=4, size="64x48")
    manifest, out = write_manifest(tmp_path, 4), tmp_path / "50% mine"
    code, output = call("submit", manifest, out, "--num-tasks", 2, "--wait", "--", *OPTIONS)
    assert code == 3, output
    assert "submitted job array 100 and merge job 101" in output
    assert "2 shards, 3 videos, 1 failed" in output, "the log of the merge is shown"
    array, merge = fake_slurm.jobs()
    assert array["exit_codes"] == [0, 0]
    assert merge["exit_codes"] == [3], "the job's exit code is that of the merge"
    assert merge["options"]["--dependency"] == "afterany:100"
    assert merge["options"]["--mem"] == "1025M"
    assert "--mem" not in array["options"]
    logs = {path.name: path.read_text() for path in (out / "jobs" / "logs").glob("*.log")}
    assert logs.keys() == {"extract-100_0.log", "extract-100_1.log", "merge-101.log"}
    assert "task 1 of 2: 2 videos" in logs["extract-100_1.log"]
    assert call("run", manifest, tmp_path / "single", *OPTIONS)[0] == 3
    assert (out / "index.json").read_bytes() == (tmp_path / "single" / "index.json").read_bytes()
    # A merge that accepts failed videos, and one of an incomplete extraction, in the job's own environment.
    script = (out / "jobs" / "merge.sbatch").read_text()
    code, output = call("submit", manifest, out, "--allow-failures", "--dry-run", "--", *OPTIONS)
    assert code == 0, output
    tolerant = output[output.index("merge.sbatch\n#!/bin/bash") :].partition("\n# sbatch")[0].partition("\n")[2]
    assert merge_in_job(tolerant, 7, out) == 0
    (out / "shard-00001.h5").unlink()
    assert merge_in_job(script, 8, out) == 1
    assert merge_in_job(tolerant, 9, out) == 1


def merge_in_job(script: str, job: int, out: Path) -> int:
    environ = os.environ | {"SLURM_JOB_ID": str(job)}
    code = subprocess.run(["bash", "-c", script], env=environ, capture_output=True, check=False).returncode
    assert (out / "jobs" / "logs" / f"merge-{job}.exit").read_text() == f"{code}\n"
    return code


def test_size_of_the_array_is_checked_before_submission(fake_slurm: FakeSlurm, tmp_path: Path) -> None:
    manifest, out = write_manifest(tmp_path, 12), tmp_path / "out"
    arguments = ("submit", manifest, out, "--dry-run")
    shards = ("--", "--videos-per-shard", 2)
    fake_slurm.configure({"MaxArraySize": 5, "SchedulerParameters": "bf_continue"})
    code, output = call("submit", manifest, out, "--num-tasks", 6, *shards)
    assert code == 1
    assert "at most 5 tasks per job array" in output
    assert "got 6; choose a smaller --num-tasks" in output
    assert not out.exists()
    assert not fake_slurm.jobs()
    assert "#SBATCH --array=0-4\n" in call(*arguments, "--num-tasks", 5, *shards)[1]
    assert "#SBATCH --array=0-4\n" in call(*arguments, *shards)[1], "the default is lowered"
    assert "#SBATCH --array=0-1\n" in call(*arguments, "--num-tasks", 6, "--", "--videos-per-shard", 6)[1]
    fake_slurm.configure({"MaxArraySize": 5, "SchedulerParameters": "bf_continue,max_array_tasks=3"})
    assert "at most 3 tasks" in call(*arguments, "--num-tasks", 4, *shards)[1]
    fake_slurm.configure({"MaxArraySize": 0})
    assert "does not allow job arrays" in call(*arguments, *shards)[1]
    fake_slurm.configure({})
    assert "#SBATCH --array=0-5\n" in call(*arguments, *shards)[1], "the limit is not known"


def test_nothing_is_written_without_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, out = write_manifest(tmp_path, 2), tmp_path / "new" / "out"
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    code, output = call("submit", manifest, out)
    assert code == 1
    assert "sbatch not found; run this command on a host that can submit Slurm jobs" in output
    assert not (tmp_path / "new").exists()


def test_rejected_jobs_are_reported(fake_slurm: FakeSlurm, tmp_path: Path) -> None:
    manifest, out = write_manifest(tmp_path, 1), tmp_path / "new" / "out"
    fake_slurm.reject(100)
    code, output = call("submit", manifest, out)
    assert code == 1
    assert output.splitlines()[-1].endswith("Batch job submission failed: Invalid partition name specified")
    assert not (tmp_path / "new").exists(), "`status` would report jobs that do not exist"
    (fake_slurm.root / "reject-100").unlink()
    fake_slurm.reject(101)
    code, output = call("submit", manifest, out)
    assert code == 1
    assert "the array was submitted as job 100, but its merge job was not" in output
    assert (out / "jobs" / "logs").is_dir()


@pytest.mark.parametrize(
    ("option", "expected"), [((), "--mem=1025M"), (("--merge-mem", "7G"), "--mem=7G"), (("--merge-mem", "default"), "")]
)
def test_merge_job_requests_memory(tmp_path: Path, option: tuple[str, ...], expected: str) -> None:
    code, output = call("submit", write_manifest(tmp_path, 9), tmp_path / "out", *option, "--dry-run")
    assert code == 0, output
    merge_script = output.partition("merge.sbatch\n")[2]
    assert [line for line in merge_script.splitlines() if "--mem" in line] == [f"#SBATCH {expected}"] * bool(expected)


def test_waiting_ends_if_slurm_does_not_respond(fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    program = fake_slurm.bin / "squeue"
    program.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2\nexit 1\n")
    monkeypatch.setattr(submission, "_MAX_SILENT_SECONDS", 0.05)
    with pytest.raises(SlurmError, match="jobs 7, 8 may still be running"):
        submission.wait_for_jobs(["7", "8"], lambda: None)
