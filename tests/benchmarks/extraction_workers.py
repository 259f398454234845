"""Extraction with 1, 2, 4 and 8 worker processes, as far as there are cores, per core.

    python -m tests.benchmarks.extraction_workers [--rounds 5] [--quick] [--videos FILE...] [--output build/bench.json]

extract_workers_N_fps_core  Frames/s per core in CPU time with N workers on N cores.
extract_workers_N_cost      CPU time with N workers divided by that with 1 worker: 1 means that workers do not
                            slow each other down, be it by caches, memory bandwidth or cores that share units.
extract_workers_N_speedup   Wall-clock speed per core with N workers on N cores, divided by that with 1 worker on 1
                            core; start-up included. Meaningful on an otherwise idle machine only.

All numbers of workers extract the same videos in the same shards, of one video each.
"""

from __future__ import annotations

import os
import sys

from tests.benchmarks.clips import describe_videos, input_videos, write_manifest
from tests.benchmarks.extraction_speed import count_frames, run_extract
from tests.benchmarks.harness import Settings, run_benchmark
from tests.benchmarks.measuring import Result, interleave

WORKERS = (1, 2, 4, 8)


def benchmark(settings: Settings) -> list[Result]:
    videos, source = input_videos(settings.videos, settings.folder / "videos", frames=settings.size(300, 24))
    copies = settings.size(3, 1)
    manifest = write_manifest(settings.folder / "all.csv", videos, copies)
    cores = sorted(os.sched_getaffinity(0))
    counts = [count for count in WORKERS if count <= len(cores)]
    for count in WORKERS[len(counts) :]:
        print(f"extract_workers_{count}: skipped, needs {count} cores", file=sys.stderr)

    def extract(count: int) -> None:
        used = set(cores[:count])
        run_extract(manifest, settings.folder / f"out{count}", count, "--videos-per-shard", 1, cores=used)

    costs = interleave({str(n): lambda n=n: extract(n) for n in counts}, settings.rounds)
    frames = count_frames(settings.folder / "out1")
    description = f"{source}: {describe_videos(videos, copies)}"

    def result(name: str, values: list[float], unit: str, versus: str) -> Result:
        return Result(name=name, values=tuple(values), unit=unit, versus=versus, source=description)

    results = []
    for n in counts:
        rates = [frames / row[str(n)].cpu for row in costs]
        workers = f"{n} worker{'' if n == 1 else 's'}"
        versus = f"CPU time, {workers} on {n} core{'' if n == 1 else 's'}"
        results.append(result(f"extract_workers_{n}_fps_core", rates, "frames/s per core", versus))
        if n > 1:
            ratios = [row[str(n)].cpu / row["1"].cpu for row in costs]
            speeds = [row["1"].wall / (n * row[str(n)].wall) for row in costs]
            results.append(result(f"extract_workers_{n}_cost", ratios, "x", "CPU time with 1 worker"))
            results.append(
                result(f"extract_workers_{n}_speedup", speeds, "x per core", "wall-clock time, 1 worker on 1 core")
            )
    return results


if __name__ == "__main__":
    run_benchmark(benchmark, __doc__, sys.argv[1:])
