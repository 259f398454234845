from __future__ import annotations

import socket
import subprocess

import pytest
import torch
from click.testing import CliRunner

from cmd_train.cli.main import main
from cmd_train.distributed.process_group import RankError, Seat, find_seat, first_host, process_group

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


def test_a_slurm_step_tells_where_to_meet() -> None:
    seat = find_seat(STEP)
    assert (seat.rank, seat.world_size, seat.local_rank) == (5, 8, 1)
    assert seat.meeting_point == f"tcp://gpu03:{20_000 + (812 * 31 + 1) % 20_000}"
    assert find_seat(STEP | {"SLURM_STEP_ID": "2"}).meeting_point != seat.meeting_point
    named = find_seat(STEP | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"})
    assert named.meeting_point == "tcp://10.0.0.1:29500"


def test_alone_without_a_launcher_or_in_a_batch_script() -> None:
    alone = Seat(rank=0, world_size=1, local_rank=0, launched=False)
    assert find_seat({}) == alone
    assert find_seat({"SLURM_JOB_ID": "812", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}) == alone
    assert find_seat(STEP | {"SLURM_STEP_NUM_TASKS": "1"}) == alone


def test_one_torchrun_a_node_goes_before_slurm() -> None:
    ranks = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    seat = Seat(rank=1, world_size=4, local_rank=1)
    assert find_seat(ranks) == seat
    assert find_seat(STEP | {"SLURM_STEP_NUM_TASKS": "1"} | ranks | {"GROUP_WORLD_SIZE": "2"}) == seat
    nodes = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "GROUP_WORLD_SIZE": "2"}
    assert find_seat(STEP | nodes | ranks) == seat


@pytest.mark.parametrize(
    ("tasks", "per_node", "launchers"), [("8", "4(x2)", "8"), ("3", "2,1", "3"), ("2", "1(x2)", "1")]
)
def test_several_torchruns_that_srun_has_started_are_refused(tasks: str, per_node: str, launchers: str) -> None:
    step = STEP | {"SLURM_STEP_NUM_TASKS": tasks, "SLURM_STEP_TASKS_PER_NODE": per_node}
    ranks = {"RANK": "0", "WORLD_SIZE": "8", "LOCAL_RANK": "0", "GROUP_WORLD_SIZE": launchers}
    with pytest.raises(ValueError, match="srun and torchrun are mixed") as refused:
        find_seat(step | ranks)
    assert f"{tasks} tasks" in str(refused.value)
    assert f"{launchers} in all" in str(refused.value)


def test_ranks_set_by_hand_must_be_those_of_slurm() -> None:
    by_hand = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert find_seat(STEP | by_hand).rank == 5
    with pytest.raises(ValueError, match="RANK=0 and WORLD_SIZE=2, but this is task 5 of 8"):
        find_seat(STEP | by_hand | {"RANK": "0", "WORLD_SIZE": "2"})


def test_the_printed_batch_script_is_one() -> None:
    printed = CliRunner().invoke(main, ["sbatch"])
    assert printed.exit_code == 0, printed.output
    assert printed.output.startswith("#!/bin/bash\n")
    assert "--signal=B:USR1@" in printed.output
    checked = subprocess.run(["bash", "-n"], input=printed.output, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_half_a_launcher_is_refused() -> None:
    with pytest.raises(ValueError, match="WORLD_SIZE"):
        find_seat({"RANK": "1", "LOCAL_RANK": "0"})


def test_a_rank_that_cannot_begin_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with (
        pytest.raises(RankError, match=f"^rank 1 of 2 on {socket.gethostname()}: device: cuda was asked for"),
        process_group("cuda"),
    ):
        raise AssertionError("there is nothing to begin with")
