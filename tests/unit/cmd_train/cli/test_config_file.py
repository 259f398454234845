"""``--config FILE`` beside recipes and ``--set``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cmd_train.cli.main import main


def run(command: str, *arguments: object) -> Result:
    return CliRunner().invoke(main, [command, *map(str, arguments), "--print-config"])


def settings(command: str, *arguments: object) -> dict[str, Any]:
    result = run(command, *arguments)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.output)
    return found


@pytest.mark.parametrize("name", ["part.yaml", "part.yml", "part.json"])
def test_a_file_overrides_the_recipe_and_is_overridden_by_options(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    text = {
        ".json": '{"optim": {"epochs": 7, "lr_per_sample": 1e-4}, "run": {"seed": 3}, '
        '"data": {"split_column": "split2"}}',
        # YAML 1.1 reads 1e-4 as a text.
        ".yaml": "optim: {epochs: 7, lr_per_sample: 1e-4}\nrun:\n  seed: 3\ndata: {split_column: split2}\n",
    }
    file.write_text(text[".json" if name.endswith("json") else ".yaml"])
    found = settings("pretrain", "--recipe", "demo", "--config", file)
    assert (found["optim"]["epochs"], found["optim"]["lr_per_sample"], found["run"]["seed"]) == (7, 1e-4, 3)
    assert (found["data"]["split_column"], found["model"]["width"]) == ("split2", 16)
    options = ("--epochs", 8, "--seed", 0, "--set", "optim.lr_per_sample=2e-4")
    found = settings("pretrain", "--recipe", "demo", "--config", file, *options)
    assert (found["optim"]["epochs"], found["optim"]["lr_per_sample"], found["run"]["seed"]) == (8, 2e-4, 0)


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_the_record_of_a_run_can_be_fed_back(command: str, tmp_path: Path) -> None:
    recipe = "gestures" if command == "pretrain" else "finetune-demo"
    before = settings(command, "--recipe", recipe, "--epochs", 5, "--set", "augment.crop_area=[0.6, 0.9]")
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"settings": before, "data_hash": "h", "recipe": recipe}))
    assert settings(command, "--config", file) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {speed: 3}", "optim.speed: unknown setting"),
        ("optim: {epochs: many}", "optim.epochs: must be of type int, got 'many'"),
        ("optim: {epochs: 0}", "optim.epochs: must be at least 1, got 0"),
        ("optim: 3", "must contain sections of settings"),
        ("- a\n- b", "must contain sections of settings"),
        ("optim: {epochs: [", "not a readable file of settings"),
    ],
)
def test_invalid_files_are_named(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text(text)
    result = run("pretrain", "--recipe", "demo", "--config", file)
    assert result.exit_code == 1
    assert message in result.output
    assert str(file) in result.output or "must be at least" in message
