"""Cost of having many shards: opening one, reading clips of 1,500 in random order, and reading from a cold disk.

    python -m tests.benchmarks.shards [--rounds 5] [--quick] [--videos FILE...] [--output build/bench.json]

shard_open_ms       CPU time of the first read of a motion window from a shard of 256 videos of 300 frames.
shard_open_kb       Memory that stays allocated per opened shard, its reader included.
loader_many_shards  Clips/s of one core over 1,500 shards in random order, relative to about 30 shards, after one epoch.
                    Most of the shards are links to the same files, so that the file cache holds both.
cold_clip_vs_mapped Wall-clock time of the 16 JPEGs of a clip at stride 4 that are read through a memory map, as earlier
                    releases did, relative to ``ShardSet.frame_jpegs``. Before each clip, its file is dropped from the
                    file cache. Depends on the disk and its read-ahead.
"""

from __future__ import annotations

import mmap
import os
import random
import sys
import time
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import torch

from cmd_extract import schema
from cmd_extract.shard.index import ShardIndex
from cmd_extract.shard.reader import ShardReader, ShardSet
from cmd_train.data.batch import unpack_batches
from cmd_train.data.dataset import PretrainDataset
from cmd_train.data.sampling import SamplingConfig
from cmd_train.engine.damaged_samples import TolerantDataset
from tests.benchmarks.clips import describe_videos, input_videos, write_manifest
from tests.benchmarks.extraction_speed import run_extract
from tests.benchmarks.fake_extraction import fake_shard, make_job
from tests.benchmarks.harness import Settings, run_benchmark
from tests.benchmarks.measuring import Result, interleave, measure_self
from tests.indexes import cells_of, write_index

FEW, MANY, BATCH = 30, 1500, 32
CLIP = range(16, 80, 4)


def open_costs(settings: Settings) -> list[Result]:
    videos, frames = settings.size(256, 4), settings.size(300, 30)
    path = fake_shard(make_job(settings.folder / "fake", Path("m.csv")), videos, frames)
    shape = ShardReader(path).header.grid_shape
    grid, valid = np.empty((8, 2, *shape), np.int16), np.empty((8, *shape), np.bool_)
    readers = [ShardReader(path) for _ in range(20)]
    readers[0].read_motion(0, 0, grid, valid)  # imports modules
    seconds = []
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for reader in readers[1:]:
        reader.read_motion(videos // 2, 5, grid, valid)
    kilobytes = (tracemalloc.get_traced_memory()[0] - before) / (len(readers) - 1) / 1e3
    tracemalloc.stop()
    for _ in range(settings.rounds):
        reader = ShardReader(path)
        start = time.process_time()
        reader.read_motion(videos // 2, 5, grid, valid)
        seconds.append((time.process_time() - start) * 1e3)
    source = f"a shard of {videos} videos of {frames} frames, {path.stat().st_size / 1e6:.1f} MB"
    return [
        Result(name="shard_open_ms", values=tuple(seconds), unit="ms", versus="CPU time, first read", source=source),
        Result(name="shard_open_kb", values=(kilobytes,), unit="kB", versus="memory per open shard", source=source),
    ]


def repeat_shards(shards: Path, out: Path, count: int) -> ShardSet:
    """Return ``count`` shards, links to some existing ones in turn."""
    out.mkdir()
    index = ShardIndex(shards)
    entries = []
    for number in range(count):
        entry = index.shard(number % len(index))
        entries.append(entry._replace(name=schema.SHARD_PATTERN.format(number)))
        os.link(shards / entry.name, out / entries[-1].name)
    write_index(out, entries, cells_of(index))
    return ShardSet(out)


def read_clips(data: TolerantDataset, order: list[int]) -> None:
    keys = [[(0, position) for position in order[start : start + BATCH]] for start in range(0, len(order), BATCH)]
    assert sum(len(batch) for batch in unpack_batches(data[part] for part in keys)) == len(order)


def many_shards(settings: Settings, shards: Path, source: str) -> Result:
    few = len(list(shards.glob(schema.SHARD_GLOB)))
    counts = {"few": few, "many": settings.size(MANY, 2 * few)}
    sides = {}
    for name, count in counts.items():
        opened = repeat_shards(shards, settings.folder / name, count)
        data = TolerantDataset(PretrainDataset(opened, opened.videos, SamplingConfig(), seed=0))
        order = list(range(counts["many"]))
        random.Random(0).shuffle(order)
        sides[name] = lambda data=data, order=order: read_clips(data, order)
        sides[name]()
    costs = interleave(sides, settings.rounds, measure_self)
    return Result(
        name="loader_many_shards",
        values=tuple(row["few"].cpu / row["many"].cpu for row in costs),
        unit="x the speed",
        versus=f"{few} shards; {counts['many']:,} shards, random order",
        source=source,
    )


def mapped_jpegs(path: Path) -> list[bytes]:
    """Read the clip of the first video through a memory map."""
    with h5py.File(path, "r", locking=False) as file:
        start, offsets = file[schema.FRAME_JPEG].id.get_offset(), file[schema.FRAME_OFFSET][:].astype(int) + 0
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as data:
        drop_cache(path)
        return [data[start + offsets[frame] : start + offsets[frame + 1]] for frame in CLIP]


def drop_cache(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def cold_clips(settings: Settings, shards: Path, source: str) -> Result:
    paths = sorted(shards.glob(schema.SHARD_GLOB))
    os.sync()  # pages that are not written yet cannot be dropped
    readers = [ShardReader(path) for path in paths]

    def read_shards() -> None:
        for path, reader in zip(paths, readers, strict=True):
            reader.frame_jpegs(0, [0])
            drop_cache(path)
            reader.frame_jpegs(0, CLIP)

    def read_mapped() -> None:
        for path in paths:
            mapped_jpegs(path)

    costs = interleave({"shards": read_shards, "mapped": read_mapped}, settings.rounds, measure_self)
    return Result(
        name="cold_clip_vs_mapped",
        values=tuple(row["mapped"].wall / row["shards"].wall for row in costs),
        unit="x the time",
        versus="ShardSet.frame_jpegs, file cache dropped, wall-clock time",
        source=source,
    )


def benchmark(settings: Settings) -> list[Result]:
    torch.set_num_threads(1)
    videos, given = input_videos(settings.videos, settings.folder / "videos", frames=settings.size(300, 120))
    copies = -(-FEW // len(videos))
    shards = settings.folder / "shards"
    run_extract(write_manifest(settings.folder / "m.csv", videos, copies), shards, 2, "--videos-per-shard", "1")
    source = f"{given}: {describe_videos(videos, copies)}; one video per shard"
    return [*open_costs(settings), many_shards(settings, shards, source), cold_clips(settings, shards, source)]


if __name__ == "__main__":
    run_benchmark(benchmark, __doc__, sys.argv[1:])
