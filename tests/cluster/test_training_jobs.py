"""The batch script printed by `cmd-train sbatch`, edited as a user would, on a real Slurm cluster.

All jobs are submitted at once and each test checks one of them, since waiting for Slurm's warning takes long.
"""

from __future__ import annotations

import re
import shlex
import socket
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from click.testing import CliRunner

from cmd_train.cli.main import main as train_main
from tests.cluster.slurm import SlurmCluster, wait_until
from tests.integration.cmd_train.training import ROOT, finish, launch, metrics, options, recorded, same, weights

OPTIONS = options(optim__epochs=4, data__workers=1, run__checkpoint_epochs=1)
STEPS = 12
TIMEOUT_SECONDS = 240


class Job:
    """A submitted batch script."""

    def __init__(self, slurm: SlurmCluster, folder: Path) -> None:
        self.slurm, self.folder = slurm, folder
        self.run_dir = folder / "run"
        self.job_id = ""

    def submit(self, script: str, *arguments: object) -> None:
        file = self.folder / "job.sbatch"
        file.write_text(script)
        self.job_id = self.slurm.sbatch(f"--chdir={ROOT}", f"--output={self.folder}/log", *arguments, file)

    def wait(self) -> str:
        """Wait for the job to end and return its state."""
        self.slurm.wait(self.job_id, TIMEOUT_SECONDS)
        return self.slurm.job(self.job_id)["JobState"]

    def log(self) -> str:
        return (self.folder / "log").read_text()


def edited(launcher: str, shards: Path, job: Job, program: str = "", **environment: str) -> str:
    """Return the printed script with the lines marked EDIT filled in."""
    python = shlex.quote(sys.executable)
    exports = {
        "PATH": f"{Path(sys.executable).parent}:$PATH",
        "PYTHONPATH": str(ROOT),
        # A different number of threads would change the order of summation.
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "RECORD": str(job.folder),
        **environment,
    }
    launched = f"{program} {python} -m tests.integration.cmd_train.training"
    command = f'{launched} pretrain "$SHARDS" "$RUN_DIR" {shlex.join(OPTIONS)}'
    edits = {
        "#SBATCH --ntasks-per-node=": "#SBATCH --ntasks-per-node=1",
        "#SBATCH --gpus-per-node=": "",
        "#SBATCH --cpus-per-task=": "#SBATCH --cpus-per-task=1",
        "SHARDS=": f"SHARDS={shlex.quote(str(shards))}",
        "RUN_DIR=": f"RUN_DIR={shlex.quote(str(job.run_dir))}",
        "TRAIN=": f"TRAIN=({command})",
        "LAUNCHER=": f"LAUNCHER={launcher}",
        "# EDIT: source ": "".join(f'export {name}="{value}"\n' for name, value in exports.items()),
    }
    lines = CliRunner().invoke(train_main, ["sbatch"]).output.splitlines()
    for start, new in edits.items():
        (index,) = (i for i, line in enumerate(lines) if line.startswith(start))
        lines[index] = new
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def jobs(slurm: SlurmCluster, few_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Job]]:
    created = {}
    for name in ("warned", "canceled", "srun", "torchrun", "failing", "mixed"):
        created[name] = Job(slurm, tmp_path_factory.mktemp(name))
    for name in ("warned", "canceled"):
        # Hold the first attempt only; later ones have a restart count.
        held = {"HOLD_AT": "${SLURM_RESTART_COUNT:-0:5}", "HOLD_FOR": str(created[name].run_dir / "stop")}
        script = edited("srun", few_shards, created[name], **held)
        # Slurm counts in minutes and may warn up to a minute early.
        created[name].submit(script.replace("USR1@180", "USR1@10"), f"--time={1 if name == 'warned' else 30}")
    created["srun"].submit(edited("srun", few_shards, created["srun"]))
    created["torchrun"].submit(edited("torchrun", few_shards, created["torchrun"]))
    created["failing"].submit(edited("srun", few_shards, created["failing"], FAIL_AT="1:3"))
    mixed = "torchrun --standalone --nproc-per-node=2 --no-python"
    created["mixed"].submit(edited("srun", few_shards, created["mixed"], mixed), "--nodes=1", "--ntasks-per-node=2")
    yield created
    for job in created.values():
        slurm.command("scancel", "--quiet", job.job_id)


@pytest.fixture(scope="module")
def undisturbed(
    jobs: dict[str, Job], slurm: SlurmCluster, few_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same run without Slurm, in two processes of a local torchrun."""
    folder = tmp_path_factory.mktemp("undisturbed")
    process = launch(2, [few_shards, folder / "run", *OPTIONS], RECORD=str(folder))
    # Meanwhile, raise the time limit of the second attempt, which may need more than the minute given to the first,
    # before it is warned as well.
    job_id = jobs["warned"].job_id
    wait_until(lambda: slurm.job(job_id)["Restarts"] == "1", TIMEOUT_SECONDS, "requeue", every=0.3)
    slurm.command("scontrol", "update", f"JobId={job_id}", "TimeLimit=30")
    output = finish(process)
    assert process.returncode == 0, output
    return folder


def assert_same_run(job: Job, undisturbed: Path) -> None:
    assert metrics(job.run_dir) == metrics(undisturbed / "run")
    assert same(weights(job.run_dir), weights(undisturbed / "run"))
    for rank in range(2):
        assert recorded(job.folder, rank) == recorded(undisturbed, rank), "no step is repeated"


def test_warned_job_stops_requeues_itself_and_continues(
    jobs: dict[str, Job], undisturbed: Path, slurm: SlurmCluster
) -> None:
    job = jobs["warned"]
    assert job.wait() == "COMPLETED", job.log()
    assert slurm.job(job.job_id)["Restarts"] == "1"
    log = job.log()
    assert log.count("requesting a stop") == 1
    assert "requeued" in log
    # On a slow machine the warning may arrive before the step that waits for it.
    stopped_at = re.search(r"Stopped after step ([1-5]) \([^)]+\)\. Run the same command again", log)
    assert stopped_at, log
    assert f"Continuing after step {stopped_at[1]} of 12" in log
    assert {path.name for path in job.run_dir.iterdir()}.isdisjoint({"stop", "stopped", "errors"})
    assert (job.run_dir / "finished").exists()
    assert len(recorded(job.folder, 0)) == STEPS
    assert_same_run(job, undisturbed)


def test_canceled_job_is_not_requeued(jobs: dict[str, Job], slurm: SlurmCluster) -> None:
    job = jobs["canceled"]
    held = job.folder / "rank-0.jsonl"
    wait_until(lambda: held.exists() and len(held.read_text().splitlines()) == 5, TIMEOUT_SECONDS, "step 5")
    slurm.command("scancel", job.job_id)
    assert job.wait() == "CANCELLED", job.log()
    assert "stopped:" in job.log()
    assert "requeued" not in job.log()
    assert slurm.job(job.job_id)["Restarts"] == "0"


@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_ranks_on_two_nodes_train_as_without_slurm(launcher: str, jobs: dict[str, Job], undisturbed: Path) -> None:
    job = jobs[launcher]
    assert job.wait() == "COMPLETED", job.log()
    assert (job.run_dir / "finished").exists()
    assert job.slurm.job(job.job_id)["NumNodes"] == "2"
    assert_same_run(job, undisturbed)


def test_failed_rank_ends_the_job_and_is_named(jobs: dict[str, Job]) -> None:
    job = jobs["failing"]
    assert job.wait() == "FAILED", job.log()
    files = sorted((job.run_dir / "errors").iterdir())
    first = files[0].read_text()
    lines = first.splitlines()
    assert lines[0].startswith(f"rank 1 of 2 on {socket.gethostname()}, process ")
    assert f"SLURM_JOB_ID={job.job_id}" in lines
    assert any(line.startswith("SLURMD_NODENAME=n") for line in lines)
    assert "Traceback (most recent call last):" in lines
    assert lines[-1] == "RuntimeError: a broken device"
    # The job's log ends with the full report, after the output of all ranks.
    assert first in job.log().partition(": failed.")[2]
    assert not list(chain(job.run_dir.glob("finished"), job.run_dir.glob("stopped")))


def test_mixing_srun_and_torchrun_is_rejected(jobs: dict[str, Job]) -> None:
    job = jobs["mixed"]
    assert job.wait() == "FAILED", job.log()
    assert "srun and torchrun are mixed: srun started 2 tasks, 2 per node" in job.log()
    assert not list(job.run_dir.iterdir())
