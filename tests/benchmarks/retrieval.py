"""Throughput of exact nearest-neighbor search in a large gallery, in queries per second.

    python -m tests.benchmarks.retrieval [--rounds 5] [--quick] [--output build/bench.json]

Measures the wall-clock time, on all cores, to find the 50 most similar of 100,000 rows with 2,048 features for each of
512 queries, as in ``cmd-eval retrieval`` (``cmd_train.monitoring.neighbors``), including the normalization of the
gallery. The reference is the bare product of the two normalized matrices in blocks of the same size.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch

from cmd_train.monitoring.neighbors import nearest
from tests.benchmarks.harness import Settings, run_benchmark
from tests.benchmarks.measuring import Result

NEIGHBORS = 50
BLOCK_ROWS = 16_384


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def benchmark(settings: Settings) -> list[Result]:
    rows, features, queries = settings.size(100_000, 2_000), settings.size(2_048, 64), settings.size(512, 64)
    random = torch.Generator().manual_seed(0)
    gallery_GD = torch.randn(rows, features, generator=random)
    query_QD = torch.randn(queries, features, generator=random)

    def multiply() -> None:
        for start in range(0, rows, BLOCK_ROWS):
            query_QD @ gallery_GD[start : start + BLOCK_ROWS].T

    def search() -> None:
        nearest(query_QD, gallery_GD, NEIGHBORS)

    multiply()
    search()
    times = [(seconds(search), seconds(multiply)) for _ in range(settings.rounds)]
    source = f"Gaussian noise: {queries:,} queries, gallery {rows:,} x {features:,}, {torch.get_num_threads()} threads"
    return [
        Result(
            name="retrieval_queries_per_s",
            values=tuple(queries / own for own, _ in times),
            unit="queries/s",
            versus="exact, wall-clock time",
            source=source,
        ),
        Result(
            name="retrieval_vs_product",
            values=tuple(product / own for own, product in times),
            unit="x the speed",
            versus="the bare matrix product",
            source=source,
        ),
    ]


if __name__ == "__main__":
    run_benchmark(benchmark, __doc__, sys.argv[1:])
