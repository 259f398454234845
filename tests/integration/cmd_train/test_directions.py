"""Pre-training and fine-tuning with the recipes' own objective, the prediction of motion directions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cmd_train.checkpoints.files import list_checkpoints, load_checkpoint
from cmd_train.cli.main import main
from tests.command_line import call
from tests.integration.cmd_train.training import FEATURES, FIELDS, finish, launch, metrics, same, weights

WORDS = ["--device", "cpu", "--split-column", "split", "--batch-size", "4", "--workers", "0"]
WORDS += [word for field, value in FIELDS.items() if field not in FEATURES for word in ("--set", f"{field}={value}")]


def lines_of(run_dir: Path) -> list[dict[str, float]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if "second" not in name} for line in lines]


def test_directions_are_logged_and_resumed_exactly(few_shards: Path, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    words = ["--recipe", "demo", *WORDS, "--epochs", "4", "--set", "run.checkpoint_epochs=2"]
    assert call(main, "pretrain", few_shards, whole, *words).exit_code == 0
    last = lines_of(whole)[-1]
    assert {"motion_loss", "motion_top1", "motion_majority", "motion_moving_share", "context_loss"} <= last.keys()
    assert 0 < last["motion_majority"] <= 1
    assert 0 < last["motion_moving_share"] <= 1
    shutil.copytree(whole, stopped)
    shutil.rmtree(list_checkpoints(stopped)[-1])
    assert load_checkpoint(stopped).step == 6
    assert call(main, "pretrain", few_shards, stopped, *words).exit_code == 0
    assert same(weights(whole), weights(stopped))
    assert [line["loss"] for line in lines_of(whole)] == [line["loss"] for line in lines_of(stopped)]
    tuned = tmp_path / "tuned"
    words = ["--recipe", "finetune-demo", *WORDS, "--epochs", "1", "--auxiliary", "motion", "--from", whole]
    result = call(main, "finetune", few_shards, tuned, *words)
    assert result.exit_code == 0, result.output
    assert load_checkpoint(tuned).config["init"]["part"] == "backbone and motion head"
    assert {"classification_loss", "motion_loss", "motion_top1"} <= lines_of(tuned)[-1].keys()


@pytest.mark.slow
def test_two_ranks_train_with_directions(few_shards: Path, tmp_path: Path) -> None:
    # BatchNorm normalizes over each rank's own samples, so that losses agree approximately only.
    words = ["--recipe", "demo", *WORDS, "--epochs", "1", "--set", "model.context_head=false"]
    for ranks in (1, 2):
        process = launch(ranks, [few_shards, tmp_path / str(ranks), *words])
        output = finish(process)
        assert process.returncode == 0, output
    one, two = (metrics(tmp_path / str(ranks)) for ranks in (1, 2))
    assert len(one) == len(two) > 0
    assert one[0]["motion_loss"] == pytest.approx(two[0]["motion_loss"], rel=0.1)
