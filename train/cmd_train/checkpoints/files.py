"""Checkpoints: a folder each, written aside and renamed, so that one is either complete or not there.

``model.safetensors`` holds the weights, with the resolved configuration in its metadata; ``state.pt`` the rest, in
types that ``torch.load(weights_only=True)`` accepts; ``config.json`` the configuration, for people. The link ``best``
points to the best of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FOLDER_NAME = "checkpoints"
WEIGHTS_NAME = "model.safetensors"
STATE_NAME = "state.pt"
CONFIG_NAME = "config.json"
BEST_NAME = "best"
_STEP_PATTERN = re.compile(r"step-(\d{8})")


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or of something else."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint read back.

    Attributes:
        path: its folder.
        weights_file: the file of its weights.
        config: the resolved training configuration.
        weights: parameter and buffer names to tensors, on the CPU.
        step: optimiser steps done.
    """

    path: Path
    weights_file: Path
    config: dict[str, Any]
    weights: dict[str, Tensor]
    step: int

    @property
    def weights_hash(self) -> str:
        """SHA-256 (hex) of the weights file."""
        with self.weights_file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def load_state(self) -> dict[str, Any]:
        """Optimiser and counters."""
        state: dict[str, Any] = torch.load(self.path / STATE_NAME, map_location="cpu", weights_only=True)
        return state


def save_checkpoint(
    run_dir: Path, *, step: int, weights: Mapping[str, Tensor], state: Mapping[str, Any], config: Mapping[str, Any]
) -> Path:
    """Writes a checkpoint of ``step`` into ``run_dir``.

    Args:
        run_dir: the training's folder.
        step: optimiser steps done.
        weights: the model's state dict.
        state: anything else, of tensors, numbers, strings, lists and dicts.
        config: the resolved configuration.

    Returns:
        The checkpoint's folder.
    """
    folder = run_dir / FOLDER_NAME
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:08d}"
    temporary = folder / f".{target.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    text = json.dumps(config, indent=1, sort_keys=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    save_file(tensors, temporary / WEIGHTS_NAME, metadata={"config": text, "step": str(step)})
    torch.save(dict(state), temporary / STATE_NAME)
    (temporary / CONFIG_NAME).write_text(text + "\n", "utf-8")
    for file in (*temporary.iterdir(), temporary):
        _sync(file)
    if target.exists():
        # The same step again: the old one makes room by a rename, so that a kill leaves it whole or out of the way.
        target.replace(temporary.with_suffix(".old.tmp"))
    temporary.replace(target)
    _sync(folder)
    return target


def prune_checkpoints(run_dir: Path, keep: int, stays: Callable[[int], bool] = lambda _: False) -> None:
    """Removes all but the newest ``keep`` checkpoints, and what interrupted saves have left.

    Args:
        run_dir: the training's folder.
        keep: how many stay, at least 1.
        stays: tells by the step which others stay.
    """
    folder = run_dir / FOLDER_NAME
    for path in list_checkpoints(run_dir)[:-keep]:
        if not stays(int(path.name.removeprefix("step-"))):
            # Out of the list first: half a checkpoint must not look like a whole one.
            doomed = folder / f".{path.name}.{os.getpid()}.tmp"
            path.replace(doomed)
    for stale in folder.glob(".step-*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)


def mark_best(run_dir: Path, step: int | None) -> None:
    """Makes ``checkpoints/best`` a link to the checkpoint of a step; removes it if there is none."""
    folder = run_dir / FOLDER_NAME
    link, target = folder / BEST_NAME, folder / f"step-{step:08d}" if step is not None else None
    if link.is_dir() and not link.is_symlink():
        # Somebody has copied the folder in a way that follows links.
        shutil.rmtree(link)
    if target is None or not target.is_dir():
        link.unlink(missing_ok=True)
        return
    temporary = folder / f".{BEST_NAME}.{os.getpid()}.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name, target_is_directory=True)
    temporary.replace(link)


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The complete checkpoints of a training, oldest first."""
    folder = run_dir / FOLDER_NAME
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _STEP_PATTERN.fullmatch(path.name))


def find_checkpoint(path: Path) -> Path:
    """The folder of a checkpoint; a training's folder stands for its last one.

    Raises:
        CheckpointError: there is none.
    """
    if (path / WEIGHTS_NAME).is_file():
        return path
    saved = list_checkpoints(path)
    if not saved:
        raise CheckpointError(f"{path}: no checkpoint there; give a folder that `cmd-train pretrain` has written")
    return saved[-1]


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint, or the last one of a training's folder.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    folder = find_checkpoint(path)
    try:
        return read_weights(folder / WEIGHTS_NAME)
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder}: damaged checkpoint ({error}); remove it to fall back to an older one"
        ) from error


def read_weights(file: Path) -> Checkpoint:
    """Reads the weights file of a checkpoint, whatever its name is now.

    Raises:
        KeyError, ValueError, OSError, SafetensorError: it is none.
    """
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() or {}
        weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    return Checkpoint(
        path=file.parent,
        weights_file=file,
        config=json.loads(metadata["config"]),
        weights=weights,
        step=int(metadata["step"]),
    )


def is_weights_file(file: Path) -> bool:
    """Whether a file, of whatever name, is the weights file of a checkpoint: it carries a configuration and a step."""
    if not file.is_file():
        return False
    try:
        with safe_open(file, framework="pt") as opened:
            return {"config", "step"} <= (opened.metadata() or {}).keys()
    except (SafetensorError, OSError):
        return False


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


FINISHED_NAME = "finished"
