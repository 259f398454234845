"""The index describes the shards at any time, and runs with other settings never mix, whoever is killed and when."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import h5py
import pytest

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.errors import ShardError
from cmd_extract.manifest.rows import ManifestFile
from cmd_extract.run import containment
from cmd_extract.run import record as run_record
from cmd_extract.run.finished import FinishedShard
from cmd_extract.run.job import RunJob
from cmd_extract.run.pipeline import BuildSettings, run_extraction
from cmd_extract.run.workers import build_locally
from cmd_extract.schema import hash_json
from cmd_extract.shard.reader import ShardSet
from tests.integration.cmd_extract.extraction import PROGRAM, SIZE, X264, MakeVideo, call, contents, write_manifest

OPTIONS = ("--workers", 1, "--videos-per-shard", 1, *SIZE)
# Kills the process once it has replaced a shard.
KILLED = """
import os, signal, sys
from cmd_extract.cli.main import main
from cmd_extract.shard.writer import ShardWriter
finish = ShardWriter.finish
def finish_and_die(self):
    finish(self)
    os.kill(os.getpid(), signal.SIGKILL)
ShardWriter.finish = finish_and_die
main()
"""
# Starts the command only when the file `go` appears, so that several processes run it at the same time.
TOGETHER = """
import sys, time
from pathlib import Path
import cmd_extract.cluster.task, cmd_extract.cli.run_options
from cmd_extract.cli.main import main
folder = Path(sys.argv.pop(1))
print("ready", flush=True)
while not (folder / "go").exists():
    pass
main()
"""


def python(program: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def original(make_video: MakeVideo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two videos, a third that is missing, their manifest and its extraction."""
    folder = tmp_path_factory.mktemp("original")
    for name in "ab":
        make_video(folder / f"{name}.mp4", *X264, frames=3)
    manifest = write_manifest(folder, ["a.mp4", "lost.mp4", "b.mp4"])
    assert call("run", manifest, folder / "out", *OPTIONS)[0] == 3
    return folder


@pytest.mark.parametrize("path", ["retry", "repair", "task", "continued"])
def test_the_index_is_gone_before_a_shard_is_replaced(folder: Path, path: str) -> None:
    out, shard = folder / "out", folder / "out" / "shard-00001.h5"
    shutil.copy(folder / "a.mp4", folder / "lost.mp4")  # found again
    if path != "retry":
        shard.write_bytes(shard.read_bytes()[:500])
    run = ("run", folder / "m.csv", out, *OPTIONS)
    commands = {
        "retry": (*run, "--retry-failures", "all"),
        "repair": ("verify", out, "--repair", "--workers", 1),
        "task": (*run, "--task", 0, "--num-tasks", 1),
        "continued": run,
    }
    assert (out / "index.json").exists()
    killed = python(KILLED, *commands[path])
    killed.communicate(timeout=60)
    assert killed.returncode == -9
    with h5py.File(shard) as file:
        assert len(file["video/row"]) == 1, "the shard was replaced"
    assert not (out / "index.json").exists()
    with pytest.raises(ShardError, match="run the same command again"):
        ShardSet(out)
    assert call(*run)[0] == 0
    assert call("verify", out)[0] == 0
    assert call("run", folder / "m.csv", folder / "fresh", *OPTIONS)[0] == 0
    assert contents(out) == contents(folder / "fresh")


def test_a_killed_repair_continues_with_the_checksums_that_it_had(folder: Path) -> None:
    out, expected = folder / "out", contents(folder / "out")
    for name in ("shard-00000.h5", "shard-00002.h5"):
        data = bytearray(expected[name])
        data[data.index(b"\xff\xd8") + 200] ^= 1  # in a JPEG, which can still be decoded
        (out / name).write_bytes(data)
    repair = ("verify", out, "--repair", "--quick", "--workers", 1)
    killed = python(KILLED, *repair)
    killed.communicate(timeout=60)
    assert killed.returncode == -9
    code, output = call("verify", out, "--quick")
    assert code == 1
    assert "run the same command again" in output
    code, output = call(*repair)
    assert code == 0, output
    assert "shard-00002.h5" in output
    assert contents(out) == expected


def test_any_backend_removes_the_index_before_it_replaces_a_shard(folder: Path, ffmpeg: FfmpegBinary) -> None:
    out = folder / "out"
    manifest = ManifestFile(folder / "m.csv")
    config = ExtractConfig(width=160, height=120, frame_short_side=48)
    job = RunJob(root=folder, out=out, scratch=out, config=config, binary=ffmpeg)
    found = []

    def backend(work: Any, plans: Any) -> Iterator[FinishedShard]:
        found.append((out / "index.json").exists())
        for written in build_locally(1, work, plans):
            found.append((out / "index.json").exists())
            yield written

    run_extraction(
        run_record.plan_run(out, manifest, 1),
        job,
        BuildSettings(workers=1, backend=backend, redo=frozenset({"shard-00002.h5"})),
    )
    assert found == [True, False], "it describes the shards until the first of them is replaced"
    assert (out / "index.json").exists()


def test_the_index_stays_if_nothing_is_replaced(folder: Path) -> None:
    out = folder / "out"
    assert call("run", folder / "m.csv", out, *OPTIONS, "--max-failures", 0)[0] == 4
    assert call("run", folder / "m.csv", out, *OPTIONS, "--task", 0, "--num-tasks", 1)[0] == 0
    assert call("verify", out)[0] == 0


def test_of_two_runs_started_together_with_different_settings_one_is_refused(original: Path, tmp_path: Path) -> None:
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        out = folder / "out"
        runs = {gop: python(TOGETHER, folder, "run", original / "m.csv", out, *OPTIONS, "--gop", gop) for gop in (2, 3)}
        for process in runs.values():
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
        (folder / "go").touch()
        errors = {gop: process.communicate(timeout=60)[1] for gop, process in runs.items()}
        codes = {gop: process.returncode for gop, process in runs.items()}
        assert sorted(codes.values()) == [1, 3], errors
        (winner,) = (gop for gop, code in codes.items() if code == 3)
        loser = 5 - winner
        assert f"contains an extraction with other settings (gop: {winner} is now {loser})" in errors[loser]
        index, record = (json.loads((out / name).read_text()) for name in ("index.json", "run.json"))
        assert index["config"]["gop"] == record["config"]["gop"] == winner
        for shard in out.glob("shard-*.h5"):
            with h5py.File(shard) as file:
                assert file.attrs["config_hash"] == hash_json(index["config"])


def test_a_run_that_starts_while_another_records_itself_compares_itself_with_it(
    folder: Path, ffmpeg: FfmpegBinary, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = folder / "at-once"
    out.mkdir()
    jobs = {}
    for gop in (2, 3):
        config = ExtractConfig(width=160, height=120, frame_short_side=48, gop=gop)
        jobs[gop] = RunJob(root=folder, out=out, scratch=out, config=config, binary=ffmpeg)
    planned = run_record.plan_run(out, ManifestFile(folder / "m.csv"), 1)
    check = run_record.check_folder

    def overtaken(job: RunJob, identity: run_record.RunIdentity) -> None:
        check(job, identity)
        if not (out / "run.json").exists():
            with monkeypatch.context() as original:
                original.setattr(run_record, "check_folder", check)
                run_record.claim_folder(jobs[2], run_record.RunIdentity.of(jobs[2], planned))

    monkeypatch.setattr(run_record, "check_folder", overtaken)
    with pytest.raises(ShardError, match=r"other settings \(gop: 2 is now 3\)"):
        run_record.claim_folder(jobs[3], run_record.RunIdentity.of(jobs[3], planned))


def test_a_shard_of_another_configuration_never_gets_into_the_index(folder: Path, ffmpeg: FfmpegBinary) -> None:
    """Both runs believe the folder is theirs, as after someone has emptied it during the first one."""
    manifest = ManifestFile(folder / "m.csv")
    out, other = folder / "new", folder / "other"
    jobs = {}
    for gop, place in ((2, out), (3, other)):
        config = ExtractConfig(width=160, height=120, frame_short_side=48, gop=gop)
        jobs[gop] = RunJob(root=folder, out=place, scratch=place, config=config, binary=ffmpeg)
    run_extraction(run_record.plan_run(other, manifest, 1), jobs[3], BuildSettings(workers=1))

    def backend(work: Any, plans: Any) -> Iterator[FinishedShard]:
        yield from build_locally(1, work, plans)
        shutil.copy(other / "shard-00002.h5", out / "shard-00002.h5")

    with pytest.raises(ShardError, match=r"shard-00002\.h5: removed during the run, or replaced"):
        run_extraction(run_record.plan_run(out, manifest, 1), jobs[2], BuildSettings(workers=1, backend=backend))
    assert not (out / "index.json").exists()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("--fps", "25"), ("--fps", "25.0")),
        (("--fps", "29.97"), ("--fps", "2997/100")),
        (("--segment-seconds", "2"), ("--segment-seconds", "2.0")),
        (("--timeout", "inf"), ("--timeout", "3000000")),
    ],
)
def test_a_run_continues_however_its_numbers_are_written(
    original: Path, tmp_path: Path, first: tuple[str, ...], second: tuple[str, ...]
) -> None:
    run = ("run", original / "m.csv", tmp_path / "out", *OPTIONS)
    for options in (first, second):
        code, output = call(*run, *options)
        assert code == 3, output
    assert "(0 in this run)" in output


@pytest.mark.parametrize(
    "option",
    [
        ("--timeout", "nan"), ("--timeout", "-1"), ("--segment-seconds", "inf"), ("--segment-seconds", "nan"),
        ("--fps", "1_5"), ("--fps", "\uff12\uff15"), ("--fps", "inf"), ("--fps", "1e999"), ("--max-failures", "1_0"),
        ("--max-memory-mb", "9" * 30), ("--stale-after", "nan"),
    ],
)  # fmt: skip
def test_numbers_that_make_no_sense_are_usage_errors(original: Path, tmp_path: Path, option: tuple[str, str]) -> None:
    code, output = call("run", original / "m.csv", tmp_path / "out", *OPTIONS, *option)
    assert code == 2, output
    assert option[1] in output
    assert not (tmp_path / "out").exists()


def test_a_path_that_is_too_long_is_missing(original: Path, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, ["x" * 300 + ".mp4", str(original / "a.mp4")])
    code, output = call("run", manifest, tmp_path / "out", *OPTIONS, "--dry-run")
    assert code == 0, output
    assert "missing   1 file" in output
    assert not (tmp_path / "out").exists()
    assert call("run", manifest, tmp_path / "out", *OPTIONS)[0] == 3
    assert ",open," in (tmp_path / "out" / "failures.csv").read_text()


@pytest.mark.parametrize("content", ["", "raise ImportError('no')"])
def test_another_package_called_ffmpeg_is_found_before_the_first_video(
    original: Path, tmp_path: Path, content: str
) -> None:
    (tmp_path / "ffmpeg").mkdir()
    (tmp_path / "ffmpeg" / "__init__.py").write_text(content)
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {PROGRAM}"
    for command in (("run", original / "m.csv", tmp_path / "out", *OPTIONS), ("synthesize", tmp_path / "out")):
        process = python(program, *command)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        (line,) = errors.splitlines()
        assert line.startswith("Error: ffmpeg: the Python module 'ffmpeg' ")
        assert "pip install --force-reinstall ffmpeg-python" in line
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{}",
        "[" * 100_000,
        *(f'"{name}": {value}' for name in ("shards", "totals", "config_hash", "table") for value in ("null", "[1]")),
    ],
)
def test_a_broken_or_foreign_index_is_named(folder: Path, text: str) -> None:
    path = folder / "out" / "index.json"
    whole = path.read_text()
    if text.startswith('"'):
        name, _, value = text.partition(": ")
        text = json.dumps(json.loads(whole) | {json.loads(name): json.loads(value)})
    path.write_text(text)
    for command in (
        ("inspect", folder / "out"),
        ("verify", folder / "out"),
        ("preview", folder / "out", "--video", "a"),
    ):
        code, output = call(*command)
        assert code == 1, output
        assert str(path) in output
    assert call("run", folder / "m.csv", folder / "out", *OPTIONS)[0] == 3
    assert path.read_text() == whole


def test_a_process_that_cannot_be_started_is_no_full_disk(original: Path, tmp_path: Path) -> None:
    program = """
import errno, os
from multiprocessing.process import BaseProcess
from cmd_extract.cli.main import main
def start(self):
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
BaseProcess.start = start
main()
"""
    process = python(program, "run", original / "m.csv", tmp_path / "out", *OPTIONS)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    last = errors.splitlines()[-1]
    assert last.startswith(f"Error: {tmp_path / 'out'}: [Errno 11] Resource temporarily unavailable. Finished shards")
    assert "disk" not in last
    assert "cannot write" not in last


def test_output_that_nobody_reads_ends_quietly(original: Path) -> None:
    process = python(PROGRAM, "inspect", original / "out")
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert process.wait(60) == 1
    assert process.stderr.read() == ""
    process.stderr.close()


def test_a_timeout_may_be_longer_than_the_operating_system_allows() -> None:
    """Also one that is infinite; the reply still ends the wait."""
    ours, theirs = Pipe()
    theirs.send("reply")
    assert containment._wait_for_reply(ours, float("inf"))
    assert containment._wait_for_reply(ours, 1e12)
    ours.recv()
    start = time.monotonic()
    assert not containment._wait_for_reply(ours, 0.05)
    assert time.monotonic() - start < 5
