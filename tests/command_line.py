"""Call the real commands in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import click
from click.testing import CliRunner, Result

from cmd_train.cli.main import main as train_main


def call(command: click.Command, *arguments: object) -> Result:
    """Invoke a command; raise exceptions that a user would see as a traceback."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


class Outcome(NamedTuple):
    exit_code: int
    output: str


def outcome(command: click.Command, *arguments: object) -> Outcome:
    """Invoke a command like ``call``; return its exit code and output."""
    result = call(command, *arguments)
    return Outcome(result.exit_code, result.output)


def train_here(arguments: Sequence[str]) -> None:
    """Replace ``run_cmd_train`` without the start-up time of a separate process."""
    result = call(train_main, *arguments)
    if result.exit_code:
        raise RuntimeError(f"cmd-train exited with code {result.exit_code}: {result.output}")
