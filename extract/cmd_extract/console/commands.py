"""Click group of all three commands: reports user errors in one line, shows the traceback of bugs."""

from __future__ import annotations

import copy
import select
import shlex
import sys
import traceback
from typing import Any

import click

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130
_COMMAND_LINE = "cmd_extract.command_line"


class CommandGroup(click.Group):
    """Command group that lists commands in workflow order and reports user errors in one line.

    ``ValueError``, ``OSError`` and ``RuntimeError`` count as user errors. The exit code is the error's attribute
    ``exit_code`` if it has one, else 1. If the group has an option ``--debug``, it shows the traceback instead.

    Args:
        interrupted: advice to the user after Ctrl-C.
    """

    def __init__(self, *args: Any, interrupted: str = "Run the same command again to continue.", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._interrupted = interrupted

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command. Its numbers must be written in the digits 0 to 9, without underscores."""
        for param in cmd.params:
            if isinstance(param.type, click.types.IntParamType | click.types.FloatParamType):
                param.type = _plain_number(param.type)
        super().add_command(cmd, name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List commands in workflow order, the order in which they were added."""
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Record the command line for ``command_line``."""
        ctx.meta[_COMMAND_LINE] = shlex.join([ctx.info_name or "", *args])
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort):
            # Both are RuntimeErrors; --help ends with Exit.
            raise
        except KeyboardInterrupt:
            click.echo(f"Interrupted. {self._interrupted}", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except (ValueError, OSError, RuntimeError) as error:
            if isinstance(error, BrokenPipeError) and not _stdout_is_open():
                # As in `cmd-extract inspect OUT | head`: the reader of the output has all it wants.
                ctx.exit(EXIT_ERROR)
            if ctx.params.get("debug"):
                if not hasattr(error, "exit_code"):
                    raise
                traceback.print_exc()
            else:
                click.echo(f"Error: {str(error) or type(error).__name__}", err=True)
            ctx.exit(getattr(error, "exit_code", EXIT_ERROR))


def _plain_number(kind: click.ParamType[Any]) -> click.ParamType[Any]:
    """Return a copy of a number type that refuses underscores and digits of other scripts, which Python accepts."""

    def convert(value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and ("_" in value or not value.isascii()):
            text = f"{value!r} is not a valid {kind.name}; write the number in the digits 0 to 9, without underscores."
            kind.fail(text, param, ctx)
        return kind.convert(value, param, ctx)

    plain = copy.copy(kind)
    plain.convert = convert  # type: ignore[method-assign] # of this copy only, which keeps its class for the help text
    return plain


def _stdout_is_open() -> bool:
    """Return whether the reader of standard output, such as a pager, is still there."""
    try:
        poller = select.poll()
        poller.register(sys.stdout.fileno(), 0)
        return not poller.poll(0)
    except (OSError, ValueError, AttributeError):  # replaced by a test, closed, or no such call on this system
        return True


def command_line() -> str:
    """Return the command line of the running command, quoted for a shell."""
    return str(click.get_current_context().meta[_COMMAND_LINE])
