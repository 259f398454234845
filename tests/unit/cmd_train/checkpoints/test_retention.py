from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cmd_train.checkpoints.files import list_checkpoints, load_checkpoint, save_checkpoint
from cmd_train.checkpoints.retention import CheckpointPlan
from cmd_train.config import RunConfig
from tests.paths import ROOT


def run(folder: Path, plan: CheckpointPlan, steps: range, losses: dict[int, float]) -> list[int]:
    """Saves where the plan says so; returns the steps that are left."""
    for step in steps:
        if plan.due(step):
            plan.judge(step, {"loss": losses.get(step, 9.0)}, None)
            save_checkpoint(folder, step=step, weights={"w": torch.ones(1)}, state={"best": plan.state()}, config={})
            plan.tidy(folder)
    return [load_checkpoint(path).step for path in list_checkpoints(folder)]


def test_the_last_the_best_and_milestones_stay(tmp_path: Path) -> None:
    config = RunConfig(checkpoint_epochs=1, keep_checkpoints=2, milestone_epochs=4, checkpoint_minutes=0)
    plan = CheckpointPlan(config, 3, None)
    left = run(tmp_path, plan, range(1, 31), {9: 2.0, 15: 1.0, 18: 1.5})
    assert left == [12, 15, 24, 27, 30]
    assert load_checkpoint(tmp_path / "checkpoints" / "best").step == 15
    assert load_checkpoint(tmp_path).step == 30
    # A later run goes on from what the last checkpoint says.
    later = CheckpointPlan(config, 3, load_checkpoint(tmp_path).load_state()["best"])
    assert run(tmp_path, later, range(31, 40), {33: 1.2, 36: 0.5}) == [12, 24, 36, 39]
    assert load_checkpoint(tmp_path / "checkpoints" / "best").step == 36


def test_a_copy_that_follows_links_is_put_right(tmp_path: Path) -> None:
    plan = CheckpointPlan(RunConfig(checkpoint_epochs=1, checkpoint_minutes=0), 1, None)
    (tmp_path / "checkpoints" / "best").mkdir(parents=True)
    run(tmp_path, plan, range(1, 3), {1: 1.0})
    assert (tmp_path / "checkpoints" / "best").is_symlink()


def test_checkpoints_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("cmd_train.checkpoints.retention.time.monotonic", lambda: now[0])
    plan = CheckpointPlan(RunConfig(checkpoint_epochs=100, checkpoint_minutes=2), 10, None)
    assert not plan.due(5)
    now[0] += 121
    assert plan.due(5)
    plan.judge(5, {"loss": 0.1}, None)
    assert plan.state() is None, "the best one must not depend on the clock"
    never = CheckpointPlan(RunConfig(checkpoint_epochs=100, checkpoint_minutes=0), 10, None)
    now[0] += 1e9
    assert not never.due(5)


def test_retrieval_is_judged_where_it_is_watched() -> None:
    plan = CheckpointPlan(RunConfig(knn_epochs=2, checkpoint_epochs=1, checkpoint_minutes=0), 5, None)
    assert [step for step in range(1, 21) if plan.watches(step)] == [10, 20]
    plan.judge(10, {"loss": 5.0}, 0.5)
    plan.judge(15, {"loss": 0.1}, None)
    plan.judge(20, {"loss": 0.1}, 0.4)
    assert plan.state() == {"step": 10, "value": 0.5, "judged_by": "retrieval_r1"}


_PROGRAM = """
import os, signal, sys, torch
from pathlib import Path
from cmd_train.checkpoints import files as checkpoint
def save(step):
    checkpoint.save_checkpoint(Path(sys.argv[1]), step=step, weights={"w": torch.full((1000,), float(step))},
                               state={"step": step}, config={})
save(1)
name, count = sys.argv[2], [0]
owner = {"save": torch, "_sync": checkpoint, "replace": Path, "fsync": os}[name]
plain = getattr(owner, name)
def wait(*arguments, **named):
    print("in the middle", flush=True)
    signal.pause()
setattr(owner, name, wait)
save(int(sys.argv[3]))
"""


@pytest.mark.parametrize(("place", "step"), [("save", 2), ("_sync", 2), ("replace", 2), ("fsync", 2), ("replace", 1)])
def test_a_kill_in_the_middle_of_a_save_costs_nothing(place: str, step: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _PROGRAM, str(tmp_path), place, str(step)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == "in the middle\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2, "half a checkpoint lies beside the whole one"
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.step == checkpoint.load_state()["step"] == 1
    plan = CheckpointPlan(RunConfig(checkpoint_epochs=1, checkpoint_minutes=0), 1, None)
    assert run(tmp_path, plan, range(2, 4), {}) == [2, 3]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-00000002", "step-00000003", "best"}
