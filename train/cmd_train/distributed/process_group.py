"""Where this process stands among the processes of a training, from what torchrun or Slurm's srun have set."""

from __future__ import annotations

import gc
import os
import re
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

# Its functions keep the group that there is when it is imported as the default of an argument. DistributedDataParallel
# imports it; if that is the first time, the group and its threads live until the interpreter ends, and a thread that
# then still drops a tensor aborts the process (pytorch/pytorch#190489).
import torch.distributed.nn.functional

from cmd_train.distributed.errors import write_error

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_SLURM = ("SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID")
_FIRST_PORT, _PORTS = 20_000, 20_000


class RankError(RuntimeError):
    """What one of several processes failed of; the message says which one, and on which host."""


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


@dataclass(frozen=True, kw_only=True)
class Seat:
    """A process's numbers, as the launcher tells them.

    Attributes:
        rank, world_size: this process's number, and how many there are.
        local_rank: its number on its host.
        meeting_point: URL where the processes meet.
        launched: whether somebody watches how this process ends: torchrun takes any exit code but 0 for a failure and
            starts it again; srun may end the other tasks.
    """

    rank: int
    world_size: int
    local_rank: int
    meeting_point: str = "env://"
    launched: bool = True


def find_seat(environment: Mapping[str, str]) -> Seat:
    """Reads torchrun's variables or, without them, those of a Slurm job step with several tasks.

    Raises:
        ValueError: torchrun's variables are half set, or do not fit the job step that this process is in.
    """
    given = [name for name in _TORCHRUN if name in environment]
    if given:
        if len(given) < len(_TORCHRUN):
            missing = ", ".join(sorted(set(_TORCHRUN) - set(given)))
            raise ValueError(f"environment: {', '.join(given)} set but not {missing}; start with torchrun or srun")
        rank, world_size, local_rank = (int(environment[name]) for name in _TORCHRUN)
        seat = Seat(rank=rank, world_size=world_size, local_rank=local_rank)
        _refuse_mixture(seat, environment)
        return seat
    # A batch script itself has no step; what runs in it without srun is alone, whatever the job's number of tasks.
    if not all(name in environment for name in _SLURM) or int(environment["SLURM_STEP_NUM_TASKS"]) == 1:
        return Seat(rank=0, world_size=1, local_rank=0, launched=False)
    step, tasks, rank, local_rank = (int(environment[name]) for name in _SLURM)
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "localhost")
    host = environment.get("MASTER_ADDR") or first_host(nodes)
    # Steps that run side by side must not meet at one port.
    port = _FIRST_PORT + (int(environment.get("SLURM_JOB_ID", "0")) * 31 + step) % _PORTS
    chosen = environment.get("MASTER_PORT") or str(port)
    return Seat(rank=rank, world_size=tasks, local_rank=local_rank, meeting_point=f"tcp://{host}:{chosen}")


def _refuse_mixture(seat: Seat, environment: Mapping[str, str]) -> None:
    """Refuses srun that has started several torchruns a node, or some that do not know of one another.

    Raises:
        ValueError: torchrun's numbers and those of the job step disagree.
    """
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks == 1:
        return
    if "GROUP_WORLD_SIZE" not in environment:
        # Somebody has set the variables without torchrun; from Slurm's, as is usual, or not.
        if (seat.rank, seat.world_size) == (int(environment.get("SLURM_PROCID", "0")), tasks):
            return
        raise ValueError(
            f"environment: RANK={seat.rank} and WORLD_SIZE={seat.world_size}, but this is task "
            f"{environment.get('SLURM_PROCID')} of {tasks} of a Slurm job step; unset RANK, WORLD_SIZE and LOCAL_RANK"
        )
    launchers = int(environment["GROUP_WORLD_SIZE"])
    per_node = max(map(int, re.findall(r"(\d+)(?:\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))))
    if per_node > 1 or launchers != tasks:
        raise ValueError(
            f"srun and torchrun are mixed: srun has started {tasks} tasks, {per_node} on a node, and each is a "
            f"torchrun that knows of {launchers} in all. Use srun alone, one task a rank (srun cmd-train ...), or one "
            "torchrun a node (srun --ntasks-per-node=1 torchrun --nnodes=$SLURM_NNODES --nproc-per-node=... "
            "--no-python cmd-train ...); `cmd-train sbatch` prints a script with both"
        )


def first_host(nodes: str) -> str:
    """The first host of a Slurm node list: ``gpu[03-05,9],x`` gives ``gpu03``."""
    first = re.match(r"(?:\[[^]]*\]|[^,\[])*", nodes)
    return re.sub(r"\[([^],-]*)[^]]*\]", r"\1", first.group() if first else nodes)


@contextmanager
def process_group(device: str = "auto", errors: Path | None = None) -> Iterator[Placement]:
    """Joins the process group that the launcher announces, if it does, and leaves it at the end.

    Args:
        device: ``auto`` (CUDA if there is one), ``cpu`` or ``cuda``.
        errors: folder where one of several processes leaves the traceback of what it fails of.

    Raises:
        ValueError: CUDA was asked for and is not there, or the environment contradicts itself.
        RankError: something failed on this one of several processes.
    """
    seat = find_seat(os.environ)
    if seat.world_size == 1:
        yield Placement(rank=0, world_size=1, device=_choose_device(device, seat.local_rank))
        return
    try:
        chosen = _choose_device(device, seat.local_rank)
        placement = Placement(rank=seat.rank, world_size=seat.world_size, device=chosen)
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        # Options by name only: with torchrun, its agent's store is found through the environment.
        dist.init_process_group(backend, init_method=seat.meeting_point, rank=seat.rank, world_size=seat.world_size)
        yield placement
        # Some launchers end all once one has ended; none leaves before the last checkpoint is there.
        any_rank((False,), placement)
    except Exception as error:
        # The group is not left in order: that could wait for ever for ranks that are stuck. The process ends instead.
        place = f"rank {seat.rank} of {seat.world_size} on {socket.gethostname()}"
        raise RankError(f"{place}: {error}{_keep_traceback(errors, error, seat)}") from error
    leave_group()


def leave_group() -> None:
    """Leaves the process group and ends its threads; nothing that holds it, such as a wrapped model, may be in use."""
    # A wrapped model may refer to itself in a circle. It goes first: as the last that holds the group it would wait for
    # the group's threads while these wait for Python's lock.
    gc.collect()
    dist.destroy_process_group()


def _keep_traceback(folder: Path | None, error: Exception, seat: Seat) -> str:
    """Where the traceback is to be found, as the end of a sentence."""
    if folder is None:
        return ""
    try:
        return f" (traceback: {write_error(folder, error, rank=seat.rank, world_size=seat.world_size)})"
    except OSError as second:
        # What has failed first must not be hidden by a full disk.
        return f" (its traceback could not be kept: {second})"


def any_rank(flags: Sequence[bool], placement: Placement) -> tuple[bool, ...]:
    """Whether each flag is set on any rank; all ranks must call this together and get the same answer."""
    if placement.world_size == 1:
        return tuple(flags)
    seen = torch.tensor([int(flag) for flag in flags], device=placement.device)
    dist.all_reduce(seen, dist.ReduceOp.MAX)
    return tuple(bool(value) for value in seen.tolist())


def from_all_ranks(text: str, placement: Placement) -> list[str]:
    """The text that each rank gives, in rank order; all ranks must call this together."""
    if placement.world_size == 1:
        return [text]
    texts: list[str | None] = [None] * placement.world_size
    dist.all_gather_object(texts, text)
    return [each or "" for each in texts]


def _choose_device(name: str, local_rank: int) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: {name!r} is not auto, cpu or cuda")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("device: cuda was asked for, but torch sees no CUDA device; use --device cpu")
    # Slurm may show each task its own device only.
    chosen = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(chosen)
    return chosen


def ignore_signals(_: int = 0) -> None:
    """Batch systems signal the whole process group; a worker that died of it would take the last steps with it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
