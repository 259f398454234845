"""Where this process stands among the processes of a training, from the environment that torchrun sets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@dataclass(frozen=True, kw_only=True)
class Placement:
    """One process of a training.

    Attributes:
        rank, world_size: this process's number, and how many there are.
        device: where it computes.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes what only one may write."""
        return self.rank == 0


@contextmanager
def process_group(device: str = "auto") -> Iterator[Placement]:
    """Joins the process group that torchrun announces, if it does, and leaves it at the end.

    Args:
        device: ``auto`` (CUDA if there is one), ``cpu`` or ``cuda``.

    Raises:
        ValueError: CUDA was asked for and is not there, or the environment is half set.
    """
    given = [name for name in _VARIABLES if name in os.environ]
    if given and len(given) < len(_VARIABLES):
        missing = ", ".join(sorted(set(_VARIABLES) - set(given)))
        raise ValueError(f"environment: {', '.join(given)} set but not {missing}; start with torchrun, or unset them")
    rank, world_size, local_rank = (int(os.environ[name]) for name in _VARIABLES) if given else (0, 1, 0)
    chosen = _choose_device(device, local_rank)
    if world_size == 1:
        yield Placement(rank=rank, world_size=world_size, device=chosen)
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Placement(rank=rank, world_size=world_size, device=chosen)
    finally:
        dist.destroy_process_group()


def any_rank(flag: bool, placement: Placement) -> bool:
    """Whether the flag is set on any rank; all ranks must call this together and get the same answer."""
    if placement.world_size == 1:
        return flag
    seen = torch.tensor(int(flag), device=placement.device)
    dist.all_reduce(seen, dist.ReduceOp.MAX)
    return bool(seen.item())


def _choose_device(name: str, local_rank: int) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: {name!r} is not auto, cpu or cuda")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("device: cuda was asked for, but torch sees no CUDA device; use --device cpu")
    chosen = torch.device("cuda", local_rank)
    torch.cuda.set_device(chosen)
    return chosen
