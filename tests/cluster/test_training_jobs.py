"""The batch script that `cmd-train sbatch` prints, edited as a user would, on a real Slurm.

All jobs are submitted at once, and each test looks at one of them: the wait for Slurm's warning is long, and idle.
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

OPTIONS = options(optim__epochs=4, model__context_queue=12, data__workers=1, run__checkpoint_epochs=1)
STEPS = 12
PATIENCE = 240


class Job:
    """A submitted batch script."""

    def __init__(self, slurm: SlurmCluster, folder: Path) -> None:
        self.slurm, self.folder = slurm, folder
        self.run_dir = folder / "run"
        self.number = ""

    def submit(self, script: str, *arguments: object) -> None:
        file = self.folder / "job.sbatch"
        file.write_text(script)
        self.number = self.slurm.sbatch(f"--chdir={ROOT}", f"--output={self.folder}/log", *arguments, file)

    def end(self) -> str:
        """Waits for the end and returns the state."""
        self.slurm.wait(self.number, PATIENCE)
        return self.slurm.job(self.number)["JobState"]

    def said(self) -> str:
        return (self.folder / "log").read_text()


def edited(launcher: str, shards: Path, job: Job, program: str = "", **environment: str) -> str:
    """The printed script with the lines marked EDIT filled in."""
    python = shlex.quote(sys.executable)
    exports = {
        "PATH": f"{Path(sys.executable).parent}:$PATH",
        "PYTHONPATH": str(ROOT),
        # Another number of threads makes sums in another order.
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
        (place,) = (i for i, line in enumerate(lines) if line.startswith(start))
        lines[place] = new
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def jobs(slurm: SlurmCluster, few_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Job]]:
    made = {}
    for name in ("warned", "cancelled", "srun", "torchrun", "failing", "mixed"):
        made[name] = Job(slurm, tmp_path_factory.mktemp(name))
    for name in ("warned", "cancelled"):
        # The first attempt alone: later ones have a count.
        held = {"HOLD_AT": "${SLURM_RESTART_COUNT:-0:5}", "HOLD_FOR": str(made[name].run_dir / "stop")}
        script = edited("srun", few_shards, made[name], **held)
        # Slurm counts minutes, and warns up to a minute early.
        made[name].submit(script.replace("USR1@180", "USR1@10"), f"--time={1 if name == 'warned' else 30}")
    made["srun"].submit(edited("srun", few_shards, made["srun"]))
    made["torchrun"].submit(edited("torchrun", few_shards, made["torchrun"]))
    made["failing"].submit(edited("srun", few_shards, made["failing"], FAIL_AT="1:3"))
    mixture = "torchrun --standalone --nproc-per-node=2 --no-python"
    made["mixed"].submit(edited("srun", few_shards, made["mixed"], mixture), "--nodes=1", "--ntasks-per-node=2")
    yield made
    for job in made.values():
        slurm.command("scancel", "--quiet", job.number)


@pytest.fixture(scope="module")
def undisturbed(
    jobs: dict[str, Job], slurm: SlurmCluster, few_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same training without Slurm: two processes of a local torchrun."""
    folder = tmp_path_factory.mktemp("undisturbed")
    process = launch(2, [few_shards, folder / "run", *OPTIONS], RECORD=str(folder))
    # Meanwhile: the second attempt may take longer than the minute that the first one had, and must be told so before
    # it is warned, too.
    number = jobs["warned"].number
    wait_until(lambda: slurm.job(number)["Restarts"] == "1", PATIENCE, "requeue", every=0.3)
    slurm.command("scontrol", "update", f"JobId={number}", "TimeLimit=30")
    said = finish(process)
    assert process.returncode == 0, said
    return folder


def assert_same_training(job: Job, undisturbed: Path) -> None:
    assert metrics(job.run_dir) == metrics(undisturbed / "run")
    assert same(weights(job.run_dir), weights(undisturbed / "run"))
    for rank in range(2):
        assert recorded(job.folder, rank) == recorded(undisturbed, rank), "no step was done twice"


def test_a_warned_job_stops_is_queued_again_by_itself_and_continues(
    jobs: dict[str, Job], undisturbed: Path, slurm: SlurmCluster
) -> None:
    job = jobs["warned"]
    assert job.end() == "COMPLETED", job.said()
    assert slurm.job(job.number)["Restarts"] == "1"
    said = job.said()
    assert said.count("asking the training to stop") == 1
    assert "queued again" in said
    # On a slow machine the warning comes before the step that waits for it.
    stopped_at = re.search(r"stopped after step ([1-5]) \([^)]+\); run the same command again", said)
    assert stopped_at, said
    assert f"continuing after step {stopped_at[1]} of 12" in said
    assert {path.name for path in job.run_dir.iterdir()}.isdisjoint({"stop", "stopped", "errors"})
    assert (job.run_dir / "finished").exists()
    assert len(recorded(job.folder, 0)) == STEPS
    assert_same_training(job, undisturbed)


def test_a_cancelled_job_is_not_queued_again(jobs: dict[str, Job], slurm: SlurmCluster) -> None:
    job = jobs["cancelled"]
    held = job.folder / "rank-0.jsonl"
    wait_until(lambda: held.exists() and len(held.read_text().splitlines()) == 5, PATIENCE, "step 5")
    slurm.command("scancel", job.number)
    assert job.end() == "CANCELLED", job.said()
    assert "stopped:" in job.said()
    assert "queued again" not in job.said()
    assert slurm.job(job.number)["Restarts"] == "0"


@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_ranks_on_two_nodes_train_as_without_slurm(launcher: str, jobs: dict[str, Job], undisturbed: Path) -> None:
    job = jobs[launcher]
    assert job.end() == "COMPLETED", job.said()
    assert (job.run_dir / "finished").exists()
    assert job.slurm.job(job.number)["NumNodes"] == "2"
    assert_same_training(job, undisturbed)


def test_a_rank_that_dies_ends_the_job_and_is_named(jobs: dict[str, Job]) -> None:
    job = jobs["failing"]
    assert job.end() == "FAILED", job.said()
    files = sorted((job.run_dir / "errors").iterdir())
    first = files[0].read_text()
    lines = first.splitlines()
    assert lines[0].startswith(f"rank 1 of 2 on {socket.gethostname()}, process ")
    assert f"SLURM_JOB_ID={job.number}" in lines
    assert any(line.startswith("SLURMD_NODENAME=n") for line in lines)
    assert "Traceback (most recent call last):" in lines
    assert lines[-1] == "RuntimeError: a broken device"
    # The job's one log holds it all, after the last word of every rank.
    assert first in job.said().partition(": failed.")[2]
    assert not list(chain(job.run_dir.glob("finished"), job.run_dir.glob("stopped")))


def test_srun_and_torchrun_mixed_are_refused(jobs: dict[str, Job]) -> None:
    job = jobs["mixed"]
    assert job.end() == "FAILED", job.said()
    assert "srun and torchrun are mixed: srun has started 2 tasks, 2 on a node" in job.said()
    assert not list(job.run_dir.iterdir())
