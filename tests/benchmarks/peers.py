"""Speed at which one core reads training samples from shards, compared with other ways to store and read clips.

    python -m tests.benchmarks.peers [--rounds 5] [--quick] [--videos FILE...] [--output build/bench.json]

loader_vs_torchcodec   Ratio to TorchCodec's ``get_frames_at`` and ``Resize`` with ``seek_mode="approximate"``;
                       ``loader_vs_torchcodec_exact`` uses ``seek_mode="exact"``, which first reads the whole file.
loader_vs_decord       Ratio to decord's ``get_batch``.
loader_vs_pyav         Ratio to PyAV, see ``loader.py``.
loader_vs_webdataset   Ratio to the same clips in tar files read by WebDataset: one sample per clip, with its 16 frames
                       and its keyframe as JPEGs, decoded by simplejpeg. Clips are cut in advance.
loader_vs_jpeg_folder  Ratio to a folder of JPEG files per video, of which 16 and a keyframe are read and decoded by
                       simplejpeg.

The samples are those of ``loader.py``: 16 frames at stride 4; only shards also give motion windows, and the video
decoders give no keyframe pictures. Decoders open the video, seek, decode the 16 frames with one thread and scale them
to a height of 128 pixels; all of them read the same videos, re-encoded with GOP 12 (``..._source``: original videos).
Before the measurement, their pictures are compared with PyAV's. A peer that is not installed (extra ``bench``) or does
not work is skipped with a message.

TorchCodec's wheels contain no FFmpeg. Where the system has none, the script runs again with PyAV's libraries, so that
both decode with the same FFmpeg. Measured in CPU time of one process, all threads together.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray

from cmd_extract.shard.reader import ShardSet
from cmd_train.data.dataset import PretrainDataset
from cmd_train.data.sampling import SamplingConfig
from cmd_train.engine.damaged_samples import TolerantDataset
from tests.benchmarks.clips import describe_videos, encode, input_videos
from tests.benchmarks.harness import Settings, run_benchmark
from tests.benchmarks.loader import (
    BUFFER_BYTES,
    FRAME_HEIGHT,
    make_shards,
    read_batches,
    sample_plans,
    stored_jpegs,
    timestamps,
)
from tests.benchmarks.measuring import Result, interleave, measure_self


@dataclass(frozen=True)
class Video:
    """A video file; what a decoder could store once per data set is not part of the measurement.

    Attributes:
        path: the file.
        stamps: timestamps of all frames in presentation order.
        size: width and height after scaling.
    """

    path: Path
    stamps: list[int]
    size: tuple[int, int]

    @classmethod
    def of(cls, path: Path) -> Video:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            width = round(stream.width * FRAME_HEIGHT / stream.height)
        return cls(path, timestamps(path), (width, FRAME_HEIGHT))


Decode = Callable[[Video, Sequence[int]], NDArray[np.uint8]]
"""Decodes the frames of a video with these increasing indices: (T, height, width, 3) uint8."""

TITLES = {
    "loader_vs_torchcodec": "TorchCodec, approximate seek, on the same clips",
    "loader_vs_torchcodec_exact": "TorchCodec, exact seek, on the same clips",
    "loader_vs_decord": "decord, on the same clips",
    "loader_vs_pyav": "PyAV, on the same clips",
    "loader_vs_webdataset": "the same JPEGs in tar files, one sample per clip, read by WebDataset",
    "loader_vs_jpeg_folder": "the same JPEGs in a folder per video",
}
MAX_DIFFERENCE = 4.0  # mean over all pixels, of 255; scalers differ, other frames differ more
_BUNDLED_NAME = re.compile(r"(lib\w+)-[0-9a-f]{8}(\.so\.\d+).*")
_AGAIN = "PEERS_RUNS_AGAIN"


def with_pyav(video: Video, wanted: Sequence[int]) -> NDArray[np.uint8]:
    with av.open(str(video.path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        remaining = {video.stamps[index] for index in wanted}
        container.seek(video.stamps[wanted[0]], stream=stream)
        found = []
        for frame in container.decode(stream):
            if frame.pts in remaining:
                found.append(frame.reformat(*video.size, "rgb24").to_ndarray())
                remaining.remove(frame.pts)
            if not remaining:
                break
    return np.stack(found)


def torchcodec(seek_mode: str) -> Decode:
    decoders = importlib.import_module("torchcodec.decoders")
    transforms = importlib.import_module("torchcodec.transforms")

    def decode(video: Video, wanted: Sequence[int]) -> NDArray[np.uint8]:
        resize = transforms.Resize(video.size[::-1])
        decoder = decoders.VideoDecoder(
            str(video.path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode=seek_mode, transforms=[resize]
        )
        pixels: NDArray[np.uint8] = decoder.get_frames_at(list(wanted)).data.numpy()
        return pixels

    return decode


def decord() -> Decode:
    module = importlib.import_module("decord")

    def decode(video: Video, wanted: Sequence[int]) -> NDArray[np.uint8]:
        width, height = video.size
        reader = module.VideoReader(str(video.path), width=width, height=height, num_threads=1)
        pixels: NDArray[np.uint8] = reader.get_batch(list(wanted)).asnumpy()
        return pixels

    return decode


def find_decoders(video: Video, wanted: Sequence[int]) -> dict[str, Decode]:
    """Return the decoders that work and give the same frames as PyAV."""
    makers: dict[str, Callable[[], Decode]] = {
        "torchcodec": lambda: torchcodec("approximate"),
        "torchcodec_exact": lambda: torchcodec("exact"),
        "decord": decord,
    }
    expected = with_pyav(video, wanted).astype(np.int64)
    found: dict[str, Decode] = {"pyav": with_pyav}
    for name, make in makers.items():
        try:
            decode = make()
            difference = float(np.abs(decode(video, wanted) - expected).mean())
        except Exception as error:  # broken packages raise anything
            text = str(error).strip().splitlines()
            print(f"loader_vs_{name}: skipped, {type(error).__name__}: {text[0] if text else ''}", file=sys.stderr)
            continue
        if difference > MAX_DIFFERENCE:
            print(f"loader_vs_{name}: skipped, wrong frames (mean difference {difference:.1f})", file=sys.stderr)
            continue
        found[name] = decode
    return found


def decode_jpeg(data: bytes, buffer: bytearray) -> None:
    simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, buffer=buffer)


def write_jpeg_folders(shards: ShardSet, folder: Path) -> None:
    """Write all frames and keyframes of each video as JPEG files."""
    for number, entry in enumerate(shards.videos):
        target = folder / str(number)
        target.mkdir(parents=True)
        for frame, jpeg in enumerate(shards.frame_jpegs(entry, range(entry.frame_count))):
            (target / f"{frame:06}.jpg").write_bytes(bytes(jpeg))
        for keyframe in range(len(entry.keyframe_indices)):
            (target / f"key-{keyframe:06}.jpg").write_bytes(bytes(shards.keyframe_jpeg(entry, keyframe)))


def read_jpeg_folders(folder: Path, clips: Sequence[tuple[int, Sequence[int], int]]) -> None:
    """Read and decode clips, given as video number, frames and keyframe."""
    buffer = bytearray(BUFFER_BYTES)
    for number, frames, keyframe in clips:
        names = [f"{frame:06}.jpg" for frame in frames] + [f"key-{keyframe:06}.jpg"]
        for name in names:
            decode_jpeg((folder / str(number) / name).read_bytes(), buffer)


def write_tar(jpegs: Sequence[Sequence[bytes]], path: Path) -> None:
    """Write one WebDataset sample per clip."""
    with tarfile.open(path, "w") as tar:
        for clip, pictures in enumerate(jpegs):
            for number, data in enumerate(pictures):
                info = tarfile.TarInfo(f"{clip:06}.{number:02}.jpg")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def read_tar(path: Path, clips: int) -> None:
    webdataset = importlib.import_module("webdataset")
    buffer, count = bytearray(BUFFER_BYTES), 0
    for sample in webdataset.WebDataset(str(path), shardshuffle=False):
        for key, data in sample.items():
            if key.endswith("jpg"):
                decode_jpeg(data, buffer)
        count += 1
    assert count == clips


def storage_sides(
    settings: Settings, shards: ShardSet, sampling: SamplingConfig, clips: int
) -> dict[str, Callable[[], None]]:
    """Return the sides that read the same JPEGs from folders and tar files."""
    folder, tar = settings.folder / "jpegs", settings.folder / "clips.tar"
    write_jpeg_folders(shards, folder)
    plans = [
        (number, sorted(set(plan.clip_frames)), plan.keyframe or 0)
        for number, plan in sample_plans(shards, sampling, clips)
    ]
    sides: dict[str, Callable[[], None]] = {"jpeg_folder": lambda: read_jpeg_folders(folder, plans)}
    write_tar(stored_jpegs(shards, sampling, clips), tar)
    try:
        read_tar(tar, clips)
    except ImportError as error:
        print(f"loader_vs_webdataset: skipped, {error}", file=sys.stderr)
    else:
        sides["webdataset"] = lambda: read_tar(tar, clips)
    return sides


def benchmark(settings: Settings) -> list[Result]:
    torch.set_num_threads(1)
    videos, source = input_videos(settings.videos, settings.folder / "videos", frames=settings.size(300, 48))
    shards, sampling = ShardSet(make_shards(videos, settings.folder)), SamplingConfig()
    data = TolerantDataset(PretrainDataset(shards, shards.videos, sampling, seed=0))
    gop12 = [
        encode(video, settings.folder / f"gop12-{n}.mp4", "-c:v", "libx264", "-g", 12) for n, video in enumerate(videos)
    ]
    order = [int(entry.video_id.partition("-")[0]) for entry in shards.videos]
    clips, online = settings.size(256, 16), settings.size(32, 4)
    plans = [(order[n], sorted(set(plan.clip_frames))) for n, plan in sample_plans(shards, sampling, online)]

    def decode_clips(decode: Decode, files: Sequence[Video]) -> None:
        for number, frames in plans:
            decode(files[number], frames)

    files = {"": [Video.of(path) for path in gop12], "_source": [Video.of(path) for path in videos]}
    decoders = find_decoders(files[""][plans[0][0]], plans[0][1])
    sides: dict[str, Any] = {"shards": lambda: read_batches(data, clips)}
    sides |= storage_sides(settings, shards, sampling, clips)
    stored = len(sides)
    for suffix, paths in files.items():
        sides |= {
            f"{name}{suffix}": lambda decode=decode, paths=paths: decode_clips(decode, paths)
            for name, decode in decoders.items()
        }
    sides["shards"]()
    costs = interleave(sides, settings.rounds, measure_self)
    counts = {name: clips if position < stored else online for position, name in enumerate(sides)}
    extracted = f"{source}: {describe_videos(videos)}; extracted with default settings"
    inputs = {"": f"{source}, re-encoded: {describe_videos(gop12)}", "_source": extracted}
    results = []
    for name in list(sides)[1:]:
        is_stored, is_source = counts[name] == clips, name.endswith("_source")
        title = TITLES[f"loader_vs_{name.removesuffix('_source')}"]
        videos_read = "" if is_stored else ", original videos" if is_source else ", GOP 12"
        results.append(
            Result(
                name=f"loader_vs_{name}",
                values=tuple((r[name].cpu / counts[name]) / (r["shards"].cpu / clips) for r in costs),
                unit="x the speed",
                versus=title + videos_read,
                source=extracted if is_stored else inputs["_source" if is_source else ""],
            )
        )
    return results


def run_with_libraries_of_pyav() -> int | None:
    """Run this script again with PyAV's FFmpeg libraries in the search path if TorchCodec finds none.

    Returns:
        Its exit code; None if nothing was run.
    """
    if _AGAIN in os.environ or importlib.util.find_spec("torchcodec") is None:
        return None
    try:
        importlib.import_module("torchcodec.decoders")
    except Exception:  # it raises several types if it finds no FFmpeg
        with tempfile.TemporaryDirectory() as folder:
            for path in (Path(av.__file__).parent.parent / "av.libs").iterdir():
                for name in {path.name, _BUNDLED_NAME.sub(r"\1\2", path.name)}:
                    (Path(folder) / name).symlink_to(path)
            paths = filter(None, (folder, os.environ.get("LD_LIBRARY_PATH")))
            environment = os.environ | {_AGAIN: "1", "LD_LIBRARY_PATH": os.pathsep.join(paths)}
            command = [sys.executable, "-m", "tests.benchmarks.peers", *sys.argv[1:]]
            return subprocess.run(command, env=environment, check=False).returncode
    return None


if __name__ == "__main__":
    code = run_with_libraries_of_pyav()
    if code is not None:
        sys.exit(code)
    run_benchmark(benchmark, __doc__, sys.argv[1:])
