"""The click group of all three commands: user errors end in one line, bugs keep their traceback."""

from __future__ import annotations

import shlex
from typing import Any

import click

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130
_COMMAND_LINE = "cmd_extract.command_line"


class CommandGroup(click.Group):
    """A command group that lists commands in workflow order and reports user errors in one line.

    ``ValueError``, ``OSError`` and ``RuntimeError`` count as user errors; one with an attribute ``exit_code`` ends the
    process with that code. With ``--debug`` they keep their traceback.

    Args:
        interrupted: what to tell the user after Ctrl-C.
    """

    def __init__(self, *args: Any, interrupted: str = "Run the same command again to continue.", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._interrupted = interrupted

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Lists commands in workflow order."""
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Records the command line, for provenance."""
        ctx.meta[_COMMAND_LINE] = shlex.join([ctx.info_name or "", *args])
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort):
            # How --help ends; both are RuntimeErrors.
            raise
        except KeyboardInterrupt:
            click.echo(f"Interrupted. {self._interrupted}", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except (ValueError, OSError, RuntimeError) as error:
            if ctx.params.get("debug"):
                raise
            click.ClickException(str(error)).show()
            ctx.exit(getattr(error, "exit_code", EXIT_ERROR))


def command_line() -> str:
    """The command line of the running command, quoted for a shell."""
    return str(click.get_current_context().meta[_COMMAND_LINE])
