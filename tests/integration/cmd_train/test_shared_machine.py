"""Faults of shared machines: two runs in one folder, damaged files, long paths."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import time
from pathlib import Path

import pytest
import torch

from cmd_extract.system.claims import Claims, Owner
from cmd_train.checkpoints.files import CheckpointError, list_checkpoints, load_checkpoint
from cmd_train.cli.main import main
from cmd_train.distributed.process_group import RankContext
from cmd_train.engine.claim import claim_run
from tests.command_line import call
from tests.integration.cmd_train.training import options

ONE = RankContext(rank=0, world_size=1, device=torch.device("cpu"))


def train(shards: Path, run: Path, **changes: object) -> str:
    result = call(main, "pretrain", shards, run, *options(**changes))
    assert result.exit_code == 0, result.output
    return result.output


def test_a_second_run_in_the_same_folder_is_refused(few_shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with claim_run(run, ONE, print):
        refused = call(main, "pretrain", few_shards, run, *options(optim__epochs=1))
        assert refused.exit_code == 1
        assert f"Error: {run}: process {os.getpid()} on " in refused.output
        assert "choose another folder" in refused.output
        assert not list_checkpoints(run)
    assert not run.exists(), "nothing was written"
    train(few_shards, run, optim__epochs=1)
    assert not (run / "claims").exists()


def leave_claim(run: Path, **changes: object) -> Path:
    """Leave the claim of another process in a run folder."""
    claims = Claims(out=run)
    claims.folder.mkdir(parents=True)
    path = claims.folder / "training"
    path.write_text(json.dumps(vars(Owner.current()) | changes))
    return path


def test_the_claim_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    leave_claim(tmp_path / "here", pid=process.pid)
    with claim_run(tmp_path / "here", ONE, print):
        pass
    # On another host it must first be silent for long enough.
    leave_claim(tmp_path / "there", machine="another", host="there")
    start, lines = time.monotonic(), []
    with claim_run(tmp_path / "there", ONE, lines.append, stale_seconds=2.0):
        assert time.monotonic() - start > 1.0
    assert "waiting for a heartbeat" in lines[0]


def test_a_living_process_on_another_host_is_noticed(tmp_path: Path) -> None:
    path = leave_claim(tmp_path, machine="another", host="there", pid=7)
    beat = subprocess.Popen(["sh", "-c", f"while true; do touch {path}; sleep 0.1; done"])
    try:
        with (
            pytest.raises(CheckpointError, match="process 7 on there trains in this folder"),
            claim_run(tmp_path, ONE, lambda _: None, stale_seconds=20.0),
        ):
            pass
    finally:
        beat.kill()
        beat.wait()
    assert path.exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "missing", "weights", "two"])
def test_a_damaged_checkpoint_falls_back_to_an_older_one(damage: str, few_shards: Path, tmp_path: Path) -> None:
    plain, run = tmp_path / "plain", tmp_path / "run"
    settings = {"optim__epochs": 3, "run__checkpoint_epochs": 1, "run__keep_checkpoints": 5}
    train(few_shards, plain, **settings)
    train(few_shards, run, **settings)
    last = list_checkpoints(run)[-1]
    file = last / ("model.safetensors" if damage in ("weights", "two") else "state.pt")
    if damage == "two":
        os.truncate(list_checkpoints(run)[-2] / "model.safetensors", 1000)
    if damage == "missing":
        file.unlink()
    else:
        os.truncate(file, 0 if damage == "empty" else 1000)
    output = train(few_shards, run, **settings)
    assert f"Warning: {file}: damaged checkpoint (" in output
    assert (last.parent / f"damaged-{last.name}").is_dir()
    # The repeated steps give the same weights.
    first, second = (load_checkpoint(folder).weights for folder in (plain, run))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    assert (run / "metrics.jsonl").read_text().count("\n") == (plain / "metrics.jsonl").read_text().count("\n")


def test_without_a_readable_checkpoint_the_run_is_refused(few_shards: Path, tmp_path: Path) -> None:
    train(few_shards, tmp_path / "run", optim__epochs=1)
    for checkpoint in list_checkpoints(tmp_path / "run"):
        (checkpoint / "state.pt").unlink()
    refused = call(main, "pretrain", few_shards, tmp_path / "run", *options(optim__epochs=1))
    assert refused.exit_code == 1
    assert "all checkpoints are damaged, see above; remove the folder to start again" in refused.output


def test_damaged_lines_of_metrics_are_reported_and_removed(few_shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = {"optim__epochs": 2, "run__checkpoint_epochs": 1, "run__keep_checkpoints": 5}
    train(few_shards, run, **settings)
    metrics = run / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(lines[0] + b"\0" * 40 + lines[1] + b"".join(lines[2:]))
    output = train(few_shards, run, **settings)
    assert f"Warning: {metrics}, line 2: damaged, removed" in output
    assert metrics.read_bytes() == b"".join(lines[:1] + lines[2:])


def test_files_have_the_mode_of_the_umask(few_shards: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        train(few_shards, tmp_path / "run", optim__epochs=1)
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in files}
    assert {"model.safetensors", "state.pt", "config.json", "metrics.jsonl"} <= modes.keys()
    assert set(modes.values()) == {0o640}, modes


@pytest.mark.parametrize("dry", [False, True])
def test_a_warm_up_as_long_as_the_run_is_reported_before_the_first_step(
    dry: bool, few_shards: Path, tmp_path: Path
) -> None:
    arguments = options(optim__epochs=1, optim__warmup_epochs=2)
    result = call(main, "pretrain", few_shards, tmp_path / "run", *arguments, *(["--dry-run"] if dry else []))
    assert result.exit_code == 0, result.output
    warning = "Warning: optim.warmup_epochs = 2 is not less than optim.epochs = 1: the learning rate ends at"
    assert warning in result.output
    assert "step 1/" not in result.output.partition(warning)[0]
