"""Vectors, grids and keyframes of streams that need no transcoding, against other ways to read or decode them.

    python -m tests.benchmarks.vectors [--rounds 5] [--quick] [--videos FILE...] [--output build/bench.json]

The videos are encoded anew as 340 x 256 H.264 and MPEG-4 of GOP 12 without B-frames. Each stream is then repeated in
one file, 16 and 28 times, so that the start of a program counts little beside a file. These files are read by

- ``cmd-extract run --transcode never --no-frames --workers 1``, which writes shards with keyframes; its start
  (half a second) is in it;
- mvextractor's own loop, vectors only, discarding what it reads (one Python for all files);

and files of a quarter of their length by what is slower, of which all but the start is counted four times:

- PyAV with one thread, the vectors of every frame as an array, discarded (one Python for all files);
- ``ffmpeg -i FILE -f null -`` with FFmpeg's own choice of threads, once a file: decoding alone.

All in processor time. ``vectors_vs_mvextractor_running`` is without the start of either side, as seen with a video of
one frame: what holds for long runs. ``vectors_fps_core`` and the ratios of speed are the worse of the two codecs; those
of each codec have its name at their end.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cmd_extract.decode.ffmpeg import find_ffmpeg
from tests.benchmarks.clips import OWN_STREAMS, describe, encode, encode_own, take_videos, write_manifest
from tests.benchmarks.extraction_speed import MVEXTRACTOR_LOOP, count_frames, run_extract
from tests.benchmarks.measuring import PYTHON, Cost, Result, call, take_turns
from tests.benchmarks.subject import Plan, run_subject

PYAV_LOOP = """
import sys
import av
for path in sys.argv[1:]:
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"flags2": "+export_mvs"}
        for frame in container.decode(stream):
            vectors = frame.side_data.get("MOTION_VECTORS")
            if vectors is not None:
                vectors.to_ndarray()
"""
# The faster a codec is read, the longer must it be read. Multiples of SHARE.
REPEATS = {"h264": 16, "mpeg4": 28}
# What PyAV and FFmpeg alone read is shorter by this.
SHARE = 4
PEERS = {
    "mvextractor": "mvextractor's own loop, vectors only",
    "pyav": "PyAV, one thread, vectors as arrays; on a quarter of each file",
    "decode": "ffmpeg -f null, decoding alone; on a quarter of each file",
}


def measure_codec(plan: Plan, codec: str, files: list[Path], short: list[Path]) -> tuple[int, list[dict[str, Cost]]]:
    """Frames, and the costs of each round; of the sides that read ``short``, reckoned for ``files``."""
    manifest, out = write_manifest(plan.folder / f"{codec}.csv", files), plan.folder / "out"

    def decode(videos: list[Path]) -> None:
        for video in videos:
            call(find_ffmpeg().path, "-loglevel", "error", "-nostdin", "-i", video, "-f", "null", "-")

    frame = encode(short[0], plan.folder / f"{codec}-frame{short[0].suffix}", "-c", "copy", "-frames:v", 1)
    single = write_manifest(plan.folder / f"{codec}-frame.csv", [frame])

    def own(videos: Path, out: Path) -> None:
        run_extract(videos, out, 1, "--transcode", "never", "--no-frames")

    sides = {
        "own": lambda: own(manifest, out),
        "mvextractor": lambda: call(*PYTHON, MVEXTRACTOR_LOOP, *files),
        "pyav": lambda: call(*PYTHON, PYAV_LOOP, *short),
        "decode": lambda: decode(short),
        "own start": lambda: own(single, plan.folder / "single"),
        "mvextractor start": lambda: call(*PYTHON, MVEXTRACTOR_LOOP, frame),
        "pyav start": lambda: call(*PYTHON, PYAV_LOOP, frame),
        "decode start": lambda: decode([frame] * len(short)),
    }
    seen = take_turns(sides, plan.rounds)
    for row in seen:
        if plan.quick:  # all is about as short as a start
            row |= {name: Cost(cpu=0.0, wall=0.0) for name in sides if name.endswith(" start")}
        longer = plan.size(SHARE, 1)
        row |= {name: lengthened(row[name], row[f"{name} start"], longer) for name in ("pyav", "decode")}
    return count_frames(out), seen


def lengthened(cost: Cost, start: Cost, times: int) -> Cost:
    """What input of so many times the length would cost: it is begun once."""
    cpu, wall = start.cpu + times * (cost.cpu - start.cpu), start.wall + times * (cost.wall - start.wall)
    return Cost(cpu=cpu, wall=wall)


def results_of(codec: str, frames: int, seen: list[dict[str, Cost]], source: str) -> list[Result]:
    rates = tuple(frames / row["own"].cpu for row in seen)
    words = "cmd-extract run --transcode never --no-frames, processor time"
    found = [
        Result(name=f"vectors_fps_core_{codec}", values=rates, unit="frames/s and core", versus=words, source=source)
    ]
    for peer, told in PEERS.items():
        ratios = tuple(row[peer].cpu / row["own"].cpu for row in seen)
        name = f"vectors_vs_{peer}_{codec}"
        found.append(Result(name=name, values=ratios, unit="x the speed", versus=told, source=source))
    running = tuple(
        (row["mvextractor"].cpu - row["mvextractor start"].cpu) / (row["own"].cpu - row["own start"].cpu)
        for row in seen
    )
    name, told = f"vectors_vs_mvextractor_running_{codec}", "the same loop, less the start of either side"
    found.append(Result(name=name, values=running, unit="x the speed", versus=told, source=source))
    return found


def worse_of(results: list[Result]) -> list[Result]:
    """For each figure the codec of the lower median, under the name without its codec."""
    by_name: dict[str, list[Result]] = {}
    for result in results:
        by_name.setdefault(result.name.rpartition("_")[0], []).append(result)
    found = []
    for name, both in by_name.items():
        worst = min(both, key=lambda result: result.value)
        codec = worst.name.rpartition("_")[2]
        told = f"{worst.versus}; the worse codec ({codec})"
        found.append(Result(name=name, values=worst.values, unit=worst.unit, versus=told, source=worst.source))
    return found


def benchmark(plan: Plan) -> list[Result]:
    videos, source = take_videos(plan.videos, plan.folder / "made", frames=plan.size(300, 24))
    results = []
    for codec in OWN_STREAMS:
        files, short = [], []
        for number, video in enumerate(videos[:4]):
            once = encode_own(video, plan.folder / f"{codec}-{number}-once", codec)
            for made, times in ((files, REPEATS[codec]), (short, REPEATS[codec] // SHARE)):
                target = plan.folder / f"{codec}-{number}-{times}{once.suffix}"
                made.append(encode(once, target, "-c", "copy", repeat=plan.size(times, 1)))
        seen = measure_codec(plan, codec, files, short)
        results += results_of(codec, *seen, f"{source}, encoded anew: {describe(files)}")
    return worse_of(results) + results


if __name__ == "__main__":
    run_subject(benchmark, __doc__, sys.argv[1:])
