"""Growth of the bookkeeping of a run with the number of videos: real manifests, logs and index, tiny shards.

    python -m tests.benchmarks.bookkeeping [--sizes 1000 10000 100000] [--videos-per-shard 1]
    python -m tests.benchmarks.bookkeeping --plan-only

Prints the CPU time and peak memory of each step for each size, as a Markdown table, and the slopes of lines
fitted to their logarithms; 1 means proportional to the number of videos. Every step of every size runs in a process of
its own; the memory includes Python and its libraries. The shards are links to a few real ones
(``tests.benchmarks.fake_extraction``).

plan      Reading and checking the manifest, and dividing it into shards, with their hashes and that of the manifest.
load      The same in a later run or another task: comparing the manifest with the recorded plan, and loading that.
index     `cmd-extract run` that finds all shards built, but no index: opens each shard once.
restart   `cmd-extract run` that finds everything done, from the plan to the index.
open_set  `ShardSet`, and the entry of the last video.

With --plan-only, only plan and load are measured: the others need a file per shard; the default is then shards of 256
videos, up to 10 million videos. Slopes are fitted from 10,000 videos on, if there are two such sizes.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import json
import pickle
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py

from cmd_extract.manifest.rows import ManifestFile
from cmd_extract.run.pipeline import BuildSettings, prepare_folders, run_extraction
from cmd_extract.run.plan_file import PLAN_NAME
from cmd_extract.run.record import plan_run
from cmd_extract.schema import ATTR_ROWS_HASH
from cmd_extract.shard.index import ShardIndex
from cmd_extract.shard.reader import ShardSet
from tests.benchmarks.fake_extraction import link_shards, make_job, write_manifest
from tests.benchmarks.growth import slope
from tests.benchmarks.measuring import PYTHON, describe_machine
from tests.paths import ROOT

PLAN_STEPS = ("plan", "load")
STEPS = (*PLAN_STEPS, "index", "restart", "open_set")
PLAN_SIZES = (1000, 10_000, 100_000, 1_000_000, 10_000_000)
FITTED_FROM = 10_000
TIMEOUT_S = 3600


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Cost of one step: processor seconds and peak memory in MiB."""

    seconds: float
    memory_mib: float


def prepare(folder: Path, videos: int, videos_per_shard: int) -> None:
    """Create a finished extraction, without index and plan."""
    job = make_job(folder, write_manifest(folder / "m.csv", videos))
    planned = plan_run(job.out, ManifestFile(folder / "m.csv"), videos_per_shard, root=folder)
    prepare_folders(job, planned)
    link_shards(job, iter(planned.plans), videos_per_shard)
    (job.out / PLAN_NAME).unlink()


def plan(folder: Path, videos_per_shard: int) -> None:
    """Plan a run for the first time."""
    job = make_job(folder, folder / "m.csv")
    with printed_cost():
        planned = plan_run(job.out, ManifestFile(folder / "m.csv"), videos_per_shard, root=folder)
        prepare_folders(job, planned)
    assert not planned.is_saved


def load(folder: Path, videos_per_shard: int) -> None:
    """Plan a run again."""
    job = make_job(folder, folder / "m.csv")
    with printed_cost():
        planned = plan_run(job.out, ManifestFile(folder / "m.csv"), videos_per_shard, root=folder)
    assert planned.is_saved


def restart(folder: Path, videos_per_shard: int) -> None:
    """Run an extraction that is finished."""
    job = make_job(folder, folder / "m.csv")
    planned = plan_run(job.out, ManifestFile(folder / "m.csv"), videos_per_shard, root=folder)
    with printed_cost():
        summary = run_extraction(planned, job, BuildSettings(workers=1))
    assert (summary.videos, summary.new_videos) == (planned.rows, 0), "everything was done"


def index(folder: Path, videos_per_shard: int) -> None:
    """Run an extraction that is finished except for its index."""
    restart(folder, videos_per_shard)


def open_set(folder: Path, videos_per_shard: int) -> None:
    """Open the shards."""
    path, rows_hash = folder / "out" / "shard-00000.h5", ShardIndex(folder / "out").shard(0).rows_hash
    own = shutil.copy(path, folder)
    with h5py.File(own, "r+") as file:  # unlike its copies, it is opened and checked
        file.attrs[ATTR_ROWS_HASH] = rows_hash
    shutil.move(own, path)
    with printed_cost():
        shards = ShardSet(folder / "out")
        last, pickled = shards.videos[-1], pickle.dumps(shards)
    assert last.shard == (len(shards.videos) - 1) // videos_per_shard
    assert len(pickled) < 10_000, "processes share the columns"


@contextlib.contextmanager
def printed_cost() -> Iterator[None]:
    """Print the cost of the block as JSON."""
    start = time.process_time()
    yield
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "memory_mib": peak}))


def call(step: str, folder: Path, *arguments: object) -> str:
    program = f"import sys; from pathlib import Path; from tests.benchmarks.bookkeeping import {step}; "
    program += f"{step}(Path(sys.argv[1]), *map(int, sys.argv[2:]))"
    words = [*PYTHON, program, str(folder), *map(str, arguments)]
    return subprocess.run(words, check=True, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S).stdout


def measure_size(videos: int, videos_per_shard: int, *, plan_only: bool) -> dict[str, Measured]:
    """Return the cost of each step."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if plan_only:
            write_manifest(folder / "m.csv", videos)
        else:
            call("prepare", folder, videos, videos_per_shard)
        steps = PLAN_STEPS if plan_only else STEPS
        costs = {step: call(step, folder, videos_per_shard).splitlines()[-1] for step in steps}
        return {step: Measured(**json.loads(cost)) for step, cost in costs.items()}


def table(sizes: Sequence[int], costs: Sequence[dict[str, Measured]], videos_per_shard: int) -> str:
    steps = list(costs[0])
    lines = ["| videos | shards | " + " | ".join(f"{step}, s | {step}, MiB" for step in steps) + " |"]
    lines.append("|---" * (2 + 2 * len(steps)) + "|")
    for size, cost in zip(sizes, costs, strict=True):
        cells = [f"{c.seconds:.2f} | {c.memory_mib:.0f}" for c in cost.values()]
        lines.append(f"| {size:,} | {-(-size // videos_per_shard):,} | {' | '.join(cells)} |")
    first = min(bisect.bisect_left(sizes, FITTED_FROM), len(sizes) - 2)
    fitted, rows = tuple(sizes[first:]), costs[first:]
    slopes = []
    for step in steps:
        slopes.append(f"{slope(fitted, [cost[step].seconds for cost in rows]):.2f}")
        slopes.append(f"{slope(fitted, [cost[step].memory_mib for cost in rows]):.2f}")
    return "\n".join([*lines, f"| slope from {fitted[0]:,} | | {' | '.join(slopes)} |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of videos")
    parser.add_argument("--videos-per-shard", type=int, help="rows per shard (default: 1; 256 with --plan-only)")
    parser.add_argument("--plan-only", action="store_true", help="measure planning, for up to 10 million videos")
    arguments = parser.parse_args()
    sizes = sorted(set(arguments.sizes or (PLAN_SIZES if arguments.plan_only else PLAN_SIZES[:3])))
    videos_per_shard = arguments.videos_per_shard or (256 if arguments.plan_only else 1)
    if sizes[0] < 1 or len(sizes) < 2 or videos_per_shard < 1:
        parser.error("--sizes: at least two different positive numbers; --videos-per-shard: a positive number")
    costs = [measure_size(size, videos_per_shard, plan_only=arguments.plan_only) for size in sizes]
    print(table(sizes, costs, videos_per_shard))
    print(f"\n{describe_machine(quick=False)}")


if __name__ == "__main__":
    main()
