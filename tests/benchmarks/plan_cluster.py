"""Plans an extraction on a cluster, and the training that reads it, from rates measured on one core; prints a table.

    python -m tests.benchmarks.plan_cluster [--bench build/bench.json] [--cores 1024] [--extract-fps-core 480] ...

Rates come from the benchmark file where it has them (``extract_fps_core``, frames a second and core;
``extract_rss_mb``, MiB a worker; ``loader_clips_core``, clips a second and core), and from options, which go before.
``extract/PLANNING.md`` shows and explains the result.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from cmd_eval.experiments.bench_file import refuse_trial
from cmd_extract.system.liveness import BEATS, STALE_SECONDS
from tests.benchmarks.subject import read_entries

CLIP_FRAMES, MOTION_WINDOWS, CHUNKS_A_WINDOW, CHUNK_FRAMES = 16, 4, 2, 8
HEARTBEAT_SECONDS = STALE_SECONDS / BEATS
DATA_SETS = {"Kinetics-700": 650_000, "100 million videos": 100_000_000}
# Measured as extract/PLANNING.md says, unless marked as assumed.
DEFAULTS = {
    "extract_fps_core": (480.0, "frames a second and core"),
    "extract_rss_mb": (264.0, "MiB of memory a core: worker, its child and FFmpeg, each 88 at most"),
    "loader_clips_core": (354.0, "clips a second that one core loads"),
    "gpu_clips": (400.0, "clips a second that one GPU trains on (assumed)"),
    "jpeg_bytes": (5817.0, "bytes of a small frame"),
    "keyframe_bytes": (14711.0, "bytes of a keyframe"),
    "motion_bytes": (820.0, "bytes of motion and validity a frame"),
    "shard_bytes_a_frame": (7935.0, "bytes of a shard a frame"),
    "frames_a_video": (300.0, "frames a video: 10 s at 30 a second"),
    "source_bytes_a_video": (771_000.0, "bytes of a source video"),
    "manifest_s_a_million": (21.4, "processor seconds to read a million manifest rows, plan and hash them"),
    "manifest_mb_a_million": (1232.0, "MiB that a million manifest rows take in each task"),
    "cores": (256.0, "cores at work"),
    "cores_a_task": (16.0, "cores of a task"),
    "hours_a_task": (2.0, "hours a task should take"),
    "videos_a_shard": (256.0, "videos a shard"),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a data set of ``videos`` videos takes."""

    videos: int
    rates: dict[str, float]

    def rows(self) -> list[tuple[str, str]]:
        r = self.rates
        frames = self.videos * r["frames_a_video"]
        core_hours = frames / r["extract_fps_core"] / 3600
        hours = core_hours / r["cores"]
        shards = -(-self.videos // int(r["videos_a_shard"]))
        tasks = max(1, round(core_hours / (r["cores_a_task"] * r["hours_a_task"])))
        fps = r["extract_fps_core"] * r["cores"]
        size = frames * r["shard_bytes_a_frame"]
        millions = self.videos / 1e6
        manifest_s = millions * r["manifest_s_a_million"]
        return [
            ("frames", f"{frames:.3g}"),
            ("core hours", f"{core_hours:,.0f}"),
            (f"wall time on {r['cores']:.0f} cores", f"{hours:,.1f} h ({hours / 24:,.1f} days)"),
            ("shards on disk", f"{size / 1e12:,.2f} TB"),
            ("sources read", f"{self.videos * r['source_bytes_a_video'] / 1e12:,.2f} TB"),
            ("number of shards", f"{shards:,}"),
            ("size of a shard", f"{size / shards / 1e9:.2f} GB"),
            ("time of a shard on one core", f"{frames / shards / r['extract_fps_core'] / 60:.1f} min"),
            ("files in OUT (shards, index.json, run.json, two tables)", f"{shards + 4:,}"),
            ("files in OUT/tasks (attempts)", f"{tasks:,}"),
            (f"tasks of {r['cores_a_task']:.0f} cores, {r['hours_a_task']:g} h each", f"{tasks:,}"),
            ("arrays of at most 1,000 tasks", f"{-(-tasks // 1000):,}"),
            ("task starts an hour", f"{tasks / hours:.0f}"),
            ("shards finished a minute", f"{shards / hours / 60:.0f}"),
            ("reading the sources", f"{fps / r['frames_a_video'] * r['source_bytes_a_video'] / 1e9:.2f} GB/s"),
            ("writing the shards", f"{fps * r['shard_bytes_a_frame'] / 1e9:.2f} GB/s"),
            ("memory of a task", f"{r['cores_a_task'] * r['extract_rss_mb'] / 1024:.1f} GiB"),
            ("scratch of a task (--scratch)", f"{2 * r['cores_a_task'] * size / shards / 1e9:.0f} GB"),
            (
                "time stamps renewed a second",
                f"{(r['cores'] + r['cores'] / r['cores_a_task']) / HEARTBEAT_SECONDS:.0f}",
            ),
            ("the manifest, in every task", self._manifest(manifest_s, millions, tasks, core_hours)),
        ]

    def _manifest(self, seconds: float, millions: float, tasks: int, core_hours: float) -> str:
        memory = millions * self.rates["manifest_mb_a_million"] / 1024
        # While the manifest is read, all cores of a task wait for one.
        share = tasks * seconds / 3600 * self.rates["cores_a_task"] / core_hours
        return f"{seconds / 60:.1f} min, {memory:.1f} GiB, {share:.1%} of all core hours"


def training_rows(rates: dict[str, float]) -> list[tuple[str, str]]:
    """What one GPU asks of the network and of its host."""
    motion = MOTION_WINDOWS * CHUNKS_A_WINDOW * CHUNK_FRAMES * rates["motion_bytes"]
    clip = CLIP_FRAMES * rates["jpeg_bytes"] + rates["keyframe_bytes"] + motion
    return [
        ("bytes of a clip", f"{clip / 1e3:.0f} kB"),
        (f"read for a GPU at {rates['gpu_clips']:.0f} clips/s", f"{rates['gpu_clips'] * clip / 1e6:.0f} MB/s"),
        ("loader cores a GPU", f"{rates['gpu_clips'] / rates['loader_clips_core']:.1f}"),
        ("read for 64 GPUs", f"{64 * rates['gpu_clips'] * clip / 1e9:.1f} GB/s"),
    ]


def read_rates(bench: Path | None) -> dict[str, float]:
    """The rates of a benchmark file that count here.

    Raises:
        ValueError: it is none, or one of a trial.
    """
    if bench is None:
        return {}
    entries = read_entries(bench)
    try:
        # Whether an entry is of a trial is told by what it says of its machine.
        refuse_trial(bench, entries)
        return {str(e["name"]): float(str(e["value"])) for e in entries if e["name"] in DEFAULTS}
    except KeyError as error:
        raise ValueError(
            f"{bench}: an entry without {error}; make it anew with python -m tests.benchmarks.run"
        ) from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", type=Path, help="a benchmark file such as build/bench.json")
    for name, (value, meaning) in DEFAULTS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, help=f"{meaning}; {value:g}")
    given = vars(parser.parse_args())
    try:
        measured = read_rates(given.pop("bench"))
    except ValueError as error:
        parser.error(str(error))
    options = {name: value for name, value in given.items() if value is not None}
    rates = {name: value for name, (value, _) in DEFAULTS.items()} | measured | options
    for name, value in rates.items():
        if not value > 0:
            parser.error(f"--{name.replace('_', '-')}: {value} is not positive")
        source = "option" if name in options else "benchmark file" if name in measured else "default"
        print(f"{name:<22} {value:>12,.6g}  {DEFAULTS[name][1]} ({source})")
    plans = {name: dict(Plan(videos=videos, rates=rates).rows()) for name, videos in DATA_SETS.items()}
    print(f"\n| | {' | '.join(plans)} |\n|{'---|' * (len(plans) + 1)}")
    for row in next(iter(plans.values())):
        print(f"| {row} | {' | '.join(plan[row] for plan in plans.values())} |")
    print("\n| training | |\n|---|---|")
    for row, text in training_rows(rates):
        print(f"| {row} | {text} |")


if __name__ == "__main__":
    main()
