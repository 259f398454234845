"""Process groups of tests, and what they leave behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import torch.distributed as dist

from train.distributed import leave_group


@contextmanager
def one_of_two(rank: int, folder: str) -> Iterator[None]:
    """Joins the group of two processes that meet in this folder, and leaves it at the end."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    yield
    assert threads_of_groups()
    leave_group()
    require_no_threads()


def threads_of_groups() -> list[str]:
    """Names of the threads that this process's process group has started."""
    names = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            names.append((task / "comm").read_text().strip())
    return [name for name in names if "gloo" in name]


def require_no_threads() -> None:
    """Fails if a process group has left threads: one at work while the interpreter ends aborts it, now and then."""
    # The kernel lists a thread a little longer than it runs.
    deadline = time.monotonic() + 10
    while threads_of_groups() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not threads_of_groups(), f"left behind: {threads_of_groups()}"
