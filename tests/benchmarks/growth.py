"""Growth of the CPU time of extraction with frame size, video length and number of videos.

    python -m tests.benchmarks.growth [--rounds 5] [--quick] [--videos FILE...] [--output build/bench.json]

Every series extracts four sizes with all outputs and one worker. The start-up of cmd-extract, about half a second for
any input, is subtracted: the median over the rounds of the time for a one-frame video (not with --quick, where the rest
would be shorter). The figure is the slope of a line fitted to (log size, log seconds): 1 means cost proportional to
size.

growth_frame_size    The frame consists of 1, 4, 9 and 16 tiles of 340 x 256 of the same video, so that the bits per
                     pixel stay the same; canonical stream and small frames grow likewise. (With a canonical stream of
                     fixed size, the default, only decoding and scaling grow, and the slope is below 1.)
growth_video_length  One video, repeated 1, 2, 4 and 8 times.
growth_videos        3 to 24 videos of the same length.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tests.benchmarks.clips import HEIGHT, WIDTH, describe_videos, encode, input_videos, write_manifest
from tests.benchmarks.extraction_speed import run_extract
from tests.benchmarks.harness import Settings, run_benchmark
from tests.benchmarks.measuring import Result, format_number, interleave

# Number of columns, and of rows, of tiles.
TILES = (1, 2, 3, 4)
X264 = ("-c:v", "libx264", "-preset", "veryfast", "-crf", 23, "-bf", 2, "-pix_fmt", "yuv420p")
FRAME_SHORT_SIDE = 128


@dataclass(frozen=True, kw_only=True)
class Series:
    """Extractions of growing size.

    Attributes:
        name: name of the result.
        unit: unit of the sizes.
        sizes: sizes of the inputs.
        manifests: one manifest per size.
        options: options of cmd-extract, one tuple per size.
        source: description of the input.
    """

    name: str
    unit: str
    sizes: tuple[int, ...]
    manifests: tuple[Path, ...]
    options: tuple[tuple[str, ...], ...]
    source: str


def frame_sizes(settings: Settings, video: Path, source: str) -> Series:
    tile = encode(video, settings.folder / "tile.mp4", "-vf", f"scale={WIDTH}:{HEIGHT},setsar=1", *X264)
    files = []
    for side in TILES:
        layout = "|".join(f"{x * WIDTH}_{y * HEIGHT}" for y in range(side) for x in range(side))
        graph = f"split={side * side},xstack=inputs={side * side}:layout={layout}" if side > 1 else "null"
        frames = ("-frames:v", settings.size(200, 12))
        files.append(
            encode(tile, settings.folder / f"tiles-{side}.mp4", *frames, "-filter_complex", graph, *X264, repeat=2)
        )
    return Series(
        name="growth_frame_size",
        unit="pixels per frame",
        sizes=tuple(side * side * WIDTH * HEIGHT for side in TILES),
        manifests=tuple(write_manifest(file.with_suffix(".csv"), [file]) for file in files),
        options=tuple(
            ("--size", f"{side * WIDTH}x{side * HEIGHT}", "--frame-short-side", str(side * FRAME_SHORT_SIDE))
            for side in TILES
        ),
        source=f"{source}, tiled: from {describe_videos(files[:1])} to {describe_videos(files[-1:])}",
    )


def video_lengths(settings: Settings, video: Path, source: str) -> Series:
    times = (1, 2, 4, 8)
    files = [encode(video, settings.folder / f"{n}-times.mp4", *X264, repeat=n) for n in times]
    return Series(
        name="growth_video_length",
        unit="repetitions",
        sizes=times,
        manifests=tuple(write_manifest(file.with_suffix(".csv"), [file]) for file in files),
        options=((),) * len(times),
        source=f"{source}, repeated: from {describe_videos(files[:1])} to {describe_videos(files[-1:])}",
    )


def video_numbers(settings: Settings, video: Path, source: str) -> Series:
    short = encode(video, settings.folder / "short.mp4", "-frames:v", settings.size(75, 12), *X264)
    counts = (3, 6, 12, 24)
    return Series(
        name="growth_videos",
        unit="videos",
        sizes=counts,
        manifests=tuple(write_manifest(settings.folder / f"{n}-videos.csv", [short], n) for n in counts),
        options=((),) * len(counts),
        source=f"{source}, an excerpt 3 to 24 times: {describe_videos([short])}",
    )


def slope(sizes: tuple[int, ...], seconds: list[float]) -> float:
    """Fit a line to the logarithms and return its slope.

    Raises:
        RuntimeError: an extraction took no longer than the start-up.
    """
    if min(seconds) <= 0:
        raise RuntimeError(f"sizes {sizes} took {seconds} s without start-up: too noisy or too short")
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def measure_series(settings: Settings, series: Series, single: Path) -> Result:
    out = settings.folder / "out"
    sides = {"start": partial(run_extract, single, out, 1)}
    for size, manifest, options in zip(series.sizes, series.manifests, series.options, strict=True):
        sides[str(size)] = partial(run_extract, manifest, out, 1, *options)
    costs = interleave(sides, settings.rounds)
    startup = 0.0 if settings.quick else statistics.median(row["start"].cpu for row in costs)
    seconds = [[row[str(size)].cpu - startup for size in series.sizes] for row in costs]
    medians = [statistics.median(column) for column in zip(*seconds, strict=True)]
    pairs = ", ".join(f"{size:,}: {format_number(s)} s" for size, s in zip(series.sizes, medians, strict=True))
    return Result(
        name=series.name,
        values=tuple(slope(series.sizes, row) for row in seconds),
        unit="slope",
        versus=f"CPU time by {series.unit}, minus {format_number(startup)} s of start-up: {pairs}",
        source=series.source,
    )


def benchmark(settings: Settings) -> list[Result]:
    videos, source = input_videos(settings.videos, settings.folder / "videos", frames=settings.size(300, 24))
    single = write_manifest(
        settings.folder / "single.csv", [encode(videos[0], settings.folder / "single.mp4", "-frames:v", 1, *X264)]
    )
    all_series = [
        frame_sizes(settings, videos[0], source),
        video_lengths(settings, videos[0], source),
        video_numbers(settings, videos[0], source),
    ]
    return [measure_series(settings, series, single) for series in all_series]


if __name__ == "__main__":
    run_benchmark(benchmark, __doc__, sys.argv[1:])
