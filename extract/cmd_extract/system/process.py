"""Limits and lifetime of a process: memory, death of the parent, available cores."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_MIB = 1 << 20
_PARENT_WATCH = "parent-watch"
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends, even if the parent is killed (Linux only)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def watch_parent(parent: int, poll_seconds: float = 1.0) -> None:
    """End this process soon after its parent has ended, by polling in a background thread.

    This replaces ``die_with_parent`` for children of multi-threaded processes: the kernel's signal is sent when the
    *thread* that started the child ends.

    Args:
        parent: process id of the parent, passed on by the parent itself, which may have ended before this call.
        poll_seconds: polling interval.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(poll_seconds)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name=_PARENT_WATCH).start()


def has_other_threads() -> bool:
    """Return whether other Python threads run in this process, apart from that of ``watch_parent``.

    Then no Python code may run between fork and exec (``preexec_fn``). Before it, the child finalizes the thread-local
    objects of the other threads, and those of PyAV wait for threads that the fork has not copied: for ever.
    """
    return any(t is not threading.current_thread() and t.name != _PARENT_WATCH for t in threading.enumerate())


def limit_memory(added_mb: int) -> None:
    """Limit the memory of this process to its current use plus ``added_mb`` MiB (Linux only).

    RLIMIT_DATA counts writable memory; RLIMIT_AS would also count address space that threads and libraries reserve
    without using it.
    """
    if sys.platform == "linux":
        _lower_data_limit(_data_bytes() + added_mb * _MIB)


def prepare_program() -> None:
    """Prepare a child process between fork and exec (``preexec_fn``): it dies with its parent, with a memory limit.

    The limit is the part of the parent's limit that the parent itself does not use.
    """
    die_with_parent()
    if (left := memory_left()) is not None:
        _lower_data_limit(left)


def memory_left() -> int | None:
    """Return the bytes that this process may still use under its limit; None without a limit."""
    if sys.platform != "linux":
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return None if limit == resource.RLIM_INFINITY else max(limit - _data_bytes(), 0)


def _data_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[5]) * os.sysconf("SC_PAGE_SIZE")


def _lower_data_limit(limit: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def allotted_cores(environ: Mapping[str, str], cores: int) -> int:
    """Return the number of cores this process may use, limited to the allocation of the surrounding Slurm job, if any.

    Args:
        environ: the environment variables.
        cores: number of cores that the operating system grants; not every cluster binds jobs to their cores.
    """
    allocated = environ.get("SLURM_CPUS_ON_NODE", "")
    return min(cores, int(allocated)) if allocated.isdecimal() and int(allocated) else cores
