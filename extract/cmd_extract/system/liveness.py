"""Signs of life of processes on one machine and on many: what runs here, and time stamps that are renewed."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from pathlib import Path

STALE_SECONDS = 180.0
"""Longer than file systems of clusters take to show a time stamp to other machines (NFS: 60 s)."""
BEATS = 9
"""How often a time stamp is renewed before it would be stale."""


def machine_identity() -> str:
    """The boot and the numbering of processes (a container has its own); empty where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


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


class Heartbeat(threading.Thread):
    """Renews the time stamp of a file or folder while it runs; use as a context manager.

    Args:
        path: the file; as long as it is not there, nothing happens.
        stale_seconds: how old a time stamp may get.
    """

    def __init__(self, path: Path, stale_seconds: float = STALE_SECONDS) -> None:
        super().__init__(daemon=True, name="heartbeat")
        self._path = path
        self._every = stale_seconds / BEATS
        self._ended = threading.Event()

    def run(self) -> None:
        """What the thread does; see ``Thread.start``."""
        while not self._ended.wait(self._every):
            with contextlib.suppress(OSError):
                os.utime(self._path)

    def __enter__(self) -> Heartbeat:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()


def file_system_time(folder: Path) -> float:
    """The present time by the clock that stamps the files of ``folder``, which on a cluster is not this machine's."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock-") as stream:
            os.utime(stream.name)
            return Path(stream.name).stat().st_mtime
    except OSError as error:
        raise OSError(error.errno, f"cannot write in {folder} to learn the time of its file system") from error
