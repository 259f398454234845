"""Limits and lifetime of a process: memory, death of the parent, allotted cores."""

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
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """Has the system kill this process when the one that started it ends, however that ends (Linux only)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def watch_parent(parent: int, look_seconds: float = 1.0) -> None:
    """Ends this process soon after its parent has ended: what ``die_with_parent`` does, for a process of many threads.

    The system's own signal would come when the *thread* that started this process ends.

    Args:
        parent: the parent's number, as the parent itself knows it: it may have ended before this process got so far.
        look_seconds: time between two looks.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(look_seconds)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def limit_memory(added_mb: int) -> None:
    """Bounds the memory of this process to what it has now and ``added_mb`` MiB (Linux only).

    RLIMIT_DATA counts what is set aside for writing; RLIMIT_AS would count the address space that threads and
    libraries reserve without using it.
    """
    if sys.platform == "linux":
        _lower_data_limit(_data_bytes() + added_mb * _MIB)


def prepare_program() -> None:
    """What a process does between fork and exec: it will die with its parent, and it leaves behind the parent's memory.

    The bound that is left is the parent's, less what the parent itself takes.
    """
    die_with_parent()
    if sys.platform == "linux":
        bound, _ = resource.getrlimit(resource.RLIMIT_DATA)
        if bound != resource.RLIM_INFINITY:
            _lower_data_limit(max(bound - _data_bytes(), 0))


def _data_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[5]) * os.sysconf("SC_PAGE_SIZE")


def _lower_data_limit(bound: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (bound if hard == resource.RLIM_INFINITY else min(bound, hard), hard))


def allotted_cores(environ: Mapping[str, str], cores: int) -> int:
    """Cores that this process may use: inside a Slurm job what the job has on this node, where that is fewer.

    Args:
        environ: the environment.
        cores: what the system grants; not all clusters bind jobs to their cores.
    """
    given = environ.get("SLURM_CPUS_ON_NODE", "")
    return min(cores, int(given)) if given.isdecimal() and int(given) else cores
