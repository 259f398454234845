"""Distributed extraction without a scheduler: tasks run one after the other, or find the state left by others."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import time
from pathlib import Path

import h5py
import pytest

from cmd_extract.run.task_log import read_attempts
from cmd_extract.schema import FRAME_JPEG, MOTION_GRID
from cmd_extract.shard.index import ShardIndex
from tests.cluster.extraction import SOME_FAILED, results
from tests.integration.cmd_extract.extraction import call
from tests.integration.cmd_extract.task_runs import OPTIONS, SHARDS, write_claim


@pytest.mark.parametrize("num_tasks", [2, 7])
def test_tasks_produce_the_same_output_as_a_single_run(
    manifest: Path, reference: dict[str, str], tmp_path: Path, num_tasks: int
) -> None:
    out = tmp_path / "out"
    task = ("run", manifest, out, *OPTIONS, "--num-tasks", num_tasks, "--task")
    code, output = call(*task, 1)
    assert code == 0, output
    helped = {2: "5 built (3 for other tasks), 0 existing", 7: "5 built (4 for other tasks), 0 existing"}[num_tasks]
    assert helped in output, "a task that has finished its share helps the others"
    assert "damaged   1, extracted as far" in output
    for other in reversed(range(num_tasks)):
        code, output = call(*task, other)
        assert code == 0, output
        assert "0 built" in output
    assert not (out / "index.json").exists()
    code, output = call("merge", out)
    assert code == SOME_FAILED
    assert f"1 damaged ({out / 'damaged.csv'})" in output
    assert "v0" in (out / "damaged.csv").read_text()
    assert results(out) == reference
    code, output = call("verify", out)
    assert code == 0, output
    assert json.loads((out / "run.json").read_text())["summary"]["new_videos"] == 8


def test_shares_of_a_job_array_are_taken_only_on_request(
    manifest: Path, reference: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = {"ID": 1, "COUNT": 4, "MIN": 0, "MAX": 3, "STEP": 1}
    for name, value in ids.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    out = tmp_path / "array"
    code, output = call("run", manifest, out, *OPTIONS, "--array")
    assert code == 0, output
    assert "task 1 of 4: 2 videos" in output
    (log,) = (out / "tasks").glob("*.jsonl")
    names = [event["name"] for event in map(json.loads, log.read_text().splitlines()[1:-1])]
    assert names == [f"shard-{n:05d}.h5" for n in (1, 2, 3, 4, 0)], "its own share first, then those of the next tasks"
    # Somebody's array over other things: each task makes an extraction of its own.
    code, output = call("run", manifest, tmp_path / "own", *OPTIONS)
    assert code == SOME_FAILED, output
    assert "note: this task of a Slurm job array builds all shards; with --array, the tasks share them" in output
    assert results(tmp_path / "own") == reference


def test_merge_can_accept_failed_videos(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call("run", manifest, out, *OPTIONS, "--task", 0, "--num-tasks", 2)
    (out / "shard-00001.h5").unlink()
    assert call("merge", out, "--allow-failures")[0] == 1, "a shard is missing"
    call("run", manifest, out, *OPTIONS, "--task", 1, "--num-tasks", 2)
    code, output = call("merge", out, "--allow-failures")
    assert code == 0, output
    assert "1 failed" in output


def test_merge_reads_a_shard_whose_logs_disagree(manifest: Path, reference: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    call("run", manifest, out, *OPTIONS, "--task", 0, "--num-tasks", 1)
    (log,) = (out / "tasks").glob("*.jsonl")
    lines = log.read_text().splitlines()
    # With two attempts that disagree, the merge must compute the checksum itself.
    event = json.loads(lines[1])
    event["entry"]["sha256"] = "0" * 64
    (out / "tasks" / "00000-of-00001--n1-1-1.jsonl").write_text(f"{lines[0]}\n{json.dumps(event)}\n")
    assert call("merge", out)[0] == SOME_FAILED
    assert results(out) == reference
    summary = json.loads((out / "run.json").read_text())["summary"]
    assert summary["new_videos"] == summary["videos"] == 8, "a shard in two logs counts once"


def test_merge_reads_a_shard_rebuilt_without_a_log(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call("run", manifest, out, *OPTIONS, "--task", 0, "--num-tasks", 1)
    shard = out / "shard-00002.h5"
    before = shard.read_bytes()
    with h5py.File(shard, "r+", locking=False) as file:  # keep the size, as a retry often does
        file[FRAME_JPEG][9] ^= 1
    after = shard.read_bytes()
    assert len(after) == len(before)
    assert call("merge", out)[0] == SOME_FAILED
    assert ShardIndex(out).shard(2).sha256 == hashlib.sha256(after).hexdigest()


def test_merge_keeps_temporary_files_of_running_processes(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call("run", manifest, out, *OPTIONS, "--task", 0, "--num-tasks", 1)
    retry, merge = out / ".extract-n1-1-scratch", out / ".extract-n2-1-index.json"
    old = out / ".extract-n3-1-index.json"
    retry.mkdir()
    for path in (merge, old):
        path.touch()
    os.utime(old, (0, 0))
    assert call("merge", out)[0] == SOME_FAILED
    assert set(out.glob(".*")) == {retry, merge}


def test_status_uses_the_clock_of_the_file_system(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (out / "jobs").mkdir(parents=True)
    code, output = call("status", out)
    assert code == 0
    assert "submitted, but no task has started yet" in output
    # Host clocks are off in both directions.
    clock = time.time
    for task, offset in enumerate((9000, -9000)):
        monkeypatch.setattr(time, "time", lambda offset=offset: clock() + offset)
        call("run", manifest, out, *OPTIONS, "--task", 0, "--num-tasks", 2, "--max-failures", task)
    (out / "shard-00001.h5").unlink()
    write_claim(out, 1)
    assert "4 done, 1 running, 0 stale" in call("status", out)[1]
    monkeypatch.setattr(time, "time", clock)
    first, second = read_attempts(out, clock(), 180)
    assert clock() - 300 < first.started_seconds <= second.started_seconds <= clock() + 300
    assert all(0 <= attempt.seconds < 300 for attempt in (first, second))


def test_removed_shard_is_not_done(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call("run", manifest, out, *OPTIONS, "--task", 0, "--num-tasks", 1)
    (out / "shard-00001.h5").unlink()
    output = call("status", out, "--shards")[1]
    assert "4 done, 0 running, 1 stale" in output
    assert re.search(r"^0 of 1 +stale .* 4/5 ", output, re.MULTILINE)
    assert re.search(r"^shard-00001.h5 +stale$", output, re.MULTILINE)


def test_merge_names_missing_shards_and_status_shows_the_reason(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, output = call("run", manifest, out, *OPTIONS, "--num-tasks", 3, "--task", 1, "--max-failures", "0")
    assert code == 4, output  # shards 1 and 4; the row without a file is in 4
    code, output = call("merge", out)
    assert code == 1
    assert "missing 4 shards (shard-00000.h5; shard-00002.h5; shard-00003.h5; shard-00004.h5) of 5" in output
    write_claim(out, 2)
    code, output = call("status", out, "--shards")
    assert code == 0
    assert "5 shards: 1 done, 1 running, 0 stale, 1 failed, 2 waiting" in output
    assert "failed, more than --max-failures allows" in output
    assert re.search(
        r"^shard-00002.h5 +running\nshard-00003.h5 +waiting\nshard-00004.h5 +failed$", output, re.MULTILINE
    )
    os.utime(out / "claims" / "shard-00002.h5", (0, 0))
    assert "1 done, 0 running, 1 stale, 1 failed, 2 waiting" in call("status", out)[1]
    # A run with a different number of tasks builds the missing shards.
    assert call("run", manifest, out, *OPTIONS, "--task", 0, "--num-tasks", 1)[0] == 0
    assert call("merge", out)[0] == SOME_FAILED
    assert "5 shards: 5 done, 0 running, 0 stale, 0 failed, 0 waiting; merged" in call("status", out)[1]


def test_scratch_folder_on_another_file_system_gives_the_same_bytes(
    manifest: Path, reference: dict[str, str], tmp_path: Path
) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system in /dev/shm")
    with tempfile.TemporaryDirectory(dir=other) as scratch:
        assert call("run", manifest, tmp_path / "out", *OPTIONS, "--scratch", scratch)[0] == SOME_FAILED
        assert not list(Path(scratch).iterdir())
    assert results(tmp_path / "out") == reference


def test_bytes_do_not_depend_on_other_references_to_a_dataset(
    manifest: Path, reference: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A profiler that holds a stack frame also holds its local variables, which delays the closing of datasets.
    kept = []
    create = h5py.File.create_dataset

    def create_and_keep(self: h5py.File, name: str, **options: object) -> h5py.Dataset:
        dataset = create(self, name, **options)
        if name == MOTION_GRID:
            kept.append(dataset)
        return dataset

    monkeypatch.setattr(h5py.File, "create_dataset", create_and_keep)
    assert call("run", manifest, tmp_path / "out", *OPTIONS)[0] == SOME_FAILED
    assert len(kept) == SHARDS
    assert results(tmp_path / "out") == reference
