"""Clips/s and downloaded bytes of training data read through a cache, against a local folder; prints a table.

    python -m tests.benchmarks.cache [--videos 640] [--epochs 3] [--quick]

Two data workers read batches of 8 in the order of training; nothing is trained. Synthetic videos are extracted into 32
shards, which a server of its own process on this machine delivers by HTTP, so that only the cost of the cache itself
shows, not that of a network. ``quarter`` is a cache of a quarter of the shards.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from cmd_extract.shard.reader import ShardSet
from cmd_extract.shard.remote import CachedShardSet, RemoteFolder
from cmd_train.data.batch import unpack_batches
from cmd_train.data.dataset import PretrainDataset
from cmd_train.data.epoch_sampler import EpochSampler
from cmd_train.data.loading import iterate_samples
from cmd_train.data.read_ahead import ReadAhead, shards_per_block
from cmd_train.data.sampling import SamplingConfig
from cmd_train.engine.damaged_samples import TolerantDataset
from tests.benchmarks.clips import synthetic_videos, write_manifest
from tests.benchmarks.extraction_speed import run_extract
from tests.benchmarks.measuring import describe_machine
from tests.remote_servers import FaultyServer

BATCH, WORKERS, SHARDS = 8, 2, 32


class CountingServer(FaultyServer):
    """Counts the bytes that it sends."""

    sent = 0

    def _send(self, handler: BaseHTTPRequestHandler, name: str, data: bytes) -> None:
        self.sent += len(data)
        super()._send(handler, name, data)


def serve(folder: Path, connection: Connection) -> None:
    """Serve a folder; answer each message with the bytes sent since the last one, and end after an empty message."""
    server = CountingServer(folder)
    connection.send(server.url)
    while connection.recv():
        connection.send(server.sent)
        server.sent = 0
    server.close()


def epoch_rates(shards: ShardSet, epochs: int, connection: Connection) -> list[tuple[float, int]]:
    """Return clips/s and downloaded bytes of each epoch."""
    numbers = np.array([entry.shard for entry in shards.videos])
    sampler = EpochSampler(
        video_count=len(shards.videos), global_batch=BATCH, epochs=1, seed=0, shards=tuple(numbers.tolist())
    )
    if isinstance(shards, CachedShardSet):
        sizes = [shard.size_bytes for shard in shards.remote_shards]
        sampler = replace(sampler, shuffle_shards=shards_per_block(sizes, shards.cache.max_bytes))
    data = TolerantDataset(PretrainDataset(shards, shards.videos, SamplingConfig(), seed=0))
    found = []
    for epoch in range(epochs):
        one = replace(sampler, epochs=epoch + 1, first_step=epoch * sampler.steps_per_epoch)
        order = one
        if isinstance(shards, CachedShardSet):
            order = ReadAhead(one, numbers, shards.remote_shards, shards.cache, WORKERS)  # type: ignore[assignment] # both are samplers
        connection.send(True)
        connection.recv()
        start = time.perf_counter()
        batches = iterate_samples(data, workers=WORKERS, timeout_seconds=300, sampler=order)
        clips = sum(len(batch) for batch in unpack_batches(batches))
        seconds = time.perf_counter() - start
        connection.send(True)
        found.append((clips / seconds, connection.recv()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=20 * SHARDS, help="at least 32")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="only show that the script runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = synthetic_videos(folder, frames=48)
        rows = [files[row % len(files)] for row in range(arguments.videos)]
        per_shard = str(arguments.videos // SHARDS)
        out = folder / "out"
        run_extract(write_manifest(folder / "rows.csv", rows), out, 2, "--videos-per-shard", per_shard)
        size = sum(path.stat().st_size for path in out.glob("shard-*.h5"))
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        server = multiprocessing.get_context("spawn").Process(target=serve, args=(out, theirs))
        server.start()
        url = ours.recv()
        machine = describe_machine(quick=arguments.quick)
        print(f"{arguments.videos} videos, {SHARDS} shards, {size / 1e6:.0f} MB; {machine}")
        print("\n| epoch | shards | clips/s | downloaded, of all bytes |\n|---|---|---|---|")
        caches = {"whole": 3 * size, "quarter": size // 4}
        for key in ("local", *caches):
            if key == "local":
                shards = ShardSet(out)
            else:
                ours.send(True)
                ours.recv()
                shards = CachedShardSet(RemoteFolder(url=url, cache=folder / key, max_bytes=caches[key]))
                ours.send(True)
                print(f"| opening | {key} | | {ours.recv() / size:.2f} |", flush=True)
            for epoch, (rate, sent) in enumerate(epoch_rates(shards, arguments.epochs, ours), start=1):
                print(f"| {epoch} | {key} | {rate:.0f} | {sent / size:.2f} |", flush=True)
        ours.send(False)
        server.join()


if __name__ == "__main__":
    main()
