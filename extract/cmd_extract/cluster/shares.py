"""Assignment of shards to the tasks of a distributed extraction: whole shards, round-robin.

A shard depends neither on the task that builds it nor on the number of tasks, so all tasks together produce what a
single machine would. Shares are taken only on request: with ``--array`` from the task ID that Slurm sets in a job
array, with any other scheduler from ``--task`` and ``--num-tasks``.
"""

from __future__ import annotations

from collections.abc import Mapping

from cmd_extract.run.plan import Share

_ID, _COUNT = "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"
_MIN, _MAX, _STEP = "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_STEP"
_REMEDY = "Pass --num-tasks with the total number of tasks (their IDs count from 0)"


def find_share(environ: Mapping[str, str], task: int | None, num_tasks: int | None, *, array: bool) -> Share | None:
    """Return the share of this process.

    A share is taken only if requested: a process in a job array, which may run over folders, seeds or anything else,
    builds all shards by default.

    Args:
        environ: environment variables, perhaps of a Slurm job array.
        task: task index, if given explicitly; requires ``num_tasks``.
        num_tasks: total number of tasks. With ``array``, None uses the size of the array; if given, array IDs are used
            unchanged, so that ``sbatch --array=3,7`` repeats two tasks.
        array: derive the task from the ID in the Slurm job array. The lowest ID (0 or 1) is task 0, and IDs may have a
            step.

    Returns:
        None if no share was requested.

    Raises:
        ValueError: the values contradict each other, there is no valid job array, or the array does not start at 0 or 1
            or has gaps, and ``num_tasks`` is not given.
    """
    if task is not None:
        if array:
            raise ValueError("task: --task cannot be combined with --array; use one of them")
        if num_tasks is None:
            raise ValueError("num_tasks: --task requires --num-tasks")
        return Share(task=task, num_tasks=num_tasks)
    if not array:
        if num_tasks is not None:
            raise ValueError("task: --num-tasks requires --task, or --array in a Slurm job array")
        return None
    if _ID not in environ:
        raise ValueError(f"array: not in a Slurm job array ({_ID} is not set); use --task and --num-tasks")
    if num_tasks is not None:
        return Share(task=_read_number(environ, _ID), num_tasks=num_tasks)
    return _array_share(environ)


def is_array_task(environ: Mapping[str, str]) -> bool:
    """Return whether this process belongs to a Slurm job array."""
    return _ID in environ


def _array_share(environ: Mapping[str, str]) -> Share:
    number, count, low = (_read_number(environ, name) for name in (_ID, _COUNT, _MIN))
    high = _read_number(environ, _MAX, low + count - 1)
    step = _read_number(environ, _STEP, 1)
    if low > 1:
        raise ValueError(f"num_tasks: the job array starts at {low} and may be part of a larger one. {_REMEDY}")
    if step < 1 or (high - low) // step + 1 != count or (number - low) % step:
        raise ValueError(f"num_tasks: the job array has gaps ({count} tasks between {low} and {high}). {_REMEDY}")
    return Share(task=(number - low) // step, num_tasks=count)


def _read_number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal():
        found = "is not set" if text is None else f"is {text!r}"
        raise ValueError(f"array: {name} {found}, expected a number as set by Slurm; use --task and --num-tasks")
    return int(text)
