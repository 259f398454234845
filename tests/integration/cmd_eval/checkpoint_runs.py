"""Run folders with a checkpoint, and what is evaluated with them."""

from __future__ import annotations

from pathlib import Path

import torch
from click.testing import Result

from cmd_eval.cli.main import main
from cmd_extract.shard.reader import ShardSet
from cmd_train.checkpoints.files import save_checkpoint
from cmd_train.config import build_config
from cmd_train.models.build import build_model
from tests.command_line import call
from tests.integration.cmd_train.training import SIZES

QUICK = ("--workers", 0, "--device", "cpu")
SPLIT = ("--split-column", "split")


def evaluate(*arguments: object) -> Result:
    """Call ``cmd-eval`` in this process."""
    return call(main, *arguments)


def make_run(run_dir: Path, shards: Path, **changes: object) -> Path:
    """A run folder with a checkpoint, without training."""
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    config = build_config("demo", SIZES | {"data.split_column": "split"} | changes)
    model = build_model(config.model, seed=config.run.seed)
    torch.manual_seed(7)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    record = {"settings": config.as_dict(), "data_hash": ShardSet(shards).data_hash}
    save_checkpoint(run_dir, step=3, weights=model.state_dict(), state={"recent_metrics": {}}, config=record)
    return run_dir
