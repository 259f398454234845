"""How many samples data workers hand over by the clock, and what memory they keep; prints tables.

    python -m tests.benchmarks.loader_workers [SHARDS] [--rounds 5] [--memory-batches 10000]

A clip is 16 frames with its keyframe and four windows of motion. Beside the workers: as many processes that do nothing
but decode the same JPEGs, which is what the machine allows. Without SHARDS, synthetic videos are made and extracted
first. Leave the machine alone meanwhile. What one core does: ``tests.benchmarks.loader``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from cmd_extract.shard.reader import ShardSet
from cmd_train.data.batch import Batch, open_in_turn
from cmd_train.data.dataset import PretrainDataset
from cmd_train.data.epoch_sampler import EpochSampler
from cmd_train.data.sampling import SamplingConfig
from cmd_train.engine.damage import TolerantDataset
from tests.benchmarks.clips import synthetic_videos
from tests.benchmarks.loader import BATCH, bare_bytes, decode_all, make_shards
from tests.benchmarks.measuring import tell_machine


def spread(values: list[float]) -> str:
    digits = 0 if statistics.median(values) >= 100 else 2
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def stream(
    shards: ShardSet, sampling: SamplingConfig, workers: int, *, batch: int = BATCH, pinned: bool = False
) -> Iterator[Batch]:
    """Batches without end, made as ``cmd_train.engine.loop`` makes them."""
    data = TolerantDataset(PretrainDataset(shards, shards.videos, sampling, seed=0))
    videos = len(shards.videos)
    sampler = EpochSampler(
        video_count=videos, global_batch=batch, epochs=1_000_000, seed=0, samples_per_video=-(-batch // videos)
    )
    return open_in_turn(DataLoader(data, batch_size=None, sampler=sampler, num_workers=workers, pin_memory=pinned))


def worker_rate(shards: ShardSet, sampling: SamplingConfig, workers: int, seconds: float) -> tuple[float, float]:
    """Clips a second by the clock, of a consumer that only takes them; and its own processor time a clip, in ms."""
    source = stream(shards, sampling, workers)
    for _ in range(4 * workers):
        next(source)
    count, start, used = 0, time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - start) < seconds:
        count += len(next(source))
    return count / elapsed, (time.process_time() - used) / count * 1e3


def bare_rate(clips: list[list[bytes]], processes: int, seconds: float) -> float:
    """Clips a second by the clock of as many processes that decode and do nothing else: what the machine allows."""
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[int] = context.Queue()

    def work() -> None:
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            count += decode_all(clips[:16])
        results.put(count)

    running = [context.Process(target=work) for _ in range(processes)]
    for process in running:
        process.start()
    total = sum(results.get(timeout=60 + 2 * seconds) for _ in running)
    for process in running:
        process.join()
    return total / seconds


def memory_mib(pid: int) -> tuple[float, float]:
    """(own memory, shared memory) of a process; pages mapped from shards, which the system takes back, not counted."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    own, shared = (int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "RssShmem"))
    return own, shared


def watch_memory(shards: ShardSet, sampling: SamplingConfig, batches: int, size: int) -> None:
    """Two workers, batches of ``size``; prints a row at a tenth, at half and at the end."""
    source = stream(shards, sampling, 2, batch=size)
    print("\n| batches taken | process: own + shared memory, MiB | workers, each |\n|---|---|---|")
    for number in range(1, batches + 1):
        next(source)
        if number in (batches // 10, batches // 2, batches):
            workers = [memory_mib(child.pid) for child in multiprocessing.active_children() if child.pid]
            own, shared = memory_mib(os.getpid())
            told = ", ".join(f"{a:.0f} + {b:.0f}" for a, b in workers)
            print(f"| {number} | {own:.0f} + {shared:.0f} | {told} |", flush=True)


def print_workers(shards: ShardSet, sampling: SamplingConfig, rounds: int, seconds: float) -> None:
    bare = bare_bytes(shards, sampling, 16)
    seen = []
    for _ in range(rounds):
        one, two = (worker_rate(shards, sampling, workers, seconds) for workers in (1, 2))
        seen.append((one, two, bare_rate(bare, 1, seconds), bare_rate(bare, 2, seconds)))
    print("\n| workers, by the clock | median (lowest to highest) |\n|---|---|")
    print(f"| one worker, clips a second | {spread([one[0] for one, *_ in seen])} |")
    print(f"| two workers | {spread([two[0] for _, two, *_ in seen])} |")
    print(f"| two over one | {spread([two[0] / one[0] for one, two, *_ in seen])} |")
    print(f"| bare simplejpeg, two processes over one | {spread([two / one for *_, one, two in seen])} |")
    print(f"| processor time of the process that takes them, ms a clip | {spread([two[1] for _, two, *_ in seen])} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--memory-batches", type=int, default=0)
    parser.add_argument("--memory-batch-size", type=int, default=BATCH)
    parser.add_argument("--stride", type=int, default=SamplingConfig().stride)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        shards = ShardSet(arguments.shards or make_shards(synthetic_videos(Path(made), frames=96), Path(made)))
        sampling = SamplingConfig(stride=arguments.stride)
        header = shards.header
        size = f"{header.frame_width} x {header.frame_height}"
        print(f"{len(shards.videos)} videos, frames {size}, stride {sampling.stride}; {tell_machine(quick=False)}")
        if arguments.rounds:
            print_workers(shards, sampling, arguments.rounds, arguments.seconds)
        if arguments.memory_batches:
            watch_memory(shards, sampling, arguments.memory_batches, arguments.memory_batch_size)
        print(f"\nload {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
