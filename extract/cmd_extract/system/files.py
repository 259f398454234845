"""Atomic writes and scratch folders, and removal of the temporary files that killed processes leave behind."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cmd_extract.system.liveness import TEMPORARY_PREFIX, Heartbeat, file_system_time, is_running, machine_identity


def temporary_path(path: Path) -> Path:
    """Return a unique temporary name for ``path`` in the same folder, keeping its suffix."""
    return path.with_name(f"{_own_prefix()}{os.getpid()}-{secrets.token_hex(4)}-{path.name}")


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Create a temporary folder in ``parent``, with a heartbeat, and remove it at the end of the block."""
    folder = Path(tempfile.mkdtemp(prefix=f"{_own_prefix()}{os.getpid()}-", dir=parent))
    try:
        with Heartbeat(folder):
            yield folder
    finally:
        remove(folder)


def remove_leftovers(folder: Path, stale_seconds: float = 3600.0) -> None:
    """Remove temporary files and folders of killed processes; those of running processes are kept.

    Args:
        folder: where to look.
        stale_seconds: minimum age of the temporary files of other machines, other containers or earlier boots. Running
            processes update the timestamps of their files every few seconds.
    """
    others = []
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        pid = path.name.removeprefix(_own_prefix()).partition("-")[0]
        if not (path.name.startswith(_own_prefix()) and pid.isdigit()):
            others.append(path)
        # In a container every run may get the same process id: a file with our own id is from an earlier run.
        elif int(pid) == os.getpid() or not is_running(int(pid)):
            remove(path)
    if others:
        now = file_system_time(folder)
        for path in others:
            with contextlib.suppress(FileNotFoundError):
                if now - path.stat().st_mtime > stale_seconds:
                    remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder if it exists; what cannot be removed from a folder is left."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path; when the block succeeds, sync that file to disk and rename it to ``path``.

    If the block fails, the temporary file is removed and an existing ``path`` stays as it was. The temporary file is in
    the same folder and has the same suffix, by which some libraries choose a format. A heartbeat shows other hosts that
    the writer is running.

    Args:
        path: file to create or replace; missing parent folders are created.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        with Heartbeat(temporary):
            yield temporary
            _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file atomically.

    Args:
        path: file to create or replace.
        write: called with the temporary path to write to.
    """
    with atomic_write(path) as temporary:
        write(temporary)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _own_prefix() -> str:
    """Return the prefix of temporary files of this process id namespace.

    The host name alone is not enough: two containers may share it and use the same process ids.
    """
    host = socket.gethostname()
    digest = hashlib.sha256(f"{host}/{machine_identity()}".encode()).hexdigest()
    return f"{TEMPORARY_PREFIX}{host}-{digest[:12]}-"
