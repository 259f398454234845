"""Options shared by several commands, and exit codes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from cmd_extract.console.commands import EXIT_ERROR
from cmd_extract.system.liveness import STALE_SECONDS

EXIT_SOME_FAILED = 3
"""Finished, but some videos failed. ``FailureLimitError`` has its own code."""
EXIT_DAMAGED = EXIT_ERROR
"""Verification found problems."""

EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
EXISTING_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


class Seconds(click.FloatRange):
    """A positive number of seconds, perhaps infinite; NaN, which no comparison excludes, is refused."""

    def __init__(self) -> None:
        super().__init__(0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert the text of an option."""
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return seconds


shards_argument = click.argument("out", type=EXISTING_FOLDER)
workers = click.option(
    "--workers", type=click.IntRange(1), help="Number of worker processes.  [default: all available cores]"
)
ffmpeg = click.option(
    "--ffmpeg",
    "ffmpeg_path",
    metavar="FILE",
    help="FFmpeg binary, version 5.1 or newer.  [default: the system's, else imageio-ffmpeg's]",
)
scratch = click.option("--scratch", type=click.Path(path_type=Path), help="Folder for temporary files.  [default: OUT]")
timeout = click.option(
    "--timeout", type=Seconds(), default=3600.0, help="Time limit per video in seconds; inf for no limit."
)
max_memory = click.option("--max-memory-mb", type=click.IntRange(64), default=4096, help="Memory limit per video, MiB.")
stale_after = click.option(
    "--stale-after",
    type=Seconds(),
    default=STALE_SECONDS,
    help="Seconds without a heartbeat after which a task counts as dead.",
)
moved_manifest = click.option(
    "--manifest", type=EXISTING_FILE, help="Current path of the manifest.  [default: the path used by the run]"
)
moved_root = click.option(
    "--root", type=EXISTING_FOLDER, help="Current folder of the videos.  [default: the folder used by the run]"
)
