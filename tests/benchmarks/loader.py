"""How fast samples come out of shards, and what bounds it; prints tables.

    python -m tests.benchmarks.loader [SHARDS] [--video FILE] [--rounds 5] [--memory-batches 10000]

A clip is 16 frames with its keyframe and four windows of motion; clips are read in batches, as a training reads them.
Beside it: bare simplejpeg on the very same bytes (the keyframes' among them), and decoding such clips from a video file
with PyAV, seek included. Without SHARDS, synthetic videos are made and extracted first. One core is measured in
processor time, so that other work on the machine counts little; workers by the clock, so leave the machine alone.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import simplejpeg
import torch
from torch.utils.data import DataLoader

from extract.cli import main as cmd_extract
from extract.ffmpeg_binary import find_ffmpeg
from extract.shard_reader import ShardSet
from train.batch import Batch, open_in_turn
from train.damage import TolerantDataset
from train.dataset import PretrainDataset
from train.epoch_sampler import EpochSampler
from train.sampling import SamplingConfig, plan_sample, sample_rng

BATCH = 32


def rate(work: Callable[[], int], clock: Callable[[], float] = time.process_time) -> float:
    """Things a second; of this process's own time, so that other work on the machine counts little."""
    start = clock()
    count = work()
    return count / (clock() - start)


def paired(first: Callable[[], int], second: Callable[[], int], rounds: int) -> list[tuple[float, float]]:
    """Rates of both, in turn, so that other work on the machine meets both alike."""
    return [(rate(first), rate(second)) for _ in range(rounds)]


def spread(values: list[float]) -> str:
    digits = 0 if statistics.median(values) >= 100 else 2
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def read_batches(data: TolerantDataset, clips: int) -> int:
    """As a worker reads them: the first ``clips`` positions of epoch 0."""
    keys = [[(0, p) for p in range(start, start + BATCH)] for start in range(0, clips, BATCH)]
    return sum(len(batch) for batch in open_in_turn(data[part] for part in keys))


def bare_bytes(shards: ShardSet, sampling: SamplingConfig, clips: int) -> list[list[bytes]]:
    """JPEG bytes of the same samples, the keyframe's last."""
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


def stream(
    shards: ShardSet, sampling: SamplingConfig, workers: int, *, batch: int = BATCH, pinned: bool = False
) -> Iterator[Batch]:
    """Batches without end, made as ``train.loop`` makes them."""
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


def make_shards(folder: Path) -> tuple[Path, Path]:
    """Synthetic videos as shards; and one of them as a 340 x 256 H.264 file of GOP 12."""
    videos, shards, online = folder / "videos", folder / "shards", folder / "online.mp4"
    for words in (
        ["synthesize", str(videos), "--videos-per-combination", "1", "--frames", "96"],
        ["run", str(videos / "manifest.csv"), str(shards)],
    ):
        cmd_extract(words, standalone_mode=False)
    source = next(path for path in sorted(videos.rglob("*")) if path.suffix in (".mp4", ".mkv", ".avi"))
    command = [find_ffmpeg().path, "-loglevel", "error", "-i", str(source), "-vf", "scale=340:256", "-c:v", "libx264"]
    subprocess.run([*command, "-g", "12", "-pix_fmt", "yuv420p", str(online)], check=True)
    return shards, online


def print_one_core(shards: ShardSet, sampling: SamplingConfig, video: Path | None, rounds: int, clips: int) -> None:
    data = TolerantDataset(PretrainDataset(shards, shards.videos, sampling, seed=0))
    bare = bare_bytes(shards, sampling, clips)
    read_batches(data, clips)
    pairs = paired(lambda: read_batches(data, clips), lambda: decode_all(bare), rounds)
    print("\n| one core, processor time | median (lowest to highest) |\n|---|---|")
    print(f"| clips a second from shards, in batches of {BATCH} | {spread([own for own, _ in pairs])} |")
    print(f"| clips a second, bare simplejpeg on the same bytes | {spread([bare for _, bare in pairs])} |")
    print(f"| share of it that is reached | {spread([own / bare for own, bare in pairs])} |")
    if video:
        online = paired(lambda: read_batches(data, clips), lambda: decode_online(video, 24, sampling), rounds)
        print(f"| online with PyAV, {describe_video(video)} | {spread([other for _, other in online])} |")
        print(f"| times as fast as that | {spread([own / other for own, other in online])} |")


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
    parser = argparse.ArgumentParser()
    parser.add_argument("shards", type=Path, nargs="?")
    parser.add_argument("--video", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--memory-batches", type=int, default=0)
    parser.add_argument("--memory-batch-size", type=int, default=BATCH)
    parser.add_argument("--stride", type=int, default=SamplingConfig().stride)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        folder, video = arguments.shards, arguments.video
        if folder is None:
            folder, video = make_shards(Path(made))
        shards, sampling = ShardSet(folder), SamplingConfig(stride=arguments.stride)
        header = shards.header
        size = f"{header.frame_width} x {header.frame_height}"
        print(f"{len(shards.videos)} videos, frames {size}, stride {sampling.stride}")
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
        if arguments.rounds:
            print_one_core(shards, sampling, video, arguments.rounds, arguments.clips)
            print_workers(shards, sampling, arguments.rounds, arguments.seconds)
        if arguments.memory_batches:
            watch_memory(shards, sampling, arguments.memory_batches, arguments.memory_batch_size)
        print(f"\nload {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
