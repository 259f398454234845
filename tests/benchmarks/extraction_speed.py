"""Extraction with everything on, against the bare commands it cannot avoid; speed, scaling and memory.

    python -m tests.benchmarks.extraction_speed [--rounds 5] [--quick] [--videos FILE...] [--output build/bench.json]

extract_overhead  Processor time of ``cmd-extract run --workers 1`` over that of the bare commands: video by video, the
                  same FFmpeg command with the same outputs written to the null device, then one Python with
                  mvextractor's own loop over the canonical streams, discarding what it reads. Both on one core. The
                  start of cmd-extract is in it; ``extract_overhead_running`` is without: what extracting one frame
                  costs (``extract_startup``) is taken off.
extract_fps       Frames a second by the clock, 2 workers, from start to end. ``extract_fps_core`` is what one core
                  does, in processor time: what to plan with.
extract_scaling   Speed by the clock of 2 workers on 2 cores over 1 worker that, with all its children, has 1 core.
                  ``extract_scaling_running`` is without the start of either, as seen with a video of one frame for
                  each worker: what holds for long runs.
                  ``extract_scaling_ceiling`` is what the machine allows: FFmpeg's bare commands, half of them on
                  each of 2 cores. One worker that is left both cores uses more than one: FFmpeg's program runs decoder,
                  filters and encoders in threads of their own.
extract_rss_mb    Resident memory of a worker with all its children and the command itself: the highest sum seen, looked
                  at every 10 ms. Shared pages count in every process. Also of a video a fifth as long.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import find_ffmpeg
from cmd_extract.decode.source import probe
from cmd_extract.decode.transcode import TranscodedFiles, build_command, transcode
from tests.benchmarks.clips import describe, encode, take_videos, write_manifest
from tests.benchmarks.measuring import PYTHON, Result, call, take_turns
from tests.benchmarks.subject import Plan, run_subject

MVEXTRACTOR_LOOP = """
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
EXTRACT = (*PYTHON, "from cmd_extract.cli.main import main; main()", "run")
LOOK_SECONDS = 0.01


def run_extract(manifest: Path, out: Path, workers: int, *options: object, cores: set[int] | None = None) -> None:
    shutil.rmtree(out, ignore_errors=True)
    call(*EXTRACT, manifest, out, "--workers", workers, *options, cores=cores)


def count_frames(out: Path) -> int:
    return int(json.loads((out / "index.json").read_text("utf-8"))["totals"]["frames"])


def bare_commands(videos: list[Path], config: ExtractConfig) -> list[list[str]]:
    """The FFmpeg command of each video, with its outputs sent to the null device."""
    null = TranscodedFiles(canonical=Path("/dev/null"), frames=Path("/dev/null/f"), keyframes=Path("/dev/null/k"))
    commands = [build_command(video, probe(video), config, null, find_ffmpeg()) for video in videos]
    return [["file:/dev/null" if part.startswith("file:/dev/null") else part for part in c] for c in commands]


def run_all(commands: Sequence[Sequence[str]], cores: set[int]) -> None:
    for command in commands:
        call(*command, cores=cores)


def canonical_streams(videos: list[Path], config: ExtractConfig, folder: Path) -> list[Path]:
    made = []
    for number, video in enumerate(videos):
        work = folder / f"canonical-{number}"
        work.mkdir()
        stream = transcode(video, probe(video), config, work, find_ffmpeg()).canonical
        assert stream is not None
        made.append(stream)
    return made


def measure_speed(plan: Plan, videos: list[Path], source: str) -> list[Result]:
    # Some 20 s for two workers: their start and the wait for the last shard, two seconds of a core, must count little.
    copies = plan.size(12, 1)
    source = f"{source}: {describe(videos, copies)} (FFmpeg alone: once each)"
    manifest = write_manifest(plan.folder / "all.csv", videos, copies)
    commands = bare_commands(videos, ExtractConfig())
    frame = encode(videos[0], plan.folder / "frame.mp4", "-frames:v", 1, "-c:v", "libx264")
    single, pair = (write_manifest(plan.folder / f"{n}.csv", [frame] * n) for n in (1, 2))
    canonical = canonical_streams(videos, ExtractConfig(), plan.folder)
    cores = sorted(os.sched_getaffinity(0))
    one, two = {cores[0]}, set(cores[:2])
    out = plan.folder / "out"

    def bare() -> None:
        run_all(commands, one)

    def bare_on_both() -> None:
        with ThreadPoolExecutor(len(two)) as pool:
            halves = [commands[number :: len(two)] for number in range(len(two))]
            done = [pool.submit(run_all, half, {core}) for half, core in zip(halves, sorted(two), strict=True)]
            for half in done:
                half.result()

    def extract(workers: int, allowed: set[int]) -> None:
        run_extract(manifest, out, workers, cores=allowed)

    seen = take_turns(
        {
            "bare": bare,
            "bare on both": bare_on_both,
            "loop": lambda: call(*PYTHON, MVEXTRACTOR_LOOP, *(canonical * copies), cores=one),
            "confined": lambda: extract(1, one),
            "both": lambda: extract(2, two),
            "start": lambda: run_extract(single, plan.folder / "single", 1, cores=one),
            "start of both": lambda: run_extract(pair, plan.folder / "pair", 2, cores=two),
        },
        plan.rounds,
    )
    frames = count_frames(out)

    def result(name: str, values: list[float], unit: str, versus: str) -> Result:
        return Result(name=name, values=tuple(values), unit=unit, versus=versus, source=source)

    bare_words = "processor time of FFmpeg with the same outputs to the null device, and mvextractor's loop; 1 core"
    # FFmpeg starts anew for every video, so that some of them stand for all.
    needed = [r["bare"].cpu * copies + r["loop"].cpu for r in seen]
    overhead = [r["confined"].cpu / bare for r, bare in zip(seen, needed, strict=True)]
    running = [(r["confined"].cpu - r["start"].cpu) / bare for r, bare in zip(seen, needed, strict=True)]
    found = [
        result("extract_overhead", overhead, "x", bare_words),
        result("extract_overhead_running", running, "x", "the same, less extract_startup"),
        result("extract_startup", [r["start"].cpu for r in seen], "s", "processor time for a video of one frame"),
        result("extract_fps", [frames / r["both"].wall for r in seen], "frames/s", "by the clock, 2 workers"),
        result("extract_fps_core", [frames / r["confined"].cpu for r in seen], "frames/s and core", "processor time"),
    ]
    if len(two) == 2:
        speedup = [r["confined"].wall / r["both"].wall for r in seen]
        steady = [(r["confined"].wall - r["start"].wall) / (r["both"].wall - r["start of both"].wall) for r in seen]
        machine = [r["bare"].wall / r["bare on both"].wall for r in seen]
        found.append(result("extract_scaling_ceiling", machine, "x", "FFmpeg's bare commands on 2 cores over 1 core"))
        found.append(result("extract_scaling", speedup, "x", "2 workers on 2 cores over 1 worker on 1 core"))
        found.append(result("extract_scaling_running", steady, "x", "the same, each less the time of its start"))
    else:
        print("extract_scaling: needs 2 cores", file=sys.stderr)
    return found


def family_memory(pid: int) -> int:
    """Resident bytes of a process and of all below it."""
    waiting, total = [pid], 0
    while waiting:
        process = Path(f"/proc/{waiting.pop()}")
        try:
            total += int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            for task in (process / "task").iterdir():
                waiting += [int(child) for child in (task / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
    return total


def peak_memory(manifest: Path, out: Path) -> float:
    """MiB at most while one worker extracts."""
    shutil.rmtree(out, ignore_errors=True)
    command = [*EXTRACT, str(manifest), str(out), "--workers", "1"]
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, family_memory(process.pid))
            time.sleep(LOOK_SECONDS)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with code {process.returncode}")
    return peak / 2**20


def measure_memory(plan: Plan, video: Path, source: str) -> list[Result]:
    long = encode(video, plan.folder / "long.mp4", "-c", "copy", repeat=5)
    manifests = {n: write_manifest(plan.folder / f"memory-{n}.csv", [v]) for n, v in (("short", video), ("long", long))}
    seen = [{n: peak_memory(m, plan.folder / "out") for n, m in manifests.items()} for _ in range(plan.rounds)]
    words = {"long": "extract_rss_mb", "short": "extract_rss_mb_short_video"}
    return [
        Result(
            name=name,
            values=tuple(row[length] for row in seen),
            unit="MiB",
            versus="a worker with its children, highest sum",
            source=f"{source}: {describe([long if length == 'long' else video])}",
        )
        for length, name in words.items()
    ]


def benchmark(plan: Plan) -> list[Result]:
    videos, source = take_videos(plan.videos, plan.folder / "made", frames=plan.size(300, 24))
    return measure_speed(plan, videos, source) + measure_memory(plan, videos[0], source)


if __name__ == "__main__":
    run_subject(benchmark, __doc__, sys.argv[1:])
