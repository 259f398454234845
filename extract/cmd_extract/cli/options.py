"""Options shared by several commands, and exit codes."""

from __future__ import annotations

from pathlib import Path

import click

from cmd_extract.console.commands import EXIT_ERROR
from cmd_extract.system.liveness import STALE_SECONDS

EXIT_SOME_FAILED = 3
"""Finished, but some videos failed. ``FailureLimitError`` has its own code."""
EXIT_DAMAGED = EXIT_ERROR
"""Verification found problems."""

EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
EXISTING_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)

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
    "--timeout", type=click.FloatRange(0, min_open=True), default=3600.0, help="Time limit per video in seconds."
)
max_memory = click.option("--max-memory-mb", type=click.IntRange(64), default=4096, help="Memory limit per video, MiB.")
stale_after = click.option(
    "--stale-after",
    type=click.FloatRange(0, min_open=True),
    default=STALE_SECONDS,
    help="Seconds without a heartbeat after which a task counts as dead.",
)
moved_manifest = click.option(
    "--manifest", type=EXISTING_FILE, help="Current path of the manifest.  [default: the path used by the run]"
)
moved_root = click.option(
    "--root", type=EXISTING_FOLDER, help="Current folder of the videos.  [default: the folder used by the run]"
)
