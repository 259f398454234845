"""Speed at which one core reads training samples from shards, and what limits it.

    python -m tests.benchmarks.loader [--rounds 5] [--quick] [--videos FILE...] [--output build/bench.json]

loader_clips_core  Clips/s as read by a data worker, in batches of 32. A clip is 16 frames at stride 4 with its keyframe
                   and four motion windows.
loader_vs_jpeg     Ratio to plain simplejpeg decoding of exactly the same bytes, including the keyframes.
loader_vs_online   Ratio to decoding the 16 frames of the same clips from the videos with PyAV and one thread: open,
                   seek to the keyframe before the clip, decode, scale to a height of 128. The videos are re-encoded
                   with GOP 12, the best case for PyAV; ``loader_vs_online_source`` uses the original videos. PyAV
                   decodes neither keyframe pictures nor motion.

Measured in CPU time of one process with one thread.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import av
import simplejpeg
import torch

from cmd_extract.shard.reader import ShardSet
from cmd_train.data.batch import unpack_batches
from cmd_train.data.dataset import PretrainDataset
from cmd_train.data.sampling import SamplePlan, SamplingConfig, plan_sample, sample_rng
from cmd_train.engine.damaged_samples import TolerantDataset
from tests.benchmarks.clips import describe_videos, encode, input_videos, write_manifest
from tests.benchmarks.extraction_speed import run_extract
from tests.benchmarks.harness import Settings, run_benchmark
from tests.benchmarks.measuring import Result, interleave, measure_self

BATCH = 32
FRAME_HEIGHT = 128
BUFFER_BYTES = 340 * 256 * 3  # the largest picture, a keyframe


def make_shards(videos: Sequence[Path], folder: Path) -> Path:
    """Extract the videos with all outputs and return the folder of the shards."""
    out = folder / "shards"
    run_extract(write_manifest(folder / "shards.csv", videos), out, 2)
    return out


def sample_plans(shards: ShardSet, sampling: SamplingConfig, clips: int) -> list[tuple[int, SamplePlan]]:
    """Return video index and plan of the first samples of epoch 0 with seed 0."""
    plans = []
    for position in range(clips):
        number = position % len(shards.videos)
        entry = shards.videos[number]
        rng = sample_rng(0, 0, position)
        plans.append((number, plan_sample(entry.frame_count, entry.keyframe_indices, sampling, rng)))
    return plans


def read_batches(data: TolerantDataset, clips: int) -> None:
    """Read the first ``clips`` samples of epoch 0 in batches, as a data worker does."""
    keys = [[(0, p) for p in range(start, min(start + BATCH, clips))] for start in range(0, clips, BATCH)]
    count = sum(len(batch) for batch in unpack_batches(data[part] for part in keys))
    assert count == clips


def stored_jpegs(shards: ShardSet, sampling: SamplingConfig, clips: int) -> list[list[bytes]]:
    """Return the JPEGs of the same samples, the keyframe last."""
    out = []
    for number, plan in sample_plans(shards, sampling, clips):
        entry = shards.videos[number]
        assert plan.keyframe is not None, "every video has a keyframe"
        jpegs = [bytes(jpeg) for jpeg in shards.frame_jpegs(entry, sorted(set(plan.clip_frames)))]
        out.append([*jpegs, bytes(shards.keyframe_jpeg(entry, plan.keyframe))])
    return out


def decode_all(clips: list[list[bytes]]) -> int:
    buffer = bytearray(BUFFER_BYTES)  # reusing one buffer is faster than allocating memory for each picture
    for clip in clips:
        for jpeg in clip:
            simplejpeg.decode_jpeg(jpeg, "RGB", fastdct=False, fastupsample=False, buffer=buffer)
    return len(clips)


def timestamps(path: Path) -> list[int]:
    """Return the timestamps of all frames in presentation order."""
    with av.open(str(path)) as container:
        return sorted(packet.pts for packet in container.demux(video=0) if packet.pts is not None)


def decode_online(path: Path, wanted: Sequence[int]) -> None:
    """Open the video, seek, decode and scale the frames with these timestamps, given in increasing order."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        container.seek(wanted[0], stream=stream)
        remaining = set(wanted)
        for frame in container.decode(stream):
            if frame.pts in remaining:
                frame.reformat(round(frame.width * FRAME_HEIGHT / frame.height), FRAME_HEIGHT, "rgb24").to_ndarray()
                remaining.remove(frame.pts)
            if not remaining:
                return
    raise RuntimeError(f"{path.name}: {len(remaining)} of {len(wanted)} frames not found")


def benchmark(settings: Settings) -> list[Result]:
    torch.set_num_threads(1)
    videos, source = input_videos(settings.videos, settings.folder / "videos", frames=settings.size(300, 48))
    shards, sampling = ShardSet(make_shards(videos, settings.folder)), SamplingConfig()
    data = TolerantDataset(PretrainDataset(shards, shards.videos, sampling, seed=0))
    gop12 = [
        encode(video, settings.folder / f"gop12-{n}.mp4", "-c:v", "libx264", "-g", 12) for n, video in enumerate(videos)
    ]
    # The order in the shards may differ from the order of the input files.
    order = [int(entry.video_id.partition("-")[0]) for entry in shards.videos]
    clips, online = settings.size(256, 16), settings.size(32, 4)
    jpegs = stored_jpegs(shards, sampling, clips)

    frame_times = {path: timestamps(path) for path in (*gop12, *videos)}

    def decode_from(files: Sequence[Path]) -> None:
        for number, sample in sample_plans(shards, sampling, online):
            path = files[order[number]]
            decode_online(path, [frame_times[path][frame] for frame in sorted(set(sample.clip_frames))])

    sides = {
        "shards": lambda: read_batches(data, clips),
        "jpeg": lambda: decode_all(jpegs),
        "online": lambda: decode_from(gop12),
        "source": lambda: decode_from(videos),
    }
    read_batches(data, clips)
    costs = interleave(sides, settings.rounds, measure_self)
    rates = [{name: (clips if name in ("shards", "jpeg") else online) / r[name].cpu for name in sides} for r in costs]
    reencoded = f"{source}, re-encoded for PyAV: {describe_videos(gop12)}"
    shard_source = (
        f"{source}: {describe_videos(videos)}; extracted with default settings (frames 170 x 128, keyframes 340 x 256)"
    )

    def ratio(name: str, peer: str, versus: str, source: str) -> Result:
        values = tuple(row["shards"] / row[peer] for row in rates)
        return Result(name=name, values=values, unit="x the speed", versus=versus, source=source)

    loaded = tuple(row["shards"] for row in rates)
    return [
        Result(
            name="loader_clips_core",
            values=loaded,
            unit="clips/s per core",
            versus="CPU time",
            source=shard_source,
        ),
        ratio("loader_vs_online", "online", "PyAV on the same clips, GOP 12", reencoded),
        ratio("loader_vs_online_source", "source", "PyAV on the same clips, original videos", shard_source),
        ratio("loader_vs_jpeg", "jpeg", "plain simplejpeg on the same bytes", shard_source),
    ]


if __name__ == "__main__":
    run_benchmark(benchmark, __doc__, sys.argv[1:])
