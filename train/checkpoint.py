"""Checkpoints: a folder each, written aside and renamed, so that one is either complete or not there.

``model.safetensors`` holds the weights, with the resolved configuration in its metadata; ``state.pt`` the rest, in
types that ``torch.load(weights_only=True)`` accepts; ``config.json`` the configuration, for people.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
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
_STEP_PATTERN = re.compile(r"step-(\d{8})")


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or of something else."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint read back.

    Attributes:
        path: its folder.
        config: the resolved training configuration.
        weights: parameter and buffer names to tensors, on the CPU.
        step: optimiser steps done.
    """

    path: Path
    config: dict[str, Any]
    weights: dict[str, Tensor]
    step: int

    @property
    def weights_hash(self) -> str:
        """SHA-256 (hex) of the weights file."""
        with (self.path / WEIGHTS_NAME).open("rb") as stream:
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
    for file in temporary.iterdir():
        _sync(file)
    if target.exists():
        # The same step again, after a resume: the old one is as good, but must make room for the rename.
        shutil.rmtree(target)
    temporary.replace(target)
    _sync(folder)
    return target


def prune_checkpoints(run_dir: Path, keep: int) -> None:
    """Removes all but the newest ``keep`` checkpoints, and what interrupted saves have left."""
    for path in list_checkpoints(run_dir)[:-keep]:
        shutil.rmtree(path)
    for stale in (run_dir / FOLDER_NAME).glob(".step-*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)


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
        with safe_open(folder / WEIGHTS_NAME, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return Checkpoint(
            path=folder, config=json.loads(metadata["config"]), weights=weights, step=int(metadata["step"])
        )
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder}: damaged checkpoint ({error}); remove it to fall back to an older one"
        ) from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
