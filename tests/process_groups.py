"""Process groups of tests, and what they leave behind."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from cmd_train.distributed.process_group import leave_group


@contextmanager
def one_of_two(rank: int, folder: str) -> Iterator[None]:
    """Joins the group of two processes that meet in this folder, and leaves it at the end."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    yield
    leave_for_good()


def leave_for_good() -> None:
    """Leaves the process group; fails if it lives on: a thread of it can abort the interpreter at its end."""
    group = weakref.ref(dist.distributed_c10d._get_default_group())
    leave_group()
    assert group() is None, "something still holds the process group"
