"""What one video may cost, and how many videos may fail."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import threading
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_MIB = 1 << 20
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one video may cost before it counts as failed. They decide nothing else of a shard.

    Attributes:
        timeout_seconds: wall time of one video from opening it to its last vector.
        max_memory_mb: memory in MiB that the extracting process may add for a video; FFmpeg may take as much beside it.
    """

    timeout_seconds: float = 3600.0
    max_memory_mb: int = 4096

    def __post_init__(self) -> None:
        if not self.timeout_seconds > 0:
            raise ValueError(f"timeout_seconds: {self.timeout_seconds} is not positive")
        if self.max_memory_mb < 64:
            raise ValueError(f"max_memory_mb: {self.max_memory_mb} is not at least 64")


class FailureLimitError(Exception):
    """More videos failed than the user allows."""


class OutputError(RuntimeError):
    """Files of the run itself cannot be written; no fault of any video.

    Args:
        what: where, and why.
    """

    def __init__(self, what: str) -> None:
        super().__init__(what)

    def __str__(self) -> str:
        return (
            f"{super().__str__()}. Nothing that is finished is lost: make room or name another --scratch folder, then "
            "run the same command again to continue"
        )


def parse_failure_limit(text: str, rows: int) -> int:
    """How many videos may fail.

    Args:
        text: a count (``20``) or a share of all manifest rows (``5%``).
        rows: number of manifest rows.

    Raises:
        ValueError: ``text`` is neither.
    """
    number = text.removesuffix("%")
    try:
        value = Fraction(number)
    except (ValueError, ZeroDivisionError):
        value = Fraction(-1)
    if text.endswith("%") and 0 <= value <= 100:
        return int(value * rows / 100)
    if number == text and value >= 0 and value.denominator == 1:
        return int(value)
    raise ValueError(f"max_failures: {text!r} is neither a count such as 20 nor a share such as 5%")


def parse_stages(text: str, known: tuple[str, ...]) -> frozenset[str]:
    """Stages of failures to try again.

    Args:
        text: ``all``, or some of ``known`` separated by commas.
        known: all stages there are.

    Raises:
        ValueError: ``text`` is neither.
    """
    stages = set(known) if text == "all" else {part.strip() for part in text.split(",")}
    if not stages <= set(known):
        raise ValueError(f"retry_failures: {text!r} is neither all nor some of {','.join(known)}")
    return frozenset(stages)


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
