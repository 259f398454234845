"""The command group ``cmd-extract``. Heavy imports are deferred until a command needs them."""

from __future__ import annotations

import atexit
import gc
import os

import click

from cmd_extract.cli.cluster import merge, status
from cmd_extract.cli.inspect import inspect, preview, verify
from cmd_extract.cli.manifest import inner_splits, manifest, relabel, synthesize
from cmd_extract.cli.publish import fetch, publish
from cmd_extract.cli.run import run
from cmd_extract.cli.submit import submit
from cmd_extract.console.commands import CommandGroup


@click.group(cls=CommandGroup, context_settings={"show_default": True})
@click.version_option(package_name="context-motion-decoupling")
@click.option("--debug", is_flag=True, help="Show the traceback of errors.")
def main(debug: bool) -> None:
    """Extract keyframes, motion vectors and small frames from videos into HDF5 shards.

    Exit codes: 0 success; 1 error, explained in one line; 2 wrong usage; 3 finished, but some videos failed; 4 stopped
    by --max-failures; 130 interrupted.
    """
    # numpy's BLAS, which is not used here, would start one thread per core, each of which spins for 0.1 s.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Skips the search for reference cycles at exit, which takes about 30 ms. Objects in cycles are then not finalized;
    # none of them needs to be.
    atexit.register(gc.freeze)


_COMMANDS = (
    *(manifest, inner_splits, run, relabel, verify, inspect, preview, synthesize),
    *(submit, status, merge, publish, fetch),
)
for _command in _COMMANDS:
    main.add_command(_command)
