"""Worker processes: how many, which signals they receive, when they end."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import pytest

from cmd_extract.run.workers import build_locally

# Starts a process and ends before that process calls watch_parent.
MAIN = """
import os, subprocess, sys
subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())])
"""
ORPHAN = """
import os, sys, time
from cmd_extract.system.process import watch_parent
parent = int(sys.argv[1])
while os.getppid() == parent:
    time.sleep(0.01)
print("orphaned", flush=True)
watch_parent(parent)
time.sleep(1000)
"""

# Builds plans; prints the number of processes used, which must be this one only, and whether joblib was imported.
ALONE = """
import os, sys
from cmd_extract.run.workers import build_locally
built = set(build_locally(int(sys.argv[1]), lambda plan: os.getpid(), list(range(int(sys.argv[2])))))
assert built <= {os.getpid()}, built
print(len(built), "joblib" in sys.modules)
"""

# Prints the signals that each worker blocks. In a separate process, because other tests have started workers before.
BLOCKED = """
import signal
from cmd_extract.run.workers import build_locally
for blocked in build_locally(2, lambda plan: sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), [0, 1]):
    print(*blocked)
"""

# The resource tracker of joblib before 1.6, which unblocks both signals once it has started.
OLD_TRACKER = """
import signal
from types import SimpleNamespace
from joblib.externals.loky.backend import resource_tracker

def set_mask(how, mask):
    restores = how == signal.SIG_SETMASK
    return signal.pthread_sigmask(signal.SIG_UNBLOCK, {2, 15}) if restores else signal.pthread_sigmask(how, mask)

resource_tracker.signal = SimpleNamespace(**vars(signal) | {"pthread_sigmask": set_mask})
"""


@pytest.mark.parametrize(
    ("workers", "plans", "processes"), [(1, 3, 1), (4, 1, 1), (2, 0, 0)], ids=["one worker", "one plan", "no plan"]
)
def test_one_worker_runs_in_this_process_without_joblib(workers: int, plans: int, processes: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(workers), str(plans)], capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    processes_used, imported = done.stdout.split()
    assert (int(processes_used), imported) == (processes, b"False")


def test_one_worker_builds_plan_after_plan_and_raises_its_errors() -> None:
    started: list[int] = []

    def build(plan: Any) -> int:
        started.append(plan)
        if plan == 3:
            raise ValueError("bad plan")
        return int(10 * plan)

    numbers: Any = [1, 2, 3, 4]  # instead of plans
    built = build_locally(1, build, numbers)
    assert (next(built), started) == (10, [1])
    assert (next(built), started) == (20, [1, 2])
    with pytest.raises(ValueError, match="bad plan"):
        next(built)


def test_a_worker_ends_if_its_parent_ended_before_it_started() -> None:
    # The orphan keeps the pipe open as long as it runs.
    main = subprocess.run([sys.executable, "-c", MAIN, ORPHAN], capture_output=True, check=False, timeout=60)
    assert (main.returncode, main.stdout, main.stderr) == (0, b"orphaned\n", b"")


@pytest.mark.parametrize("before", ["", OLD_TRACKER], ids=["", "old tracker"])
def test_workers_do_not_receive_the_signals_that_end_the_run(before: str) -> None:
    done = subprocess.run([sys.executable, "-c", before + BLOCKED], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [set(map(int, line.split())) for line in done.stdout.splitlines()] == [{signal.SIGINT, signal.SIGTERM}] * 2
