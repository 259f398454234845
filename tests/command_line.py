"""The real commands, called in this process."""

from __future__ import annotations

import click
from click.testing import CliRunner, Result


def call(command: click.Command, *arguments: object) -> Result:
    """What a command does and says; an error that is no exit code, which a user would see as a traceback, is raised."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result
