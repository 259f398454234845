"""Reaction of the printed batch script to the outcome of a run, with stand-ins for Slurm's programs."""

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


def run_script(
    folder: Path, srun: str, squeue: str = RUNNING, scontrol: str = "exit 0", **variables: str
) -> tuple[int, str, int]:
    """Run the script; return its exit code, its output, and the number of requeue attempts."""
    programs, run_dir = folder / "bin", folder / "run"
    programs.mkdir()
    # As in a real job, the launcher is a child of the script.
    bodies = {"srun": srun, "squeue": squeue, "scontrol": f'echo "$*" >> "{folder}/attempts"; {scontrol}'}
    for name, body in bodies.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    edits = {"RUN_DIR=": f"RUN_DIR={run_dir}", "WAIT_SECONDS=": "WAIT_SECONDS=9", "RETRY_SECONDS=": "RETRY_SECONDS=0"}
    lines = CliRunner().invoke(main, ["sbatch"]).output.splitlines()
    for start, new in edits.items():
        (place,) = (i for i, line in enumerate(lines) if line.startswith(start))
        lines[place] = new
    environ = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "RUN": str(run_dir)}
    environ |= variables
    done = subprocess.run(
        ["bash"], input="\n".join(lines), env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    attempts = folder / "attempts"
    return (
        done.returncode,
        done.stdout + done.stderr,
        len(attempts.read_text().splitlines()) if attempts.exists() else 0,
    )


@pytest.mark.parametrize("srun", [WARNED + STOPPED % "a file", STOPPED % "time limit reached"])
def test_job_at_its_time_limit_is_requeued(tmp_path: Path, srun: str) -> None:
    code, output, attempts = run_script(tmp_path, srun)
    assert (code, attempts) == (0, 1), output
    assert "requeued" in output


def test_only_the_own_element_of_an_array_is_requeued(tmp_path: Path) -> None:
    squeue = '[ "$3" = --jobs=7_2 ] && echo RUNNING || printf "RUNNING\\nRUNNING\\nPENDING\\n"'
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    code, output, attempts = run_script(tmp_path, STOPPED % "time limit reached", squeue, **array)
    assert (code, attempts) == (0, 1), output
    assert (tmp_path / "attempts").read_text() == "requeue 7_2\n"


def test_stop_requested_by_the_user_is_final(tmp_path: Path) -> None:
    # Slurm's warning arrives during the stop.
    srun = 'touch "$RUN/stop"; kill -USR1 $PPID; sleep 0.3; rm "$RUN/stop"; ' + STOPPED % "a file"
    code, output, attempts = run_script(tmp_path, srun)
    assert (code, attempts) == (0, 0), output
    assert "no requeue: the stop was requested by the user" in output


def test_requeue_is_retried_with_a_busy_controller(tmp_path: Path) -> None:
    scontrol = f'[ $(wc -l < "{tmp_path}/attempts") -ge 3 ] || {{ {BUSY}; }}'
    code, output, attempts = run_script(tmp_path, WARNED + STOPPED % "a file", BUSY, scontrol)
    assert (code, attempts) == (0, 3), output
    assert output.count("requeued") == 1


def test_failed_requeue_is_reported(tmp_path: Path) -> None:
    code, output, attempts = run_script(tmp_path, WARNED + STOPPED % "a file", RUNNING, BUSY)
    assert (code, attempts) == (1, 5), output
    assert "requeue failed; submit this script again" in output
    assert "requeued" not in output


def test_job_ended_from_outside_is_not_requeued(tmp_path: Path) -> None:
    code, output, attempts = run_script(tmp_path, WARNED + STOPPED % "a file", "echo COMPLETING")
    assert (code, attempts) == (0, 0), output
    assert "the job is COMPLETING" in output


def test_script_waits_for_late_outcome_files(tmp_path: Path) -> None:
    code, output, _ = run_script(tmp_path, '(sleep 1; echo "{}" > "$RUN/finished") >/dev/null 2>&1 &')
    assert code == 0, output
    assert ": finished" in output


def test_script_does_not_wait_after_a_failure(tmp_path: Path) -> None:
    code, output, attempts = run_script(tmp_path, '(sleep 1; echo "{}" > "$RUN/finished") >/dev/null 2>&1 & exit 3')
    assert (code, attempts) == (1, 0)
    assert ": failed." in output
