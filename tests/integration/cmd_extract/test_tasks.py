"""Distributed extraction without a scheduler: tasks run one after the other, or find the state left by others."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
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
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.run.task_log import read_attempts
from cmd_extract.schema import FRAME_JPEG, MOTION_GRID
from cmd_extract.shard.index import ShardIndex
from cmd_extract.system.claims import Owner
from tests.cluster.extraction import built, write_gated_ffmpeg
from tests.command_line import call as run_command

SHARDS = 5
OPTIONS = ("--videos-per-shard", "2", "--workers", "1", "--size", "64x48", "--frame-short-side", "24")
SOME_FAILED = 3  # exit code
PROGRAM = (sys.executable, "-c", "from cmd_extract.cli.main import main; main()")


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def run(*arguments: object) -> tuple[int, str]:
    result = run_command(main, *arguments)
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """Manifest of nine rows; the first file is truncated, the last is missing."""
    folder = tmp_path_factory.mktemp("videos")
    for i in range(1, 8):
        make_video(folder / f"v{i}.mp4", "-c:v", "libx264", frames=5 + i, size="64x48")
    truncated = make_video(
        folder / "v0.mp4", "-c:v", "libx264", "-movflags", "+faststart", source="mandelbrot", frames=20, size="64x48"
    )
    truncated.write_bytes(truncated.read_bytes()[: truncated.stat().st_size * 2 // 3])
    path = folder / "manifest.csv"
    path.write_text("id,path\n" + "".join(f"v{i},v{i}.mp4\n" for i in range(9)))
    return path


@pytest.fixture(scope="module")
def reference(manifest: Path) -> dict[str, str]:
    out = manifest.parent / "single"
    assert run("run", manifest, out, *OPTIONS)[0] == SOME_FAILED
    return results(out)


def results(out: Path) -> dict[str, str]:
    paths = [
        *out.glob("shard-*.h5"),
        *out.glob("index-*.h5"),
        *(out / f for f in ("index.json", "failures.csv", "damaged.csv")),
    ]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def write_claim(out: Path, number: int) -> Path:
    """Write a claim that appears to belong to a running process on another machine."""
    path = out / "claims" / f"shard-{number:05d}.h5"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(asdict(Owner(host="n1", machine="another", pid=1, job="7", restart=0))))
    return path


@pytest.mark.parametrize("num_tasks", [2, 7])
def test_tasks_produce_the_same_output_as_a_single_run(
    manifest: Path, reference: dict[str, str], tmp_path: Path, num_tasks: int
) -> None:
    out = tmp_path / "out"
    task = ("run", manifest, out, *OPTIONS, "--num-tasks", num_tasks, "--task")
    code, output = run(*task, 1)
    assert code == 0, output
    helped = {2: "5 built (3 for other tasks), 0 existing", 7: "5 built (4 for other tasks), 0 existing"}[num_tasks]
    assert helped in output, "a task that has finished its share helps the others"
    assert "damaged   1, extracted as far" in output
    for other in reversed(range(num_tasks)):
        code, output = run(*task, other)
        assert code == 0, output
        assert "0 built" in output
    assert not (out / "index.json").exists()
    code, output = run("merge", out)
    assert code == SOME_FAILED
    assert f"1 damaged ({out / 'damaged.csv'})" in output
    assert "v0" in (out / "damaged.csv").read_text()
    assert results(out) == reference
    code, output = run("verify", out)
    assert code == 0, output
    assert json.loads((out / "run.json").read_text())["summary"]["new_videos"] == 8


def test_shares_of_a_job_array_are_taken_only_on_request(
    manifest: Path, reference: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = {"ID": 1, "COUNT": 4, "MIN": 0, "MAX": 3, "STEP": 1}
    for name, value in ids.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    out = tmp_path / "array"
    code, output = run("run", manifest, out, *OPTIONS, "--array")
    assert code == 0, output
    assert "task 1 of 4: 2 videos" in output
    (log,) = (out / "tasks").glob("*.jsonl")
    names = [event["name"] for event in map(json.loads, log.read_text().splitlines()[1:-1])]
    assert names == [f"shard-{n:05d}.h5" for n in (1, 2, 3, 4, 0)], "its own share first, then those of the next tasks"
    # Somebody's array over other things: each task makes an extraction of its own.
    code, output = run("run", manifest, tmp_path / "own", *OPTIONS)
    assert code == SOME_FAILED, output
    assert "note: this task of a Slurm job array builds all shards; with --array, the tasks share them" in output
    assert results(tmp_path / "own") == reference


def test_merge_can_accept_failed_videos(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("run", manifest, out, *OPTIONS, "--task", 0, "--num-tasks", 2)
    (out / "shard-00001.h5").unlink()
    assert run("merge", out, "--allow-failures")[0] == 1, "a shard is missing"
    run("run", manifest, out, *OPTIONS, "--task", 1, "--num-tasks", 2)
    code, output = run("merge", out, "--allow-failures")
    assert code == 0, output
    assert "1 failed" in output


def test_merge_reads_a_shard_whose_logs_disagree(manifest: Path, reference: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("run", manifest, out, *OPTIONS, "--task", 0, "--num-tasks", 1)
    (log,) = (out / "tasks").glob("*.jsonl")
    lines = log.read_text().splitlines()
    # With two attempts that disagree, the merge must compute the checksum itself.
    event = json.loads(lines[1])
    event["entry"]["sha256"] = "0" * 64
    (out / "tasks" / "00000-of-00001--n1-1-1.jsonl").write_text(f"{lines[0]}\n{json.dumps(event)}\n")
    assert run("merge", out)[0] == SOME_FAILED
    assert results(out) == reference
    summary = json.loads((out / "run.json").read_text())["summary"]
    assert summary["new_videos"] == summary["videos"] == 8, "a shard in two logs counts once"


def test_merge_reads_a_shard_rebuilt_without_a_log(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("run", manifest, out, *OPTIONS, "--task", 0, "--num-tasks", 1)
    shard = out / "shard-00002.h5"
    before = shard.read_bytes()
    with h5py.File(shard, "r+", locking=False) as file:  # keep the size, as a retry often does
        file[FRAME_JPEG][9] ^= 1
    after = shard.read_bytes()
    assert len(after) == len(before)
    assert run("merge", out)[0] == SOME_FAILED
    assert ShardIndex(out).shard(2).sha256 == hashlib.sha256(after).hexdigest()


def test_merge_keeps_temporary_files_of_running_processes(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("run", manifest, out, *OPTIONS, "--task", 0, "--num-tasks", 1)
    retry, merge = out / ".extract-n1-1-scratch", out / ".extract-n2-1-index.json"
    old = out / ".extract-n3-1-index.json"
    retry.mkdir()
    for path in (merge, old):
        path.touch()
    os.utime(old, (0, 0))
    assert run("merge", out)[0] == SOME_FAILED
    assert set(out.glob(".*")) == {retry, merge}


def test_status_uses_the_clock_of_the_file_system(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (out / "jobs").mkdir(parents=True)
    code, output = run("status", out)
    assert code == 0
    assert "submitted, but no task has started yet" in output
    # Host clocks are off in both directions.
    clock = time.time
    for task, offset in enumerate((9000, -9000)):
        monkeypatch.setattr(time, "time", lambda offset=offset: clock() + offset)
        run("run", manifest, out, *OPTIONS, "--task", 0, "--num-tasks", 2, "--max-failures", task)
    (out / "shard-00001.h5").unlink()
    write_claim(out, 1)
    assert "4 done, 1 running, 0 stale" in run("status", out)[1]
    monkeypatch.setattr(time, "time", clock)
    first, second = read_attempts(out, clock(), 180)
    assert clock() - 300 < first.started_seconds <= second.started_seconds <= clock() + 300
    assert all(0 <= attempt.seconds < 300 for attempt in (first, second))


def test_removed_shard_is_not_done(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("run", manifest, out, *OPTIONS, "--task", 0, "--num-tasks", 1)
    (out / "shard-00001.h5").unlink()
    output = run("status", out, "--shards")[1]
    assert "4 done, 0 running, 1 stale" in output
    assert re.search(r"^0 of 1 +stale .* 4/5 ", output, re.MULTILINE)
    assert re.search(r"^shard-00001.h5 +stale$", output, re.MULTILINE)


def test_merge_names_missing_shards_and_status_shows_the_reason(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, output = run("run", manifest, out, *OPTIONS, "--num-tasks", 3, "--task", 1, "--max-failures", "0")
    assert code == 4, output  # shards 1 and 4; the row without a file is in 4
    code, output = run("merge", out)
    assert code == 1
    assert "missing 4 shards (shard-00000.h5; shard-00002.h5; shard-00003.h5; shard-00004.h5) of 5" in output
    write_claim(out, 2)
    code, output = run("status", out, "--shards")
    assert code == 0
    assert "5 shards: 1 done, 1 running, 0 stale, 1 failed, 2 waiting" in output
    assert "failed, more than --max-failures allows" in output
    assert re.search(
        r"^shard-00002.h5 +running\nshard-00003.h5 +waiting\nshard-00004.h5 +failed$", output, re.MULTILINE
    )
    os.utime(out / "claims" / "shard-00002.h5", (0, 0))
    assert "1 done, 0 running, 1 stale, 1 failed, 2 waiting" in run("status", out)[1]
    # A run with a different number of tasks builds the missing shards.
    assert run("run", manifest, out, *OPTIONS, "--task", 0, "--num-tasks", 1)[0] == 0
    assert run("merge", out)[0] == SOME_FAILED
    assert "5 shards: 5 done, 0 running, 0 stale, 0 failed, 0 waiting; merged" in run("status", out)[1]


def test_task_waits_for_a_claimed_shard_and_takes_over_a_stale_claim(
    manifest: Path, reference: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    claim = write_claim(out, 3)
    task = ("run", manifest, out, *OPTIONS, "--task", 0, "--num-tasks", 1, "--stale-after", "2")
    stop = threading.Event()

    def keep_alive() -> None:
        while not stop.wait(0.1):
            os.utime(claim)

    owner = threading.Thread(target=keep_alive)
    owner.start()
    codes: list[int] = []
    waiting = threading.Thread(target=lambda: codes.append(run_in_process(task)))
    waiting.start()
    wait_until(lambda: len(list(out.glob("shard-*.h5"))) == SHARDS - 1)
    assert waiting.is_alive()
    assert not (out / "shard-00003.h5").exists()
    stop.set()
    owner.join()
    waiting.join(120)
    assert codes == [0]
    assert run("merge", out)[0] == SOME_FAILED
    assert results(out) == reference


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGSTOP])
def test_other_tasks_do_the_work_of_one_that_is_killed_or_hangs(
    manifest: Path, reference: dict[str, str], ffmpeg: FfmpegBinary, tmp_path: Path, kind: signal.Signals
) -> None:
    out, command = tmp_path / "out", [*PROGRAM, "run", manifest, tmp_path / "out", *OPTIONS, "--stale-after", "3"]
    gated = write_gated_ffmpeg(tmp_path, ffmpeg)
    gate = tmp_path / "gates" / "v0"  # in the first shard of task 0
    gate.touch()
    task = subprocess.Popen(
        [*command, "--task", "0", "--num-tasks", "2", "--ffmpeg", gated],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until((out / "claims" / "shard-00000.h5").exists)
        task.send_signal(kind)
        gate.unlink()
        code, output = run(*command[3:], "--task", 1, "--num-tasks", 2, "--ffmpeg", gated)
        assert code == 0, output
        assert "5 built (3 for other tasks)" in output
        assert run("merge", out)[0] == SOME_FAILED, "the merge need not wait for the task that hangs"
        assert results(out) == reference
        task.send_signal(signal.SIGCONT)
        assert task.wait(120) == (-kind if kind == signal.SIGKILL else 0)
        assert results(out) == reference
    finally:
        task.kill()
        task.wait()


def test_a_task_does_not_wait_for_shards_that_others_are_building(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    claim, stop = write_claim(out, 1), threading.Event()

    def keep_alive() -> None:
        while not stop.wait(0.1):
            os.utime(claim)

    owner = threading.Thread(target=keep_alive)
    owner.start()
    try:
        code, output = run("run", manifest, out, *OPTIONS, "--task", 0, "--num-tasks", 2, "--stale-after", "20")
    finally:
        stop.set()
        owner.join()
    assert code == 0, output
    assert "waiting for shard-00001.h5, claimed by another process (n1, process 1)" in output
    assert "4 built (1 for other tasks), 0 existing" in output
    assert claim.exists()


def test_processes_without_shares_divide_the_work(manifest: Path, reference: dict[str, str], tmp_path: Path) -> None:
    command = [*PROGRAM, "run", manifest, tmp_path / "out", *OPTIONS]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(120) for process in processes] == [SOME_FAILED] * 2
    assert results(tmp_path / "out") == reference
    assert built(tmp_path / "out") == [f"shard-{n:05d}.h5" for n in range(SHARDS)], "each shard is built once"


def test_a_helping_task_may_have_failures_in_proportion(manifest: Path, tmp_path: Path) -> None:
    (manifest.parent / "lost.csv").write_text("id,path\n" + "".join(f"v{i},lost{i}.mp4\n" for i in range(10)))
    task = ("run", manifest.parent / "lost.csv", tmp_path / "out", *OPTIONS, "--num-tasks", 5, "--task", 2)
    code, output = run(*task, "--max-failures", "99%")
    assert code == 4, output
    assert not list((tmp_path / "out").glob("shard-*.h5")), "2 of 2 failed, where 1 may"
    assert run(*task, "--max-failures", "2")[0] == 0, "10 failures in 5 shares, with 2 for each"
    assert len(list((tmp_path / "out").glob("shard-*.h5"))) == SHARDS


def test_a_task_stops_helping_at_too_many_failures(manifest: Path, tmp_path: Path) -> None:
    paths = [f"v{i}.mp4" if i in (4, 5) else f"lost{i}.mp4" for i in range(10)]
    (manifest.parent / "few.csv").write_text("id,path\n" + "".join(f"{path},{path}\n" for path in paths))
    task = ("run", manifest.parent / "few.csv", tmp_path / "out", *OPTIONS, "--num-tasks", 5, "--task", 2)
    code, output = run(*task, "--max-failures", 0)
    assert code == 0, "its own share is complete"
    assert "1 built, 0 existing" in output
    assert [path.name for path in (tmp_path / "out").glob("shard-*.h5")] == ["shard-00002.h5"]


def run_in_process(arguments: tuple[object, ...]) -> int:
    return subprocess.run([*PROGRAM, *map(str, arguments)], check=False, capture_output=True, timeout=120).returncode


def test_stopped_task_releases_its_claims_and_logs_its_state(
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
        claimed = ["shard-00001.h5", "shard-00002.h5"]
        wait_until(lambda: sorted(p.name for p in (out / "claims").glob("shard-*")) == claimed)
        task.terminate()  # as a scheduler does at the time limit
        assert task.wait(120) == 130
    finally:
        task.kill()
        task.wait()
    (log,) = (out / "tasks").glob("*.jsonl")
    assert json.loads(log.read_text().splitlines()[-1])["state"] == "stopped"
    assert not (out / "claims").exists()
    assert not list(out.glob(".*"))
    for gate in gates:
        gate.unlink()
    assert run("run", manifest, out, *OPTIONS, "--task", 0, "--num-tasks", 1, "--ffmpeg", gated)[0] == 0
    assert run("merge", out)[0] == SOME_FAILED
    assert results(out) == reference


def test_shard_finished_by_another_process_is_not_rebuilt(
    manifest: Path, reference: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_claim(out, 3)
    done = manifest.parent / "single" / "shard-00003.h5"
    other = threading.Thread(target=lambda: (wait_for_shards(out), shutil.copy(done, out / done.name)))
    other.start()
    code, output = run("run", manifest, out, *OPTIONS, "--task", 0, "--num-tasks", 1)
    other.join()
    assert code == 0, output
    assert "4 built, 1 existing or built by other tasks" in output
    assert run("merge", out)[0] == SOME_FAILED
    assert results(out) == reference


def wait_for_shards(out: Path) -> None:
    end = time.monotonic() + 120
    while len(list(out.glob("shard-*.h5"))) < SHARDS - 1 and time.monotonic() < end:
        time.sleep(0.1)


def test_scratch_folder_on_another_file_system_gives_the_same_bytes(
    manifest: Path, reference: dict[str, str], tmp_path: Path
) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system in /dev/shm")
    with tempfile.TemporaryDirectory(dir=other) as scratch:
        assert run("run", manifest, tmp_path / "out", *OPTIONS, "--scratch", scratch)[0] == SOME_FAILED
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
    assert run("run", manifest, tmp_path / "out", *OPTIONS)[0] == SOME_FAILED
    assert len(kept) == SHARDS
    assert results(tmp_path / "out") == reference
