from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cmd_extract.cli.run import run
from cmd_extract.cluster.shares import find_share
from cmd_extract.manifest.rows import ListedRows
from cmd_extract.run.division import plan_shards
from cmd_extract.run.plan import ShardLimits, Share
from cmd_extract.schema import VideoRecord
from cmd_extract.system.process import allotted_cores
from tests.paths import ROOT

ROWS = ListedRows([VideoRecord(row=i, video_id=str(i), path=f"{i}.mp4") for i in range(23)])
PLANS = plan_shards(ROWS, limits=ShardLimits(2)).plans


def array(task: int, count: int, low: int, high: int, step: int) -> dict[str, str]:
    values = {"ID": task, "COUNT": count, "MIN": low, "MAX": high, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


@pytest.mark.parametrize("num_tasks", [1, 2, 5, 12, 30])
def test_every_shard_belongs_to_exactly_one_task(num_tasks: int) -> None:
    shares = [Share(task=i, num_tasks=num_tasks) for i in range(num_tasks)]
    assigned = [plan.number for share in shares for plan in share.of(PLANS)]
    assert sorted(assigned) == list(range(12))
    assert [[p.number for p in s.of(PLANS)] for s in shares] == [list(s.shard_numbers(12)) for s in shares]
    sizes = [len(share.of(PLANS)) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (array(0, 4, 0, 3, 1), (0, 4)),
        (array(3, 4, 0, 3, 1), (3, 4)),
        (array(4, 4, 1, 4, 1), (3, 4)),
        (array(5, 4, 1, 7, 2), (2, 4)),
        (array(0, 1, 0, 0, 1), (0, 1)),
        (array(6, 3, 0, 6, 3), (2, 3)),
    ],
)
def test_share_is_derived_from_array_ids(environ: dict[str, str], expected: tuple[int, int]) -> None:
    share = find_share(environ, None, None, array=True)
    assert share
    assert (share.task, share.num_tasks) == expected


@pytest.mark.parametrize("environ", [{}, {"SLURM_JOB_ID": "7"}, array(1, 4, 0, 3, 1), array(9, 2, 7, 9, 2)])
def test_no_share_is_taken_unless_requested(environ: dict[str, str]) -> None:
    assert find_share(environ, None, None, array=False) is None


def test_explicit_values_override_the_array() -> None:
    environ = array(7, 2, 3, 7, 1)  # --array=3,7
    assert find_share(environ, None, 32, array=True) == Share(task=7, num_tasks=32)
    assert find_share(environ, 1, 2, array=False) == Share(task=1, num_tasks=2)


@pytest.mark.parametrize(
    ("environ", "task", "num_tasks", "use_array", "message"),
    [
        (array(7, 2, 0, 7, 1), None, None, True, "has gaps"),
        (array(3, 1, 3, 3, 1), None, None, True, "the job array starts at 3"),  # a task is repeated with --array=3
        (array(4, 2, 4, 5, 1), None, None, True, "the job array starts at 4"),
        ({}, None, None, True, r"not in a Slurm job array \(SLURM_ARRAY_TASK_ID is not set\)"),
        ({}, None, 4, True, "not in a Slurm job array"),
        ({"SLURM_ARRAY_TASK_ID": "1"}, None, None, True, "SLURM_ARRAY_TASK_COUNT is not set"),
        ({"SLURM_ARRAY_TASK_ID": "x"}, None, 4, True, "SLURM_ARRAY_TASK_ID is 'x', expected a number"),
        (array(0, 4, 0, 3, 0), None, None, True, "has gaps"),
        ({}, None, 4, False, "--num-tasks requires --task, or --array"),
        (array(0, 4, 0, 3, 1), None, 4, False, "--num-tasks requires --task, or --array"),
        ({}, 1, None, False, "--task requires --num-tasks"),
        (array(0, 4, 0, 3, 1), 1, 4, True, "--task cannot be combined with --array"),
        ({}, 4, 4, False, "task: must be between 0 and 3 .*, got 4"),
        (array(9, 1, 9, 9, 1), None, 4, True, "task: must be between 0 and 3 .*, got 9"),
    ],
)
def test_contradictory_values_are_rejected(
    environ: dict[str, str], task: int | None, num_tasks: int | None, use_array: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        find_share(environ, task, num_tasks, array=use_array)


@pytest.mark.parametrize(("allotted", "cores"), [("3", 3), ("64", 8), ("", 8), ("2(x3)", 8), ("0", 8)])
def test_workers_default_to_allotted_cores(allotted: str, cores: int) -> None:
    assert allotted_cores({"SLURM_CPUS_ON_NODE": allotted}, 8) == cores


def test_user_options_override_the_batch_script(tmp_path: Path) -> None:
    program = tmp_path / "cmd-extract"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    (tmp_path / "m.csv").touch()
    script = ROOT / "extract" / "cmd_extract" / "cluster" / "slurm" / "extract.sbatch"
    command = ["bash", script, tmp_path / "m.csv", "out", "--scratch", "mine", "--num-tasks", "8"]
    environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    words = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout.splitlines()
    given = run.make_context("run", words[1:]).params
    assert (words[0], str(given["scratch"]), given["num_tasks"]) == ("run", "mine", 8)
    assert given["array"]
    words = subprocess.run(command[:4], env=environ, capture_output=True, text=True, check=True).stdout.splitlines()
    assert run.make_context("run", words[1:]).params["num_tasks"] == 32
