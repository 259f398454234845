from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from cmd_train.checkpoints.files import (
    CheckpointError,
    find_checkpoint,
    follow_best,
    link_best,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from cmd_train.checkpoints.initial import open_source


def save(run_dir: Path, step: int) -> Path:
    weights = {"w": torch.full((2, 3), float(step)), "n": torch.tensor(step)}
    return save_checkpoint(run_dir, step=step, weights=weights, state={"step": step}, config={"a": {"b": 1}})


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    save(tmp_path, 5)
    path = save(tmp_path, 12)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.path == path == find_checkpoint(path)
    assert checkpoint.step == 12
    assert checkpoint.config == {"a": {"b": 1}}
    assert torch.equal(checkpoint.weights["w"], torch.full((2, 3), 12.0))
    assert checkpoint.load_state() == {"step": 12}
    with safe_open(path / "model.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["config"]) == {"a": {"b": 1}}


def test_failed_save_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, 2)
    assert load_checkpoint(tmp_path).step == 1
    monkeypatch.undo()
    for step in (3, 4):
        save(tmp_path, step)
    prune_checkpoints(tmp_path, 2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000003", "step-00000004"]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2, "the leftovers of the failed save are removed"


def test_errors_name_missing_and_damaged_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_checkpoint(tmp_path)
    path = save(tmp_path, 1)
    (path / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match="step-00000001"):
        load_checkpoint(tmp_path)


def test_without_symbolic_links_the_best_checkpoint_is_named_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "symlink", refuse)
    best = tmp_path / "checkpoints" / "best"
    for step in (1, 2, 3):
        save(tmp_path, step)
    for step in (1, 2):
        link_best(tmp_path, step)
        assert load_checkpoint(best).step == step
        assert find_checkpoint(best) == follow_best(best) == best.with_name(f"step-{step:08d}")
        assert open_source(best).file == best.with_name(f"step-{step:08d}") / "model.safetensors"
    assert load_checkpoint(tmp_path).step == 3
    monkeypatch.undo()
    link_best(tmp_path, 3)
    assert best.is_symlink()
    assert load_checkpoint(best).step == 3
    link_best(tmp_path, None)
    assert not best.exists()


def test_saving_needs_no_sync_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    save(tmp_path, 1)
    assert load_checkpoint(tmp_path).step == 1
