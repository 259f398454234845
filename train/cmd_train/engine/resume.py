"""Resume a run from its last readable checkpoint."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cmd_extract.schema import is_relabeled
from cmd_train.checkpoints.files import Checkpoint, CheckpointError, list_checkpoints, load_checkpoint, set_aside
from cmd_train.config import MUTABLE_FIELDS, changed_fields
from cmd_train.distributed.process_group import RankContext, gather_texts


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """State of a run that is continued.

    Attributes:
        step: completed steps; 0 without a checkpoint.
        state: other state in the checkpoint; empty without one.
        damaged: newer checkpoints that cannot be read.
    """

    step: int = 0
    state: dict[str, Any] = field(default_factory=dict)
    damaged: tuple[Path, ...] = ()

    def set_aside_damaged(self, context: RankContext) -> None:
        """Rename the damaged checkpoints, so that they no longer count as the newest ones."""
        if context.is_main:
            for checkpoint in self.damaged:
                set_aside(checkpoint)


def resume(
    run_dir: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    stored: dict[str, Any],
    total_steps: int,
    context: RankContext,
    log: Callable[[str], None],
) -> Resumed:
    """Load the last readable checkpoint of a run folder, if there is one; a collective operation.

    Args:
        run_dir: run folder.
        model, optimizer: objects to load the checkpoint into.
        stored: configuration to be recorded in checkpoints of this run; must match the recorded one.
        total_steps: steps of the whole run.
        context: this process among all.
        log: prints a line; called for each damaged checkpoint.

    Raises:
        CheckpointError: the folder contains a run with different settings or data, all of its checkpoints are damaged,
            or ranks see different checkpoints.
    """
    if not list_checkpoints(run_dir):
        _check_same_checkpoint(run_dir, "no checkpoint", context)
        return Resumed()
    checkpoint, state, damaged = _load_last_readable(run_dir, log)
    _check_same_run(run_dir, checkpoint, stored)
    # Compare the contents: checkpoints of the same step may come from different runs.
    _check_same_checkpoint(run_dir, f"{checkpoint.path.name} ({checkpoint.weights_hash})", context)
    model.load_state_dict(checkpoint.weights)
    optimizer.load_state_dict(state["optimizer"])
    return Resumed(step=min(checkpoint.step, total_steps), state=state, damaged=damaged)


def _load_last_readable(
    run_dir: Path, log: Callable[[str], None]
) -> tuple[Checkpoint, dict[str, Any], tuple[Path, ...]]:
    """Return the newest checkpoint that can be read, its state, and the newer ones, which cannot.

    Raises:
        CheckpointError: none can be read.
    """
    damaged: list[Path] = []
    for folder in reversed(list_checkpoints(run_dir)):
        try:
            checkpoint = load_checkpoint(folder)
            # Imported weights have a state without optimizer, and are refused later.
            return checkpoint, checkpoint.load_state(), tuple(damaged)
        except CheckpointError as error:
            log(f"Warning: {error}")
            damaged.append(folder)
    raise CheckpointError(f"{run_dir}: all checkpoints are damaged, see above; remove the folder to start again")


def _check_same_run(run_dir: Path, checkpoint: Checkpoint, stored: dict[str, Any]) -> None:
    """Check that a checkpoint was written by a run with the same task, shards and settings.

    Raises:
        CheckpointError: it was not.
    """
    if "imported" in checkpoint.config:
        raise CheckpointError(f"{run_dir} contains imported weights; choose another folder and use --init {run_dir}")
    if ("classes" in checkpoint.config) != ("classes" in stored):
        task = "fine-tuning" if "classes" in checkpoint.config else "pre-training"
        raise CheckpointError(f"{run_dir} contains a {task} run; choose another folder")
    trained_on = checkpoint.config.get("data_hash")
    if trained_on != stored["data_hash"]:
        relabeled = is_relabeled(trained_on, stored["data_hash"])
        shards = "these shards before they were relabeled" if relabeled else "different shards"
        raise CheckpointError(f"{run_dir} contains a run on {shards}; choose another folder")
    changed = changed_fields(checkpoint.config["settings"], stored["settings"])
    changed = [change for change in changed if not change.startswith(MUTABLE_FIELDS)]
    if changed:
        raise CheckpointError(
            f"{run_dir} contains a run with different settings ({'; '.join(changed)}); "
            "choose another folder, or use the same settings to continue it"
        )


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
