"""Starts ``cmd-train`` as a user would: evaluation knows its command line only, never its loop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import train
from train.checkpoint import CONFIG_NAME, list_checkpoints
from train.config import TrainConfig, changed_fields
from train.resuming import FREE

EXIT_INTERRUPTED = 130
_SECONDS_TO_SAVE = 60.0
_PROGRAM = "from train.cli import main; main(prog_name='cmd-train')"


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
    # -P: a folder `train` in the working directory must not be taken for ours.
    command = [sys.executable, "-P", "-c", _PROGRAM, *arguments]
    home = str(Path(train.__path__[0]).parent)
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    with _sigterm_as_interrupt():
        # In a session of its own, so that Ctrl-C reaches it once, by way of this process.
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, start_new_session=True)
        try:
            code = process.wait()
        except KeyboardInterrupt:
            _stop(process)
            raise
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise RuntimeError(f"cmd-train ended with exit code {code}; it says why above. It was: {_told(arguments)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_SECONDS_TO_SAVE)
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
