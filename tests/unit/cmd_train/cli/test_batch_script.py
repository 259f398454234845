"""What the printed batch script makes of the end of a training; stand-ins for Slurm's programs play the parts."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from cmd_train.cli.main import main

WARNED = 'kill -USR1 $PPID; while [ ! -e "$RUN/stop" ]; do sleep 0.05; done; rm "$RUN/stop"; '
STOPPED = """echo '{"step": 5, "reason": "%s"}' > "$RUN/stopped"; """
RUNNING = "echo RUNNING"
BUSY = "echo 'Unable to contact slurm controller' >&2; exit 1"


def run_script(folder: Path, srun: str, squeue: str = RUNNING, scontrol: str = "exit 0") -> tuple[int, str, int]:
    """Exit code, what it says, and how often a requeue was tried."""
    programs, run_dir = folder / "bin", folder / "run"
    programs.mkdir()
    # As in a job, the launcher is a child of the script.
    bodies = {"srun": srun, "squeue": squeue, "scontrol": f'echo "$*" >> "{folder}/asked"; {scontrol}'}
    for name, body in bodies.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    edits = {"RUN_DIR=": f"RUN_DIR={run_dir}", "WAIT_SECONDS=": "WAIT_SECONDS=9", "RETRY_SECONDS=": "RETRY_SECONDS=0"}
    lines = CliRunner().invoke(main, ["sbatch"]).output.splitlines()
    for start, new in edits.items():
        (place,) = (i for i, line in enumerate(lines) if line.startswith(start))
        lines[place] = new
    environ = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "RUN": str(run_dir)}
    done = subprocess.run(
        ["bash"], input="\n".join(lines), env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    asked = folder / "asked"
    return done.returncode, done.stdout + done.stderr, len(asked.read_text().splitlines()) if asked.exists() else 0


@pytest.mark.parametrize("srun", [WARNED + STOPPED % "a file", STOPPED % "the time is up"])
def test_a_job_whose_time_is_up_is_queued_again(tmp_path: Path, srun: str) -> None:
    code, said, asked = run_script(tmp_path, srun)
    assert (code, asked) == (0, 1), said
    assert "queued again" in said


def test_a_stop_that_somebody_has_asked_for_is_final(tmp_path: Path) -> None:
    # Slurm's warning comes while it stops.
    srun = 'touch "$RUN/stop"; kill -USR1 $PPID; sleep 0.3; rm "$RUN/stop"; ' + STOPPED % "a file"
    code, said, asked = run_script(tmp_path, srun)
    assert (code, asked) == (0, 0), said
    assert "no requeue: somebody has asked for the stop" in said


def test_a_busy_controller_is_asked_again(tmp_path: Path) -> None:
    scontrol = f'[ $(wc -l < "{tmp_path}/asked") -ge 3 ] || {{ {BUSY}; }}'
    code, said, asked = run_script(tmp_path, WARNED + STOPPED % "a file", BUSY, scontrol)
    assert (code, asked) == (0, 3), said
    assert said.count("queued again") == 1


def test_a_requeue_that_fails_is_not_said_to_have_happened(tmp_path: Path) -> None:
    code, said, asked = run_script(tmp_path, WARNED + STOPPED % "a file", RUNNING, BUSY)
    assert (code, asked) == (1, 5), said
    assert "the requeue failed; submit this script again" in said
    assert "queued again" not in said


def test_a_job_that_was_ended_from_outside_is_left_alone(tmp_path: Path) -> None:
    code, said, asked = run_script(tmp_path, WARNED + STOPPED % "a file", "echo COMPLETING")
    assert (code, asked) == (0, 0), said
    assert "the job is COMPLETING" in said


def test_a_marker_that_is_seen_late_is_waited_for(tmp_path: Path) -> None:
    code, said, _ = run_script(tmp_path, '(sleep 1; echo "{}" > "$RUN/finished") >/dev/null 2>&1 &')
    assert code == 0, said
    assert ": finished" in said


def test_a_failure_is_not_waited_for(tmp_path: Path) -> None:
    code, said, asked = run_script(tmp_path, '(sleep 1; echo "{}" > "$RUN/finished") >/dev/null 2>&1 & exit 3')
    assert (code, asked) == (1, 0)
    assert ": failed." in said
