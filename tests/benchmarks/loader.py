"""How fast one core reads training samples out of shards, and what bounds it.

    python -m tests.benchmarks.loader [--rounds 5] [--quick] [--videos FILE...] [--output build/bench.json]

loader_clips_core  Clips a second, as a data worker reads them: a clip is 16 frames of stride 4 with its keyframe and
                   four windows of motion; batches of 32.
loader_vs_jpeg     Over bare simplejpeg that decodes the very same bytes, the keyframes' among them.
loader_vs_online   Over decoding the 16 frames of the same clips from the videos with PyAV, one thread: opened, sought
                   to the keyframe before, decoded, scaled to 128 rows. The videos are encoded anew with GOP 12, which
                   suits that best; ``loader_vs_online_source`` takes the videos as they are. No keyframe picture and
                   no motion is read online.

Processor time of one process and one thread.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import av
import simplejpeg
import torch

from cmd_extract.shard.reader import ShardSet
from cmd_train.data.batch import open_in_turn
from cmd_train.data.dataset import PretrainDataset
from cmd_train.data.sampling import SamplePlan, SamplingConfig, plan_sample, sample_rng
from cmd_train.engine.damage import TolerantDataset
from tests.benchmarks.clips import describe, encode, take_videos, write_manifest
from tests.benchmarks.extraction_speed import run_extract
from tests.benchmarks.measuring import Result, measure_own, take_turns
from tests.benchmarks.subject import Plan, run_subject

BATCH = 32
ROWS = 128
LARGEST_PICTURE = 340 * 256 * 3


def make_shards(videos: Sequence[Path], folder: Path) -> Path:
    """Shards of the videos, everything on."""
    out = folder / "shards"
    run_extract(write_manifest(folder / "shards.csv", videos), out, 2)
    return out


def plans_of(shards: ShardSet, sampling: SamplingConfig, clips: int) -> list[tuple[int, SamplePlan]]:
    """Number of the video and plan of the first samples of epoch 0, seed 0."""
    found = []
    for position in range(clips):
        number = position % len(shards.videos)
        entry = shards.videos[number]
        rng = sample_rng(0, 0, position)
        found.append((number, plan_sample(entry.frame_count, entry.keyframe_indices, sampling, rng)))
    return found


def read_batches(data: TolerantDataset, clips: int) -> None:
    """As a worker reads them: the first ``clips`` positions of epoch 0."""
    keys = [[(0, p) for p in range(start, min(start + BATCH, clips))] for start in range(0, clips, BATCH)]
    count = sum(len(batch) for batch in open_in_turn(data[part] for part in keys))
    assert count == clips


def bare_bytes(shards: ShardSet, sampling: SamplingConfig, clips: int) -> list[list[bytes]]:
    """JPEG bytes of the same samples, the keyframe's last."""
    out = []
    for number, plan in plans_of(shards, sampling, clips):
        entry = shards.videos[number]
        assert plan.keyframe is not None, "every video has one"
        jpegs = [bytes(jpeg) for jpeg in shards.frame_jpegs(entry, sorted(set(plan.clip_frames)))]
        out.append([*jpegs, bytes(shards.keyframe_jpeg(entry, plan.keyframe))])
    return out


def decode_all(clips: list[list[bytes]]) -> int:
    memory = bytearray(LARGEST_PICTURE)  # always the same, which is quicker than fresh memory for each picture
    for clip in clips:
        for jpeg in clip:
            simplejpeg.decode_jpeg(jpeg, "RGB", fastdct=False, fastupsample=False, buffer=memory)
    return len(clips)


def time_stamps(path: Path) -> list[int]:
    """Of all frames, in order of presentation."""
    with av.open(str(path)) as container:
        return sorted(packet.pts for packet in container.demux(video=0) if packet.pts is not None)


def decode_online(path: Path, stamps: Sequence[int]) -> None:
    """The frames of these time stamps, which rise: opened, sought, decoded to the last, scaled."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        container.seek(stamps[0], stream=stream)
        wanted, taken = set(stamps), 0
        for frame in container.decode(stream):
            if frame.pts in wanted:
                frame.reformat(round(frame.width * ROWS / frame.height), ROWS, "rgb24").to_ndarray()
                taken += 1
            if taken == len(wanted):
                return
    raise RuntimeError(f"{path.name}: found {taken} of {len(wanted)} frames")


def benchmark(plan: Plan) -> list[Result]:
    torch.set_num_threads(1)
    videos, source = take_videos(plan.videos, plan.folder / "made", frames=plan.size(300, 48))
    shards, sampling = ShardSet(make_shards(videos, plan.folder)), SamplingConfig()
    data = TolerantDataset(PretrainDataset(shards, shards.videos, sampling, seed=0))
    short = [
        encode(video, plan.folder / f"gop12-{n}.mp4", "-c:v", "libx264", "-g", 12) for n, video in enumerate(videos)
    ]
    # Shards may hold the videos in another order than they were named.
    order = [int(entry.video_id.partition("-")[0]) for entry in shards.videos]
    clips, online = plan.size(256, 16), plan.size(32, 4)
    bare = bare_bytes(shards, sampling, clips)

    stamps = {path: time_stamps(path) for path in (*short, *videos)}

    def decode_from(files: Sequence[Path]) -> None:
        for number, sample in plans_of(shards, sampling, online):
            path = files[order[number]]
            decode_online(path, [stamps[path][frame] for frame in sorted(set(sample.clip_frames))])

    sides = {
        "shards": lambda: read_batches(data, clips),
        "jpeg": lambda: decode_all(bare),
        "online": lambda: decode_from(short),
        "source": lambda: decode_from(videos),
    }
    read_batches(data, clips)
    seen = take_turns(sides, plan.rounds, measure_own)
    rates = [{name: (clips if name in ("shards", "jpeg") else online) / r[name].cpu for name in sides} for r in seen]
    anew = f"{source}, encoded anew for PyAV: {describe(short)}"
    told = f"{source}: {describe(videos)}; as shards with all defaults (frames of 170 x 128, keyframes of 340 x 256)"

    def over(name: str, peer: str, versus: str, words: str) -> Result:
        ratios = tuple(row["shards"] / row[peer] for row in rates)
        return Result(name=name, values=ratios, unit="x the speed", versus=versus, source=words)

    own = tuple(row["shards"] for row in rates)
    return [
        Result(name="loader_clips_core", values=own, unit="clips/s and core", versus="processor time", source=told),
        over("loader_vs_online", "online", "PyAV on the same clips, GOP 12", anew),
        over("loader_vs_online_source", "source", "PyAV on the same clips, videos as they are", told),
        over("loader_vs_jpeg", "jpeg", "bare simplejpeg on the same bytes", told),
    ]


if __name__ == "__main__":
    run_subject(benchmark, __doc__, sys.argv[1:])
