"""Files that appear whole or not at all, and folders for what is unfinished; leftovers of killed runs are removed."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PREFIX = ".extract-"


def temporary_path(path: Path) -> Path:
    """A name beside ``path``, of this process alone, under which to write what will be ``path``."""
    return path.with_name(f"{_own_prefix()}{os.getpid()}-{path.name}")


def scratch_folder(parent: Path) -> Path:
    """A fresh folder of this process in ``parent``."""
    return Path(tempfile.mkdtemp(prefix=f"{_own_prefix()}{os.getpid()}-", dir=parent))


def remove_leftovers(folder: Path) -> None:
    """Removes what processes of this machine that no longer run have left in ``folder``."""
    for stale in folder.glob(f"{_own_prefix()}*"):
        pid = stale.name.removeprefix(_own_prefix()).partition("-")[0]
        # In a container every run may get the same number: what bears ours is of a run before.
        if pid.isdigit() and (int(pid) == os.getpid() or not is_running(int(pid))):
            remove(stale)


def remove_all_leftovers(folder: Path) -> None:
    """Removes what any process of any machine has left in ``folder``, or is at work on: nobody may be."""
    for path in folder.glob(f"{_PREFIX}*"):
        remove(path)


def is_running(pid: int) -> bool:
    """Whether a process of this machine, as numbered here, exists and has not ended."""
    if Path("/proc/self/stat").exists():
        try:
            state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        return state not in "ZX"  # ended, but nobody has asked how
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def remove(path: Path) -> None:
    """Removes a file or folder, as far as possible."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes under a temporary name, syncs and renames, so that ``path`` is never seen half written.

    Args:
        path: the file to make or replace.
        write: writes a file at the path it is given.
    """
    temporary = temporary_path(path)
    try:
        write(temporary)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _own_prefix() -> str:
    return f"{_PREFIX}{socket.gethostname()}-"
