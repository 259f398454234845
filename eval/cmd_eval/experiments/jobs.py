"""Run ``cmd-train`` in processes of its own. Evaluation uses its command line only, never its training loop."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from types import FrameType
from typing import Any

import joblib

from cmd_extract.console.commands import EXIT_INTERRUPTED
from cmd_train.checkpoints.files import CONFIG_NAME, list_checkpoints
from cmd_train.config import MUTABLE_FIELDS, TrainConfig, changed_fields

_SECONDS_TO_SAVE = 60.0
_PROGRAM = "from cmd_train.cli.main import main; main(prog_name='cmd-train')"


class Eta:
    """Estimate of the remaining time of several jobs, from the finished ones.

    Args:
        jobs: number of jobs to do, without those finished earlier.
    """

    def __init__(self, jobs: int) -> None:
        self._jobs, self._finished = jobs, 0
        self._start = time.monotonic()

    def job_finished(self) -> None:
        """Count a finished job."""
        self._finished += 1

    def __str__(self) -> str:
        """Return ``, about 12 min left``; empty before the first job is finished."""
        if not self._finished:
            return ""
        seconds = (time.monotonic() - self._start) / self._finished * (self._jobs - self._finished)
        return f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {seconds:.0f} s left"


def check_run_dir(run_dir: Path, config: TrainConfig, data_hash: str) -> bool:
    """Return whether a folder contains a run, finished or not, with these settings and shards.

    Raises:
        ValueError: it contains a run with other settings or shards, which ``cmd-train`` would refuse to continue.
    """
    if not list_checkpoints(run_dir):
        return False
    stored: dict[str, Any] = json.loads((run_dir / CONFIG_NAME).read_text("utf-8"))
    changed = changed_fields(stored["settings"], config.as_dict())
    changed = [change for change in changed if not change.startswith(MUTABLE_FIELDS)]
    if stored.get("data_hash") != data_hash:
        changed.insert(0, "other shards")
    if changed:
        raise ValueError(f"{run_dir}: contains a run with different settings ({'; '.join(changed)}); use another OUT")
    return True


def train_all(
    jobs: Mapping[str, Sequence[str]],
    titles: Mapping[str, str],
    at_once: int,
    *,
    log: Callable[[str], None],
    on_finish: Callable[[str], None] = lambda _: None,
) -> None:
    """Run ``cmd-train`` once per job, in order, with one line and an estimate of the remaining time for each.

    Args:
        jobs: arguments of each run by name.
        titles: what the run is, by name.
        at_once: number of runs in parallel; the output of a single one is shown as it is.
        log: prints a line.
        on_finish: called with the name of each run that has succeeded.

    Raises:
        KeyboardInterrupt: interrupted; the same jobs continue.
        RuntimeError: a run failed.
    """
    eta = Eta(len(jobs))

    def start(name: str) -> None:
        log(f"{titles[name]}{eta}")

    def finish(name: str) -> None:
        eta.job_finished()
        on_finish(name)

    if at_once > 1:
        run_in_parallel(jobs, at_once, log=log, on_start=start, on_finish=finish)
        return
    for name, arguments in jobs.items():
        start(name)
        run_cmd_train(arguments)
        finish(name)


def run_cmd_train(arguments: Sequence[str]) -> None:
    """Run ``cmd-train`` with this interpreter and wait for it; its output is shown.

    Ctrl-C and SIGTERM are passed on as SIGTERM: the run saves a checkpoint and stops.

    Raises:
        KeyboardInterrupt: the run was interrupted; the same command continues it.
        RuntimeError: the run failed.
    """
    with _sigterm_as_interrupt():
        process = _start(arguments, os.environ)
        try:
            code = process.wait()
        except KeyboardInterrupt:
            _stop([process])
            raise
    _check_exit_code(code, arguments)


def run_in_parallel(
    jobs: Mapping[str, Sequence[str]],
    at_once: int,
    *,
    log: Callable[[str], None],
    on_start: Callable[[str], None],
    on_finish: Callable[[str], None],
) -> None:
    """Run ``cmd-train`` several times, some runs in parallel, each with its share of the cores.

    Small networks do not keep several cores busy (eval/README.md). Signals are passed on as in ``run_cmd_train``. If
    one run fails, no other is started, and those in progress save a checkpoint and stop.

    Args:
        jobs: arguments of each run by name, in the order in which to start them.
        at_once: maximum number of runs at the same time.
        log: called with every line of output, prefixed with the name of the run.
        on_start, on_finish: called with the name when a run starts and when it has succeeded.

    Raises:
        KeyboardInterrupt: interrupted; the same jobs continue.
        RuntimeError: a run failed.
    """
    # A value set by the user takes precedence.
    environment = {"OMP_NUM_THREADS": str(max(1, joblib.cpu_count() // at_once))} | os.environ
    running: list[subprocess.Popen[bytes]] = []
    lock, stopping = Lock(), False

    def run(name: str) -> int | None:
        """Return the exit code, or None if the job was not started because another one failed."""
        nonlocal stopping
        with lock:
            if stopping:
                return None
            on_start(name)
            process = _start(jobs[name], environment, stdout=subprocess.PIPE)
            running.append(process)
        assert process.stdout is not None, "started with a pipe"
        with process.stdout as stream:
            for line in stream:
                log(f"{name}: {line.decode(errors='replace').rstrip()}")
        code = process.wait()
        with lock:
            stopping |= code != 0
        return code

    with _sigterm_as_interrupt(), ThreadPoolExecutor(at_once) as pool:
        names = {pool.submit(run, name): name for name in jobs}
        try:
            for future in as_completed(names):
                code, name = future.result(), names[future]
                if code is not None:
                    _check_exit_code(code, jobs[name])
                    on_finish(name)
        finally:
            with lock:
                stopping = True
            _stop(running)


def _start(
    arguments: Sequence[str], environment: Mapping[str, str], stdout: int | None = None
) -> subprocess.Popen[bytes]:
    """Start ``cmd-train``; its output is shown, or goes to ``stdout`` with the errors."""
    return subprocess.Popen(
        # -P keeps modules in the working directory from being imported.
        [sys.executable, "-P", "-c", _PROGRAM, *arguments],
        env=environment,
        # In its own session, so that Ctrl-C reaches it only once, through this process.
        start_new_session=True,
        stdout=stdout,
        stderr=None if stdout is None else subprocess.STDOUT,
    )


def _check_exit_code(code: int, arguments: Sequence[str]) -> None:
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        command = shlex.join(["cmd-train", *arguments])
        raise RuntimeError(f"cmd-train failed with exit code {code}, see its output above; the command was: {command}")


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + _SECONDS_TO_SAVE
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            # It takes too long to save, or the user does not want to wait.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
