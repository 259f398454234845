"""Growth of the bookkeeping of a run with the number of videos: real manifests, logs and index, tiny shards.

    python -m tests.benchmarks.bookkeeping [--sizes 1000 10000 100000] [--videos-per-shard 1]

Prints the processor time and memory of each step for each size, as a Markdown table, and the slopes of lines fitted to
their logarithms; 1 means proportional to the number of videos. Every size runs in a process of its own. The shards are
links to a few real ones (``tests.benchmarks.fake_extraction``).

manifest  Reading and checking the manifest.
plan      Dividing it into shards, with their hashes and that of the manifest.
restart   `cmd-extract run` that finds everything done, from the manifest's rows to the index.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cmd_extract.manifest.records import read_manifest
from cmd_extract.run.pipeline import prepare_folders, run_extraction
from cmd_extract.run.record import plan_run
from tests.benchmarks.fake_extraction import link_shards, make_job, write_manifest
from tests.benchmarks.growth import slope
from tests.benchmarks.measuring import PYTHON, describe_machine
from tests.paths import ROOT

STEPS = ("manifest", "plan", "restart")
TIMEOUT_S = 3600


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Cost of one size: processor seconds of each step, and peak memory of the steps in MiB."""

    seconds: dict[str, float]
    memory_mib: float


def prepare(folder: Path, videos: int, videos_per_shard: int) -> None:
    """Create a finished extraction, without index."""
    job = make_job(folder, write_manifest(folder / "m.csv", videos))
    planned = plan_run(job.out, read_manifest(folder / "m.csv", check_paths=False), videos_per_shard)
    prepare_folders(job, planned)
    link_shards(job, iter(planned.plans), videos_per_shard)


def measure(folder: Path, videos_per_shard: int) -> None:
    """Print the cost of each step as JSON."""
    job = make_job(folder, folder / "m.csv")
    seconds: dict[str, float] = {}
    start = time.process_time()
    records = read_manifest(folder / "m.csv", check_paths=False)
    seconds["manifest"] = time.process_time() - start
    start = time.process_time()
    for plan in plan_run(job.out, records).plans:
        assert plan.rows_hash
    seconds["plan"] = time.process_time() - start
    start = time.process_time()
    summary = run_extraction(records, job, workers=1, videos_per_shard=videos_per_shard)
    seconds["restart"] = time.process_time() - start
    assert (summary.videos, summary.new_videos) == (len(records), 0), "everything was done"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "memory_mib": peak}))


def call(step: str, folder: Path, *arguments: object) -> str:
    program = f"import sys; from pathlib import Path; from tests.benchmarks.bookkeeping import {step}; "
    program += f"{step}(Path(sys.argv[1]), *map(int, sys.argv[2:]))"
    words = [*PYTHON, program, str(folder), *map(str, arguments)]
    return subprocess.run(words, check=True, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S).stdout


def measure_size(videos: int, videos_per_shard: int) -> Measured:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        call("prepare", folder, videos, videos_per_shard)
        return Measured(**json.loads(call("measure", folder, videos_per_shard).splitlines()[-1]))


def table(sizes: Sequence[int], costs: Sequence[Measured], videos_per_shard: int) -> str:
    lines = ["| videos | shards | " + " | ".join(f"{step}, s" for step in STEPS) + " | peak memory, MiB |"]
    lines.append("|---" * (3 + len(STEPS)) + "|")
    for size, cost in zip(sizes, costs, strict=True):
        cells = [f"{cost.seconds[step]:.2f}" for step in STEPS]
        lines.append(f"| {size:,} | {-(-size // videos_per_shard):,} | {' | '.join(cells)} | {cost.memory_mib:.0f} |")
    slopes = [f"{slope(tuple(sizes), [cost.seconds[step] for cost in costs]):.2f}" for step in STEPS]
    slopes.append(f"{slope(tuple(sizes), [cost.memory_mib for cost in costs]):.2f}")
    return "\n".join([*lines, f"| slope | | {' | '.join(slopes)} |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000], help="numbers of videos")
    parser.add_argument("--videos-per-shard", type=int, default=1)
    arguments = parser.parse_args()
    if min(arguments.sizes) < 1 or len(set(arguments.sizes)) < 2 or arguments.videos_per_shard < 1:
        parser.error("--sizes: at least two different positive numbers; --videos-per-shard: a positive number")
    sizes = sorted(set(arguments.sizes))
    costs = [measure_size(size, arguments.videos_per_shard) for size in sizes]
    print(table(sizes, costs, arguments.videos_per_shard))
    print(f"\n{describe_machine(quick=False)}")


if __name__ == "__main__":
    main()
