"""File locks of one machine. The system releases them when a process ends, so that a killed one blocks nobody.

They are held by descriptors: several threads of a process exclude each other like several processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_POLL_SECONDS = 0.05


def open_shared(path: Path) -> int | None:
    """Open a file for reading and lock it, so that ``remove_unused`` keeps it.

    Returns:
        A descriptor that holds the lock until it is closed; None if the file does not exist, or is being removed.

    Raises:
        OSError: the file cannot be opened, or its file system has no locks.
    """
    try:
        return _open_locked(path, os.O_RDONLY, fcntl.LOCK_SH)
    except FileNotFoundError:
        return None


def hold_shared(descriptor: int, path: Path) -> None:
    """Lock an open file that no other process can have locked yet, so that ``remove_unused`` keeps it.

    Raises:
        OSError: its file system has no locks, or another process is removing it.
    """
    if not _lock(descriptor, fcntl.LOCK_SH, path):
        raise BlockingIOError(f"{path}: locked by another process")


def release(descriptor: int) -> None:
    """Unlock and close a descriptor; copies inherited by forked processes no longer hold the lock either."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def remove_unused(path: Path) -> bool:
    """Remove a file unless a process holds a lock on it; return whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        if not _lock(descriptor, fcntl.LOCK_EX, path):
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        release(descriptor)


@contextlib.contextmanager
def exclusive(path: Path, seconds: float, check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold an exclusive lock on a lock file, which is created and removed.

    Args:
        path: the lock file.
        seconds: longest wait for other holders.
        check: called while waiting; may raise an error.

    Raises:
        TimeoutError: another process held the lock all the time.
        OSError: the file cannot be written, or its file system has no locks.
    """
    end = time.monotonic() + seconds
    while (descriptor := _open_locked(path, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)) is None:
        if time.monotonic() > end:
            raise TimeoutError(f"{path}: locked by another process for {seconds:g} s")
        check()
        time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        release(descriptor)


def _open_locked(path: Path, flags: int, kind: int) -> int | None:
    """Open a file and lock it; None if another process holds the lock or has removed the file meanwhile."""
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
    try:
        if _lock(descriptor, kind, path) and os.fstat(descriptor).st_nlink:
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _lock(descriptor: int, kind: int, path: Path) -> bool:
    """Lock a descriptor; return False if others hold a lock that excludes this one."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        reason = f"{path}: cannot be locked ({error.strerror}); choose a folder on a local disk"
        raise OSError(error.errno, reason) from error
    return True
