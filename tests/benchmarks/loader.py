"""How fast samples come out of shards, and what bounds it; prints tables.

    python -m tests.benchmarks.loader SHARDS [--video FILE] [--rounds 5]

A clip is 16 frames with its keyframe and four windows of motion. Beside it: bare simplejpeg on the very same bytes
(the keyframe's among them), and decoding such a clip from a video file with PyAV, seek included.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import simplejpeg
import torch
from torch.utils.data import DataLoader

from extract.shard_reader import ShardSet
from train.batch import collate
from train.dataset import PretrainDataset
from train.epoch_sampler import EpochSampler
from train.sampling import SamplingConfig, plan_sample, sample_rng

BATCH = 8


def rate(work: Callable[[], int], clock: Callable[[], float] = time.process_time) -> float:
    """Things a second; of this process's own time, so that other work on the machine counts little."""
    start = clock()
    count = work()
    return count / (clock() - start)


def paired(first: Callable[[], int], second: Callable[[], int], rounds: int) -> list[tuple[float, float]]:
    """Rates of both, in turn, so that other work on the machine meets both alike."""
    return [(rate(first), rate(second)) for _ in range(rounds)]


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def bare_bytes(shards: ShardSet, sampling: SamplingConfig, clips: int) -> list[list[bytes]]:
    """JPEG bytes of some samples, the keyframe's last; the same samples that the data set reads."""
    out = []
    for position in range(clips):
        entry = shards.videos[position % len(shards.videos)]
        plan = plan_sample(entry.frame_count, entry.keyframe_indices, sampling, sample_rng(0, 0, position))
        frames = sorted(set(plan.clip_frames))
        jpegs = [bytes(jpeg) for jpeg in shards.frame_jpegs(entry, frames)]
        out.append([*jpegs, bytes(shards.keyframe_jpeg(entry, plan.keyframe))])
    return out


def decode_all(clips: list[list[bytes]]) -> int:
    for clip in clips:
        for jpeg in clip:
            simplejpeg.decode_jpeg(jpeg, "RGB", fastdct=False, fastupsample=False)
    return len(clips)


def decode_online(path: Path, clips: int, sampling: SamplingConfig) -> int:
    """Clips at random places: opened, sought, decoded up to the last frame, scaled to 128 rows."""
    rng = np.random.default_rng(0)
    for _ in range(clips):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_count = 1
            span = (sampling.clip_frames - 1) * sampling.stride + 1
            first = int(rng.integers(max(1, stream.frames - span)))
            seconds = first / float(stream.average_rate)
            container.seek(int(seconds / stream.time_base), stream=stream)
            taken = []
            for frame in container.decode(stream):
                number = round(float(frame.pts * stream.time_base) * float(stream.average_rate)) - first
                if number >= 0 and number % sampling.stride == 0:
                    width = round(frame.width * 128 / frame.height)
                    taken.append(frame.reformat(width, 128, "rgb24").to_ndarray())
                if len(taken) == sampling.clip_frames:
                    break
    return clips


def describe_video(path: Path) -> str:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        keys = [frame.key_frame for frame in itertools.islice(container.decode(stream), 300)]
    gaps = np.diff(np.flatnonzero(keys))
    gop = f"GOP {int(np.median(gaps))}" if len(gaps) else f"one keyframe in {len(keys)} frames"
    return f"{path.name}, {stream.width} x {stream.height}, {stream.codec_context.name}, {gop}"


def loader(shards: ShardSet, sampling: SamplingConfig, workers: int, epochs: int) -> DataLoader:  # type: ignore[type-arg]
    torch.set_num_threads(1)
    data = PretrainDataset(shards, shards.videos, sampling, seed=0)
    sampler = EpochSampler(video_count=len(shards.videos), global_batch=BATCH, epochs=epochs, seed=0)
    return DataLoader(data, batch_sampler=sampler, num_workers=workers, collate_fn=collate)


def stream_rate(shards: ShardSet, sampling: SamplingConfig, workers: int, batches: int) -> float:
    """Clips a second once the workers run."""
    source = iter(loader(shards, sampling, workers, 10_000))
    for _ in range(4):
        next(source)
    return rate(lambda: sum(len(next(source)) for _ in range(batches)), time.perf_counter)


def memory_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def own_memory_mib() -> float:
    """Without pages mapped from files, which the system takes back when it wants."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return memory_mib()


def watch_memory(shards: ShardSet, sampling: SamplingConfig, batches: int) -> list[tuple[int, float]]:
    source = iter(loader(shards, sampling, 0, 10_000_000))
    seen = []
    for number in range(1, batches + 1):
        next(source)
        if number % max(1, batches // 10) == 0:
            seen.append((number, own_memory_mib()))
    return seen


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("shards", type=Path)
    parser.add_argument("--video", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--memory-batches", type=int, default=200)
    parser.add_argument("--stride", type=int, default=2)
    arguments = parser.parse_args()
    shards = ShardSet(arguments.shards)
    sampling = SamplingConfig(stride=arguments.stride)
    data = PretrainDataset(shards, shards.videos, sampling, seed=0)
    clips = bare_bytes(shards, sampling, arguments.clips)

    def ours() -> int:
        return sum(data[0, position].clip_u8 is not None for position in range(arguments.clips))

    ours()
    pairs = paired(ours, lambda: decode_all(clips), arguments.rounds)
    print(f"{len(shards.videos)} videos, frames {shards.header.frame_width} x {shards.header.frame_height}, one core")
    print("| | median (lowest to highest) |\n|---|---|")
    print(f"| clips a second from shards | {spread([own for own, _ in pairs])} |")
    print(f"| clips a second, bare simplejpeg on the same bytes | {spread([bare for _, bare in pairs])} |")
    print(f"| share of it that is reached | {spread([own / bare for own, bare in pairs])} |")
    if arguments.video:
        few = min(arguments.clips, 24)
        online = paired(ours, lambda: decode_online(arguments.video, few, sampling), arguments.rounds)
        print(f"| online from {describe_video(arguments.video)} | {spread([other for _, other in online])} |")
        print(f"| times as fast as that | {spread([own / other for own, other in online])} |")
    if arguments.memory_batches:
        seen = watch_memory(shards, sampling, arguments.memory_batches)
        print("memory of the process, MiB: " + ", ".join(f"{mib:.0f} after {number}" for number, mib in seen))
    rates = [
        (stream_rate(shards, sampling, 1, 12), stream_rate(shards, sampling, 2, 24)) for _ in range(arguments.rounds)
    ]
    print(f"| one worker, clips a second | {spread([one for one, _ in rates])} |")
    print(f"| two workers | {spread([two for _, two in rates])} |")
    print(f"| two over one | {spread([two / one for one, two in rates])} |")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
