"""Exact nearest neighbours in a large gallery: queries a second.

    python -m tests.benchmarks.retrieval [--rounds 5] [--quick] [--output build/bench.json]

512 queries, the 50 most similar of 100,000 rows of 2,048 features each, as ``cmd-eval retrieval`` finds them
(``cmd_train.monitoring.neighbours``), by the clock and with all cores; scaling the gallery's rows to length 1 is in it.
Beside it: the bare product of the two matrices, already scaled, in blocks of the same size, result discarded.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch

from cmd_train.monitoring.neighbours import nearest
from tests.benchmarks.measuring import Result
from tests.benchmarks.subject import Plan, run_subject

NEIGHBOURS = 50
BLOCK_ROWS = 16_384


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def benchmark(plan: Plan) -> list[Result]:
    rows, features, queries = plan.size(100_000, 2_000), plan.size(2_048, 64), plan.size(512, 64)
    random = torch.Generator().manual_seed(0)
    gallery_GD = torch.randn(rows, features, generator=random)
    query_QD = torch.randn(queries, features, generator=random)

    def multiply() -> None:
        for start in range(0, rows, BLOCK_ROWS):
            query_QD @ gallery_GD[start : start + BLOCK_ROWS].T

    def search() -> None:
        nearest(query_QD, gallery_GD, NEIGHBOURS)

    multiply()
    search()
    seen = [(seconds(search), seconds(multiply)) for _ in range(plan.rounds)]
    source = f"normal noise: {queries:,} queries, gallery {rows:,} x {features:,}, {torch.get_num_threads()} threads"
    return [
        Result(
            name="retrieval_queries_per_s",
            values=tuple(queries / own for own, _ in seen),
            unit="queries/s",
            versus="exact, by the clock",
            source=source,
        ),
        Result(
            name="retrieval_vs_product",
            values=tuple(bare / own for own, bare in seen),
            unit="x the speed",
            versus="the bare matrix product",
            source=source,
        ),
    ]


if __name__ == "__main__":
    run_subject(benchmark, __doc__, sys.argv[1:])
