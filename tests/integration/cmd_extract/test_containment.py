"""Isolation of videos that crash, hang or exhaust memory, and runs that are interrupted."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.decode.video import ExtractedVideo, extract_video
from cmd_extract.errors import FailureLimitError, VideoError
from cmd_extract.manifest.rows import ListedRows
from cmd_extract.run.containment import ContainedExtractor
from cmd_extract.run.job import Limits, RunJob
from cmd_extract.run.pipeline import BuildSettings, run_extraction
from cmd_extract.run.record import plan_run
from cmd_extract.schema import VideoRecord
from cmd_extract.shard.reader import ShardSet
from tests.integration.cmd_extract.extraction import PROGRAM, MakeVideo, contents, read_rows

CONFIG = ExtractConfig(width=64, height=48, frame_short_side=24)


def unique_sleep(folder: Path) -> str:
    """Return a sleep time unique to this test, since the same test may be running elsewhere on the machine."""
    return f"1000.{zlib.crc32(bytes(folder))}"


def hostile_extract(source: Path, config: ExtractConfig, workdir: Path, binary: FfmpegBinary) -> ExtractedVideo:
    """Extract a video, except that certain file names crash, hang or exhaust memory like a broken native library."""
    match source.stem.partition("-")[0]:
        case "segv":
            faulthandler.disable()  # pytest enables it; the crash is intended
            ctypes.string_at(1)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(7)
        case "hang":
            subprocess.run(["sleep", unique_sleep(source.parent)], check=True)
        case "hog":
            blocks = [b"x" * (16 << 20) for _ in range(1000)]
            raise AssertionError(f"{len(blocks)} blocks were allocated")
        case "bug":
            raise KeyError("unexpected")
    return extract_video(source, config, workdir, binary)


@pytest.fixture(scope="module")
def one_video(tmp_path_factory: pytest.TempPathFactory, make_video: MakeVideo) -> Path:
    return make_video(tmp_path_factory.mktemp("v") / "v.mp4", "-c:v", "libx264", frames=15)


def make_rows(folder: Path, one_video: Path, names: list[str]) -> list[VideoRecord]:
    folder.mkdir(exist_ok=True)
    for name in names:
        shutil.copy(one_video, folder / f"{name}.mp4")
    return [VideoRecord(row=i, video_id=n, path=f"{n}.mp4") for i, n in enumerate(names)]


def make_job(folder: Path, out: Path, ffmpeg: FfmpegBinary, timeout: float = 60.0, max_memory_mb: int = 512) -> RunJob:
    limits = Limits(timeout_seconds=timeout, max_memory_mb=max_memory_mb)
    return RunJob(root=folder, out=out, scratch=out, config=CONFIG, binary=ffmpeg, limits=limits)


def failures(out: Path) -> dict[str, tuple[str, str]]:
    return {row["path"].removesuffix(".mp4"): (row["stage"], row["reason"]) for row in read_rows(out / "failures.csv")}


def processes_with(text: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in command and path.parent.name != str(os.getpid()):
            found.append(command)
    return found


def processes_of_session(leader: int) -> list[str]:
    """Return the command lines of all processes of a session, since those of workers do not name their folders."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            session = os.getsid(int(folder.name))
            state = (folder / "stat").read_text().rpartition(") ")[2][0]
            if session == leader and state != "Z":
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_only_the_offending_video_fails(one_video: Path, ffmpeg: FfmpegBinary, tmp_path: Path, workers: int) -> None:
    bad = {"segv": "crash", "kill": "crash", "exit": "crash", "hang": "timeout", "hog": "memory", "bug": "error"}
    names = [name for kind in bad for name in (kind, f"fine{kind}")]
    rows = make_rows(tmp_path, one_video, names)
    job = make_job(tmp_path, tmp_path / "out", ffmpeg, timeout=10.0)
    summary = run_extraction(
        plan_run(job.out, ListedRows(rows), 6), job, BuildSettings(workers=workers, extract=hostile_extract)
    )
    assert (summary.videos, summary.failures) == (6, 6)
    found = failures(tmp_path / "out")
    assert {name: stage for name, (stage, _) in found.items()} == bad
    assert "SIGSEGV" in found["segv"][1]
    assert "SIGKILL" in found["kill"][1]
    assert "status 7" in found["exit"][1]
    assert "--timeout" in found["hang"][1]
    assert "--max-memory-mb" in found["hog"][1]
    assert "KeyError" in found["bug"][1]
    assert {v.video_id for v in ShardSet(tmp_path / "out").videos} == {f"fine{kind}" for kind in bad}
    assert not processes_with(f"sleep {unique_sleep(tmp_path)}"), "processes started for a video end with it"
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith(".")]


def test_other_videos_do_not_depend_on_the_offending_one(one_video: Path, ffmpeg: FfmpegBinary, tmp_path: Path) -> None:
    rows = make_rows(tmp_path / "v", one_video, ["a", "segv", "b"])
    for out, workers in (("x", 1), ("y", 2)):
        job = make_job(tmp_path / "v", tmp_path / out, ffmpeg)
        run_extraction(
            plan_run(job.out, ListedRows(rows), 3), job, BuildSettings(workers=workers, extract=hostile_extract)
        )
    name = "shard-00000.h5"
    assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes()


def test_memory_limit_covers_ffmpeg(make_video: MakeVideo, ffmpeg: FfmpegBinary, tmp_path: Path) -> None:
    # A picture of 8192 x 8192 pixels takes 100 MB, and a decoder holds several; the file itself is small.
    fast = ("-c:v", "libx264", "-preset", "ultrafast")
    make_video(tmp_path / "huge.mkv", *fast, source="color", size="8192x8192", frames=3)
    rows = [VideoRecord(row=0, video_id="huge", path="huge.mkv")]
    job = make_job(tmp_path, tmp_path / "out", ffmpeg, max_memory_mb=128)
    summary = run_extraction(plan_run(job.out, ListedRows(rows)), job, BuildSettings(workers=1))
    assert summary.failures == 1
    ((stage, reason),) = failures(tmp_path / "out").values()
    assert stage == "memory", reason


def extract_beside_a_buffer(source: Path, config: ExtractConfig, workdir: Path, binary: FfmpegBinary) -> ExtractedVideo:
    buffer = bytearray(45 << 20)
    video = extract_video(source, config, workdir, binary)
    assert buffer
    return video


def test_too_little_memory_to_start_ffmpeg_is_not_a_crash(
    one_video: Path, ffmpeg: FfmpegBinary, tmp_path: Path
) -> None:
    rows = make_rows(tmp_path, one_video, ["a"])
    job = make_job(tmp_path, tmp_path / "out", ffmpeg, max_memory_mb=64)
    run_extraction(plan_run(job.out, ListedRows(rows)), job, BuildSettings(workers=1, extract=extract_beside_a_buffer))
    assert failures(tmp_path / "out")["a"] == ("memory", "ffmpeg needs more memory than --max-memory-mb allows")


def test_special_files_are_rejected(one_video: Path, ffmpeg: FfmpegBinary, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "zero.mp4").symlink_to("/dev/zero")
    (tmp_path / "link.mp4").symlink_to(one_video)
    names = ["pipe", "folder", "zero", "link"]
    rows = [VideoRecord(row=i, video_id=n, path=f"{n}.mp4") for i, n in enumerate(names)]
    start = time.monotonic()
    summary = run_extraction(
        plan_run(tmp_path / "out", ListedRows(rows)),
        make_job(tmp_path, tmp_path / "out", ffmpeg),
        BuildSettings(workers=1),
    )
    assert time.monotonic() - start < 20
    assert (summary.videos, summary.failures) == (1, 3)
    assert {stage for stage, _ in failures(tmp_path / "out").values()} == {"open"}


def test_endless_file_times_out(ffmpeg: FfmpegBinary, tmp_path: Path) -> None:
    with (tmp_path / "growing.mp4").open("wb") as stream:
        stream.truncate(1 << 42)  # sparse; reading its zeros would take many minutes
    rows = [VideoRecord(row=0, video_id="growing", path="growing.mp4")]
    run_extraction(
        plan_run(tmp_path / "out", ListedRows(rows)),
        make_job(tmp_path, tmp_path / "out", ffmpeg, timeout=1.5),
        BuildSettings(workers=1),
    )
    assert failures(tmp_path / "out")["growing"][0] == "timeout"


def test_failure_limit_stops_the_run_and_keeps_finished_shards(
    one_video: Path, ffmpeg: FfmpegBinary, tmp_path: Path
) -> None:
    names = ["a", "b", "bug-1", "bug-2", "c", "bug-3", "d", "e"]
    rows = make_rows(tmp_path, one_video, names)
    job = make_job(tmp_path, tmp_path / "out", ffmpeg)
    with pytest.raises(FailureLimitError):
        run_extraction(
            plan_run(job.out, ListedRows(rows), 2),
            job,
            BuildSettings(workers=1, max_failures=1, extract=hostile_extract),
        )
    assert [p.name for p in (tmp_path / "out").glob("shard-*.h5")] == ["shard-00000.h5"]
    assert set(failures(tmp_path / "out")) == {"bug-1", "bug-2"}
    summary = run_extraction(
        plan_run(job.out, ListedRows(rows), 2), job, BuildSettings(workers=1, max_failures=3, extract=hostile_extract)
    )
    assert (summary.videos, summary.failures) == (5, 3)
    with pytest.raises(FailureLimitError):
        run_extraction(
            plan_run(job.out, ListedRows(rows), 2),
            job,
            BuildSettings(workers=1, max_failures=2, extract=hostile_extract),
        )
    assert len(list((tmp_path / "out").glob("shard-*.h5"))) == 4


# A worker closes its connection while the child process extracts a video; the child must exit quietly.
DISCONNECTS = """
import multiprocessing, sys
from pathlib import Path
from cmd_extract.config import ExtractConfig
from cmd_extract.run.containment import ContainedExtractor
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.run.job import Limits
from cmd_extract.errors import VideoError
folder = Path(sys.argv[1])
started, disconnected = (multiprocessing.get_context("fork").Event() for _ in range(2))
def slow(source, *_):
    started.set()
    assert disconnected.wait(20)
    raise VideoError("error", "never received")
extractor = ContainedExtractor(ExtractConfig(), FfmpegBinary(path="", version=""), Limits(), slow)
child = extractor._start()
child.connection.send((folder, folder))
assert started.wait(20)
child.connection.close()
disconnected.set()
child.process.join(20)
sys.exit(child.process.exitcode)
"""


def start_run(folder: Path, out: Path, workers: int, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, "run", str(folder / "m.csv"), str(out), "--workers", str(workers)]
    process = subprocess.Popen(
        [*command, "--videos-per-shard", "1"], text=True, stderr=subprocess.PIPE, start_new_session=True
    )
    wait_for_shards(process, out, count)
    return process


def wait_for_shards(process: subprocess.Popen[str], out: Path, count: int) -> None:
    deadline = time.monotonic() + 30
    while len(list(out.glob("shard-*.h5"))) < count:
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def twelve_videos(
    one_video: Path, tmp_path_factory: pytest.TempPathFactory, make_video: MakeVideo
) -> tuple[Path, Path]:
    """A folder with a manifest of twelve videos, and its uninterrupted extraction."""
    folder = tmp_path_factory.mktemp("videos")
    video = make_video(folder / "v.mp4", "-c:v", "libx264", frames=60)
    with (folder / "m.csv").open("w") as stream:
        stream.write("id,path\n" + "".join(f"{i},{video.name}\n" for i in range(11)) + "gone,gone.mp4\n")
    subprocess.run([sys.executable, "-c", PROGRAM, "run", folder / "m.csv", folder / "out", "--videos-per-shard", "1"])
    return folder, folder / "out"


@pytest.mark.parametrize(
    ("number", "whole_group", "workers"),
    [
        (signal.SIGINT, False, 1), (signal.SIGINT, True, 2), (signal.SIGINT, False, 2), (signal.SIGTERM, False, 2),
        (signal.SIGKILL, False, 1), (signal.SIGKILL, False, 2), (signal.SIGKILL, True, 2),
    ],
)  # fmt: skip
def test_interrupted_run_resumes_with_identical_output(
    twelve_videos: tuple[Path, Path], tmp_path: Path, number: signal.Signals, whole_group: bool, workers: int
) -> None:
    folder, reference = twelve_videos
    out = tmp_path / "out"
    process = start_run(folder, out, workers, count=1)
    start = time.monotonic()
    (os.killpg if whole_group else os.kill)(process.pid, number)
    _, output = process.communicate(timeout=20)
    assert time.monotonic() - start < 10
    if number is signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 130, output
        assert "same command" in output
        assert "Traceback" not in output
    deadline = time.monotonic() + 8
    while left := processes_of_session(process.pid):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("shard-*.h5")}
    assert 1 <= len(before) < 12
    start_again = start_run(folder, out, workers, count=12)
    start_again.communicate(timeout=60)
    assert start_again.returncode == 3
    assert contents(out) == contents(reference)
    assert all((out / name).stat().st_mtime_ns == stamp for name, stamp in before.items())


def test_interrupted_repair_leaves_no_temporary_files_and_resumes(
    twelve_videos: tuple[Path, Path], tmp_path: Path
) -> None:
    _, reference = twelve_videos
    out = tmp_path / "out"
    shutil.copytree(reference, out)
    for shard in out.glob("shard-*.h5"):
        shard.unlink()
    command = [sys.executable, "-c", PROGRAM, "verify", str(out), "--repair", "--workers", "1"]
    process = subprocess.Popen(command, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for_shards(process, out, 1)
    process.terminate()
    _, output = process.communicate(timeout=20)
    assert process.returncode == 130, output
    assert "same command" in output
    assert "Traceback" not in output, output
    assert not list(out.glob(".*"))
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert contents(out) == contents(reference)


def test_child_exits_quietly_if_its_worker_is_gone(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", DISCONNECTS, tmp_path], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_killed_worker_stops_the_run_with_advice(twelve_videos: tuple[Path, Path], tmp_path: Path) -> None:
    folder, reference = twelve_videos
    out = tmp_path / "out"
    process = start_run(folder, out, 2, count=1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [pid for pid in children if b"loky" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(workers[-1]), signal.SIGKILL)
    _, output = process.communicate(timeout=30)
    if process.returncode != 3:  # 3: the worker had already finished
        assert process.returncode == 1, output
        assert "run the same command again" in output
        assert "Traceback" not in output
    again = start_run(folder, out, 2, count=12)
    again.communicate(timeout=60)
    assert contents(out) == contents(reference)


def test_a_child_that_starts_after_the_end_is_killed(tmp_path: Path) -> None:
    extractor = ContainedExtractor(
        ExtractConfig(), FfmpegBinary(path="", version=""), Limits(), lambda *_: time.sleep(60)
    )
    extractor.kill()
    start = time.monotonic()
    with extractor, pytest.raises(VideoError, match="crash"):
        extractor.extract(tmp_path / "video.mp4", tmp_path)
    assert time.monotonic() - start < 30
