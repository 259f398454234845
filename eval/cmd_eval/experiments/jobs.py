"""Starts ``cmd-train`` as a user would: evaluation knows its command line only, never its loop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import Any

import joblib

import cmd_train
from cmd_train.checkpoints.files import CONFIG_NAME, list_checkpoints
from cmd_train.config import FREE, TrainConfig, changed_fields

EXIT_INTERRUPTED = 130
_SECONDS_TO_SAVE = 60.0
_LOOK_SECONDS = 0.2
# For the last lines; a training that was killed may leave processes that hold the pipe for a while.
_SECONDS_TO_TELL = 5.0
_PROGRAM = "from cmd_train.cli.main import main; main(prog_name='cmd-train')"


def check_run_dir(run_dir: Path, config: TrainConfig, data_hash: str) -> bool:
    """Whether a training of these settings and shards lies in a folder, finished or not.

    Raises:
        ValueError: there is one of other settings or other shards, which ``cmd-train`` would refuse to continue.
    """
    if not list_checkpoints(run_dir):
        return False
    stored: dict[str, Any] = json.loads((run_dir / CONFIG_NAME).read_text("utf-8"))
    changed = changed_fields(stored["settings"], config.as_dict())
    changed = [change for change in changed if not change.startswith(FREE)]
    if stored.get("data_hash") != data_hash:
        changed.insert(0, "other shards")
    if changed:
        raise ValueError(f"{run_dir}: holds a training of something else ({'; '.join(changed)}); give another OUT")
    return True


def run_cmd_train(arguments: Sequence[str]) -> None:
    """Runs ``cmd-train`` with this interpreter and this installation, and waits for it; what it says is shown.

    Ctrl-C and SIGTERM are handed on as SIGTERM: the training saves and stops, and then this raises.

    Raises:
        KeyboardInterrupt: the training was interrupted; the same command continues it.
        RuntimeError: it failed.
    """
    with _sigterm_as_interrupt():
        process = _start(arguments, os.environ)
        try:
            code = process.wait()
        except KeyboardInterrupt:
            _stop([process])
            raise
    _check(code, arguments)


def run_side_by_side(
    trainings: Mapping[str, Sequence[str]],
    at_once: int,
    *,
    say: Callable[[str], None],
    begun: Callable[[str], None],
    made: Callable[[str], None],
) -> None:
    """Runs ``cmd-train`` several times, some of these at the same time, in order; each has its share of the cores.

    Small networks do not keep several cores busy (eval/README.md). A signal is handed on as by ``run_cmd_train``; if
    one training fails, the others save and stop.

    Args:
        trainings: arguments by a name for the training.
        at_once: trainings at the same time.
        say: gets what the trainings say, line by line, each line behind the name.
        begun, made: called with the name when a training begins, and when it has ended well.

    Raises:
        KeyboardInterrupt: interrupted; the same trainings continue.
        RuntimeError: one failed.
    """
    # What the user has set holds.
    environment = {"OMP_NUM_THREADS": str(max(1, joblib.cpu_count() // at_once))} | os.environ
    waiting, readers = list(trainings), dict[str, Thread]()
    running: dict[str, subprocess.Popen[bytes]] = {}
    with _sigterm_as_interrupt():
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    name = waiting.pop(0)
                    begun(name)
                    running[name] = _start(trainings[name], environment, stdout=subprocess.PIPE)
                    readers[name] = Thread(target=_hand_on, args=(running[name], name, say), daemon=True)
                    readers[name].start()
                for name in [name for name, process in running.items() if process.poll() is not None]:
                    readers.pop(name).join(_SECONDS_TO_TELL)
                    _check(running.pop(name).returncode, trainings[name])
                    made(name)
                time.sleep(_LOOK_SECONDS)
        finally:
            _stop(list(running.values()))


def _start(
    arguments: Sequence[str], environment: Mapping[str, str], stdout: int | None = None
) -> subprocess.Popen[bytes]:
    """Starts a training; what it says is shown, or goes to ``stdout``, errors as well."""
    # -P: a folder `train` in the working directory must not be taken for ours.
    command = [sys.executable, "-P", "-c", _PROGRAM, *arguments]
    home = str(Path(cmd_train.__path__[0]).parent)
    path = os.pathsep.join(filter(None, [home, environment.get("PYTHONPATH")]))
    return subprocess.Popen(
        command,
        env={**environment, "PYTHONPATH": path},
        # In a session of its own, so that Ctrl-C reaches it once, by way of this process.
        start_new_session=True,
        stdout=stdout,
        stderr=None if stdout is None else subprocess.STDOUT,
    )


def _hand_on(process: subprocess.Popen[bytes], name: str, say: Callable[[str], None]) -> None:
    assert process.stdout is not None, "it was started with a pipe"
    with process.stdout as stream:
        for line in stream:
            say(f"{name}: {line.decode(errors='replace').rstrip()}")


def _check(code: int, arguments: Sequence[str]) -> None:
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise RuntimeError(f"cmd-train ended with exit code {code}; it says why above. It was: {_told(arguments)}")


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + _SECONDS_TO_SAVE
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            # It does not save in time, or the user does not want to wait for that.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _told(arguments: Sequence[str]) -> str:
    return " ".join(["cmd-train", *arguments])


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
