"""Detection of running processes: by process id on this machine, by heartbeat timestamps across machines."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import tempfile
import threading
from pathlib import Path

TEMPORARY_PREFIX = ".extract-"
"""Prefix of all temporary files and folders, see ``cmd_extract.system.files.remove_leftovers``."""
STALE_SECONDS = 180.0
"""Age at which a heartbeat is stale; longer than cluster file systems take to propagate a timestamp (NFS: 60 s)."""
BEATS = 9
"""Number of heartbeats within ``STALE_SECONDS``."""
_MAX_INTERVAL_SECONDS = 600.0


def machine_identity() -> str:
    """Return an id of this boot and this process id namespace (each container has its own); empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def own_prefix() -> str:
    """Return the start of the names of this process's temporary files; the names end in anything unique.

    It identifies the process id namespace and the process. The host name alone is not enough: two containers may share
    it and use the same process ids.
    """
    return f"{machine_prefix()}{os.getpid()}-"


def machine_prefix() -> str:
    """Return what ``own_prefix`` starts with for all processes of this process id namespace."""
    host = socket.gethostname()
    digest = hashlib.sha256(f"{host}/{machine_identity()}".encode()).hexdigest()
    return f"{TEMPORARY_PREFIX}{host}-{digest[:12]}-"


def is_running(pid: int) -> bool:
    """Return whether a process of this machine exists and is not a zombie."""
    if Path("/proc/self/stat").exists():
        try:
            state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        return state not in "ZX"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        pass
    return True


class Heartbeat(threading.Thread):
    """Context manager that updates the timestamp of a file or folder in a background thread.

    Args:
        path: the file or folder; nothing happens while it does not exist.
        stale_seconds: age at which other processes consider the timestamp stale; may be infinite.
    """

    def __init__(self, path: Path, stale_seconds: float = STALE_SECONDS) -> None:
        super().__init__(daemon=True, name="heartbeat")
        self._path = path
        self._interval = min(stale_seconds / BEATS, _MAX_INTERVAL_SECONDS)
        self._stop_event = threading.Event()

    def run(self) -> None:
        """Update the timestamp until the context ends."""
        while not self._stop_event.wait(self._interval):
            with contextlib.suppress(OSError):
                os.utime(self._path)

    def __enter__(self) -> Heartbeat:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_event.set()
        self.join()


def file_system_time(folder: Path) -> float:
    """Return the current time by the clock that stamps the files of ``folder``.

    On a cluster this is the file server's clock, not the one of this machine.

    Raises:
        OSError: ``folder`` is not writable.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f"{own_prefix()}clock-") as stream:
            os.utime(stream.name)
            return Path(stream.name).stat().st_mtime
    except OSError as error:
        raise OSError(error.errno, f"{folder}: cannot write a file to read the file system's clock") from error
