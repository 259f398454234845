"""Metrics for a tracking tool, beside ``metrics.jsonl``: TensorBoard, Weights & Biases or MLflow, each an extra."""

from __future__ import annotations

import importlib.util
import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from cmd_extract.system.files import write_atomically

TENSORBOARD_NAME = "tensorboard"
_HEADS = ("classification", "context", "motion", "retrieval")


class MetricLogger(Protocol):
    """Receives the metrics of all steps."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of one step."""

    def flush(self) -> None:
        """Send or write what is buffered."""


def require_logger(name: str) -> None:
    """Check that the package of a logger is installed, without importing it, and that MLflow has an address.

    Raises:
        ValueError: it is not, and the message names the extra; or it has none.
    """
    if name != "none" and importlib.util.find_spec(name) is None:
        raise ValueError(
            f"run.logger: {name} is not installed; `pip install '.[{name}]'` installs it, --set run.logger=none does "
            "without"
        )
    if name == "mlflow" and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise ValueError("run.logger: mlflow needs the address of a tracking server in MLFLOW_TRACKING_URI")


def open_logger(name: str, run_dir: Path, first_step: int, settings: Mapping[str, Any]) -> MetricLogger | None:
    """Open a logger; a continued run is continued there as well.

    Args:
        name: a name in ``cmd_train.config.LOGGERS``; the result is None for ``none``.
        run_dir: run folder.
        first_step: steps completed by earlier runs in this folder.
        settings: the settings of the run by section.
    """
    opening: dict[str, Callable[[], MetricLogger]] = {
        "tensorboard": lambda: _TensorBoard(run_dir, first_step),
        "wandb": lambda: _WeightsAndBiases(run_dir, settings),
        "mlflow": lambda: _MLflow(run_dir, settings),
    }
    return None if name == "none" else opening[name]()


class _TensorBoard:
    """Event files in the run folder."""

    def __init__(self, run_dir: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Hide steps that an interrupted run logged but did not save.
        self._writer = SummaryWriter(run_dir / TENSORBOARD_NAME, purge_step=first_step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(_tag(name), value, step)

    def flush(self) -> None:
        self._writer.flush()


class _WeightsAndBiases:
    """A run of wandb, which is configured by its environment variables, such as WANDB_PROJECT and WANDB_MODE."""

    def __init__(self, run_dir: Path, settings: Mapping[str, Any]) -> None:
        import wandb

        number = _recorded_id(run_dir / "wandb-id", lambda: secrets.token_hex(4))
        self._run = wandb.init(dir=run_dir, name=run_dir.name, id=number, resume="allow", config=dict(settings))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({_tag(name): value for name, value in metrics.items()}, step=step)

    def flush(self) -> None:
        """Nothing to do: wandb sends from a process of its own."""


class _MLflow:
    """A run of MLflow, at MLFLOW_TRACKING_URI, in the experiment MLFLOW_EXPERIMENT_ID (default: 0)."""

    def __init__(self, run_dir: Path, settings: Mapping[str, Any]) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        experiment = os.environ.get("MLFLOW_EXPERIMENT_ID", "0")
        self._run = _recorded_id(
            run_dir / "mlflow-id", lambda: self._client.create_run(experiment, run_name=run_dir.name).info.run_id
        )
        for section, values in settings.items():
            for name, value in values.items():
                self._client.set_tag(self._run, f"{section}.{name}", value)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self._run, [Metric(_tag(name), value, now, step) for name, value in metrics.items()])

    def flush(self) -> None:
        """Nothing to do: MLflow does not buffer."""


def _recorded_id(path: Path, create: Callable[[], str]) -> str:
    """Return the tool's id of the run, which is created and recorded the first time."""
    if not path.exists():
        number = create()
        write_atomically(path, number + "\n")
    return path.read_text("utf-8").strip()


def _tag(metric: str) -> str:
    """Group the metrics by head, and the others under ``run``."""
    head, _, rest = metric.partition("_")
    return f"{head}/{rest}" if head in _HEADS else f"run/{metric}"
