"""The real commands, called in this process."""

from __future__ import annotations

from collections.abc import Sequence

import click
from click.testing import CliRunner, Result

from cmd_train.cli.main import main as train_main


def call(command: click.Command, *arguments: object) -> Result:
    """What a command does and says; an error that is no exit code, which a user would see as a traceback, is raised."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def train_here(arguments: Sequence[str]) -> None:
    """In place of ``run_cmd_train``: the same command, without the seconds that a process of its own takes to start."""
    result = call(train_main, *arguments)
    if result.exit_code:
        raise RuntimeError(f"cmd-train ended with exit code {result.exit_code}: {result.output}")
