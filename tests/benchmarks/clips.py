"""The videos that benchmarks run on: synthetic ones (``cmd-extract synthesize``) or named files, and what they are."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from av.video.frame import PictureType

from cmd_extract.decode.ffmpeg import find_ffmpeg
from cmd_extract.synthetic.dataset import SyntheticConfig, synthesize
from tests.benchmarks.measuring import call

WIDTH, HEIGHT = 340, 256
# Settings of streams whose own vectors can be used: no B-frames, one reference.
OWN_STREAMS = {
    "h264": (".mp4", "-c:v", "libx264", "-preset", "veryfast", "-crf", 18, "-refs", 1, "-sc_threshold", 0),
    "mpeg4": (".avi", "-c:v", "mpeg4", "-q:v", 3),
}


def synthetic_videos(folder: Path, *, frames: int, motions: int = 2, contexts: int = 2) -> list[Path]:
    """Two videos of each of the first motions and contexts: H.264 with B-frames at 30 frames a second."""
    known = SyntheticConfig()
    config = SyntheticConfig(
        videos_per_combination=2,
        width=WIDTH,
        height=HEIGHT,
        frames=frames,
        motions=known.motions[:motions],
        contexts=known.contexts[:contexts],
    )
    synthesize(config, folder, ffmpeg_binary=find_ffmpeg().path, workers=2, progress=lambda done, all: None)
    return sorted((folder / "videos").glob("*.mp4"))


def encode(source: Path, target: Path, *options: object, repeat: int = 1) -> Path:
    """Encodes a video anew, ``repeat`` times over, with one thread."""
    reading = ("-stream_loop", repeat - 1, "-i", source)
    call(find_ffmpeg().path, "-loglevel", "error", "-y", *reading, "-an", *options, "-threads", 1, target)
    return target


def encode_own(video: Path, target: Path, codec: str) -> Path:
    """A stream of 340 x 256 pixels and GOP 12 whose own vectors can be used; the suffix is added."""
    suffix, *coder = OWN_STREAMS[codec]
    size = ("-vf", f"scale={WIDTH}:{HEIGHT},setsar=1", "-pix_fmt", "yuv420p")
    return encode(video, target.with_suffix(str(suffix)), *size, *coder, "-bf", 0, "-g", 12)


def write_manifest(path: Path, videos: Sequence[Path], copies: int = 1) -> Path:
    """A manifest of the videos, each ``copies`` times."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "path"])
        writer.writerows((f"{number}-{copy}", v) for copy in range(copies) for number, v in enumerate(videos))
    return path


def describe(videos: Sequence[Path], copies: int = 1) -> str:
    """Number, codec, size, GOP and bit rate of videos that are alike; the GOP is that of the first."""
    frames, seconds = 0, 0.0
    for video in videos:
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            count = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
            frames, seconds = frames + count, seconds + count / float(stream.average_rate or 25)
    kilobits = sum(video.stat().st_size for video in videos) * 8 / 1000 / seconds
    with av.open(str(videos[0])) as container:
        stream = container.streams.video[0]
        shown = list(itertools.islice(container.decode(stream), 600))
        what = f"{stream.codec_context.name}, {stream.width} x {stream.height}"
    gaps = np.diff([number for number, frame in enumerate(shown) if frame.key_frame])
    gop = f"GOP {int(np.median(gaps))}" if len(gaps) else f"one keyframe in {len(shown)} frames"
    kinds = "B-frames" if any(frame.pict_type == PictureType.B for frame in shown) else "no B-frames"
    times = f", {copies} times each" if copies > 1 else ""
    return (
        f"{len(videos)} videos{times}, {frames // len(videos)} frames, {what}, {gop}, {kinds}, "
        f"{frames / seconds:.0f} frames/s, {kilobits:.0f} kbit/s"
    )


def take_videos(named: Sequence[Path], folder: Path, *, frames: int) -> tuple[list[Path], str]:
    """The named videos, else eight synthetic ones; and what they are."""
    if named:
        return list(named), "named files: " + ", ".join(path.name for path in named)
    return synthetic_videos(folder, frames=frames), "synthetic videos (cmd_extract.synthetic.dataset)"
