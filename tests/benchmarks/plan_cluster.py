"""Estimate an extraction on a cluster, and the training that reads it, from rates of one core; print a table.

    python -m tests.benchmarks.plan_cluster [--bench build/bench.json] [--cores 1024] [--extract-fps-core 480] ...

Options override the rates of the benchmark file (``extract_fps_core``, frames/s per core; ``extract_rss_mb``, MiB per
worker; ``loader_clips_core``, clips/s per core), which override the defaults. ``extract/PLANNING.md`` explains the
result.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from cmd_eval.experiments.benchmark_results import refuse_trial
from cmd_extract.schema import MOTION_CHUNK_FRAMES
from cmd_extract.system.liveness import BEATS, STALE_SECONDS
from tests.benchmarks.harness import read_entries

CLIP_FRAMES, MOTION_WINDOWS, WINDOW_FRAMES = 16, 4, 8
# A window may start anywhere in a chunk.
CHUNKS_PER_WINDOW = 1 + (WINDOW_FRAMES - 1) / MOTION_CHUNK_FRAMES
PYTHON_MIB = 80.0
HEARTBEAT_SECONDS = STALE_SECONDS / BEATS
DATASETS = {"Kinetics-700": 650_000, "100 million videos": 100_000_000}
# Measured as described in extract/PLANNING.md, unless marked as assumed.
DEFAULTS = {
    "extract_fps_core": (480.0, "extracted frames/s per core"),
    "extract_rss_mb": (264.0, "memory per core in MiB: worker, its child process and FFmpeg, at most 88 each"),
    "loader_clips_core": (354.0, "clips/s loaded per core"),
    "gpu_clips": (400.0, "clips/s trained per GPU (assumed)"),
    "jpeg_bytes": (5817.0, "bytes per small frame"),
    "keyframe_bytes": (14711.0, "bytes per keyframe"),
    "motion_bytes": (820.0, "bytes of motion and validity mask per frame"),
    "shard_bytes_per_frame": (7935.0, "shard bytes per frame"),
    "frames_per_video": (300.0, "frames per video: 10 s at 30 fps"),
    "source_bytes_per_video": (771_000.0, "bytes per source video"),
    "manifest_s_per_million": (3.4, "processor seconds to read, plan and hash a million manifest rows, once"),
    "manifest_mb_per_million": (17.5, "memory in MiB to plan a million manifest rows"),
    "manifest_load_s_per_million": (0.052, "processor seconds per task to compare a million manifest rows"),
    "cores": (256.0, "cores in total"),
    "cores_per_task": (16.0, "cores per task"),
    "hours_per_task": (2.0, "target duration of a task in hours"),
    "videos_per_shard": (256.0, "videos per shard"),
}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Time, storage and number of files for a dataset of ``videos`` videos."""

    videos: int
    rates: dict[str, float]

    def rows(self) -> list[tuple[str, str]]:
        r = self.rates
        frames = self.videos * r["frames_per_video"]
        core_hours = frames / r["extract_fps_core"] / 3600
        hours = core_hours / r["cores"]
        shards = -(-self.videos // int(r["videos_per_shard"]))
        tasks = max(1, round(core_hours / (r["cores_per_task"] * r["hours_per_task"])))
        fps = r["extract_fps_core"] * r["cores"]
        size = frames * r["shard_bytes_per_frame"]
        millions = self.videos / 1e6
        return [
            ("frames", f"{frames:.3g}"),
            ("core hours", f"{core_hours:,.0f}"),
            (
                f"wall time on {r['cores']:.0f} cores",
                f"{hours:,.1f} h" + (f" ({hours / 24:,.1f} days)" if hours > 24 else ""),
            ),
            ("size of all shards", f"{size / 1e12:,.2f} TB"),
            ("size of all sources", f"{self.videos * r['source_bytes_per_video'] / 1e12:,.2f} TB"),
            (f"number of shards of {r['videos_per_shard']:.0f} videos", f"{shards:,}"),
            ("size per shard", f"{size / shards / 1e9:.2f} GB"),
            ("time per shard on one core", f"{frames / shards / r['extract_fps_core'] / 60:.1f} min"),
            ("files in OUT (shards, index.json and its table, run.json, two tables)", f"{shards + 5:,}"),
            ("files in OUT/tasks (one per attempt)", f"{tasks:,}"),
            (f"tasks of {r['cores_per_task']:.0f} cores, {r['hours_per_task']:g} h each", f"{tasks:,}"),
            ("arrays of at most 1,000 tasks", f"{-(-tasks // 1000):,}"),
            ("task starts per hour", f"{tasks / hours:.0f}"),
            ("finished shards per minute", f"{shards / hours / 60:.0f}"),
            ("read rate, sources", f"{fps / r['frames_per_video'] * r['source_bytes_per_video'] / 1e9:.2f} GB/s"),
            ("write rate, shards", f"{fps * r['shard_bytes_per_frame'] / 1e9:.2f} GB/s"),
            ("memory per task", f"{r['cores_per_task'] * r['extract_rss_mb'] / 1024:.1f} GiB"),
            ("scratch space per task (--scratch)", f"{2 * r['cores_per_task'] * size / shards / 1e9:.0f} GB"),
            (
                "timestamps renewed per second (claims, attempts)",
                f"{(r['cores'] + r['cores'] / r['cores_per_task']) / HEARTBEAT_SECONDS:.0f}",
            ),
            (
                "planning the manifest, once",
                f"{millions * r['manifest_s_per_million'] / 60:.1f} min, "
                f"{(PYTHON_MIB + millions * r['manifest_mb_per_million']) / 1024:.1f} GiB",
            ),
            ("comparing it with the plan, in every task", f"{millions * r['manifest_load_s_per_million']:.1f} s"),
        ]


def training_rows(rates: dict[str, float]) -> list[tuple[str, str]]:
    """Read rates and loader cores that GPUs require."""
    motion = MOTION_WINDOWS * CHUNKS_PER_WINDOW * MOTION_CHUNK_FRAMES * rates["motion_bytes"]
    clip = CLIP_FRAMES * rates["jpeg_bytes"] + rates["keyframe_bytes"] + motion
    return [
        ("size of a clip", f"{clip / 1e3:.0f} kB"),
        (f"read rate per GPU at {rates['gpu_clips']:.0f} clips/s", f"{rates['gpu_clips'] * clip / 1e6:.0f} MB/s"),
        ("loader cores per GPU", f"{rates['gpu_clips'] / rates['loader_clips_core']:.1f}"),
        ("read rate for 64 GPUs", f"{64 * rates['gpu_clips'] * clip / 1e9:.1f} GB/s"),
    ]


def read_rates(bench: Path | None) -> dict[str, float]:
    """Return the rates of a benchmark file that replace defaults.

    Raises:
        ValueError: not a benchmark file, or one created with --quick.
    """
    if bench is None:
        return {}
    entries = read_entries(bench)
    try:
        refuse_trial(bench, entries)
        return {str(e["name"]): float(str(e["value"])) for e in entries if e["name"] in DEFAULTS}
    except KeyError as error:
        raise ValueError(
            f"{bench}: an entry lacks the field {error}; create the file again with python -m tests.benchmarks.run"
        ) from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", type=Path, help="benchmark file, such as build/bench.json")
    for name, (default, meaning) in DEFAULTS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, help=f"{meaning}  [default: {default:g}]")
    given = vars(parser.parse_args())
    try:
        measured = read_rates(given.pop("bench"))
    except ValueError as error:
        parser.error(str(error))
    options = {name: value for name, value in given.items() if value is not None}
    rates = {name: value for name, (value, _) in DEFAULTS.items()} | measured | options
    for name, value in rates.items():
        if not value > 0:
            parser.error(f"--{name.replace('_', '-')}: {value} must be positive")
        source = "option" if name in options else "benchmark file" if name in measured else "default"
        print(f"{name:<22} {value:>12,.6g}  {DEFAULTS[name][1]} ({source})")
    estimates = {name: dict(Estimate(videos=videos, rates=rates).rows()) for name, videos in DATASETS.items()}
    print(f"\n| | {' | '.join(estimates)} |\n|{'---|' * (len(estimates) + 1)}")
    for row in next(iter(estimates.values())):
        print(f"| {row} | {' | '.join(estimate[row] for estimate in estimates.values())} |")
    print("\n| training | |\n|---|---|")
    for row, text in training_rows(rates):
        print(f"| {row} | {text} |")


if __name__ == "__main__":
    main()
