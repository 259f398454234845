"""Atomic writes and scratch folders, and removal of the temporary files that killed processes leave behind."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cmd_extract.system.liveness import (
    TEMPORARY_PREFIX,
    Heartbeat,
    file_system_time,
    is_running,
    machine_prefix,
    own_prefix,
)

# Some file systems cannot sync at all, others (CIFS, vboxsf, some FUSE) cannot open or sync folders. There is no other
# way to protect their files from a power cut.
_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_NO_FOLDER_SYNC = (*_NO_SYNC, errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR)
_MAX_NAME_BYTES = 120


def temporary_path(path: Path) -> Path:
    """Return a unique temporary name for ``path`` in the same folder, keeping its suffix."""
    name = path.name
    if len(os.fsencode(name)) > _MAX_NAME_BYTES:  # file systems allow 255, prefix included
        name = name[-_MAX_NAME_BYTES // 4 :]
    return path.with_name(f"{own_prefix()}{secrets.token_hex(4)}-{name}")


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Create a temporary folder in ``parent``, with a heartbeat, and remove it at the end of the block."""
    folder = Path(tempfile.mkdtemp(prefix=own_prefix(), dir=parent))
    try:
        with Heartbeat(folder):
            yield folder
    finally:
        remove(folder)


def remove_leftovers(folder: Path, stale_seconds: float = 3600.0) -> None:
    """Remove temporary files and folders of killed processes; those of running processes are kept.

    What cannot be removed is left: this also runs while an error is being handled, which it must not replace.

    Args:
        folder: where to look.
        stale_seconds: minimum age of the temporary files of other machines, other containers or earlier boots. Running
            processes update the timestamps of their files every few seconds.
    """
    others = []
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        pid = path.name.removeprefix(machine_prefix()).partition("-")[0]
        if not (path.name.startswith(machine_prefix()) and pid.isdigit()):
            others.append(path)
        # In a container every run may get the same process id: a file with our own id is from an earlier run.
        elif int(pid) == os.getpid() or not is_running(int(pid)):
            with contextlib.suppress(OSError):
                remove(path)
    if not others:
        return
    try:
        now = file_system_time(folder)
    except OSError:  # a full disk, for example; without the clock, their age is unknown
        return
    for path in others:
        with contextlib.suppress(OSError):
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
            sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a small file atomically, a text as UTF-8; see ``atomic_write``."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def create_exclusively(path: Path, text: str) -> bool:
    """Create a small text file with its whole content, unless it exists.

    Returns:
        Whether this call created it. If several processes try at the same time, exactly one does.

    Raises:
        OSError: the file cannot be written.
    """
    temporary = temporary_path(path)
    try:
        temporary.write_text(text, "utf-8")
        sync(temporary)
        created = _link(temporary, path)
        if created is None:  # readers may find the file before its content
            created = _create(path, text)
        if created:
            sync(path.parent)
        return created
    finally:
        temporary.unlink(missing_ok=True)


def _link(source: Path, path: Path) -> bool | None:
    """Link ``path`` to a file; return whether it did not exist, or None if the file system has no hard links."""
    try:
        path.hardlink_to(source)
    except FileExistsError:
        # NFS reports an error if it repeats a request because the reply was lost, but then there are two names.
        return source.stat().st_nlink > 1
    except OSError:
        return None
    return True


def _create(path: Path, text: str) -> bool:
    try:
        stream = path.open("x", encoding="utf-8")
    except FileExistsError:
        return False
    try:
        with stream:
            stream.write(text)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return True


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk, as far as its file system supports that.

    Raises:
        OSError: the data cannot be written.
    """
    ignored = _NO_FOLDER_SYNC if path.is_dir() else _NO_SYNC
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in ignored:
            raise
