"""Process groups in tests, with a check for leaked ones."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from cmd_train.distributed.process_group import leave_group


@contextmanager
def two_rank_group(rank: int, folder: str) -> Iterator[None]:
    """Join a group of two processes with its rendezvous in this folder, and leave it at the end."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    yield
    leave_and_check()


def leave_and_check() -> None:
    """Leave the process group; fail if it stays alive, since its threads can abort the interpreter at exit."""
    group = weakref.ref(dist.distributed_c10d._get_default_group())
    leave_group()
    assert group() is None, "the process group is still referenced"
