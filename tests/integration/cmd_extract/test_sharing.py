"""Several processes that share the shards of an extraction by claims, of which some hang, die or fail."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cmd_extract.decode.ffmpeg import FfmpegBinary
from tests.cluster.extraction import SOME_FAILED, built, results, write_gated_ffmpeg
from tests.integration.cmd_extract.extraction import PROGRAM, call
from tests.integration.cmd_extract.task_runs import OPTIONS, SHARDS, wait_until, write_claim

COMMAND = (sys.executable, "-c", PROGRAM)


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
    assert call("merge", out)[0] == SOME_FAILED
    assert results(out) == reference


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGSTOP])
def test_other_tasks_do_the_work_of_one_that_is_killed_or_hangs(
    manifest: Path, reference: dict[str, str], ffmpeg: FfmpegBinary, tmp_path: Path, kind: signal.Signals
) -> None:
    out, command = tmp_path / "out", [*COMMAND, "run", manifest, tmp_path / "out", *OPTIONS, "--stale-after", "3"]
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
        code, output = call(*command[3:], "--task", 1, "--num-tasks", 2, "--ffmpeg", gated)
        assert code == 0, output
        assert "5 built (3 for other tasks)" in output
        assert call("merge", out)[0] == SOME_FAILED, "the merge need not wait for the task that hangs"
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
        code, output = call("run", manifest, out, *OPTIONS, "--task", 0, "--num-tasks", 2, "--stale-after", "20")
    finally:
        stop.set()
        owner.join()
    assert code == 0, output
    assert "waiting for shard-00001.h5, claimed by another process (n1, process 1)" in output
    assert "4 built (1 for other tasks), 0 existing" in output
    assert claim.exists()


def test_processes_without_shares_divide_the_work(manifest: Path, reference: dict[str, str], tmp_path: Path) -> None:
    command = [*COMMAND, "run", manifest, tmp_path / "out", *OPTIONS]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(120) for process in processes] == [SOME_FAILED] * 2
    assert results(tmp_path / "out") == reference
    assert built(tmp_path / "out") == [f"shard-{n:05d}.h5" for n in range(SHARDS)], "each shard is built once"


def test_a_helping_task_may_have_failures_in_proportion(manifest: Path, tmp_path: Path) -> None:
    (manifest.parent / "lost.csv").write_text("id,path\n" + "".join(f"v{i},lost{i}.mp4\n" for i in range(10)))
    task = ("run", manifest.parent / "lost.csv", tmp_path / "out", *OPTIONS, "--num-tasks", 5, "--task", 2)
    code, output = call(*task, "--max-failures", "99%")
    assert code == 4, output
    assert not list((tmp_path / "out").glob("shard-*.h5")), "2 of 2 failed, where 1 may"
    assert call(*task, "--max-failures", "2")[0] == 0, "10 failures in 5 shares, with 2 for each"
    assert len(list((tmp_path / "out").glob("shard-*.h5"))) == SHARDS


def test_a_task_stops_helping_at_too_many_failures(manifest: Path, tmp_path: Path) -> None:
    paths = [f"v{i}.mp4" if i in (4, 5) else f"lost{i}.mp4" for i in range(10)]
    (manifest.parent / "few.csv").write_text("id,path\n" + "".join(f"{path},{path}\n" for path in paths))
    task = ("run", manifest.parent / "few.csv", tmp_path / "out", *OPTIONS, "--num-tasks", 5, "--task", 2)
    code, output = call(*task, "--max-failures", 0)
    assert code == 0, "its own share is complete"
    assert "1 built, 0 existing" in output
    assert [path.name for path in (tmp_path / "out").glob("shard-*.h5")] == ["shard-00002.h5"]


def run_in_process(arguments: tuple[object, ...]) -> int:
    return subprocess.run([*COMMAND, *map(str, arguments)], check=False, capture_output=True, timeout=120).returncode


def test_stopped_task_releases_its_claims_and_logs_its_state(
    manifest: Path, reference: dict[str, str], ffmpeg: FfmpegBinary, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    gated = write_gated_ffmpeg(tmp_path, ffmpeg)
    gates = [tmp_path / "gates" / name for name in ("v2", "v5")]
    for gate in gates:
        gate.touch()
    command = [*COMMAND, "run", manifest, out, *OPTIONS, "--workers", "2", "--ffmpeg", gated]
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
    assert call("run", manifest, out, *OPTIONS, "--task", 0, "--num-tasks", 1, "--ffmpeg", gated)[0] == 0
    assert call("merge", out)[0] == SOME_FAILED
    assert results(out) == reference


def test_shard_finished_by_another_process_is_not_rebuilt(
    manifest: Path, reference: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_claim(out, 3)
    done = manifest.parent / "single" / "shard-00003.h5"
    other = threading.Thread(target=lambda: (wait_for_others(out), shutil.copy(done, out / done.name)))
    other.start()
    code, output = call("run", manifest, out, *OPTIONS, "--task", 0, "--num-tasks", 1)
    other.join()
    assert code == 0, output
    assert "4 built, 1 existing or built by other tasks" in output
    assert call("merge", out)[0] == SOME_FAILED
    assert results(out) == reference


def wait_for_others(out: Path) -> None:
    wait_until(lambda: len(list(out.glob("shard-*.h5"))) == SHARDS - 1)
