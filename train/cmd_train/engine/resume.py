"""Resume a run from its last checkpoint."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cmd_train.checkpoints.files import CheckpointError, list_checkpoints, load_checkpoint
from cmd_train.config import MUTABLE_FIELDS, changed_fields
from cmd_train.distributed.process_group import RankContext, gather_texts


def resume(
    run_dir: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    stored: dict[str, Any],
    total_steps: int,
    context: RankContext,
) -> tuple[int, dict[str, Any]]:
    """Load the last checkpoint of a run folder, if there is one; a collective operation.

    Args:
        run_dir: run folder.
        model, optimizer: objects to load the checkpoint into.
        stored: configuration to be recorded in checkpoints of this run; must match the recorded one.
        total_steps: steps of the whole run.
        context: this process among all.

    Returns:
        The number of completed steps and the other state in the checkpoint; 0 and an empty dict without a checkpoint.

    Raises:
        CheckpointError: the folder contains a run with different settings or data, or ranks see different checkpoints.
    """
    if not list_checkpoints(run_dir):
        _check_same_checkpoint(run_dir, "no checkpoint", context)
        return 0, {}
    checkpoint = load_checkpoint(run_dir)
    if "imported" in checkpoint.config:
        raise CheckpointError(f"{run_dir} contains imported weights; choose another folder and use --init {run_dir}")
    if ("classes" in checkpoint.config) != ("classes" in stored):
        task = "fine-tuning" if "classes" in checkpoint.config else "pre-training"
        raise CheckpointError(f"{run_dir} contains a {task} run; choose another folder")
    if checkpoint.config.get("data_hash") != stored["data_hash"]:
        raise CheckpointError(f"{run_dir} contains a run on different shards; choose another folder")
    changed = changed_fields(checkpoint.config["settings"], stored["settings"])
    changed = [change for change in changed if not change.startswith(MUTABLE_FIELDS)]
    if changed:
        raise CheckpointError(
            f"{run_dir} contains a run with different settings ({'; '.join(changed)}); "
            "choose another folder, or use the same settings to continue it"
        )
    # Compare the contents: checkpoints of the same step may come from different runs.
    _check_same_checkpoint(run_dir, f"{checkpoint.path.name} ({checkpoint.weights_hash})", context)
    model.load_state_dict(checkpoint.weights)
    state = checkpoint.load_state()
    optimizer.load_state_dict(state["optimizer"])
    return min(checkpoint.step, total_steps), state


def _check_same_checkpoint(run_dir: Path, found: str, context: RankContext) -> None:
    """Check that all ranks found the same checkpoint: the folder may not be shared, or a host may list it late.

    Raises:
        CheckpointError: they did not; the message lists what each rank found.
    """
    reports = gather_texts(f"on {socket.gethostname()}: {found}", context)
    if len({each.partition(": ")[2] for each in reports}) > 1:
        listed = "; ".join(f"rank {rank} {each}" for rank, each in enumerate(reports))
        raise CheckpointError(
            f"{run_dir}: ranks do not see the same last checkpoint ({listed}). All hosts must share this folder; if "
            "they do, one of them has not seen the newest files yet: start again"
        )
