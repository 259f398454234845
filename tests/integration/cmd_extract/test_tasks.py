"""Extraction by tasks, without a scheduler: they run one after the other, or find what others have left."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import h5py
import pytest

from cmd_extract.cli.main import main
from cmd_extract.cluster.claims import Owner
from cmd_extract.cluster.task_log import read_attempts
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.schema import FRAME_JPEG, MOTION_GRID
from tests.cluster.extraction import write_gated_ffmpeg
from tests.command_line import call as run_command

SHARDS = 5
OPTIONS = ("--videos-per-shard", "2", "--workers", "1", "--size", "64x48", "--frame-short-side", "24")
WITH_FAILURES = 3
PROGRAM = (sys.executable, "-c", "from cmd_extract.cli.main import main; main()")


def run(*arguments: object) -> tuple[int, str]:
    result = run_command(main, *arguments)
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """Nine rows, the first of a truncated file, the last without a file."""
    folder = tmp_path_factory.mktemp("videos")
    for i in range(1, 8):
        make_video(folder / f"v{i}.mp4", "-c:v", "libx264", frames=5 + i, size="64x48")
    whole = make_video(
        folder / "v0.mp4", "-c:v", "libx264", "-movflags", "+faststart", source="mandelbrot", frames=20, size="64x48"
    )
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    path = folder / "manifest.csv"
    path.write_text("id,path\n" + "".join(f"v{i},v{i}.mp4\n" for i in range(9)))
    return path


@pytest.fixture(scope="module")
def reference(manifest: Path) -> dict[str, str]:
    out = manifest.parent / "one"
    assert run("run", manifest, out, *OPTIONS)[0] == WITH_FAILURES
    return results(out)


def results(out: Path) -> dict[str, str]:
    paths = [*out.glob("shard-*.h5"), *(out / f for f in ("index.json", "failures.csv", "damaged.csv"))]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def put_claim(out: Path, number: int) -> Path:
    """A claim of a process of another machine that seems to be alive."""
    path = out / "claims" / f"shard-{number:05d}.h5"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(asdict(Owner(host="n1", machine="another", pid=1, job="7", restart=0))))
    return path


@pytest.mark.parametrize("num_tasks", [2, 7])
def test_tasks_make_together_what_one_run_makes(
    manifest: Path, reference: dict[str, str], tmp_path: Path, num_tasks: int
) -> None:
    out = tmp_path / "out"
    for task in reversed(range(num_tasks)):
        code, output = run("run", manifest, out, *OPTIONS, "--task", task, "--num-tasks", num_tasks)
        assert code == 0, output
        assert not (out / "index.json").exists()
    assert "damaged   1, extracted as far" in output  # of task 0, the last to run
    code, output = run("merge", out)
    assert code == WITH_FAILURES
    assert f"1 damaged ({out / 'damaged.csv'})" in output
    assert "v0" in (out / "damaged.csv").read_text()
    assert results(out) == reference
    code, output = run("verify", out)
    assert code == 0, output
    assert json.loads((out / "run.json").read_text())["summary"]["new_videos"] == 8


def test_a_merge_does_not_trust_a_shard_that_is_not_as_its_task_left_it(
    manifest: Path, reference: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run("run", manifest, out, *OPTIONS, "--task", 0, "--num-tasks", 1)
    (log,) = (out / "tasks").iterdir()
    lines = log.read_text().splitlines()
    # Two attempts that disagree: the shard is read.
    told = json.loads(lines[1]) | {"sha256": "0" * 64}
    (out / "tasks" / "00000-of-00001--n1-1-1.jsonl").write_text(f"{lines[0]}\n{json.dumps(told)}\n")
    assert run("merge", out)[0] == WITH_FAILURES
    assert results(out) == reference


def test_a_merge_reads_a_shard_that_was_made_again_without_a_log(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("run", manifest, out, *OPTIONS, "--task", 0, "--num-tasks", 1)
    shard = out / "shard-00002.h5"
    before = shard.read_bytes()
    with h5py.File(shard, "r+", locking=False) as file:  # as long as before, like many a shard that is made again
        file[FRAME_JPEG][9] ^= 1
    after = shard.read_bytes()
    assert len(after) == len(before)
    assert run("merge", out)[0] == WITH_FAILURES
    entry = json.loads((out / "index.json").read_text())["shards"][2]
    assert entry["sha256"] == hashlib.sha256(after).hexdigest()


def test_a_merge_leaves_alone_what_others_are_at_work_on(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("run", manifest, out, *OPTIONS, "--task", 0, "--num-tasks", 1)
    retry, merge = out / ".extract-n1-1-scratch", out / ".extract-n2-1-index.json"
    old = out / ".extract-n3-1-index.json"
    retry.mkdir()
    for path in (merge, old):
        path.touch()
    os.utime(old, (0, 0))
    assert run("merge", out)[0] == WITH_FAILURES
    assert set(out.glob(".*")) == {retry, merge}


def test_status_goes_by_the_clock_of_the_file_system(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (out / "jobs").mkdir(parents=True)
    code, output = run("status", out)
    assert code == 0
    assert "submitted, no task has started yet" in output
    # The hosts' clocks disagree, in both directions.
    clock = time.time
    for task, offset in enumerate((9000, -9000)):
        monkeypatch.setattr(time, "time", lambda offset=offset: clock() + offset)
        run("run", manifest, out, *OPTIONS, "--task", 0, "--num-tasks", 2, "--max-failures", task)
    put_claim(out, 1)
    assert "1 running, 0 stale" in run("status", out)[1]
    monkeypatch.setattr(time, "time", clock)
    first, second = read_attempts(out, clock(), 180)
    assert clock() - 300 < first.started_seconds <= second.started_seconds <= clock() + 300
    assert all(0 <= attempt.seconds < 300 for attempt in (first, second))


def test_a_shard_that_has_gone_is_not_done(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("run", manifest, out, *OPTIONS, "--task", 0, "--num-tasks", 1)
    (out / "shard-00001.h5").unlink()
    output = run("status", out, "--shards")[1]
    assert "4 done, 0 running, 1 stale" in output
    assert "0 of 1     stale          4/5" in output


def test_a_merge_names_what_is_missing_and_status_says_why(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    share = ("--num-tasks", 3, "--task")
    assert run("run", manifest, out, *OPTIONS, *share, 0)[0] == 0
    code, output = run("run", manifest, out, *OPTIONS, *share, 1, "--max-failures", "0")
    assert code == 4, output  # shards 1 and 4; the row without a file is in 4
    code, output = run("merge", out)
    assert code == 1
    assert "missing of 5: 2 shards (shard-00002.h5; shard-00004.h5)" in output
    put_claim(out, 2)
    code, output = run("status", out, "--shards")
    assert code == 0
    assert "3 done, 1 running, 0 stale, 1 failed, 0 waiting; 5 in all" in output
    assert "more than 0 videos failed" in output
    assert "shard-00002.h5  running" in output
    assert "shard-00004.h5  failed" in output
    os.utime(out / "claims" / "shard-00002.h5", (0, 0))
    assert "3 done, 0 running, 1 stale, 1 failed" in run("status", out)[1]
    # What is missing is made by a run that shares it otherwise.
    assert run("run", manifest, out, *OPTIONS, "--task", 0, "--num-tasks", 1)[0] == 0
    assert run("merge", out)[0] == WITH_FAILURES
    assert "5 done, 0 running, 0 stale, 0 failed, 0 waiting; 5 in all; merged" in run("status", out)[1]


def test_a_shard_that_another_holds_is_awaited_and_taken_over_when_it_falls_silent(
    manifest: Path, reference: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    claim = put_claim(out, 3)
    task = ("run", manifest, out, *OPTIONS, "--task", 0, "--num-tasks", 1, "--stale-after", "2")
    stop = threading.Event()

    def keep_alive() -> None:
        while not stop.wait(0.1):
            os.utime(claim)

    other = threading.Thread(target=keep_alive)
    other.start()
    codes: list[int] = []
    waiting = threading.Thread(target=lambda: codes.append(in_a_process(task)))
    waiting.start()
    end = time.monotonic() + 120
    while len(list(out.glob("shard-*.h5"))) < SHARDS - 1:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert waiting.is_alive()
    assert not (out / "shard-00003.h5").exists()
    stop.set()
    other.join()
    waiting.join(120)
    assert codes == [0]
    assert run("merge", out)[0] == WITH_FAILURES
    assert results(out) == reference


def in_a_process(arguments: tuple[object, ...]) -> int:
    return subprocess.run([*PROGRAM, *map(str, arguments)], check=False, capture_output=True, timeout=120).returncode


def test_a_task_that_is_stopped_gives_back_its_claims_and_says_so(
    manifest: Path, reference: dict[str, str], ffmpeg: FfmpegBinary, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    gated = write_gated_ffmpeg(tmp_path, ffmpeg)
    gates = [tmp_path / "gates" / name for name in ("v2", "v5")]
    for gate in gates:
        gate.touch()
    command = [*PROGRAM, "run", manifest, out, *OPTIONS, "--workers", "2", "--ffmpeg", gated]
    task = subprocess.Popen([*command, "--task", "0", "--num-tasks", "1"], stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while sorted(p.name for p in (out / "claims").glob("shard-*")) != ["shard-00001.h5", "shard-00002.h5"]:
            assert time.monotonic() < end
            time.sleep(0.05)
        task.terminate()  # what a scheduler does at the time limit
        assert task.wait(120) == 130
    finally:
        task.kill()
        task.wait()
    (log,) = (out / "tasks").iterdir()
    assert json.loads(log.read_text().splitlines()[-1])["state"] == "stopped"
    assert not list((out / "claims").iterdir())
    assert not list(out.glob(".*"))
    for gate in gates:
        gate.unlink()
    assert run("run", manifest, out, *OPTIONS, "--task", 0, "--num-tasks", 1, "--ffmpeg", gated)[0] == 0
    assert run("merge", out)[0] == WITH_FAILURES
    assert results(out) == reference


def test_a_shard_that_another_finishes_is_not_made_again(
    manifest: Path, reference: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    put_claim(out, 3)
    done = manifest.parent / "one" / "shard-00003.h5"
    timer = threading.Thread(target=lambda: (wait_for_shards(out), shutil.copy(done, out / done.name)))
    timer.start()
    code, output = run("run", manifest, out, *OPTIONS, "--task", 0, "--num-tasks", 1)
    timer.join()
    assert code == 0, output
    assert "4 made, 1 were there or made by others" in output
    assert run("merge", out)[0] == WITH_FAILURES
    assert results(out) == reference


def wait_for_shards(out: Path) -> None:
    end = time.monotonic() + 120
    while len(list(out.glob("shard-*.h5"))) < SHARDS - 1 and time.monotonic() < end:
        time.sleep(0.1)


def test_a_scratch_folder_on_another_file_system_gives_the_same_bytes(
    manifest: Path, reference: dict[str, str], tmp_path: Path
) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is only one file system here")
    with tempfile.TemporaryDirectory(dir=other) as scratch:
        assert run("run", manifest, tmp_path / "out", *OPTIONS, "--scratch", scratch)[0] == WITH_FAILURES
        assert not list(Path(scratch).iterdir())
    assert results(tmp_path / "out") == reference


def test_the_bytes_do_not_depend_on_who_else_looks_at_a_dataset(
    manifest: Path, reference: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A profiler that keeps a frame keeps its local variables, and a dataset would be closed when that lets go.
    kept = []
    create = h5py.File.create_dataset

    def create_and_keep(self: h5py.File, name: str, **options: object) -> h5py.Dataset:
        dataset = create(self, name, **options)
        if name == MOTION_GRID:
            kept.append(dataset)
        return dataset

    monkeypatch.setattr(h5py.File, "create_dataset", create_and_keep)
    assert run("run", manifest, tmp_path / "out", *OPTIONS)[0] == WITH_FAILURES
    assert len(kept) == SHARDS
    assert results(tmp_path / "out") == reference
