"""Process group of a run, started by torchrun, by Slurm's srun, or as a single process."""

from __future__ import annotations

import gc
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

# Import this before a process group exists: its functions bind the current group as a default argument. If
# DistributedDataParallel imports it first, the group and its threads live until the interpreter exits, and a thread
# that frees a tensor at that point aborts the process (pytorch/pytorch#190489).
import torch.distributed.nn.functional

from cmd_extract.system.memory import keep_freed_memory
from cmd_train.distributed.errors import write_error

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_SLURM = ("SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID")
_FIRST_PORT, _PORTS = 20_000, 20_000


class RankError(RuntimeError):
    """Failure of one of several ranks; the message names the rank and its host."""


@dataclass(frozen=True, kw_only=True)
class RankContext:
    """This process among all processes of a run.

    Attributes:
        rank, world_size: rank of this process and number of ranks.
        device: device this process computes on.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and log lines."""
        return self.rank == 0


@dataclass(frozen=True, kw_only=True)
class LaunchInfo:
    """Rank and rendezvous of this process, as set by its launcher.

    Attributes:
        rank, world_size: rank of this process and number of ranks.
        local_rank: rank of this process on its host.
        init_method: URL for ``torch.distributed.init_process_group``.
        launched: whether a launcher interprets the exit code: torchrun treats any code but 0 as a failure and restarts
            the process, srun may end the other tasks.
    """

    rank: int
    world_size: int
    local_rank: int
    init_method: str = "env://"
    launched: bool = True


def read_launch_info(environment: Mapping[str, str]) -> LaunchInfo:
    """Read torchrun's environment variables or else those of a Slurm job step with several tasks.

    Raises:
        ValueError: torchrun's variables are incomplete or contradict the Slurm job step.
    """
    given = [name for name in _TORCHRUN if name in environment]
    if given:
        if len(given) < len(_TORCHRUN):
            missing = ", ".join(sorted(set(_TORCHRUN) - set(given)))
            raise ValueError(
                f"environment: {', '.join(given)} set but not {missing}; start with torchrun or srun, or unset them"
            )
        rank, world_size, local_rank = (int(environment[name]) for name in _TORCHRUN)
        launch = LaunchInfo(rank=rank, world_size=world_size, local_rank=local_rank)
        _check_slurm_step(launch, environment)
        return launch
    # Outside of a job step (in a batch script, without srun) there is a single process, however many tasks the job has.
    if not all(name in environment for name in _SLURM) or int(environment["SLURM_STEP_NUM_TASKS"]) == 1:
        return LaunchInfo(rank=0, world_size=1, local_rank=0, launched=False)
    step, tasks, rank, local_rank = (int(environment[name]) for name in _SLURM)
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "localhost")
    host = environment.get("MASTER_ADDR") or first_host(nodes)
    # Concurrent job steps need different ports.
    port = _FIRST_PORT + (int(environment.get("SLURM_JOB_ID", "0")) * 31 + step) % _PORTS
    chosen = environment.get("MASTER_PORT") or str(port)
    return LaunchInfo(rank=rank, world_size=tasks, local_rank=local_rank, init_method=f"tcp://{host}:{chosen}")


def _check_slurm_step(launch: LaunchInfo, environment: Mapping[str, str]) -> None:
    """Reject several torchrun launchers per node, and launchers that do not form one group.

    Raises:
        ValueError: torchrun's variables contradict those of the Slurm job step.
    """
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks == 1:
        return
    if "GROUP_WORLD_SIZE" not in environment:
        # The variables were set without torchrun, usually from Slurm's.
        if (launch.rank, launch.world_size) == (int(environment.get("SLURM_PROCID", "0")), tasks):
            return
        raise ValueError(
            f"environment: RANK={launch.rank} and WORLD_SIZE={launch.world_size}, but this is task "
            f"{environment.get('SLURM_PROCID')} of {tasks} in a Slurm job step; unset RANK, WORLD_SIZE and LOCAL_RANK"
        )
    launchers = int(environment["GROUP_WORLD_SIZE"])
    per_node = max(map(int, re.findall(r"(\d+)(?:\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))))
    if per_node > 1 or launchers != tasks:
        raise ValueError(
            f"srun and torchrun are mixed: srun started {tasks} tasks, {per_node} per node, and each of them is a "
            f"torchrun in a group of {launchers}. Use srun alone with one task per rank (srun cmd-train ...), or one "
            "torchrun per node (srun --ntasks-per-node=1 torchrun --nnodes=$SLURM_NNODES --nproc-per-node=... "
            "--no-python cmd-train ...); `cmd-train sbatch` prints a script with both"
        )


def first_host(nodes: str) -> str:
    """Return the first host of a Slurm node list: ``gpu[03-05,9],x`` gives ``gpu03``."""
    first = re.match(r"(?:\[[^]]*\]|[^,\[])*", nodes)
    return re.sub(r"\[([^],-]*)[^]]*\]", r"\1", first.group() if first else nodes)


@contextmanager
def process_group(device: str = "auto", errors: Path | None = None) -> Iterator[RankContext]:
    """Join the process group of the launcher, if there is one, and leave it at the end.

    Args:
        device: ``auto`` (CUDA if available), ``cpu`` or ``cuda``.
        errors: folder for the tracebacks of failed ranks; None writes none.

    Raises:
        ValueError: CUDA is requested but not available, or the environment is contradictory.
        RankError: this rank, one of several, failed.
    """
    launch = read_launch_info(os.environ)
    if launch.world_size == 1:
        yield RankContext(rank=0, world_size=1, device=_choose_device(device, launch.local_rank))
        return
    try:
        chosen = _choose_device(device, launch.local_rank)
        context = RankContext(rank=launch.rank, world_size=launch.world_size, device=chosen)
        on_cuda = chosen.type == "cuda"
        # Pass no store: torch finds that of torchrun's agent through the environment. Control messages stay on the CPU,
        # where they do not wait for the GPU.
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
            init_method=launch.init_method,
            rank=launch.rank,
            world_size=launch.world_size,
            device_id=chosen if on_cuda else None,
        )
        yield context
        # Some launchers end all ranks when one exits, so wait until the last checkpoint is saved.
        any_rank((False,), context)
    except Exception as error:
        # Do not leave the group: that could wait forever for ranks that are stuck. The process exits instead.
        place = f"rank {launch.rank} of {launch.world_size} on {socket.gethostname()}"
        raise RankError(f"{place}: {error}{_save_traceback(errors, error, launch)}") from error
    leave_group()


def leave_group() -> None:
    """Leave the process group and end its threads; wrapped models and other users of the group must be out of use."""
    # Free wrapped models, which may be in reference cycles, first. If one of them were the last user of the group, it
    # would wait for the group's threads while these wait for the GIL.
    gc.collect()
    dist.destroy_process_group()


def _save_traceback(folder: Path | None, error: Exception, launch: LaunchInfo) -> str:
    """Save the traceback; return a note for the error message that says where."""
    if folder is None:
        return ""
    try:
        return f" (traceback: {write_error(folder, error, rank=launch.rank, world_size=launch.world_size)})"
    except OSError as second:
        # A full disk must not hide the first failure.
        return f" (the traceback could not be saved: {second})"


def any_rank(flags: Sequence[bool], context: RankContext) -> tuple[bool, ...]:
    """Return for each flag whether it is set on any rank; a collective operation."""
    if context.world_size == 1:
        return tuple(flags)
    seen = torch.tensor([int(flag) for flag in flags])
    dist.all_reduce(seen, dist.ReduceOp.MAX)
    return tuple(bool(value) for value in seen.tolist())


def gather_texts(text: str, context: RankContext) -> list[str]:
    """Return the texts of all ranks, in rank order; a collective operation."""
    if context.world_size == 1:
        return [text]
    texts: list[str | None] = [None] * context.world_size
    dist.all_gather_object(texts, text)
    return [each or "" for each in texts]


def _choose_device(name: str, local_rank: int) -> torch.device:
    """Return the device to compute on, and prepare the process for it."""
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: must be auto, cpu or cuda, got {name!r}")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        keep_freed_memory()
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("device: cuda was requested, but torch finds no CUDA device; use --device cpu")
    # Slurm may make only its own device visible to each task.
    chosen = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(chosen)
    return chosen
