"""Motion vectors, grids and keyframes of streams that need no transcoding, compared with other readers and decoders.

    python -m tests.benchmarks.vectors [--rounds 5] [--quick] [--videos FILE...] [--output build/bench.json]

The videos are re-encoded as H.264 and MPEG-4 at 340 x 256 with GOP 12 and without B-frames. Each stream is then
repeated 16 (H.264) or 28 times (MPEG-4) in one file, so that program start-up has little weight. The files are read by

- ``cmd-extract run --transcode never --no-frames --workers 1``, which writes shards with keyframes; its start-up (about
  half a second) is included;
- mvextractor's own loop, vectors only, discarding its output (one Python process for all files).

Slower readers get files a quarter as long; their time, except start-up, counts four times:

- PyAV with one thread, the motion vectors of every frame as an array, discarded (one Python process for all files);
- ``ffmpeg -i FILE -f null -`` with FFmpeg's default number of threads, one process per file: decoding alone.

Everything is CPU time. ``vectors_vs_mvextractor_running`` excludes the start-up of both sides, measured with a
video of one frame; this applies to long runs. ``vectors_fps_core`` and the speed ratios are those of the worse codec;
the names of figures per codec end in the codec.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cmd_extract.decode.ffmpeg import find_ffmpeg
from tests.benchmarks.clips import OWN_STREAMS, describe_videos, encode, encode_own_stream, input_videos, write_manifest
from tests.benchmarks.extraction_speed import MVEXTRACTOR_LOOP, count_frames, run_extract
from tests.benchmarks.harness import Settings, run_benchmark
from tests.benchmarks.measuring import PYTHON, Cost, Result, interleave, run_command

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
# Repetitions per file; a codec that is read faster needs longer files. Multiples of SHARE.
REPEATS = {"h264": 16, "mpeg4": 28}
# Factor by which the files for PyAV and FFmpeg are shorter.
SHARE = 4
PEERS = {
    "mvextractor": "mvextractor's own loop, vectors only",
    "pyav": "PyAV, one thread, vectors as arrays; on a quarter of each file",
    "decode": "ffmpeg -f null, decoding alone; on a quarter of each file",
}


def measure_codec(
    settings: Settings, codec: str, files: list[Path], short: list[Path]
) -> tuple[int, list[dict[str, Cost]]]:
    """Return the number of frames and the costs per round; costs of reading ``short`` are scaled to ``files``."""
    manifest, out = write_manifest(settings.folder / f"{codec}.csv", files), settings.folder / "out"

    def decode(videos: list[Path]) -> None:
        for video in videos:
            run_command(find_ffmpeg().path, "-loglevel", "error", "-nostdin", "-i", video, "-f", "null", "-")

    frame = encode(short[0], settings.folder / f"{codec}-frame{short[0].suffix}", "-c", "copy", "-frames:v", 1)
    single = write_manifest(settings.folder / f"{codec}-frame.csv", [frame])

    def extract(manifest: Path, out: Path) -> None:
        run_extract(manifest, out, 1, "--transcode", "never", "--no-frames")

    sides = {
        "cmd-extract": lambda: extract(manifest, out),
        "mvextractor": lambda: run_command(*PYTHON, MVEXTRACTOR_LOOP, *files),
        "pyav": lambda: run_command(*PYTHON, PYAV_LOOP, *short),
        "decode": lambda: decode(short),
        "cmd-extract start": lambda: extract(single, settings.folder / "single"),
        "mvextractor start": lambda: run_command(*PYTHON, MVEXTRACTOR_LOOP, frame),
        "pyav start": lambda: run_command(*PYTHON, PYAV_LOOP, frame),
        "decode start": lambda: decode([frame] * len(short)),
    }
    costs = interleave(sides, settings.rounds)
    for row in costs:
        if settings.quick:  # everything is about as short as start-up
            row |= {name: Cost(cpu=0.0, wall=0.0) for name in sides if name.endswith(" start")}
        times = settings.size(SHARE, 1)
        row |= {name: scale_cost(row[name], row[f"{name} start"], times) for name in ("pyav", "decode")}
    return count_frames(out), costs


def scale_cost(cost: Cost, start: Cost, times: int) -> Cost:
    """Return the cost of input that is ``times`` as long; start-up counts once."""
    cpu, wall = start.cpu + times * (cost.cpu - start.cpu), start.wall + times * (cost.wall - start.wall)
    return Cost(cpu=cpu, wall=wall)


def codec_results(codec: str, frames: int, costs: list[dict[str, Cost]], source: str) -> list[Result]:
    rates = tuple(frames / row["cmd-extract"].cpu for row in costs)
    versus = "cmd-extract run --transcode never --no-frames, CPU time"
    results = [
        Result(name=f"vectors_fps_core_{codec}", values=rates, unit="frames/s per core", versus=versus, source=source)
    ]
    for peer, versus in PEERS.items():
        ratios = tuple(row[peer].cpu / row["cmd-extract"].cpu for row in costs)
        name = f"vectors_vs_{peer}_{codec}"
        results.append(Result(name=name, values=ratios, unit="x the speed", versus=versus, source=source))
    running = tuple(
        (row["mvextractor"].cpu - row["mvextractor start"].cpu)
        / (row["cmd-extract"].cpu - row["cmd-extract start"].cpu)
        for row in costs
    )
    name, versus = f"vectors_vs_mvextractor_running_{codec}", "the same loop, both minus start-up"
    results.append(Result(name=name, values=running, unit="x the speed", versus=versus, source=source))
    return results


def worse_codec(results: list[Result]) -> list[Result]:
    """Return each figure of the codec with the lower median, under the name without the codec."""
    by_name: dict[str, list[Result]] = {}
    for result in results:
        by_name.setdefault(result.name.rpartition("_")[0], []).append(result)
    worse = []
    for name, both in by_name.items():
        worst = min(both, key=lambda result: result.value)
        codec = worst.name.rpartition("_")[2]
        versus = f"{worst.versus}; the worse codec ({codec})"
        worse.append(Result(name=name, values=worst.values, unit=worst.unit, versus=versus, source=worst.source))
    return worse


def benchmark(settings: Settings) -> list[Result]:
    videos, source = input_videos(settings.videos, settings.folder / "videos", frames=settings.size(300, 24))
    results = []
    for codec in OWN_STREAMS:
        files, short = [], []
        for number, video in enumerate(videos[:4]):
            once = encode_own_stream(video, settings.folder / f"{codec}-{number}-once", codec)
            for group, times in ((files, REPEATS[codec]), (short, REPEATS[codec] // SHARE)):
                target = settings.folder / f"{codec}-{number}-{times}{once.suffix}"
                group.append(encode(once, target, "-c", "copy", repeat=settings.size(times, 1)))
        frames, costs = measure_codec(settings, codec, files, short)
        results += codec_results(codec, frames, costs, f"{source}, re-encoded: {describe_videos(files)}")
    return worse_codec(results) + results


if __name__ == "__main__":
    run_benchmark(benchmark, __doc__, sys.argv[1:])
