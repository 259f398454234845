"""How the processor time of extraction grows with frame size, video length and number of videos.

    python -m tests.benchmarks.growth [--rounds 5] [--quick] [--videos FILE...] [--output build/bench.json]

Each at four sizes, everything on, one worker. The start of cmd-extract, half a second whatever it is given, is taken
off: the median over the rounds of what a video of one frame takes (with --quick, where the rest is shorter than that,
nothing is). The figure is the slope of the straight line through (log size, log seconds): 1 is cost in proportion.

growth_frame_size    The picture is 1, 4, 9 and 16 tiles of 340 x 256 of the same video, so that every pixel is worth
                     the same bits; canonical stream and small frames are as much larger. (With a canonical stream of
                     one size, as by default, only decoding and scaling grow, and the slope is below 1.)
growth_video_length  One video, repeated to 1, 2, 4 and 8 times its length.
growth_videos        Numbers of videos of the same length.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tests.benchmarks.clips import HEIGHT, WIDTH, describe, encode, take_videos, write_manifest
from tests.benchmarks.extraction_speed import run_extract
from tests.benchmarks.measuring import Result, show_number, take_turns
from tests.benchmarks.subject import Plan, run_subject

# Columns, and as many rows, of tiles.
TILES = (1, 2, 3, 4)
X264 = ("-c:v", "libx264", "-preset", "veryfast", "-crf", 23, "-bf", 2, "-pix_fmt", "yuv420p")
SMALL_ROWS = 128


@dataclass(frozen=True, kw_only=True)
class Series:
    """Four extractions.

    Attributes:
        name: of the result.
        unit: of the sizes.
        sizes: how much there is of what grows.
        manifests: one a size.
        options: of cmd-extract, one list a size.
        source: the input in words.
    """

    name: str
    unit: str
    sizes: tuple[int, ...]
    manifests: tuple[Path, ...]
    options: tuple[tuple[str, ...], ...]
    source: str


def frame_sizes(plan: Plan, video: Path, source: str) -> Series:
    once = encode(video, plan.folder / "tile.mp4", "-vf", f"scale={WIDTH}:{HEIGHT},setsar=1", *X264)
    files = []
    for side in TILES:
        places = "|".join(f"{x * WIDTH}_{y * HEIGHT}" for y in range(side) for x in range(side))
        graph = f"split={side * side},xstack=inputs={side * side}:layout={places}" if side > 1 else "null"
        frames = ("-frames:v", plan.size(200, 12))
        files.append(
            encode(once, plan.folder / f"tiles-{side}.mp4", *frames, "-filter_complex", graph, *X264, repeat=2)
        )
    return Series(
        name="growth_frame_size",
        unit="pixels",
        sizes=tuple(side * side * WIDTH * HEIGHT for side in TILES),
        manifests=tuple(write_manifest(file.with_suffix(".csv"), [file]) for file in files),
        options=tuple(
            ("--size", f"{side * WIDTH}x{side * HEIGHT}", "--frame-short-side", str(side * SMALL_ROWS))
            for side in TILES
        ),
        source=f"{source}, tiled: from {describe(files[:1])} to {describe(files[-1:])}",
    )


def lengths(plan: Plan, video: Path, source: str) -> Series:
    times = (1, 2, 4, 8)
    files = [encode(video, plan.folder / f"{n}-times.mp4", *X264, repeat=n) for n in times]
    return Series(
        name="growth_video_length",
        unit="times the length",
        sizes=times,
        manifests=tuple(write_manifest(file.with_suffix(".csv"), [file]) for file in files),
        options=((),) * len(times),
        source=f"{source}, repeated: from {describe(files[:1])} to {describe(files[-1:])}",
    )


def numbers(plan: Plan, video: Path, source: str) -> Series:
    short = encode(video, plan.folder / "short.mp4", "-frames:v", plan.size(75, 12), *X264)
    counts = (3, 6, 12, 24)
    return Series(
        name="growth_videos",
        unit="videos",
        sizes=counts,
        manifests=tuple(write_manifest(plan.folder / f"{n}-videos.csv", [short], n) for n in counts),
        options=((),) * len(counts),
        source=f"{source}, a part of it 3 to 24 times: {describe([short])}",
    )


def slope(sizes: tuple[int, ...], seconds: list[float]) -> float:
    """Of the straight line through the logarithms.

    Raises:
        RuntimeError: a run took no longer than the start alone.
    """
    if min(seconds) <= 0:
        raise RuntimeError(f"sizes {sizes} took {seconds} s beyond the start: too noisy or too short")
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def measure_series(plan: Plan, series: Series, single: Path) -> Result:
    out = plan.folder / "out"
    sides = {"start": partial(run_extract, single, out, 1)}
    for size, manifest, options in zip(series.sizes, series.manifests, series.options, strict=True):
        sides[str(size)] = partial(run_extract, manifest, out, 1, *options)
    seen = take_turns(sides, plan.rounds)
    start = 0.0 if plan.quick else statistics.median(row["start"].cpu for row in seen)
    taken = [[row[str(size)].cpu - start for size in series.sizes] for row in seen]
    middle = [statistics.median(column) for column in zip(*taken, strict=True)]
    told = ", ".join(f"{size:,}: {show_number(s)} s" for size, s in zip(series.sizes, middle, strict=True))
    return Result(
        name=series.name,
        values=tuple(slope(series.sizes, row) for row in taken),
        unit="slope",
        versus=f"{series.unit} and processor time, less {show_number(start)} s of start: {told}",
        source=series.source,
    )


def benchmark(plan: Plan) -> list[Result]:
    videos, source = take_videos(plan.videos, plan.folder / "made", frames=plan.size(300, 24))
    single = write_manifest(
        plan.folder / "single.csv", [encode(videos[0], plan.folder / "single.mp4", "-frames:v", 1, *X264)]
    )
    every = [frame_sizes(plan, videos[0], source), lengths(plan, videos[0], source), numbers(plan, videos[0], source)]
    return [measure_series(plan, series, single) for series in every]


if __name__ == "__main__":
    run_subject(benchmark, __doc__, sys.argv[1:])
