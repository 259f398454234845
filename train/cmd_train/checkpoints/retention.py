"""Checkpoint policy: when to save, and which checkpoints to keep (the newest, milestones, the best)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cmd_train.checkpoints.files import link_best, prune_checkpoints
from cmd_train.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best checkpoint so far.

    Attributes:
        step: completed steps.
        value: its ``retrieval_r1``.
    """

    step: int
    value: float


class CheckpointPolicy:
    """Decides after each step whether to save, and after each save which checkpoints to remove.

    Args:
        config: checkpoint settings.
        steps_per_epoch: steps per epoch.
        best: the best checkpoint so far, as returned by ``state``; None at the start of a run.
    """

    def __init__(self, config: RunConfig, steps_per_epoch: int, best: Mapping[str, Any] | None) -> None:
        self._config, self._steps_per_epoch = config, steps_per_epoch
        self._best = Best(**best) if best else None
        self._saved_at = time.monotonic()

    def should_save(self, step: int) -> bool:
        """Return whether to save a checkpoint after this step."""
        config = self._config
        if any(self._ends(step, n) for n in (config.checkpoint_epochs, config.milestone_epochs, config.knn_epochs)):
            return True
        minutes = config.checkpoint_minutes
        return minutes > 0 and time.monotonic() - self._saved_at >= 60 * minutes

    def should_evaluate(self, step: int) -> bool:
        """Return whether to evaluate retrieval after this step."""
        return self._ends(step, self._config.knn_epochs)

    def _ends(self, step: int, epochs: int) -> bool:
        """Return whether this step ends an interval of the given number of epochs; 0 disables the interval."""
        return epochs > 0 and step % (self._steps_per_epoch * epochs) == 0

    def score(self, step: int, retrieval: float | None) -> None:
        """Compare a checkpoint that is about to be saved with the best one, if retrieval was evaluated."""
        if retrieval is not None and (self._best is None or retrieval > self._best.value):
            self._best = Best(step=step, value=retrieval)

    def state(self) -> dict[str, Any] | None:
        """Return the best checkpoint so far, to be stored in checkpoints."""
        return asdict(self._best) if self._best else None

    def prune(self, run_dir: Path) -> None:
        """Link the best checkpoint and remove outdated ones; call this after each save."""
        self._saved_at = time.monotonic()
        best = self._best.step if self._best else None
        link_best(run_dir, best)
        milestone = self._config.milestone_epochs * self._steps_per_epoch
        prune_checkpoints(
            run_dir,
            self._config.keep_checkpoints,
            protected=lambda step: step == best or (milestone > 0 and step % milestone == 0),
        )
