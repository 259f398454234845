"""Which shards of a manifest one task of many makes: whole shards, dealt out in turn.

Since a shard depends neither on the task that makes it nor on the number of tasks, the union over all tasks is what one
machine would have made. Slurm's array jobs say in the environment which task this is; for any other scheduler
``--task`` and ``--num-tasks`` do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cmd_extract.run.plan import ShardPlan

_ID, _COUNT = "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"
_MIN, _MAX, _STEP = "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_STEP"


@dataclass(frozen=True, kw_only=True)
class Share:
    """One task of many.

    Attributes:
        task: its number, from 0.
        num_tasks: how many tasks there are.
    """

    task: int
    num_tasks: int

    def __post_init__(self) -> None:
        if self.num_tasks < 1:
            raise ValueError(f"num_tasks: {self.num_tasks} is not at least 1")
        if not 0 <= self.task < self.num_tasks:
            raise ValueError(f"task: {self.task} is not between 0 and {self.num_tasks - 1} (num_tasks - 1)")

    def __str__(self) -> str:
        return f"task {self.task} of {self.num_tasks}"

    def of(self, plans: Sequence[ShardPlan]) -> tuple[ShardPlan, ...]:
        """The task's shards; every shard falls to exactly one of the tasks."""
        return tuple(plans[self.task :: self.num_tasks])

    def shard_numbers(self, shards: int) -> range:
        """Numbers of the task's shards, of ``shards`` in all."""
        return range(self.task, shards, self.num_tasks)


def find_share(environ: Mapping[str, str], task: int | None, num_tasks: int | None) -> Share | None:
    """The share of this process.

    Args:
        environ: the environment, perhaps of a Slurm array job: its lowest id, 0 or 1, is task 0, and so on in steps.
        task: number of the task; None for the array's task id.
        num_tasks: number of tasks; None for the array's. With it the array's ids are taken as they are, so that
            ``sbatch --array=3,7`` repeats two tasks of many.

    Returns:
        None if this is no task of many.

    Raises:
        ValueError: what is said contradicts itself, or ids are missing from the array, at its start or within, and
            the number is not given.
    """
    if num_tasks is not None:
        if task is None and _ID not in environ:
            raise ValueError("task: --num-tasks needs --task, which only a Slurm array job need not give")
        return Share(task=int(environ[_ID]) if task is None else task, num_tasks=num_tasks)
    if task is not None:
        raise ValueError("num_tasks: --task needs --num-tasks")
    if _ID not in environ:
        return None
    number, count, low = (int(environ[name]) for name in (_ID, _COUNT, _MIN))
    high, step = int(environ.get(_MAX, low + count - 1)), int(environ.get(_STEP, "1"))
    if low > 1:
        raise ValueError(
            f"num_tasks: the array starts at {low}, so that it may be a part of another; say with --num-tasks how many "
            "tasks share the manifest (their ids count from 0), or with --no-share that none do"
        )
    if (high - low) // step + 1 != count or (number - low) % step:
        raise ValueError(
            f"num_tasks: the array has {count} tasks between {low} and {high}, with gaps; say with --num-tasks how "
            "many tasks share the manifest (their ids count from 0), or with --no-share that none do"
        )
    return Share(task=(number - low) // step, num_tasks=count)
