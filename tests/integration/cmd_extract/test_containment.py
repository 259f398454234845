from __future__ import annotations

import csv
import ctypes
import faulthandler
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.decode.video import ExtractedVideo, extract_video
from cmd_extract.errors import FailureLimitError
from cmd_extract.run.job import RunJob
from cmd_extract.run.limits import Limits
from cmd_extract.run.pipeline import run_extraction
from cmd_extract.schema import VideoRecord
from cmd_extract.shard.reader import ShardSet

MakeVideo = Callable[..., Path]
CONFIG = ExtractConfig(width=64, height=48, frame_short_side=24)


def sleep_of(folder: Path) -> str:
    """Seconds, of this test alone: the same test may be running elsewhere on the machine."""
    return f"1000.{zlib.crc32(bytes(folder))}"


def hostile_extract(source: Path, config: ExtractConfig, workdir: Path, binary: FfmpegBinary) -> ExtractedVideo:
    """The real thing, except that some names do to the process what a broken native library would."""
    match source.stem.partition("-")[0]:
        case "segv":
            faulthandler.disable()  # pytest's would print a page about what is meant to happen
            ctypes.string_at(1)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(7)
        case "hang":
            subprocess.run(["sleep", sleep_of(source.parent)], check=True)
        case "hog":
            kept = [b"x" * (16 << 20) for _ in range(1000)]
            raise AssertionError(f"{len(kept)} blocks were granted")
        case "bug":
            raise KeyError("unforeseen")
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
    with (out / "failures.csv").open() as stream:
        return {row["path"].removesuffix(".mp4"): (row["stage"], row["reason"]) for row in csv.DictReader(stream)}


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
    """Whatever a command has started and left: workers do not name their folders in their command lines."""
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
def test_what_kills_its_process_costs_one_video(
    one_video: Path, ffmpeg: FfmpegBinary, tmp_path: Path, workers: int
) -> None:
    bad = {"segv": "crash", "kill": "crash", "exit": "crash", "hang": "timeout", "hog": "memory", "bug": "error"}
    names = [name for kind in bad for name in (kind, f"fine{kind}")]
    rows = make_rows(tmp_path, one_video, names)
    job = make_job(tmp_path, tmp_path / "out", ffmpeg, timeout=10.0)
    summary = run_extraction(rows, job, workers=workers, videos_per_shard=6, extract=hostile_extract)
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
    assert not processes_with(f"sleep {sleep_of(tmp_path)}"), "what a video has started ends with it"
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith(".")]


def test_the_videos_beside_a_culprit_are_not_changed_by_it(
    one_video: Path, ffmpeg: FfmpegBinary, tmp_path: Path
) -> None:
    rows = make_rows(tmp_path / "v", one_video, ["a", "segv", "b"])
    for out, workers in (("x", 1), ("y", 2)):
        job = make_job(tmp_path / "v", tmp_path / out, ffmpeg)
        run_extraction(rows, job, workers=workers, videos_per_shard=3, extract=hostile_extract)
    name = "shard-00000.h5"
    assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes()


def test_memory_of_ffmpeg_is_bounded_too(make_video: MakeVideo, ffmpeg: FfmpegBinary, tmp_path: Path) -> None:
    # 8192 x 8192 pixels need 100 MB a picture, and a decoder holds several; the file is small.
    fast = ("-c:v", "libx264", "-preset", "ultrafast")
    make_video(tmp_path / "huge.mkv", *fast, source="color", size="8192x8192", frames=3)
    rows = [VideoRecord(row=0, video_id="huge", path="huge.mkv")]
    job = make_job(tmp_path, tmp_path / "out", ffmpeg, max_memory_mb=128)
    summary = run_extraction(rows, job, workers=1)
    assert summary.failures == 1
    ((stage, reason),) = failures(tmp_path / "out").values()
    assert stage == "memory", reason


def test_what_is_no_plain_file_is_refused(one_video: Path, ffmpeg: FfmpegBinary, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "zero.mp4").symlink_to("/dev/zero")
    (tmp_path / "link.mp4").symlink_to(one_video)
    names = ["pipe", "folder", "zero", "link"]
    rows = [VideoRecord(row=i, video_id=n, path=f"{n}.mp4") for i, n in enumerate(names)]
    start = time.monotonic()
    summary = run_extraction(rows, make_job(tmp_path, tmp_path / "out", ffmpeg), workers=1)
    assert time.monotonic() - start < 20
    assert (summary.videos, summary.failures) == (1, 3)
    assert {stage for stage, _ in failures(tmp_path / "out").values()} == {"open"}


def test_a_file_that_grows_forever_meets_the_timeout(ffmpeg: FfmpegBinary, tmp_path: Path) -> None:
    with (tmp_path / "growing.mp4").open("wb") as stream:
        stream.truncate(1 << 42)  # sparse: reading its zeros takes many minutes
    rows = [VideoRecord(row=0, video_id="growing", path="growing.mp4")]
    run_extraction(rows, make_job(tmp_path, tmp_path / "out", ffmpeg, timeout=1.5), workers=1)
    assert failures(tmp_path / "out")["growing"][0] == "timeout"


def test_the_failure_limit_stops_and_keeps_what_is_written(
    one_video: Path, ffmpeg: FfmpegBinary, tmp_path: Path
) -> None:
    names = ["a", "b", "bug-1", "bug-2", "c", "bug-3", "d", "e"]
    rows = make_rows(tmp_path, one_video, names)
    job = make_job(tmp_path, tmp_path / "out", ffmpeg)
    with pytest.raises(FailureLimitError):
        run_extraction(rows, job, workers=1, videos_per_shard=2, max_failures=1, extract=hostile_extract)
    assert [p.name for p in (tmp_path / "out").glob("shard-*.h5")] == ["shard-00000.h5"]
    assert set(failures(tmp_path / "out")) == {"bug-1", "bug-2"}
    summary = run_extraction(rows, job, workers=1, videos_per_shard=2, max_failures=3, extract=hostile_extract)
    assert (summary.videos, summary.failures) == (5, 3)
    with pytest.raises(FailureLimitError):
        run_extraction(rows, job, workers=1, videos_per_shard=2, max_failures=2, extract=hostile_extract)
    assert len(list((tmp_path / "out").glob("shard-*.h5"))) == 4


PROGRAM = "from cmd_extract.cli.main import main; main()"
# A worker that hangs up in the middle of a video; then what its child says.
HANGS_UP = """
import multiprocessing, sys
from pathlib import Path
from cmd_extract.config import ExtractConfig
from cmd_extract.run.containment import ContainedExtractor
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.run.limits import Limits
from cmd_extract.decode.source import VideoError
folder = Path(sys.argv[1])
begun, hung_up = (multiprocessing.get_context("fork").Event() for _ in range(2))
def slow(source, *_):
    begun.set()
    assert hung_up.wait(20)
    raise VideoError("error", "nobody hears this")
extractor = ContainedExtractor(ExtractConfig(), FfmpegBinary(path="", version=""), Limits(), slow)
child = extractor._start()
child.connection.send((folder, folder))
assert begun.wait(20)
child.connection.close()
hung_up.set()
child.process.join(20)
sys.exit(child.process.exitcode)
"""


def start_run(folder: Path, out: Path, workers: int, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, "run", str(folder / "m.csv"), str(out), "--workers", str(workers)]
    process = subprocess.Popen(
        [*command, "--videos-per-shard", "1"], text=True, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 30
    while len(list(out.glob("shard-*.h5"))) < count:
        assert process.poll() is None, "too early"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return process


@pytest.fixture(scope="module")
def twelve(one_video: Path, tmp_path_factory: pytest.TempPathFactory, make_video: MakeVideo) -> tuple[Path, Path]:
    """A folder with a manifest of twelve videos, and the undisturbed extraction of it."""
    folder = tmp_path_factory.mktemp("twelve")
    video = make_video(folder / "v.mp4", "-c:v", "libx264", frames=60)
    with (folder / "m.csv").open("w") as stream:
        stream.write("id,path\n" + "".join(f"{i},{video.name}\n" for i in range(11)) + "gone,gone.mp4\n")
    subprocess.run([sys.executable, "-c", PROGRAM, "run", folder / "m.csv", folder / "out", "--videos-per-shard", "1"])
    return folder, folder / "out"


def contents(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in out.iterdir() if p.name != "run.json"}


@pytest.mark.parametrize(
    ("number", "whole_group", "workers"),
    [
        (signal.SIGINT, False, 1), (signal.SIGINT, True, 2), (signal.SIGINT, False, 2), (signal.SIGTERM, False, 2),
        (signal.SIGKILL, False, 1), (signal.SIGKILL, False, 2), (signal.SIGKILL, True, 2),
    ],
)  # fmt: skip
def test_a_run_that_is_stopped_continues_to_the_same_bytes(
    twelve: tuple[Path, Path], tmp_path: Path, number: signal.Signals, whole_group: bool, workers: int
) -> None:
    folder, undisturbed = twelve
    out = tmp_path / "out"
    process = start_run(folder, out, workers, count=1)
    start = time.monotonic()
    (os.killpg if whole_group else os.kill)(process.pid, number)
    _, said = process.communicate(timeout=20)
    assert time.monotonic() - start < 10
    if number is signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 130, said
        assert "same command" in said
        assert "Traceback" not in said
    deadline = time.monotonic() + 8
    while left := processes_of_session(process.pid):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("shard-*.h5")}
    assert 1 <= len(before) < 12
    start_again = start_run(folder, out, workers, count=12)
    start_again.communicate(timeout=60)
    assert start_again.returncode == 3
    assert contents(out) == contents(undisturbed)
    assert all((out / name).stat().st_mtime_ns == stamp for name, stamp in before.items())


def test_a_repair_that_is_stopped_leaves_nothing_behind_and_continues(
    twelve: tuple[Path, Path], tmp_path: Path
) -> None:
    _, undisturbed = twelve
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    for shard in out.glob("shard-*.h5"):
        shard.unlink()
    command = [sys.executable, "-c", PROGRAM, "verify", str(out), "--repair", "--workers", "1"]
    process = subprocess.Popen(command, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while not list(out.glob("shard-*.h5")):
        assert process.poll() is None, "too early"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.terminate()
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130, said
    assert "same command" in said
    assert "Traceback" not in said, said
    assert not list(out.glob(".*"))
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert contents(out) == contents(undisturbed)


def test_nothing_is_said_to_a_worker_that_is_gone(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", HANGS_UP, tmp_path], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_killed_worker_stops_the_run_with_advice(twelve: tuple[Path, Path], tmp_path: Path) -> None:
    folder, undisturbed = twelve
    out = tmp_path / "out"
    process = start_run(folder, out, 2, count=1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [pid for pid in children if b"loky" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(workers[-1]), signal.SIGKILL)
    _, said = process.communicate(timeout=30)
    if process.returncode != 3:  # 3: the worker had nothing left to do
        assert process.returncode == 1, said
        assert "run the same command again" in said
        assert "Traceback" not in said
    again = start_run(folder, out, 2, count=12)
    again.communicate(timeout=60)
    assert contents(out) == contents(undisturbed)
