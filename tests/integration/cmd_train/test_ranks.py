from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from itertools import chain
from pathlib import Path

import pytest

from cmd_train.checkpoints.files import list_checkpoints, load_checkpoint
from tests.integration.cmd_train.training import finish, launch, metrics, options, recorded, same, until_line, weights

pytestmark = pytest.mark.slow

# With augmentation, dropout, restricted candidates and data workers.
OPTIONS = options(
    optim__epochs=4,
    loss__motion_own_position="true",
    data__workers=1,
    run__checkpoint_epochs=1,
    run__keep_checkpoints=9,
)
STEPS = 12


@pytest.fixture(scope="module")
def whole(few_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "two").mkdir()
    process = launch(2, [few_shards, folder / "run", *OPTIONS], RECORD=str(folder / "two"))
    output = finish(process)
    assert process.returncode == 0, output
    return folder


def remove_checkpoints_after(run_dir: Path, step: int) -> None:
    for path in list_checkpoints(run_dir):
        if path.name > f"step-{step:08d}":
            shutil.rmtree(path)
    assert load_checkpoint(run_dir).step == step


def test_one_and_two_ranks_take_the_same_global_batches(whole: Path, few_shards: Path, tmp_path: Path) -> None:
    process = launch(1, [few_shards, tmp_path / "run", *OPTIONS], RECORD=str(tmp_path))
    output = finish(process)
    assert process.returncode == 0, output
    halves = zip(recorded(whole / "two", 0), recorded(whole / "two", 1), strict=True)
    joined = [list(chain.from_iterable(half)) for half in halves]
    assert joined == recorded(tmp_path, 0)
    assert len(joined) == STEPS
    assert {len(batch) for batch in joined} == {8}


def test_two_ranks_continue_bit_for_bit(whole: Path, few_shards: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "run", tmp_path / "run")
    remove_checkpoints_after(tmp_path / "run", 6)
    process = launch(2, [few_shards, tmp_path / "run", *OPTIONS])
    output = finish(process)
    assert process.returncode == 0, output
    assert "Continuing after step 6 of 12" in output
    assert metrics(tmp_path / "run") == metrics(whole / "run")
    assert same(weights(tmp_path / "run"), weights(whole / "run"))
    first, second = (load_checkpoint(folder / "run").load_state()["optimizer"]["state"] for folder in (tmp_path, whole))
    assert all(same(first[key], second[key]) for key in second)


def test_stopped_ranks_exit_after_the_same_step(whole: Path, few_shards: Path, tmp_path: Path) -> None:
    process = launch(2, [few_shards, tmp_path / "run", *OPTIONS])
    until_line(process, "step 4/")
    os.kill(process.pid, signal.SIGTERM)  # torchrun forwards it
    finish(process, timeout=60)
    stopped_at = load_checkpoint(tmp_path / "run").step
    assert 4 <= stopped_at < STEPS
    output = finish(launch(2, [few_shards, tmp_path / "run", *OPTIONS]))
    assert f"Continuing after step {stopped_at}" in output
    assert metrics(tmp_path / "run") == metrics(whole / "run")
    assert same(weights(tmp_path / "run"), weights(whole / "run"))


@pytest.mark.parametrize("ranks", [1, 4])
def test_run_continues_with_other_numbers_of_ranks(ranks: int, whole: Path, few_shards: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "run", tmp_path / "run")
    remove_checkpoints_after(tmp_path / "run", 9)
    process = launch(ranks, [few_shards, tmp_path / "run", *OPTIONS], RECORD=str(tmp_path))
    output = finish(process)
    assert process.returncode == 0, output
    taken = zip(*(recorded(tmp_path, rank) for rank in range(ranks)), strict=True)
    before = zip(recorded(whole / "two", 0)[9:], recorded(whole / "two", 1)[9:], strict=True)
    assert [list(chain.from_iterable(t)) for t in taken] == [list(chain.from_iterable(b)) for b in before]
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, STEPS + 1))


def test_failed_rank_is_named(few_shards: Path, tmp_path: Path) -> None:
    process = launch(2, [few_shards, tmp_path / "run", *OPTIONS], RECORD=str(tmp_path), FAIL_AT="1:3")
    output = finish(process)
    assert process.returncode != 0
    assert f"rank 1 of 2 on {socket.gethostname()}: a broken device" in output
    first = min((tmp_path / "run" / "errors").iterdir(), key=lambda path: path.name)
    kept = first.read_text()
    assert kept.startswith(f"rank 1 of 2 on {socket.gethostname()}, process ")
    assert "Traceback" in kept
    assert kept.endswith("RuntimeError: a broken device\n")
    assert {path.name for path in (tmp_path / "run").iterdir()}.isdisjoint({"finished", "stopped"})


def test_torchrun_restarts_after_a_kill_but_not_after_a_stop(whole: Path, few_shards: Path, tmp_path: Path) -> None:
    arguments = [few_shards, tmp_path / "run", *OPTIONS]
    process = launch(2, [*arguments, "--max-hours", "1e-9"], restarts=2)
    output = finish(process)
    assert process.returncode == 0, output
    assert json.loads((tmp_path / "run" / "stopped").read_text())["step"] == 1
    assert output.count("Stopped after step 1 (time limit reached).") == 1, "no restart, and only rank 0 reports"
    process = launch(2, arguments, restarts=1, RECORD=str(tmp_path), KILL_AT="1:7")
    output = finish(process)
    assert process.returncode == 0, output
    assert (tmp_path / "run" / "finished").exists()
    # Steps 2 to 7 were completed and 8 was started; then the run restarted from the checkpoint of step 6.
    assert "Continuing after step 6 of 12" in output
    for rank in range(2):
        assert recorded(tmp_path, rank) == [*recorded(whole / "two", rank)[1:8], *recorded(whole / "two", rank)[6:]]
    assert metrics(tmp_path / "run") == metrics(whole / "run")
    assert same(weights(tmp_path / "run"), weights(whole / "run"))


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_slurm_tasks_connect_to_each_other(whole: Path, few_shards: Path, tmp_path: Path) -> None:
    port = free_port()

    def task(rank: int) -> subprocess.Popen[str]:
        job = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": str(rank)}
        job |= {"SLURM_LOCALID": str(rank), "SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": port}
        return launch(1, [few_shards, tmp_path / "run", *OPTIONS], **job)

    tasks = [task(rank) for rank in range(2)]
    output = [finish(process) for process in tasks]
    assert [process.returncode for process in tasks] == [0, 0], output
    assert same(weights(tmp_path / "run"), weights(whole / "run"))


def test_ranks_with_different_checkpoints_refuse_to_continue(whole: Path, few_shards: Path, tmp_path: Path) -> None:
    port = free_port()
    tasks = []
    for rank, last in enumerate((9, 6)):  # two hosts without a shared folder
        run_dir = tmp_path / str(rank)
        shutil.copytree(whole / "run", run_dir)
        (run_dir / "finished").unlink()
        remove_checkpoints_after(run_dir, last)
        launch_info = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        tasks.append(launch(1, [few_shards, run_dir, *OPTIONS], MASTER_PORT=port, **launch_info))
    for rank, process in enumerate(tasks):
        output = finish(process)
        assert process.returncode not in (None, 0), output
        assert f"rank 0 on {socket.gethostname()}: step-00000009 (" in output
        assert f"rank 1 on {socket.gethostname()}: step-00000006 (" in output
        assert not (tmp_path / str(rank) / "finished").exists()
