from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from eval.cli import main as eval_main
from extract.cli import main as extract_main
from train.cli import main as train_main

COMMANDS = [(group, name) for group in (extract_main, train_main, eval_main) for name in group.commands]


@pytest.mark.parametrize(("group", "name"), COMMANDS)
def test_every_command_explains_itself(group: click.Group, name: str) -> None:
    result = CliRunner().invoke(group, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Error" not in result.output
    assert result.output.startswith("Usage: ")
