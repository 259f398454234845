"""Tiny fine-tuning runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from click.testing import Result

from cmd_train.checkpoints.files import load_checkpoint
from cmd_train.cli.main import main as train_main
from tests.command_line import call
from tests.integration.cmd_train.training import options


def settings(**changes: object) -> list[str]:
    """Return the options of the other tiny runs with the fine-tuning recipe, on the train part of the split."""
    words = options(all_videos=False, **changes)
    words[words.index("demo")] = "finetune-demo"
    return [*words, "--split-column", "split"]


def finetune(shards: Path, run_dir: Path, *words: object, start: object = "scratch", **changes: object) -> Result:
    given = {"optim__epochs": 2} | changes
    return call(train_main, "finetune", shards, run_dir, "--from", start, *settings(**given), *words)


def config_of(run_dir: Path) -> dict[str, Any]:
    return load_checkpoint(run_dir).config
