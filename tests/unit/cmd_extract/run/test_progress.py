"""Progress of a run: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

from cmd_extract.errors import VideoError
from cmd_extract.run.journal import Counts, WorkerJournal, count_progress, read_failures
from cmd_extract.schema import VideoRecord
from tests.paths import ROOT

PROGRAM = """
import sys
import threading
from pathlib import Path
from cmd_extract.run.journal import WorkerJournal
from cmd_extract.run.progress import watch_journals
folder = Path(sys.argv[1])
with watch_journals(folder, todo=3, done=2):
    WorkerJournal(folder).add_shard(frames=40, rows=1, failures=[])
    WorkerJournal(folder).add_shard(frames=80, rows=2, failures=[(7, "b.mp4", "open", "missing")])
with watch_journals(folder / "another", todo=0, done=5):
    pass
sys.exit(3 if "rich" in sys.modules else 0)
"""


def test_plain_lines_are_printed_without_rich_if_there_is_no_terminal(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path], capture_output=True, text=True, check=False, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("extract 5/5 videos, 120 frames, ")
    assert " frames/s, 1 failed, " in line


def read_all(terminal: int) -> str:
    shown = b""
    while True:
        try:
            read = os.read(terminal, 4096)
        except OSError:  # Linux reports the closed other end as an error
            return shown.decode()
        if not read:
            return shown.decode()
        shown += read


def test_a_terminal_shows_a_live_bar(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, tmp_path], stderr=theirs, cwd=ROOT, env=environment
    ) as process:
        os.close(theirs)
        text = read_all(ours)
    os.close(ours)
    assert process.returncode == 3, "rich shows the bar"
    assert "5/5" in text
    assert "120 frames" in text
    assert "1 failed" in text


def test_the_journals_of_all_workers_are_added_up_however_many_shards_they_built(tmp_path: Path) -> None:
    assert count_progress(tmp_path) == Counts(0, 0, 0)
    for _ in range(3):  # as for three shards
        journal = WorkerJournal(tmp_path)
        journal.add_video(30)
    journal.add_failure(VideoRecord(row=4, video_id="x", path="x.mp4"), VideoError("probe", "no video"))
    other = "from pathlib import Path\nfrom cmd_extract.run.journal import WorkerJournal\n"
    other += f"WorkerJournal(Path({str(tmp_path)!r})).add_shard(50, 3, [(9, 'y.mp4', 'open', 'missing')])"
    subprocess.run([sys.executable, "-c", other], check=True, cwd=ROOT, timeout=60)
    assert count_progress(tmp_path) == Counts(videos=7, frames=140, failures=2)
    assert len(list(tmp_path.iterdir())) == 4, "two files per worker"
    with next(tmp_path.glob("*.failures")).open("a") as stream:
        stream.write('[10, "incompl')
    assert sorted(read_failures(tmp_path)) == [(4, "x.mp4", "probe", "no video"), (9, "y.mp4", "open", "missing")]


def test_a_reader_never_finds_part_of_a_record(tmp_path: Path) -> None:
    done = threading.Event()

    def write() -> None:
        journal = WorkerJournal(tmp_path)
        for _ in range(2000):
            journal.add_video(999_999)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = [Counts()]
    while not done.is_set():
        seen.append(count_progress(tmp_path))
    writer.join()
    assert seen == sorted(seen), "counts only grow"
    assert all(counts.frames == counts.videos * 999_999 for counts in seen)
