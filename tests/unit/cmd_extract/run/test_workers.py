"""Workers that stay on one core each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from typing import Any

import pytest

from cmd_extract.run.workers import make_locally

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
WORKER = """
import os, sys
from cmd_extract.run.workers import keep_to_one_core
got = keep_to_one_core(sys.argv[1], int(sys.argv[2]))
allowed = sorted(os.sched_getaffinity(0))
assert got is None or allowed == [got], (got, allowed)
print(got, len(allowed), flush=True)
sys.stdin.read()
"""

# Starts a worker, says so, and is gone before the worker can look.
MAIN = """
import os, subprocess, sys
subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())])
"""
ORPHAN = """
import os, sys, time
from cmd_extract.run.limits import watch_parent
parent = int(sys.argv[1])
while os.getppid() == parent:
    time.sleep(0.01)
watch_parent(parent)
time.sleep(1000)
"""

# Makes plans; prints in how many processes, this one alone if in one, and whether joblib was loaded.
ALONE = """
import os, sys
from cmd_extract.run.workers import make_locally
made = set(make_locally(int(sys.argv[1]), lambda plan: os.getpid(), list(range(int(sys.argv[2])))))
assert made <= {os.getpid()}, made
print(len(made), "joblib" in sys.modules)
"""

# Prints which interrupts each worker is spared. A program of its own: in the tests, others have started workers before.
SPARED = """
import signal
from cmd_extract.run.workers import make_locally
for spared in make_locally(2, lambda plan: sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), [0, 1]):
    print(*spared)
"""

# joblib's own tracker of resources as it was before joblib 1.6: once started, it lets both signals through.
OLDER = """
import signal
from types import SimpleNamespace
from joblib.externals.loky.backend import resource_tracker

def set_mask(how, mask):
    back = how == signal.SIG_SETMASK
    return signal.pthread_sigmask(signal.SIG_UNBLOCK, {2, 15}) if back else signal.pthread_sigmask(how, mask)

resource_tracker.signal = SimpleNamespace(**vars(signal) | {"pthread_sigmask": set_mask})
"""

pytestmark = pytest.mark.skipif(len(CORES) < 2, reason="needs two cores and a system that binds processes to them")


def start(run: str, workers: int) -> tuple[subprocess.Popen[str], str]:
    """A worker that lives until its input ends, and what it said: its core, and how many it may use."""

    def two_cores() -> None:
        os.sched_setaffinity(0, set(CORES[:2]))

    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, run, str(workers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=two_cores,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_each_worker_gets_a_core_of_its_own_and_a_successor_that_of_the_dead() -> None:
    run = uuid.uuid4().hex
    running = [start(run, 2) for _ in range(3)]
    try:
        said = [words for _, words in running]
        assert sorted(said[:2]) == sorted(f"{core} 1" for core in CORES[:2])
        assert said[2] == "None 2"  # no core is left: any will do
        running[0][0].kill()
        running[0][0].wait(10)
        running.append(start(run, 2))
        assert running[-1][1] == said[0]
    finally:
        for process, _ in running:
            process.kill()
            process.wait(10)


@pytest.mark.parametrize("workers", [1, 3])
def test_nothing_is_bound_unless_there_is_a_worker_for_each_core(workers: int) -> None:
    process, said = start(uuid.uuid4().hex, workers)
    process.kill()
    process.wait(10)
    assert said == "None 2"


def test_runs_side_by_side_do_not_take_cores_from_one_another() -> None:
    running = [start(uuid.uuid4().hex, 2) for _ in range(2)]
    for process, _ in running:
        process.kill()
        process.wait(10)
    assert [said for _, said in running] == [f"{CORES[0]} 1"] * 2


@pytest.mark.parametrize(
    ("workers", "plans", "processes"), [(1, 3, 1), (4, 1, 1), (2, 0, 0)], ids=["one worker", "one plan", "no plan"]
)
def test_where_one_works_it_stays_in_this_process_and_nothing_is_loaded_for_more(
    workers: int, plans: int, processes: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(workers), str(plans)], capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    seen, loaded = done.stdout.split()
    assert (int(seen), loaded) == (processes, b"False")


def test_one_worker_makes_plan_after_plan_and_hands_its_errors_on() -> None:
    begun: list[int] = []

    def make(plan: Any) -> int:
        begun.append(plan)
        if plan == 3:
            raise ValueError("bad plan")
        return int(10 * plan)

    numbers: Any = [1, 2, 3, 4]  # these do for plans
    made = make_locally(1, make, numbers)
    assert (next(made), begun) == (10, [1])
    assert (next(made), begun) == (20, [1, 2])
    with pytest.raises(ValueError, match="bad plan"):
        next(made)


def test_a_worker_whose_parent_ended_before_it_began_ends_too() -> None:
    # The orphan holds the pipe as long as it lives.
    main = subprocess.run([sys.executable, "-c", MAIN, ORPHAN], capture_output=True, check=False, timeout=60)
    assert main.returncode == 0, main.stderr


@pytest.mark.parametrize("before", ["", OLDER])
def test_workers_are_spared_the_interrupts_that_end_the_run(before: str) -> None:
    done = subprocess.run([sys.executable, "-c", before + SPARED], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [set(map(int, line.split())) for line in done.stdout.splitlines()] == [{signal.SIGINT, signal.SIGTERM}] * 2
