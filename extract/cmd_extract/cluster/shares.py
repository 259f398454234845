"""Assignment of shards to the tasks of a distributed extraction: whole shards, round-robin.

A shard depends neither on the task that builds it nor on the number of tasks, so all tasks together produce what a
single machine would. Slurm passes the task ID of a job array in the environment; with any other scheduler, use
``--task`` and ``--num-tasks``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cmd_extract.run.plan import ShardPlan

_ID, _COUNT = "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"
_MIN, _MAX, _STEP = "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_STEP"


@dataclass(frozen=True, kw_only=True)
class Share:
    """The share of one task.

    Attributes:
        task: task index, 0-based.
        num_tasks: total number of tasks.
    """

    task: int
    num_tasks: int

    def __post_init__(self) -> None:
        if self.num_tasks < 1:
            raise ValueError(f"num_tasks: must be at least 1, got {self.num_tasks}")
        if not 0 <= self.task < self.num_tasks:
            raise ValueError(f"task: must be between 0 and {self.num_tasks - 1} (num_tasks - 1), got {self.task}")

    def __str__(self) -> str:
        return f"task {self.task} of {self.num_tasks}"

    def of(self, plans: Sequence[ShardPlan]) -> tuple[ShardPlan, ...]:
        """Return the task's shards. Every shard belongs to exactly one task."""
        return tuple(plans[self.task :: self.num_tasks])

    def shard_numbers(self, total: int) -> range:
        """Return the numbers of the task's shards, out of ``total`` shards."""
        return range(self.task, total, self.num_tasks)


def find_share(environ: Mapping[str, str], task: int | None, num_tasks: int | None) -> Share | None:
    """Return the share of this process.

    Args:
        environ: environment variables. In a Slurm job array, the lowest ID (0 or 1) is task 0, and IDs may have a step.
        task: task index; None uses the array's task ID.
        num_tasks: number of tasks; None uses the size of the array. If given, array IDs are used unchanged, so that
            ``sbatch --array=3,7`` repeats two tasks.

    Returns:
        None if the process is not one of several tasks.

    Raises:
        ValueError: the values contradict each other, or the array does not start at 0 or 1 or has gaps, and
            ``num_tasks`` is not given.
    """
    if num_tasks is not None:
        if task is None and _ID not in environ:
            raise ValueError("task: --num-tasks requires --task outside a Slurm job array")
        return Share(task=int(environ[_ID]) if task is None else task, num_tasks=num_tasks)
    if task is not None:
        raise ValueError("num_tasks: --task requires --num-tasks")
    if _ID not in environ:
        return None
    number, count, low = (int(environ[name]) for name in (_ID, _COUNT, _MIN))
    high, step = int(environ.get(_MAX, low + count - 1)), int(environ.get(_STEP, "1"))
    remedy = (
        "Set --num-tasks to the total number of tasks (their IDs count from 0), or use --no-share to build all shards"
    )
    if low > 1:
        raise ValueError(f"num_tasks: the job array starts at {low} and may be part of a larger one. {remedy}")
    if (high - low) // step + 1 != count or (number - low) % step:
        raise ValueError(f"num_tasks: the job array has gaps ({count} tasks between {low} and {high}). {remedy}")
    return Share(task=(number - low) // step, num_tasks=count)
