"""What the commands of cmd-eval share: errors, progress, the words of the command. Loads nothing heavy."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from typing import Any

import click

EXIT_INTERRUPTED = 130
_PROGRESS_SECONDS = 10.0
_WORDS = "eval.command_words"


class EvalGroup(click.Group):
    """Turns the errors that users can mend into one line and an exit code, and leaves bugs their traceback."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keeps the words of the command line, for the record."""
        ctx.meta[_WORDS] = shlex.join(["cmd-eval", *args])
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort):
            # How --help ends; they are RuntimeErrors.
            raise
        except KeyboardInterrupt:
            click.echo("interrupted; run the same command again, finished files are kept", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except (ValueError, OSError, RuntimeError) as error:
            if ctx.params.get("debug"):
                raise
            raise click.ClickException(str(error)) from error


def command_words() -> str:
    """The command line as it was given."""
    return str(click.get_current_context().meta[_WORDS])


def show_progress(what: str) -> Callable[[int, int], None]:
    """A line every ten seconds, and one at the end."""
    start = time.monotonic()
    last = start
    before: int | None = None

    def show(done: int, total: int) -> None:
        nonlocal last, before
        now = time.monotonic()
        # What an earlier run has done says nothing of this one's speed.
        before = done - 1 if before is None else before
        if now - last < _PROGRESS_SECONDS and done != total:
            return
        last = now
        left = (now - start) / (done - before) * (total - done)
        print(f"{what} {done}/{total} videos, {(done - before) / (now - start):.1f} a second, about {left:.0f} s left",
              file=sys.stderr, flush=True)  # fmt: skip

    return show
