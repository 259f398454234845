"""cmd-train as a process of evaluation: failures, signals, several at the same time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cmd_eval.experiments import jobs as training_process
from cmd_eval.experiments.jobs import run_cmd_train, run_side_by_side
from tests.paths import ROOT


def test_a_failed_training_is_told(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="cmd-train ended with exit code 1"):
        run_cmd_train(["recipes", "imagenet"])
    assert "recipe: 'imagenet' is not one of" in capfd.readouterr().err


def test_a_folder_of_the_users_is_not_taken_for_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "cli.py").write_text("raise SystemExit('not ours')")
    (tmp_path / "train" / "__init__.py").write_text("")
    monkeypatch.chdir(tmp_path)
    run_cmd_train(["recipes"])


# Where the tests themselves run in the background, Ctrl-C may be ignored.
STARTER = """
import signal, sys
import cmd_eval.experiments.jobs as process
signal.signal(signal.SIGINT, signal.default_int_handler)
process._PROGRAM = sys.argv[1]
try:
    eval(sys.argv[2])
except KeyboardInterrupt:
    sys.exit(42)
"""
CHILD = """
import signal, sys, time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
def save(*_):
    Path({path!r}).write_text("saved")
    sys.exit(130)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(100)
"""


ALONE = "process.run_cmd_train([])"
SIDE_BY_SIDE = (
    "process.run_side_by_side({'a': []}, 2, say=lambda line: print(line[3:], flush=True), begun=len, made=len)"
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("how", [ALONE, SIDE_BY_SIDE], ids=["alone", "side by side"])
def test_a_signal_lets_the_training_save(number: signal.Signals, how: str, tmp_path: Path) -> None:
    program = CHILD.format(path=str(tmp_path / "saved"))
    root = ROOT
    process = subprocess.Popen(
        [sys.executable, "-c", STARTER, program, how], stdout=subprocess.PIPE, text=True, cwd=root, env=dict(os.environ)
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.stdout.close()
    assert process.wait(timeout=1) == 42
    assert (tmp_path / "saved").read_text() == "saved"


# Several at the same time. A program in place of cmd-train's gets the words of its training.

MEETING = """
import os, sys, time
from pathlib import Path
folder, own, other = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
(folder / own).write_text(os.environ["OMP_NUM_THREADS"])
deadline = time.monotonic() + 60
while not (folder / other).exists():
    if time.monotonic() > deadline:
        sys.exit(f"{other} did not come")
    time.sleep(0.02)
print("met", other)
"""
ONE_FAILS = """
import signal, sys, time
from pathlib import Path
if sys.argv[1] == "fails":
    while not Path(sys.argv[2]).exists():
        time.sleep(0.02)
    sys.exit("no")
def save(*_):
    Path(sys.argv[2]).write_text("saved")
    sys.exit(130)
signal.signal(signal.SIGTERM, save)
Path(sys.argv[2]).write_text("begun")
time.sleep(100)
"""


def test_trainings_side_by_side_share_the_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(training_process, "_PROGRAM", MEETING)
    monkeypatch.setattr("joblib.cpu_count", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    said: list[str] = []
    begun: list[str] = []
    made: list[str] = []
    # Each pair ends only if both run at once.
    pairs = [("a", "b"), ("b", "a"), ("c", "d"), ("d", "c")]
    trainings = {own: [str(tmp_path), own, other] for own, other in pairs}
    run_side_by_side(trainings, 2, say=said.append, begun=begun.append, made=made.append)
    assert begun == ["a", "b", "c", "d"]
    assert sorted(made) == begun
    assert sorted(said) == ["a: met b", "b: met a", "c: met d", "d: met c"]
    assert (tmp_path / "a").read_text() == "3", "half of the cores"


def test_a_failure_lets_the_others_save(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(training_process, "_PROGRAM", ONE_FAILS)
    file, said, begun = tmp_path / "file", list[str](), list[str]()
    trainings = {name: [name, str(file)] for name in ("works", "fails", "waits")}
    with pytest.raises(RuntimeError, match=r"exit code 1.*It was: cmd-train fails"):
        run_side_by_side(trainings, 2, say=said.append, begun=begun.append, made=lambda _: None)
    assert file.read_text() == "saved"
    assert said == ["fails: no"]
    assert begun == ["works", "fails"], "nothing is begun after a failure"
