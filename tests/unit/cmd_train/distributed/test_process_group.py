from __future__ import annotations

import socket
import subprocess

import pytest
import torch
from click.testing import CliRunner

from cmd_train.cli.main import main
from cmd_train.distributed.process_group import LaunchInfo, RankError, first_host, process_group, read_launch_info

STEP = {
    "SLURM_JOB_ID": "812",
    "SLURM_STEP_ID": "1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
}


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("one", "one"), ("a,b", "a"), ("gpu[03-05,9],x", "gpu03"), ("n-[7,9]", "n-7"), ("r[1-2]n[4-6]-ib,z", "r1n4-ib")],
)
def test_first_host_of_a_node_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_rendezvous_from_a_slurm_step() -> None:
    launch = read_launch_info(STEP)
    assert (launch.rank, launch.world_size, launch.local_rank) == (5, 8, 1)
    assert launch.init_method == f"tcp://gpu03:{20_000 + (812 * 31 + 1) % 20_000}"
    assert read_launch_info(STEP | {"SLURM_STEP_ID": "2"}).init_method != launch.init_method
    named = read_launch_info(STEP | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"})
    assert named.init_method == "tcp://10.0.0.1:29500"


def test_single_process_without_a_launcher_or_in_a_batch_script() -> None:
    alone = LaunchInfo(rank=0, world_size=1, local_rank=0, launched=False)
    assert read_launch_info({}) == alone
    batch_script = {"SLURM_JOB_ID": "812", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert read_launch_info(batch_script) == alone
    assert read_launch_info(STEP | {"SLURM_STEP_NUM_TASKS": "1"}) == alone


def test_torchrun_takes_precedence_over_slurm() -> None:
    ranks = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    launch = LaunchInfo(rank=1, world_size=4, local_rank=1)
    assert read_launch_info(ranks) == launch
    assert read_launch_info(STEP | {"SLURM_STEP_NUM_TASKS": "1"} | ranks | {"GROUP_WORLD_SIZE": "2"}) == launch
    nodes = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "GROUP_WORLD_SIZE": "2"}
    assert read_launch_info(STEP | nodes | ranks) == launch


@pytest.mark.parametrize(
    ("tasks", "per_node", "launchers"), [("8", "4(x2)", "8"), ("3", "2,1", "3"), ("2", "1(x2)", "1")]
)
def test_several_torchrun_groups_in_one_job_step_are_rejected(tasks: str, per_node: str, launchers: str) -> None:
    step = STEP | {"SLURM_STEP_NUM_TASKS": tasks, "SLURM_STEP_TASKS_PER_NODE": per_node}
    ranks = {"RANK": "0", "WORLD_SIZE": "8", "LOCAL_RANK": "0", "GROUP_WORLD_SIZE": launchers}
    with pytest.raises(ValueError, match="srun and torchrun are mixed") as error:
        read_launch_info(step | ranks)
    assert f"{tasks} tasks" in str(error.value)
    assert f"a group of {launchers}" in str(error.value)


def test_manually_set_ranks_must_match_slurm() -> None:
    manual = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert read_launch_info(STEP | manual).rank == 5
    with pytest.raises(ValueError, match="RANK=0 and WORLD_SIZE=2, but this is task 5 of 8"):
        read_launch_info(STEP | manual | {"RANK": "0", "WORLD_SIZE": "2"})


def test_printed_batch_script_is_valid_bash() -> None:
    printed = CliRunner().invoke(main, ["sbatch"])
    assert printed.exit_code == 0, printed.output
    assert printed.output.startswith("#!/bin/bash\n")
    assert "--signal=B:USR1@" in printed.output
    checked = subprocess.run(["bash", "-n"], input=printed.output, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_incomplete_launcher_variables_are_rejected() -> None:
    with pytest.raises(ValueError, match="WORLD_SIZE"):
        read_launch_info({"RANK": "1", "LOCAL_RANK": "0"})


def test_error_names_the_rank_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with (
        pytest.raises(RankError, match=f"^rank 1 of 2 on {socket.gethostname()}: device: cuda was requested"),
        process_group("cuda"),
    ):
        raise AssertionError("the block must not run")
