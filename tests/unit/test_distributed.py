from __future__ import annotations

import socket

import pytest
import torch

from train.distributed import RankError, Seat, find_seat, first_host, process_group

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
    alone = Seat(rank=0, world_size=1, local_rank=0)
    assert find_seat({}) == alone
    assert find_seat({"SLURM_JOB_ID": "812", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}) == alone
    assert find_seat(STEP | {"SLURM_STEP_NUM_TASKS": "1"}) == alone


def test_torchrun_goes_before_slurm() -> None:
    launched = STEP | {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    assert find_seat(launched) == Seat(rank=1, world_size=2, local_rank=0)
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
