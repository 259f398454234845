"""cmd-train in processes of its own: failures, signals, parallel runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cmd_eval.experiments import jobs
from cmd_eval.experiments.jobs import Eta, run_cmd_train, run_in_parallel
from tests.paths import ROOT


def test_eta_is_estimated_from_finished_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("cmd_eval.experiments.jobs.time.monotonic", lambda: now[0])
    eta = Eta(4)
    now[0] = 100.0
    assert str(eta) == ""
    eta.job_finished()
    assert str(eta) == ", about 5 min left"
    now[0] = 120.0
    eta.job_finished()
    eta.job_finished()
    assert str(eta) == ", about 40 s left"


def test_a_failed_run_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        RuntimeError, match=r"cmd-train failed with exit code 1, .* command was: cmd-train recipes imagenet"
    ):
        run_cmd_train(["recipes", "imagenet"])
    assert "'imagenet'" in capfd.readouterr().err


def test_modules_in_the_working_directory_do_not_interfere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for name in ("train/cli.py", "train/__init__.py", "eval.py", "extract.py"):
        (tmp_path / name).write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ".")
    run_cmd_train(["recipes"])


def test_modules_in_the_working_directory_do_not_replace_those_of_python(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # PyTorch imports `logging`; click imports `gettext`.
    for name in ("logging.py", "gettext.py"):
        (tmp_path / name).write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)
    run_cmd_train(["recipes"])


# Where the tests themselves run in the background, Ctrl-C may be ignored.
STARTER = """
import signal, sys
import cmd_eval.experiments.jobs as jobs
signal.signal(signal.SIGINT, signal.default_int_handler)
jobs._PROGRAM = sys.argv[1]
try:
    eval(sys.argv[2])
except KeyboardInterrupt:
    sys.exit(42)
"""
CHILD = """
import signal, sys, time
from pathlib import Path
def save(*_):
    Path({path!r}).write_text("saved")
    sys.exit(130)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(100)
"""


ALONE = "jobs.run_cmd_train([])"
PARALLEL = (
    "jobs.run_in_parallel({'a': []}, 2, log=lambda line: print(line[3:], flush=True), on_start=len, on_finish=len)"
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("call", [ALONE, PARALLEL], ids=["alone", "parallel"])
def test_a_run_saves_after_a_signal(number: signal.Signals, call: str, tmp_path: Path) -> None:
    program = CHILD.format(path=str(tmp_path / "saved"))
    process = subprocess.Popen(
        [sys.executable, "-c", STARTER, program, call],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=dict(os.environ),
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


# Parallel runs. A program in place of cmd-train receives the arguments of its run.

MEETING = """
import os, sys, time
from pathlib import Path
folder, own, other = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
(folder / own).write_text(os.environ["OMP_NUM_THREADS"])
deadline = time.monotonic() + 60
while not (folder / other).exists():
    if time.monotonic() > deadline:
        sys.exit(f"{other} did not start")
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
Path(sys.argv[2]).write_text("started")
time.sleep(100)
"""


def test_parallel_runs_share_the_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(jobs, "_PROGRAM", MEETING)
    monkeypatch.setattr("joblib.cpu_count", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    lines: list[str] = []
    started: list[str] = []
    finished: list[str] = []
    # The two runs of each pair wait for each other.
    pairs = [("a", "b"), ("b", "a"), ("c", "d"), ("d", "c")]
    arguments = {own: [str(tmp_path), own, other] for own, other in pairs}
    run_in_parallel(arguments, 2, log=lines.append, on_start=started.append, on_finish=finished.append)
    assert started == ["a", "b", "c", "d"]
    assert sorted(finished) == started
    assert sorted(lines) == ["a: met b", "b: met a", "c: met d", "d: met c"]
    assert (tmp_path / "a").read_text() == "3", "half of the cores"


def test_other_runs_save_after_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(jobs, "_PROGRAM", ONE_FAILS)
    file, lines, started = tmp_path / "file", list[str](), list[str]()
    arguments = {name: [name, str(file)] for name in ("works", "fails", "waits")}
    with pytest.raises(RuntimeError, match=r"exit code 1.*command was: cmd-train fails"):
        run_in_parallel(arguments, 2, log=lines.append, on_start=started.append, on_finish=lambda _: None)
    assert file.read_text() == "saved"
    assert lines == ["fails: no"]
    assert started == ["works", "fails"], "no run is started after a failure"
