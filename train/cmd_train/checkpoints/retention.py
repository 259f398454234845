"""Which checkpoints a training makes and which of them stay: the last ones, milestones, the best."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cmd_train.checkpoints.files import mark_best, prune_checkpoints
from cmd_train.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best checkpoint so far.

    Attributes:
        step: steps it has done.
        value: of what it was judged by; higher is better.
        judged_by: ``retrieval_r1``, or ``-loss`` where no retrieval is monitored.
    """

    step: int
    value: float
    judged_by: str


class CheckpointPlan:
    """Decides at each step whether to save, and after a save what to remove.

    Args:
        config: how often, how many.
        steps_per_epoch: steps of an epoch.
        best: the best so far, as an earlier run has stored it.
    """

    def __init__(self, config: RunConfig, steps_per_epoch: int, best: Mapping[str, Any] | None) -> None:
        self._config, self._steps_per_epoch = config, steps_per_epoch
        self._best = Best(**best) if best else None
        self._saved_at = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether a checkpoint is to be made after this step."""
        if any(self._ends(step, epochs) for epochs in (self._config.checkpoint_epochs, self._config.milestone_epochs)):
            return True
        if self.watches(step):
            return True
        minutes = self._config.checkpoint_minutes
        return minutes > 0 and time.monotonic() - self._saved_at >= 60 * minutes

    def watches(self, step: int) -> bool:
        """Whether retrieval is to be tried after this step."""
        return self._ends(step, self._config.knn_epochs)

    def _ends(self, step: int, epochs: int) -> bool:
        return epochs > 0 and step % (self._steps_per_epoch * epochs) == 0

    def judge(self, step: int, metrics: Mapping[str, float], retrieval: float | None) -> None:
        """Compares a checkpoint that is about to be made with the best one.

        Only those at the ends of epochs count: when others are made depends on the clock and on interruptions.
        """
        if self._config.knn_epochs:
            value, judged_by = retrieval, "retrieval_r1"
        else:
            value, judged_by = -metrics["loss"] if self._ends(step, self._config.checkpoint_epochs) else None, "-loss"
        if value is not None and (self._best is None or self._best.judged_by != judged_by or value > self._best.value):
            self._best = Best(step=step, value=value, judged_by=judged_by)

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint stores of this."""
        return asdict(self._best) if self._best else None

    def tidy(self, run_dir: Path) -> None:
        """Points to the best checkpoint and removes what is to go; called after each save."""
        self._saved_at = time.monotonic()
        best = self._best.step if self._best else None
        mark_best(run_dir, best)
        milestone = self._config.milestone_epochs * self._steps_per_epoch
        prune_checkpoints(
            run_dir,
            self._config.keep_checkpoints,
            stays=lambda step: step == best or (milestone > 0 and step % milestone == 0),
        )
