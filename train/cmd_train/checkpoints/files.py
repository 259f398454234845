"""Checkpoints: one folder each, written under a temporary name and renamed, so that a checkpoint is always complete.

``model.safetensors`` holds the weights, with the resolved configuration in its metadata; ``state.pt`` the optimizer and
counters, in types that ``torch.load(weights_only=True)`` accepts; ``config.json`` the configuration in readable form.
The link ``best`` points to the best checkpoint; on file systems without symbolic links it is a file with its name.
"""

from __future__ import annotations

import hashlib
import json
import pickle
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

from cmd_extract.system.files import remove, remove_leftovers, sync, temporary_path

FOLDER_NAME = "checkpoints"
WEIGHTS_NAME = "model.safetensors"
STATE_NAME = "state.pt"
CONFIG_NAME = "config.json"
BEST_NAME = "best"
EXPORTED = "exported"
"""Key of the configuration that only exported backbones have, see ``cmd_train.export``."""
NAME_PREFIX = "name_prefix"
"""Key of the metadata of weights whose names lack a prefix: exported backbones have plain names."""
FINISHED_NAME = "finished"
"""File in a run folder that marks a finished run."""
_STEP_PATTERN = re.compile(r"step-(\d{8})")


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or belongs to a different run."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        path: checkpoint folder.
        weights_file: weights file.
        config: the recorded configuration: settings, data and origin of the run.
        weights: tensors by parameter or buffer name, on the CPU.
        step: completed optimizer steps.
    """

    path: Path
    weights_file: Path
    config: dict[str, Any]
    weights: dict[str, Tensor]
    step: int

    @property
    def weights_hash(self) -> str:
        """SHA-256 (hex) of the weights file."""
        return sha256(self.weights_file)

    def load_state(self) -> dict[str, Any]:
        """Load the optimizer state and counters.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        if EXPORTED in self.config:  # an exported backbone has no state of an optimizer
            return {"step": self.step, "recent_metrics": self.config[EXPORTED].get("metrics", {})}
        file = self.path / STATE_NAME
        try:
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
            raise CheckpointError(_damaged(file, error)) from error
        return state


def save_checkpoint(
    run_dir: Path, *, step: int, weights: Mapping[str, Tensor], state: Mapping[str, Any], config: Mapping[str, Any]
) -> Path:
    """Write a checkpoint to a run folder.

    Args:
        run_dir: run folder.
        step: completed optimizer steps.
        weights: state dict of the model.
        state: other state, made of tensors, numbers, strings, lists and dicts.
        config: configuration to record.

    Returns:
        The checkpoint folder.
    """
    folder = run_dir / FOLDER_NAME
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:08d}"
    temporary = temporary_path(target)
    temporary.mkdir()
    text = json.dumps(config, indent=1, sort_keys=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    save_file(tensors, temporary / WEIGHTS_NAME, metadata={"config": text, "step": str(step)})
    torch.save(dict(state), temporary / STATE_NAME)
    (temporary / CONFIG_NAME).write_text(text + "\n", "utf-8")
    # safetensors creates files that only their owner can read, whatever the umask.
    shutil.copymode(temporary / CONFIG_NAME, temporary / WEIGHTS_NAME)
    for file in (*temporary.iterdir(), temporary):
        sync(file)
    if target.exists():
        # Move an old checkpoint of the same step away by renaming it, so that a kill never leaves half of one.
        target.replace(temporary_path(target))
    temporary.replace(target)
    sync(folder)
    return target


def prune_checkpoints(run_dir: Path, keep: int, protected: Callable[[int], bool] = lambda _: False) -> None:
    """Remove all but the newest checkpoints, and the leftovers of interrupted saves.

    Args:
        run_dir: run folder.
        keep: number of newest checkpoints to keep, at least 1.
        protected: whether to keep an older checkpoint, given its step.
    """
    folder = run_dir / FOLDER_NAME
    for path in list_checkpoints(run_dir)[:-keep]:
        if not protected(int(path.name.removeprefix("step-"))):
            # Rename it first: a partly removed checkpoint must not look complete.
            away = temporary_path(path)
            path.replace(away)
            remove(away)
    remove_leftovers(folder)


def link_best(run_dir: Path, step: int | None) -> None:
    """Link ``checkpoints/best`` to the checkpoint of a step; remove the link if there is no such checkpoint."""
    folder = run_dir / FOLDER_NAME
    link, target = folder / BEST_NAME, folder / f"step-{step:08d}" if step is not None else None
    if link.is_dir() and not link.is_symlink():
        # The run folder was copied by a program that follows links.
        shutil.rmtree(link)
    if target is None or not target.is_dir():
        link.unlink(missing_ok=True)
        return
    temporary = temporary_path(link)
    try:
        temporary.symlink_to(target.name, target_is_directory=True)
    except OSError:  # a file system without symbolic links, such as CIFS or exFAT
        temporary.write_text(target.name + "\n", "utf-8")
    temporary.replace(link)


def follow_best(path: Path) -> Path:
    """Return the checkpoint that ``checkpoints/best`` names if it is a file instead of a link; any other path as is."""
    if path.name != BEST_NAME or not path.is_file():
        return path
    named = path.read_text("utf-8", errors="replace").strip()
    return path.with_name(named) if _STEP_PATTERN.fullmatch(named) else path


def set_aside(checkpoint: Path) -> None:
    """Rename a damaged checkpoint, so that it no longer counts as one: ``damaged-step-00000020``."""
    target = checkpoint.with_name(f"damaged-{checkpoint.name}")
    remove(target)
    checkpoint.rename(target)


def list_checkpoints(run_dir: Path) -> list[Path]:
    """List the checkpoints of a run, oldest first."""
    folder = run_dir / FOLDER_NAME
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _STEP_PATTERN.fullmatch(path.name))


def find_checkpoint(path: Path) -> Path:
    """Return a checkpoint folder.

    Args:
        path: that folder, ``checkpoints/best``, or a run folder, which stands for its last checkpoint.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    path = follow_best(path)
    if (path / WEIGHTS_NAME).is_file():
        return path
    saved = list_checkpoints(path)
    if not saved:
        raise CheckpointError(f"{path}: no checkpoint found; give a run folder of cmd-train or one of its checkpoints")
    return saved[-1]


def load_checkpoint(path: Path) -> Checkpoint:
    """Load a checkpoint, or the last one in a run folder.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    folder = find_checkpoint(path)
    try:
        return read_weights(folder / WEIGHTS_NAME)
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise CheckpointError(_damaged(folder / WEIGHTS_NAME, error)) from error


def _damaged(file: Path, error: Exception) -> str:
    reason = str(error).partition("\n")[0] or type(error).__name__
    return f"{file}: damaged checkpoint ({reason}); remove {file.parent} to fall back to an older one"


def read_config(checkpoint: Path) -> dict[str, Any]:
    """Read the recorded configuration of a checkpoint, without its weights.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    file = checkpoint / WEIGHTS_NAME
    try:
        with safe_open(file, framework="pt") as opened:
            config: dict[str, Any] = json.loads(opened.metadata()["config"])
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise CheckpointError(_damaged(file, error)) from error
    return config


def read_weights(file: Path) -> Checkpoint:
    """Load the weights file of a checkpoint; it may have been renamed.

    Raises:
        KeyError, ValueError, OSError, SafetensorError: not the weights file of a checkpoint.
    """
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() or {}
        prefix = metadata.get(NAME_PREFIX, "")
        weights = {prefix + name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    return Checkpoint(
        path=file.parent,
        weights_file=file,
        config=json.loads(metadata["config"]),
        weights=weights,
        step=int(metadata["step"]),
    )


def is_weights_file(file: Path) -> bool:
    """Return whether a file of any name is the weights file of a checkpoint, by its metadata."""
    if not file.is_file():
        return False
    try:
        with safe_open(file, framework="pt") as opened:
            return {"config", "step"} <= (opened.metadata() or {}).keys()
    except (SafetensorError, OSError):
        return False


def sha256(file: Path) -> str:
    """Return the SHA-256 digest (hex) of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
