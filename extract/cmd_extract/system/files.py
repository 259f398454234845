"""Files that appear whole or not at all, and folders for what is unfinished; leftovers of killed runs are removed."""

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

from cmd_extract.system.liveness import Heartbeat, file_system_time, is_running, machine_identity

_PREFIX = ".extract-"


def temporary_path(path: Path) -> Path:
    """A name beside ``path``, used by nobody else, under which to write what will be ``path``."""
    return path.with_name(f"{_own_prefix()}{os.getpid()}-{secrets.token_hex(4)}-{path.name}")


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A fresh folder of this process in ``parent``, kept alive, and removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix=f"{_own_prefix()}{os.getpid()}-", dir=parent))
    try:
        with Heartbeat(folder):
            yield folder
    finally:
        remove(folder)


def remove_leftovers(folder: Path, silent_seconds: float = 3600.0) -> None:
    """Removes what killed processes have left in ``folder``, and nothing that a living one may need.

    Args:
        folder: where to look.
        silent_seconds: age at which what lies there counts as left, whoever made it: another machine, this one before
            it was started again, another container. Living processes renew their time stamps every few seconds.
    """
    others = []
    for path in folder.glob(f"{_PREFIX}*"):
        pid = path.name.removeprefix(_own_prefix()).partition("-")[0]
        if not (path.name.startswith(_own_prefix()) and pid.isdigit()):
            others.append(path)
        # In a container every run may get the same number: what bears ours is of a run before.
        elif int(pid) == os.getpid() or not is_running(int(pid)):
            remove(path)
    if others:
        now = file_system_time(folder)
        for path in others:
            with contextlib.suppress(FileNotFoundError):
                if now - path.stat().st_mtime > silent_seconds:
                    remove(path)


def remove(path: Path) -> None:
    """Removes a file or folder, as far as possible."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; once the block succeeds, that file is synced and renamed to ``path``.

    If the block fails, the temporary file is removed and what was at ``path`` stays. The temporary name keeps the
    suffix, by which libraries choose a format. Other hosts see that the writer is alive by the file's time stamp.

    Args:
        path: the file to create or replace; missing parent folders are created.

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
    """Writes a file atomically with a function that writes to the path it is given."""
    with atomic_write(path) as temporary:
        write(temporary)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _own_prefix() -> str:
    """Names the machine as the numbers of processes go: two containers may share a name, and have the same numbers."""
    host = socket.gethostname()
    digest = hashlib.sha256(f"{host}/{machine_identity()}".encode()).hexdigest()
    return f"{_PREFIX}{host}-{digest[:12]}-"
