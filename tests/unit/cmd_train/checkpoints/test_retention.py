from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cmd_train.checkpoints.files import list_checkpoints, load_checkpoint, save_checkpoint
from cmd_train.checkpoints.retention import CheckpointPolicy
from cmd_train.config import RunConfig
from tests.paths import ROOT


def run(folder: Path, policy: CheckpointPolicy, steps: range, retrieval: dict[int, float]) -> list[int]:
    """Save according to the policy; return the steps of the remaining checkpoints."""
    for step in steps:
        if policy.should_save(step):
            policy.score(step, retrieval.get(step))
            save_checkpoint(folder, step=step, weights={"w": torch.ones(1)}, state={"best": policy.state()}, config={})
            policy.prune(folder)
    return [load_checkpoint(path).step for path in list_checkpoints(folder)]


def test_newest_best_and_milestone_checkpoints_are_kept(tmp_path: Path) -> None:
    config = RunConfig(checkpoint_epochs=1, keep_checkpoints=2, milestone_epochs=4, checkpoint_minutes=0)
    policy = CheckpointPolicy(config, 3, None)
    left = run(tmp_path, policy, range(1, 31), {9: 0.2, 15: 0.4, 18: 0.3})
    assert left == [12, 15, 24, 27, 30]
    assert load_checkpoint(tmp_path / "checkpoints" / "best").step == 15
    assert load_checkpoint(tmp_path).step == 30
    # A later run continues with the best checkpoint recorded in the last one.
    later = CheckpointPolicy(config, 3, load_checkpoint(tmp_path).load_state()["best"])
    assert run(tmp_path, later, range(31, 40), {33: 0.3, 36: 0.5}) == [12, 24, 36, 39]
    assert load_checkpoint(tmp_path / "checkpoints" / "best").step == 36


def test_copied_folder_in_place_of_the_link_is_replaced(tmp_path: Path) -> None:
    policy = CheckpointPolicy(RunConfig(checkpoint_epochs=1, checkpoint_minutes=0), 1, None)
    (tmp_path / "checkpoints" / "best").mkdir(parents=True)
    run(tmp_path, policy, range(1, 3), {1: 0.4})
    assert (tmp_path / "checkpoints" / "best").is_symlink()


def test_checkpoints_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("cmd_train.checkpoints.retention.time.monotonic", lambda: now[0])
    policy = CheckpointPolicy(RunConfig(checkpoint_epochs=100, checkpoint_minutes=2), 10, None)
    assert not policy.should_save(5)
    now[0] += 121
    assert policy.should_save(5)
    policy.score(5, None)
    assert policy.state() is None
    never = CheckpointPolicy(RunConfig(checkpoint_epochs=100, checkpoint_minutes=0), 10, None)
    now[0] += 1e9
    assert not never.should_save(5)


def test_retrieval_is_the_criterion() -> None:
    policy = CheckpointPolicy(RunConfig(knn_epochs=2, checkpoint_epochs=1, checkpoint_minutes=0), 5, None)
    assert [step for step in range(1, 21) if policy.should_evaluate(step)] == [10, 20]
    policy.score(10, 0.5)
    policy.score(15, None)
    policy.score(20, 0.4)
    assert policy.state() == {"step": 10, "value": 0.5}


_PROGRAM = """
import os, signal, sys, torch
from pathlib import Path
from cmd_train.checkpoints import files as checkpoint
def save(step):
    checkpoint.save_checkpoint(Path(sys.argv[1]), step=step, weights={"w": torch.full((1000,), float(step))},
                               state={"step": step}, config={})
save(1)
name, count = sys.argv[2], [0]
owner = {"save": torch, "sync": checkpoint, "replace": Path, "fsync": os}[name]
plain = getattr(owner, name)
def wait(*arguments, **named):
    print("saving", flush=True)
    signal.pause()
setattr(owner, name, wait)
save(int(sys.argv[3]))
"""


@pytest.mark.parametrize(("place", "step"), [("save", 2), ("sync", 2), ("replace", 2), ("fsync", 2), ("replace", 1)])
def test_kill_during_a_save_loses_no_checkpoint(place: str, step: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _PROGRAM, str(tmp_path), place, str(step)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == "saving\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2, "an incomplete checkpoint beside the complete one"
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.step == checkpoint.load_state()["step"] == 1
    policy = CheckpointPolicy(RunConfig(checkpoint_epochs=1, checkpoint_minutes=0), 1, None)
    assert run(tmp_path, policy, range(2, 4), {3: 0.5}) == [2, 3]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-00000002", "step-00000003", "best"}
