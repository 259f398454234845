from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cmd_train.cli.main import main
from cmd_train.config import LOGGERS, build_config, config_from_dict
from cmd_train.monitoring.loggers import open_logger, require_logger
from tests.command_line import call

SETTINGS = {"run": {"seed": 3}}


def write_twice(name: str, run_dir: Path) -> None:
    """Steps 1 to 3, then, as after an interruption at step 2, step 3 again and 4."""
    for first_step, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        logger = open_logger(name, run_dir, first_step, SETTINGS)
        assert logger is not None
        for step in steps:
            logger.write(step, {"loss": float(10 * first_step + step), "context_top1": 0.5})
        logger.flush()


def test_none_is_the_default_and_needs_no_package() -> None:
    assert build_config("demo").run.logger == "none"
    require_logger("none")
    assert open_logger("none", Path("unused"), 0, {}) is None


def test_tensorboard_shows_repeated_steps_once(tmp_path: Path) -> None:
    require_logger("tensorboard")
    write_twice("tensorboard", tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("run/loss")] == [(1, 1.0), (2, 2.0), (3, 23.0), (4, 24.0)]
    assert len(events.Scalars("context/top1")) == 4


def test_mlflow_continues_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ValueError, match="mlflow needs the address of a tracking server in MLFLOW_TRACKING_URI"):
        require_logger("mlflow")
    # Newer releases want a database server, which the extra does not contain.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    require_logger("mlflow")
    write_twice("mlflow", tmp_path)
    client = tracking.MlflowClient()
    (run,) = client.search_runs(["0"])
    assert run.data.tags["run.seed"] == "3"
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "run/loss")][-2:] == [
        (3, 23),
        (4, 24),
    ]


def test_wandb_continues_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    write_twice("wandb", tmp_path)
    assert wandb.run.id == (tmp_path / "wandb-id").read_text().strip()
    wandb.finish()
    assert list((tmp_path / "wandb").glob("offline-run-*"))


@pytest.mark.parametrize("name", [name for name in LOGGERS if name != "none"])
def test_a_missing_package_is_an_error_before_the_first_step(
    name: str, few_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    words = ["--recipe", "demo", "--all-videos", "--device", "cpu", "--set", f"run.logger={name}", "--dry-run"]
    result = call(main, "pretrain", few_shards, tmp_path / "run", *words)
    assert result.exit_code == 1
    assert f"run.logger: {name} is not installed; `pip install '.[{name}]'` installs it" in result.output


def test_settings_of_earlier_runs_can_be_read() -> None:
    stored = build_config("demo").as_dict()
    stored["run"]["tensorboard"] = True
    assert config_from_dict(stored) == build_config("demo")
