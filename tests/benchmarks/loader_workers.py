"""Wall-clock throughput of data workers, and their memory; prints tables.

    python -m tests.benchmarks.loader_workers [SHARDS] [--rounds 5] [--memory-batches 10000]

A clip is 16 frames with its keyframe and four motion windows. For comparison, the same number of processes only decode
the same JPEGs, which is the limit of the machine. Without SHARDS, synthetic videos are generated and extracted first.
Do not use the machine for anything else meanwhile. ``tests.benchmarks.loader`` measures a single core.
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
from cmd_train.data.batch import Batch, unpack_batches
from cmd_train.data.dataset import PretrainDataset
from cmd_train.data.epoch_sampler import EpochSampler
from cmd_train.data.sampling import SamplingConfig
from cmd_train.engine.damaged_samples import TolerantDataset
from tests.benchmarks.clips import synthetic_videos
from tests.benchmarks.loader import BATCH, decode_all, make_shards, stored_jpegs
from tests.benchmarks.measuring import describe_machine


def format_spread(values: list[float]) -> str:
    digits = 0 if statistics.median(values) >= 100 else 2
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def batch_stream(
    shards: ShardSet, sampling: SamplingConfig, workers: int, *, batch: int = BATCH, pinned: bool = False
) -> Iterator[Batch]:
    """Return an endless iterator over batches, loaded as in ``cmd_train.engine.loop``."""
    data = TolerantDataset(PretrainDataset(shards, shards.videos, sampling, seed=0))
    videos = len(shards.videos)
    sampler = EpochSampler(
        video_count=videos, global_batch=batch, epochs=1_000_000, seed=0, samples_per_video=-(-batch // videos)
    )
    return unpack_batches(DataLoader(data, batch_size=None, sampler=sampler, num_workers=workers, pin_memory=pinned))


def worker_rate(shards: ShardSet, sampling: SamplingConfig, workers: int, seconds: float) -> tuple[float, float]:
    """Return clips/s (wall-clock) of an idle consumer, and the consumer's own CPU time per clip in ms."""
    source = batch_stream(shards, sampling, workers)
    for _ in range(4 * workers):
        next(source)
    count, start, used = 0, time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - start) < seconds:
        count += len(next(source))
    return count / elapsed, (time.process_time() - used) / count * 1e3


def decoding_rate(clips: list[list[bytes]], processes: int, seconds: float) -> float:
    """Return clips/s (wall-clock) of processes that only decode JPEGs, the limit of the machine."""
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
    """Return private and shared memory of a process, without reclaimable pages mapped from shards."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    private, shared = (int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "RssShmem"))
    return private, shared


def print_memory(shards: ShardSet, sampling: SamplingConfig, batches: int, size: int) -> None:
    """Read batches of ``size`` samples with two workers; print the memory after a tenth, half and all of them."""
    source = batch_stream(shards, sampling, 2, batch=size)
    print("\n| batches | main process: private + shared memory, MiB | each worker |\n|---|---|---|")
    for number in range(1, batches + 1):
        next(source)
        if number in (batches // 10, batches // 2, batches):
            workers = [memory_mib(child.pid) for child in multiprocessing.active_children() if child.pid]
            private, shared = memory_mib(os.getpid())
            columns = ", ".join(f"{a:.0f} + {b:.0f}" for a, b in workers)
            print(f"| {number} | {private:.0f} + {shared:.0f} | {columns} |", flush=True)


def print_throughput(shards: ShardSet, sampling: SamplingConfig, rounds: int, seconds: float) -> None:
    jpegs = stored_jpegs(shards, sampling, 16)
    rates = []
    for _ in range(rounds):
        one, two = (worker_rate(shards, sampling, workers, seconds) for workers in (1, 2))
        rates.append((one, two, decoding_rate(jpegs, 1, seconds), decoding_rate(jpegs, 2, seconds)))
    print("\n| wall-clock time | median (range) |\n|---|---|")
    print(f"| one worker, clips/s | {format_spread([one[0] for one, *_ in rates])} |")
    print(f"| two workers, clips/s | {format_spread([two[0] for _, two, *_ in rates])} |")
    print(f"| two workers over one | {format_spread([two[0] / one[0] for one, two, *_ in rates])} |")
    print(f"| plain simplejpeg, two processes over one | {format_spread([two / one for *_, one, two in rates])} |")
    print(f"| CPU time of the consumer, ms per clip | {format_spread([two[1] for _, two, *_ in rates])} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, nargs="?", help="output folder of cmd-extract run")
    parser.add_argument("--rounds", type=int, default=5, help="0 skips the throughput")
    parser.add_argument("--seconds", type=float, default=3, help="duration of each measurement")
    parser.add_argument("--memory-batches", type=int, default=0, help="0 skips the memory")
    parser.add_argument("--memory-batch-size", type=int, default=BATCH)
    parser.add_argument("--stride", type=int, default=SamplingConfig().stride)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        shards = ShardSet(arguments.shards or make_shards(synthetic_videos(Path(folder), frames=96), Path(folder)))
        sampling = SamplingConfig(stride=arguments.stride)
        header = shards.header
        size = f"{header.frame_width} x {header.frame_height}"
        print(f"{len(shards.videos)} videos, frames {size}, stride {sampling.stride}; {describe_machine(quick=False)}")
        if arguments.rounds:
            print_throughput(shards, sampling, arguments.rounds, arguments.seconds)
        if arguments.memory_batches:
            print_memory(shards, sampling, arguments.memory_batches, arguments.memory_batch_size)
        print(f"\nload average {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
