"""The command line of extraction: ``cmd-extract``. Heavy imports wait until a command needs them."""

from __future__ import annotations

import atexit
import gc
import os

import click

from cmd_extract.cli.cluster import merge, status
from cmd_extract.cli.look import inspect, preview, verify
from cmd_extract.cli.manifest import manifest, synthesize
from cmd_extract.cli.run import run
from cmd_extract.cli.submit import submit

EXIT_FAILURE_LIMIT = 4
EXIT_INTERRUPTED = 130


class _Group(click.Group):
    """Turns the errors that users can mend into one line and an exit code, and leaves bugs their traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the work, not of the alphabet."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> object:
        from cmd_extract.errors import FailureLimitError

        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort):
            # How --help ends; they are RuntimeErrors.
            raise
        except KeyboardInterrupt:
            click.echo("interrupted; run the same command again to continue", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except FailureLimitError as error:
            click.echo(f"stopped: {error}, more than --max-failures allows; what is written stays", err=True)
            ctx.exit(EXIT_FAILURE_LIMIT)
        except (ValueError, OSError, RuntimeError) as error:
            # ManifestError, ShardError, OutputError and FfmpegError are among these.
            if ctx.params.get("debug"):
                raise
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group, context_settings={"show_default": True})
@click.version_option(package_name="context-motion-decoupling")
@click.option("--debug", is_flag=True, help="Show the traceback of errors.")
def main(debug: bool) -> None:
    """Extract keyframes, motion vectors and small frames from videos into HDF5 shards.

    Exit codes: 0 all well; 2 wrong usage; 3 finished, but some videos failed; 4 stopped by the failure limit;
    130 interrupted; 1 any other error, which one line explains.
    """
    # Nothing here multiplies matrices; numpy's BLAS would still start a thread a core, each of which spins for 0.1 s.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Before it ends, Python would look through all modules for unreachable circles, for some 30 ms. Whatever is in one
    # is not finalised then; nothing here needs to be.
    atexit.register(gc.freeze)


for _command in (manifest, run, verify, inspect, preview, synthesize, submit, status, merge):
    main.add_command(_command)
