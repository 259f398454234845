"""Training runs shared by several test files, which must not write to these folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmd_train.cli.main import main as train_main
from tests.command_line import call
from tests.integration.cmd_train.finetuning import finetune
from tests.integration.cmd_train.training import options


@pytest.fixture(scope="session")
def pretrained(few_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("pretrained") / "run"
    words = [*options(all_videos=False, optim__epochs=1, sampling__stride=1), "--split-column", "split"]
    result = call(train_main, "pretrain", few_shards, run_dir, *words)
    assert result.exit_code == 0, result.output
    return run_dir


@pytest.fixture(scope="session")
def tuned(few_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("tuned") / "run"
    result = finetune(few_shards, run_dir)
    assert result.exit_code == 0, result.output
    return run_dir
