from __future__ import annotations

import shutil
import time
from pathlib import Path

from cmd_extract.run.task_log import read_attempts, read_logged_shards


def test_damaged_lines_do_not_count(few_shards: Path, tmp_path: Path) -> None:
    out = shutil.copytree(few_shards, tmp_path / "out")
    names = {path.name for path in out.glob("shard-*.h5")}
    assert set(read_logged_shards(out, names)) == names
    (log,) = (out / "tasks").glob("*.jsonl")
    lines = log.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines):
        if b"shard-00000.h5" in line:
            lines[number] = line[:60] + b"\xff\0" + line[62:]
        if b"shard-00001.h5" in line:
            lines[number] = b'{"event": "shard", "name": "shard-00001.h5"}\n'
    log.write_bytes(b"".join(lines) + b"\xff\n")
    assert set(read_logged_shards(out, names)) == names - {"shard-00000.h5", "shard-00001.h5"}
    assert read_attempts(out, time.time(), 60) == []
    log.write_bytes(b"".join(line for line in lines if b"shard-00001" not in line) + b"\xff\n[]\n")
    (attempt,) = read_attempts(out, time.time(), 60)
    assert len(attempt.written) == len(names) - 2
