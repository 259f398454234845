"""Extraction with all outputs, compared with the bare commands it consists of: speed, scaling and memory.

    python -m tests.benchmarks.extraction_speed [--rounds 5] [--quick] [--videos FILE...] [--output build/bench.json]

extract_overhead  CPU time of ``cmd-extract run --workers 1`` divided by that of the bare commands: for each
                  video, the same FFmpeg command with the same outputs written to the null device; then one Python
                  process with mvextractor's own loop over the canonical streams, discarding its output. Both on one
                  core. Includes the start-up of cmd-extract; ``extract_overhead_running`` excludes it by subtracting
                  the cost of extracting one frame (``extract_startup``).
extract_fps       Frames/s in wall-clock time with 2 workers, from start to end. ``extract_fps_core`` is the rate per
                  core in CPU time, for planning.
extract_scaling   Wall-clock speed of 2 workers on 2 cores divided by that of 1 worker restricted, with all its child
                  processes, to 1 core. ``extract_scaling_running`` excludes the start-up of both, measured with a
                  one-frame video per worker; this applies to long runs.
                  ``extract_scaling_ceiling`` is the limit of the machine: the bare FFmpeg commands, half of them on
                  each of 2 cores. (One worker with both cores available would use more than one: FFmpeg runs decoder,
                  filters and encoders in separate threads.)
extract_rss_mb    Peak resident memory of the command, one worker and all its child processes, sampled every 10 ms.
                  Shared pages count in every process. Also measured for a video a fifth as long.
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
from tests.benchmarks.clips import describe_videos, encode, input_videos, write_manifest
from tests.benchmarks.harness import Settings, run_benchmark
from tests.benchmarks.measuring import PYTHON, Cost, Result, interleave, run_command

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
SAMPLING_INTERVAL_S = 0.01


def run_extract(manifest: Path, out: Path, workers: int, *options: object, cores: set[int] | None = None) -> None:
    shutil.rmtree(out, ignore_errors=True)
    run_command(*EXTRACT, manifest, out, "--workers", workers, *options, cores=cores)


def count_frames(out: Path) -> int:
    return int(json.loads((out / "index.json").read_text("utf-8"))["totals"]["frames"])


def bare_commands(videos: list[Path], config: ExtractConfig) -> list[list[str]]:
    """Return the FFmpeg command of each video, with outputs sent to the null device."""
    null = TranscodedFiles(canonical=Path("/dev/null"), frames=Path("/dev/null/f"), keyframes=Path("/dev/null/k"))
    commands = [build_command(video, probe(video), config, null, find_ffmpeg()) for video in videos]
    return [["file:/dev/null" if part.startswith("file:/dev/null") else part for part in c] for c in commands]


def run_all(commands: Sequence[Sequence[str]], cores: set[int]) -> None:
    for command in commands:
        run_command(*command, cores=cores)


def canonical_streams(videos: list[Path], config: ExtractConfig, folder: Path) -> list[Path]:
    streams = []
    for number, video in enumerate(videos):
        work = folder / f"canonical-{number}"
        work.mkdir()
        stream = transcode(video, probe(video), config, work, find_ffmpeg()).canonical
        assert stream is not None
        streams.append(stream)
    return streams


def time_commands(settings: Settings, videos: list[Path], copies: int) -> tuple[int, list[dict[str, Cost]]]:
    """Return the number of extracted frames, and the costs of the extraction and of the bare commands per round.

    The bare FFmpeg commands run once per video; everything else processes ``copies`` copies of the videos.
    """
    manifest = write_manifest(settings.folder / "all.csv", videos, copies)
    commands = bare_commands(videos, ExtractConfig())
    frame = encode(videos[0], settings.folder / "frame.mp4", "-frames:v", 1, "-c:v", "libx264")
    single, pair = (write_manifest(settings.folder / f"{n}.csv", [frame] * n) for n in (1, 2))
    canonical = canonical_streams(videos, ExtractConfig(), settings.folder)
    cores = sorted(os.sched_getaffinity(0))
    one, two = {cores[0]}, set(cores[:2])
    out = settings.folder / "out"

    def bare_on_both() -> None:
        with ThreadPoolExecutor(len(two)) as pool:
            parts = [commands[number :: len(two)] for number in range(len(two))]
            futures = [pool.submit(run_all, part, {core}) for part, core in zip(parts, sorted(two), strict=True)]
            for future in futures:
                future.result()

    costs = interleave(
        {
            "bare": lambda: run_all(commands, one),
            "bare on both": bare_on_both,
            "loop": lambda: run_command(*PYTHON, MVEXTRACTOR_LOOP, *(canonical * copies), cores=one),
            "one worker": lambda: run_extract(manifest, out, 1, cores=one),
            "two workers": lambda: run_extract(manifest, out, 2, cores=two),
            "one worker start": lambda: run_extract(single, settings.folder / "single", 1, cores=one),
            "two workers start": lambda: run_extract(pair, settings.folder / "pair", 2, cores=two),
        },
        settings.rounds,
    )
    return count_frames(out), costs


def measure_speed(settings: Settings, videos: list[Path], source: str) -> list[Result]:
    # About 20 s with two workers: start-up and the wait for the last shard, 2 s of one core, must have little weight.
    copies = settings.size(12, 1)
    source = f"{source}: {describe_videos(videos, copies)} (FFmpeg alone: once each)"
    frames, costs = time_commands(settings, videos, copies)

    def result(name: str, values: list[float], unit: str, versus: str) -> Result:
        return Result(name=name, values=tuple(values), unit=unit, versus=versus, source=source)

    peers = "CPU time of FFmpeg with the same outputs to the null device, plus mvextractor's own loop; 1 core"
    # FFmpeg starts once per video, so one copy of each video represents all copies.
    bare = [r["bare"].cpu * copies + r["loop"].cpu for r in costs]
    overhead = [r["one worker"].cpu / peer for r, peer in zip(costs, bare, strict=True)]
    running = [(r["one worker"].cpu - r["one worker start"].cpu) / peer for r, peer in zip(costs, bare, strict=True)]
    rates = [frames / r["two workers"].wall for r in costs]
    core_rates = [frames / r["one worker"].cpu for r in costs]
    startup = [r["one worker start"].cpu for r in costs]
    results = [
        result("extract_overhead", overhead, "x", peers),
        result("extract_overhead_running", running, "x", "the same, minus extract_startup"),
        result("extract_startup", startup, "s", "CPU time for a video of one frame"),
        result("extract_fps", rates, "frames/s", "wall-clock time, 2 workers"),
        result("extract_fps_core", core_rates, "frames/s per core", "CPU time"),
    ]
    if len(os.sched_getaffinity(0)) < 2:
        print("extract_scaling: skipped, needs 2 cores", file=sys.stderr)
        return results
    ceiling = [r["bare"].wall / r["bare on both"].wall for r in costs]
    speedup = [r["one worker"].wall / r["two workers"].wall for r in costs]
    steady = [
        (r["one worker"].wall - r["one worker start"].wall) / (r["two workers"].wall - r["two workers start"].wall)
        for r in costs
    ]
    return [
        *results,
        result("extract_scaling_ceiling", ceiling, "x", "bare FFmpeg commands, 2 cores over 1 core"),
        result("extract_scaling", speedup, "x", "2 workers on 2 cores over 1 worker on 1 core"),
        result("extract_scaling_running", steady, "x", "the same, each minus its start-up time"),
    ]


def tree_memory(pid: int) -> int:
    """Return the resident memory of a process and all its descendants, in bytes."""
    pending, total = [pid], 0
    while pending:
        process = Path(f"/proc/{pending.pop()}")
        try:
            total += int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            for task in (process / "task").iterdir():
                pending += [int(child) for child in (task / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue  # the process has ended
    return total


def peak_memory(manifest: Path, out: Path) -> float:
    """Return the peak memory of an extraction with one worker, in MiB."""
    shutil.rmtree(out, ignore_errors=True)
    command = [*EXTRACT, str(manifest), str(out), "--workers", "1"]
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, tree_memory(process.pid))
            time.sleep(SAMPLING_INTERVAL_S)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} exited with code {process.returncode}")
    return peak / 2**20


def measure_memory(settings: Settings, video: Path, source: str) -> list[Result]:
    long = encode(video, settings.folder / "long.mp4", "-c", "copy", repeat=5)
    manifests = {
        n: write_manifest(settings.folder / f"memory-{n}.csv", [v]) for n, v in (("short", video), ("long", long))
    }
    peaks = [{n: peak_memory(m, settings.folder / "out") for n, m in manifests.items()} for _ in range(settings.rounds)]
    names = {"long": "extract_rss_mb", "short": "extract_rss_mb_short_video"}
    return [
        Result(
            name=name,
            values=tuple(row[length] for row in peaks),
            unit="MiB",
            versus="command, one worker and its child processes, peak",
            source=f"{source}: {describe_videos([long if length == 'long' else video])}",
        )
        for length, name in names.items()
    ]


def benchmark(settings: Settings) -> list[Result]:
    videos, source = input_videos(settings.videos, settings.folder / "videos", frames=settings.size(300, 24))
    return measure_speed(settings, videos, source) + measure_memory(settings, videos[0], source)


if __name__ == "__main__":
    run_benchmark(benchmark, __doc__, sys.argv[1:])
