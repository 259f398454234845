"""What one of several processes has failed of, kept in the training's folder: host, rank and traceback, a file each."""

from __future__ import annotations

import datetime
import os
import socket
import traceback
from pathlib import Path

FOLDER_NAME = "errors"

# Which attempt it was, and the host's name as the scheduler knows it.
_SAID_TOO = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURMD_NODENAME", "TORCHELASTIC_RESTART_COUNT")


def write_error(folder: Path, error: BaseException, *, rank: int, world_size: int) -> Path:
    """Writes a failure down.

    Args:
        folder: where; made if it is not there.
        error: what has happened.
        rank, world_size: of this process.

    Returns:
        The file. Names sort by time (UTC), so that the cause comes before what it brings about on other ranks.
    """
    now = datetime.datetime.now(datetime.UTC)
    lines = [
        f"rank {rank} of {world_size} on {socket.gethostname()}, process {os.getpid()}, {now:%Y-%m-%d %H:%M:%S} UTC",
        *[f"{name}={os.environ[name]}" for name in _SAID_TOO if name in os.environ],
        "",
        *traceback.format_exception(error),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{now:%Y%m%dT%H%M%S.%f}-rank-{rank}.txt"
    path.write_text("\n".join(line.rstrip("\n") for line in lines) + "\n", "utf-8")
    return path
