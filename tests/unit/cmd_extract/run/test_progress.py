"""What is shown while videos are extracted: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

from tests.paths import ROOT

PROGRAM = """
import sys
from cmd_extract.run.progress import ProgressReport
with ProgressReport(3, already_done=2) as report:
    report.update(1, 40, 0)
    report.update(3, 120, 1)
    report.update(3, 120, 1)
with ProgressReport(0) as nothing:
    nothing.update(0, 0, 0)
sys.exit(3 if "rich" in sys.modules else 0)
"""


def test_elsewhere_plain_lines_are_written_without_rich() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    first, last = done.stderr.splitlines()
    assert first == "2 videos done by an earlier run, 3 to go"
    assert last.startswith("extract 3/3 videos, 120 frames, ")
    assert last.endswith(" 1 failed, about 0 s left")


def read_to_end(terminal: int) -> str:
    shown = b""
    while True:
        try:
            read = os.read(terminal, 4096)
        except OSError:  # how Linux tells that the other side is closed
            return shown.decode()
        if not read:
            return shown.decode()
        shown += read


def test_a_terminal_shows_a_live_line() -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stderr=theirs, cwd=ROOT, env=os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    ) as process:
        os.close(theirs)
        text = read_to_end(ours)
    os.close(ours)
    assert process.returncode == 3, "rich is what shows it"
    assert "3/3" in text
    assert "120 frames" in text
    assert "1 failed" in text
    assert "earlier run" not in text
