"""Error files of failed ranks in the run folder: one file per failure with host, rank and traceback."""

from __future__ import annotations

import datetime
import os
import socket
import traceback
from pathlib import Path

FOLDER_NAME = "errors"

# Identify the attempt, and the host by its name in Slurm.
_ENVIRONMENT = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURMD_NODENAME", "TORCHELASTIC_RESTART_COUNT")


def write_error(folder: Path, error: BaseException, *, rank: int, world_size: int) -> Path:
    """Write the traceback of a failure to a file.

    Args:
        folder: destination folder, created if necessary.
        error: the exception.
        rank, world_size: rank of this process and number of ranks.

    Returns:
        The file. File names sort by time (UTC), so the cause comes before the failures it triggers on other ranks.
    """
    now = datetime.datetime.now(datetime.UTC)
    lines = [
        f"rank {rank} of {world_size} on {socket.gethostname()}, process {os.getpid()}, {now:%Y-%m-%d %H:%M:%S} UTC",
        *[f"{name}={os.environ[name]}" for name in _ENVIRONMENT if name in os.environ],
        "",
        *traceback.format_exception(error),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{now:%Y%m%dT%H%M%S.%f}-rank-{rank}.txt"
    path.write_text("\n".join(line.rstrip("\n") for line in lines) + "\n", "utf-8")
    return path
