"""Input videos of the benchmarks, synthetic (``cmd-extract synthesize``) or given files, and their description."""

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
from tests.benchmarks.measuring import run_command

WIDTH, HEIGHT = 340, 256
# Encoder settings of streams whose own motion vectors are usable: no B-frames, one reference frame.
OWN_STREAMS = {
    "h264": (".mp4", "-c:v", "libx264", "-preset", "veryfast", "-crf", 18, "-refs", 1, "-sc_threshold", 0),
    "mpeg4": (".avi", "-c:v", "mpeg4", "-q:v", 3),
}


def synthetic_videos(folder: Path, *, frames: int, motions: int = 2, contexts: int = 2) -> list[Path]:
    """Generate two videos for each of the first motions and contexts: H.264 with B-frames, 30 fps."""
    known = SyntheticConfig()
    config = SyntheticConfig(
        videos_per_combination=2,
        width=WIDTH,
        height=HEIGHT,
        frames=frames,
        motions=known.motions[:motions],
        contexts=known.contexts[:contexts],
    )
    synthesize(config, folder, ffmpeg_binary=find_ffmpeg().path, workers=2, progress=lambda *_: None)
    return sorted((folder / "videos").glob("*.mp4"))


def encode(source: Path, target: Path, *options: object, repeat: int = 1) -> Path:
    """Encode ``repeat`` repetitions of a video with one thread."""
    input_options = ("-stream_loop", repeat - 1, "-i", source)
    run_command(find_ffmpeg().path, "-loglevel", "error", "-y", *input_options, "-an", *options, "-threads", 1, target)
    return target


def encode_own_stream(video: Path, target: Path, codec: str) -> Path:
    """Encode at 340 x 256 pixels with GOP 12 and usable motion vectors; the codec's suffix is added to ``target``."""
    suffix, *encoder = OWN_STREAMS[codec]
    size = ("-vf", f"scale={WIDTH}:{HEIGHT},setsar=1", "-pix_fmt", "yuv420p")
    return encode(video, target.with_suffix(str(suffix)), *size, *encoder, "-bf", 0, "-g", 12)


def write_manifest(path: Path, videos: Sequence[Path], copies: int = 1) -> Path:
    """Write a manifest that lists every video ``copies`` times."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "path"])
        writer.writerows((f"{number}-{copy}", v) for copy in range(copies) for number, v in enumerate(videos))
    return path


def describe_videos(videos: Sequence[Path], copies: int = 1) -> str:
    """Describe similar videos: number, length, codec, size, GOP (of the first video), frame rate and bit rate."""
    frames, seconds = 0, 0.0
    for video in videos:
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            length = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
            frames, seconds = frames + length, seconds + length / float(stream.average_rate or 25)
    kilobits = sum(video.stat().st_size for video in videos) * 8 / 1000 / seconds
    with av.open(str(videos[0])) as container:
        stream = container.streams.video[0]
        first_frames = list(itertools.islice(container.decode(stream), 600))
        picture = f"{stream.codec_context.name}, {stream.width} x {stream.height}"
    gaps = np.diff([number for number, frame in enumerate(first_frames) if frame.key_frame])
    gop = f"GOP {int(np.median(gaps))}" if len(gaps) else f"one keyframe in {len(first_frames)} frames"
    kinds = "B-frames" if any(frame.pict_type == PictureType.B for frame in first_frames) else "no B-frames"
    count = "1 video" if len(videos) == 1 else f"{len(videos)} videos"
    times = f", {copies} times each" if copies > 1 else ""
    return (
        f"{count}{times}, {frames // len(videos)} frames, {picture}, {gop}, {kinds}, "
        f"{frames / seconds:.0f} frames/s, {kilobits:.0f} kbit/s"
    )


def input_videos(given: Sequence[Path], folder: Path, *, frames: int) -> tuple[list[Path], str]:
    """Return the given videos, or eight synthetic ones, and a description of their source."""
    if given:
        return list(given), "given files: " + ", ".join(path.name for path in given)
    return synthetic_videos(folder, frames=frames), "synthetic videos (cmd_extract.synthetic)"
