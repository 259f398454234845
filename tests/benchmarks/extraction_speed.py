"""Measures extraction against the bare commands it cannot avoid, in one run on one machine; prints a table.

    python tests/benchmarks/extraction_speed.py VIDEO... [--copies 8] [--rounds 3] [--only all|own|scaling]

Processor time counts all child processes. The rounds alternate, so that noise of the machine meets both sides; each
row gives the median and the spread of the rounds.

all      Everything on. "bare" is, video by video, the same FFmpeg command with the same outputs written to the null
         device, then mvextractor's own loop over the canonical stream, discarding what it reads.
own      Vectors and keyframes only, of streams that need no transcoding: the videos re-encoded to 340x256 as H.264
         and MPEG-4 without B-frames, against mvextractor's own loop over the same files. Shards are as large as
         those of large data sets (256 videos). Both sides start one Python, so that --copies decides how much of the
         ratio is start-up: with 8 copies of three videos of ten seconds a run has 14,000 frames, and the start of
         cmd-extract (0.7 s) is 50 microseconds of each; --own-copies 64 makes that 6.
scaling  Speed of 2 workers over 1, three ways. "plain": with everything on, one worker already uses more than one
         core, since FFmpeg's program runs demuxer, decoder, filters and encoders in threads of their own; so this
         ratio is bounded by the cores that are left. "confined": 2 workers on two cores against 1 worker, with all
         its children, on one core: what a second core brings. "vectors only": each worker is one process of one
         thread, so that 2 workers use 2 cores. All need an idle machine of at least 2 cores, and runs much longer
         than the start of the worker processes (about 1 s): three times --copies are made.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from extract.config import ExtractConfig  # noqa: E402
from extract.ffmpeg_binary import FfmpegBinary, find_ffmpeg  # noqa: E402
from extract.source import probe  # noqa: E402
from extract.transcode import TranscodedFiles, build_command, transcode  # noqa: E402

LOOP = """
import sys
from mvextractor.videocap import VideoCap
for path in sys.argv[1:]:
    capture = VideoCap()
    assert capture.open(path)
    capture.set_decode_frames(False)
    while capture.read()[0]:
        pass
    capture.release()
"""
OWN = ("--transcode", "never", "--no-frames")
PROGRAM = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from extract.cli import main; main()"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Processor and wall time in seconds."""

    cpu: float
    wall: float


def measure(work: Callable[[], None]) -> Cost:
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(cpu=cpu, wall=time.monotonic() - start)


def call(*command: object, cores: set[int] | None = None) -> None:
    """Runs a command; with ``cores`` it and all its children use these only."""

    def confine() -> None:
        if cores is not None:
            os.sched_setaffinity(0, cores)

    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([str(c) for c in command], check=True, preexec_fn=confine, **quiet)


def run_extract(manifest: Path, out: Path, workers: int, *options: str, cores: set[int] | None = None) -> None:
    shutil.rmtree(out, ignore_errors=True)
    call(sys.executable, "-c", PROGRAM, "run", manifest, out, "--workers", workers, *options, cores=cores)


def bare_commands(videos: list[Path], config: ExtractConfig, binary: FfmpegBinary) -> list[list[str]]:
    null = TranscodedFiles(canonical=Path("/dev/null"), frames=Path("/dev/null/f"), keyframes=Path("/dev/null/k"))
    commands = [build_command(video, probe(video), config, null, binary) for video in videos]
    return [["file:/dev/null" if part.startswith("file:/dev/null") else part for part in c] for c in commands]


def prepare_own(videos: list[Path], folder: Path, binary: FfmpegBinary) -> dict[str, list[Path]]:
    """The videos as streams that need no transcoding, as H.264 and as MPEG-4."""
    made: dict[str, list[Path]] = {}
    codecs = {
        "h264": ("mp4", "-c:v", "libx264", "-preset", "veryfast", "-crf", "23", "-refs", "1", "-sc_threshold", "0")
    }
    codecs["mpeg4"] = ("avi", "-c:v", "mpeg4", "-q:v", "3")
    for name, (suffix, *coder) in codecs.items():
        for number, video in enumerate(videos):
            target = folder / f"{number}-{name}.{suffix}"
            size = ("-vf", "scale=340:256,setsar=1", "-pix_fmt", "yuv420p")
            call(binary.path, "-y", "-i", video, "-an", *size, *coder, "-bf", 0, "-g", 12, "-threads", 1, target)
            made.setdefault(name, []).append(target)
    return made


def write_manifest(path: Path, videos: list[Path], copies: int) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "path"])
        writer.writerows((f"{v.name}-{c}-{i}", v) for c in range(copies) for i, v in enumerate(videos))
    return path


def count_frames(out: Path) -> int:
    return int(json.loads((out / "index.json").read_text())["totals"]["frames"])


def show(name: str, costs: list[Cost], frames: int) -> None:
    cpu = [c.cpu for c in costs]
    wall = statistics.median(c.wall for c in costs)
    middle = statistics.median(cpu)
    spread = f"{min(cpu):.2f}-{max(cpu):.2f}"
    print(f"{name:<44} {middle:8.2f} {spread:>13} {frames / middle:9.0f} {frames / wall:9.0f}")


def ratio(name: str, above: list[Cost], below: list[Cost], bar: str, *, wall: bool = False) -> None:
    pairs = [(a.wall / b.wall if wall else a.cpu / b.cpu) for a, b in zip(above, below, strict=True)]
    print(f"{name:<60} {statistics.median(pairs):6.3f}  ({min(pairs):.3f}-{max(pairs):.3f}), bar {bar}")


def compare_everything(videos: list[Path], copies: int, rounds: int, folder: Path, binary: FfmpegBinary) -> None:
    """The first bar: all outputs with transcoding."""
    config = ExtractConfig()
    manifest = write_manifest(folder / "all.csv", videos, copies)
    canonical = []
    for number, video in enumerate(videos):
        (folder / f"c{number}").mkdir()
        made = transcode(video, probe(video), config, folder / f"c{number}", binary).canonical
        assert made is not None
        canonical.append(made)
    commands = bare_commands(videos, config, binary)

    def bare() -> None:
        for command in commands * copies:
            call(*command)
        call(sys.executable, "-c", LOOP, *(canonical * copies))

    one, plain = [], []
    for _ in range(rounds):
        plain.append(measure(bare))
        one.append(measure(lambda: run_extract(manifest, folder / "o", 1)))
    frames = count_frames(folder / "o")
    show("bare FFmpeg and mvextractor, one after the other", plain, frames)
    show("cmd-extract run, 1 worker", one, frames)
    ratio("processor time, cmd-extract / bare", one, plain, "<= 1.15")


def compare_own(videos: list[Path], copies: int, rounds: int, folder: Path, binary: FfmpegBinary) -> None:
    """The second bar: vectors and keyframes of streams that need no transcoding."""
    for codec, sources in prepare_own(videos, folder, binary).items():
        manifest = write_manifest(folder / f"{codec}.csv", sources, copies)
        ours, loop = [], []
        for _ in range(rounds):
            loop.append(measure(lambda sources=sources: call(sys.executable, "-c", LOOP, *(sources * copies))))
            ours.append(measure(lambda m=manifest: run_extract(m, folder / "o", 1, *OWN, "--videos-per-shard", "256")))
        frames = count_frames(folder / "o")
        kilobits = sum(s.stat().st_size for s in sources) * copies * 8 / 1000 / (frames / 30)
        print(f"-- {codec}, 340x256, about {kilobits:.0f} kbit/s at 30 frames a second")
        show("mvextractor's loop, vectors only", loop, frames)
        show("cmd-extract run --transcode never --no-frames", ours, frames)
        ratio("speed in processor time, cmd-extract / loop", loop, ours, ">= 0.95")


def compare_workers(videos: list[Path], copies: int, rounds: int, folder: Path, binary: FfmpegBinary) -> None:
    """The third bar: two workers against one."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        print("speed of 2 workers / 1 worker: needs 2 cores")
        return
    everything = write_manifest(folder / "scaling.csv", videos, copies)
    own = write_manifest(folder / "scaling-own.csv", prepare_own(videos, folder, binary)["h264"], copies * 8)
    both, first = {cores[0], cores[1]}, {cores[0]}
    kinds: dict[str, tuple[Path, set[int], tuple[str, ...]]] = {
        "plain": (everything, both, ()),
        "confined": (everything, first, ()),
        "vectors only": (own, both, OWN),
    }
    for name, (manifest, cores_of_one, options) in kinds.items():
        one, two = [], []
        for _ in range(rounds):
            for workers, costs, allowed in ((1, one, cores_of_one), (2, two, both)):
                arguments = (manifest, folder / "o", workers, *options)
                costs.append(measure(lambda a=arguments, c=allowed: run_extract(*a, cores=c)))
        frames = count_frames(folder / "o")
        show(f"{name}: 1 worker on {len(cores_of_one)} of 2 cores", one, frames)
        show(f"{name}: 2 workers on 2 cores", two, frames)
        ratio(f"speed of 2 workers / 1 worker, {name}", one, two, ">= 1.9", wall=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--copies", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--own-copies", type=int, help="[default: 2 x --copies]")
    parser.add_argument("--only", choices=["all", "own", "scaling"])
    asked = parser.parse_args()
    binary = find_ffmpeg()
    start = measure(lambda: call(sys.executable, "-c", PROGRAM, "--help"))
    print(f"start-up (--help): {start.wall:.2f} s; {binary.version}")
    print(f"{'':<44} {'cpu s':>8} {'spread':>13} {'f/cpu s':>9} {'f/s':>9}")
    videos = [v.absolute() for v in asked.videos]
    with tempfile.TemporaryDirectory() as name:
        if asked.only in (None, "all"):
            compare_everything(videos, asked.copies, asked.rounds, Path(name), binary)
        if asked.only in (None, "own"):
            compare_own(videos, asked.own_copies or asked.copies * 2, asked.rounds, Path(name), binary)
        if asked.only in (None, "scaling"):
            compare_workers(videos, asked.copies * 3, asked.rounds, Path(name), binary)


if __name__ == "__main__":
    main()
