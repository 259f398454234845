"""Continuing a training from its last checkpoint, if it is the same training."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cmd_train.checkpoints.files import CheckpointError, list_checkpoints, load_checkpoint
from cmd_train.config import FREE, changed_fields
from cmd_train.distributed.process_group import Placement, from_all_ranks


def resume(
    run_dir: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    stored: dict[str, Any],
    total_steps: int,
    placement: Placement,
) -> tuple[int, dict[str, Any]]:
    """Loads the last checkpoint of a folder, if there is one; all ranks must call this together.

    Args:
        run_dir: the training's folder.
        model, optimizer: what it is loaded into.
        stored: what checkpoints of this training say of where they come from; must fit.
        total_steps: of this training.
        placement: this process among all.

    Returns:
        The steps done, and the checkpoint's other state; 0 and nothing without a checkpoint.

    Raises:
        CheckpointError: the folder holds a training of something else, or ranks see different checkpoints.
    """
    if not list_checkpoints(run_dir):
        _compare(run_dir, "no checkpoint", placement)
        return 0, {}
    checkpoint = load_checkpoint(run_dir)
    if "imported" in checkpoint.config:
        raise CheckpointError(f"{run_dir} holds imported weights; choose another folder and give --init {run_dir}")
    if ("classes" in checkpoint.config) != ("classes" in stored):
        task = "fine-tuning" if "classes" in checkpoint.config else "pre-training"
        raise CheckpointError(f"{run_dir} holds a {task}; choose another folder")
    if checkpoint.config.get("data_hash") != stored["data_hash"]:
        raise CheckpointError(f"{run_dir} was trained on other shards; choose another folder")
    changed = changed_fields(checkpoint.config["settings"], stored["settings"])
    changed = [change for change in changed if not change.startswith(FREE)]
    if changed:
        raise CheckpointError(
            f"{run_dir} holds a training of another configuration ({'; '.join(changed)}); "
            "choose another folder, or give the same settings to continue it"
        )
    # Which checkpoint is told with its bytes: a step's number alone may be that of another run's.
    _compare(run_dir, f"{checkpoint.path.name} ({checkpoint.weights_hash})", placement)
    model.load_state_dict(checkpoint.weights)
    state = checkpoint.load_state()
    optimizer.load_state_dict(state["optimizer"])
    return min(checkpoint.step, total_steps), state


def _compare(run_dir: Path, found: str, placement: Placement) -> None:
    """Refuses ranks that would begin at different steps: their folder is not shared, or a host lists it late.

    Raises:
        CheckpointError: they differ; the message says who has found what.
    """
    said = from_all_ranks(f"on {socket.gethostname()}: {found}", placement)
    if len({each.partition(": ")[2] for each in said}) > 1:
        listed = "; ".join(f"rank {rank} {each}" for rank, each in enumerate(said))
        raise CheckpointError(
            f"{run_dir}: ranks do not see the same last checkpoint ({listed}). All hosts must share this folder; "
            "where they do, one of them had not seen the newest files yet: start again"
        )
