"""A labelled synthetic data set: what moves and what it moves in front of are independent of one another.

The label is the motion class and the group the context class (texture and palette of the background). A method that
learns motion retrieves by label, one that learns only appearance retrieves by group. Frames come from
``cmd_extract.synthetic.scenes``; FFmpeg encodes them as ordinary H.264 with B-frames.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import ffmpeg
import joblib
import numpy as np
from numpy.typing import NDArray

from cmd_extract.errors import SynthesisError
from cmd_extract.manifest.records import write_manifest
from cmd_extract.schema import VideoRecord
from cmd_extract.synthetic.scenes import MOTIONS, draw_frames, make_scene, video_rng
from cmd_extract.synthetic.textures import CONTEXTS

MANIFEST_NAME = "manifest.csv"
CONFIG_NAME = "synthetic.json"
SPLIT_COLUMN = "split"
SHOWN_ERROR_LINES = 10


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """Everything that decides a synthetic data set.

    Attributes:
        videos_per_combination: videos of each pair of motion and context, at least 2 (one to train, one to test).
        width, height: picture size in pixels, even, at least 64.
        frames: frames of each video.
        fps: frames per second.
        seed: changes every video; from 0.
        motions: motion classes, out of ``cmd_extract.synthetic.scenes.MOTIONS``.
        contexts: context classes, out of ``cmd_extract.synthetic.textures.CONTEXTS``.
    """

    videos_per_combination: int = 4
    width: int = 340
    height: int = 256
    frames: int = 96
    fps: int = 30
    seed: int = 0
    motions: tuple[str, ...] = MOTIONS
    contexts: tuple[str, ...] = CONTEXTS

    def __post_init__(self) -> None:
        limits = {
            "videos_per_combination": (2, 10_000),
            "width": (64, 4096),
            "height": (64, 4096),
            "frames": (2, 100_000),
            "fps": (1, 240),
            "seed": (0, 2**63 - 1),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name}: {value} is not between {low} and {high}")
        for name in ("width", "height"):
            if getattr(self, name) % 2:
                raise ValueError(f"{name}: {getattr(self, name)} is odd, need an even number of pixels")
        for name, known in (("motions", MOTIONS), ("contexts", CONTEXTS)):
            values = getattr(self, name)
            unknown = [value for value in values if value not in known]
            if unknown or not values or len(set(values)) != len(values):
                raise ValueError(f"{name}: {values} must be one or more different names out of {', '.join(known)}")

    @property
    def test_videos_per_combination(self) -> int:
        """How many videos of each pair are test: a quarter, rounded, but at least one."""
        return max(1, (self.videos_per_combination + 2) // 4)


def plan(config: SyntheticConfig) -> tuple[VideoRecord, ...]:
    """The manifest of a synthetic data set: every pair of motion and context equally often in train and in test.

    Args:
        config: the data set.

    Returns:
        Records ordered by motion, context and number, with ids like ``left-bricks-00``, paths like
        ``videos/left-bricks-00.mp4``, the motion as label, the context as group and the part in ``split``.
    """
    count = config.videos_per_combination
    digits = max(2, len(str(count - 1)))
    records: list[VideoRecord] = []
    for motion in config.motions:
        for context in config.contexts:
            for number in range(count):
                video_id = f"{motion}-{context}-{number:0{digits}d}"
                part = "train" if number < count - config.test_videos_per_combination else "test"
                records.append(
                    VideoRecord(
                        row=len(records),
                        video_id=video_id,
                        path=f"videos/{video_id}.mp4",
                        label=motion,
                        group=context,
                        splits={SPLIT_COLUMN: part},
                    )
                )
    return tuple(records)


def render_video(config: SyntheticConfig, record: VideoRecord) -> Iterator[NDArray[np.uint8]]:
    """The frames of one planned video, each (height, width, 3) uint8 RGB.

    A pure function of the record's id, label and group and of the configuration's seed, size and frame count: the
    number of videos, and which other classes there are, do not change it.
    """
    scene = make_scene(
        record.label,
        record.group,
        video_rng(config.seed, record.video_id),
        width=config.width,
        height=config.height,
        frames=config.frames,
    )
    return draw_frames(scene, width=config.width, height=config.height)


def synthesize(
    config: SyntheticConfig,
    out: Path,
    *,
    ffmpeg_binary: str,
    workers: int,
    progress: Callable[[int, int], None],
) -> Path:
    """Write a synthetic data set; started again, it continues.

    A video appears under its name only when it is complete, the manifest only when all videos are.

    Args:
        config: the data set.
        out: folder to write ``videos/``, ``manifest.csv`` and ``synthetic.json`` (the configuration) to.
        ffmpeg_binary: FFmpeg with the encoder libx264.
        workers: processes that render at the same time.
        progress: called with the videos done so far, those of earlier runs included, and all videos.

    Returns:
        The manifest.

    Raises:
        ValueError: ``workers`` is below 1, or ``out`` holds a data set of another configuration.
        SynthesisError: FFmpeg cannot be started or fails.
    """
    if workers < 1:
        raise ValueError(f"workers: {workers} is below 1")
    (out / "videos").mkdir(parents=True, exist_ok=True)
    _claim_folder(config, out)
    records = plan(config)
    waiting = [record for record in records if not (out / record.path).is_file()]
    done = len(records) - len(waiting)
    progress(done, len(records))
    jobs = (joblib.delayed(_write_video)(config, record, out, ffmpeg_binary) for record in waiting)
    # Unordered, or one slow video would hold back the count of all behind it.
    for _ in joblib.Parallel(n_jobs=workers, return_as="generator_unordered")(jobs) if waiting else ():
        done += 1
        progress(done, len(records))
    write_manifest(records, out / MANIFEST_NAME)
    return out / MANIFEST_NAME


def _claim_folder(config: SyntheticConfig, out: Path) -> None:
    path = out / CONFIG_NAME
    text = json.dumps(asdict(config), indent=2) + "\n"
    if not path.is_file():
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    elif path.read_text(encoding="utf-8") != text:
        raise ValueError(f"out: {out} holds videos of another configuration ({path}); name another folder or remove it")


def _encoder_command(config: SyntheticConfig, target: Path, ffmpeg_binary: str) -> list[str]:
    size = (config.width, config.height)  # ffmpeg-python joins the two; a text it would take apart
    frames = ffmpeg.input("pipe:", format="rawvideo", pix_fmt="rgb24", video_size=size, framerate=config.fps)
    # One thread: the encoder's bytes must not depend on the machine's number of cores.
    options = {"vcodec": "libx264", "preset": "veryfast", "crf": 23, "bf": 2, "pix_fmt": "yuv420p", "threads": 1}
    # "file:" keeps a path with a colon from being read as a protocol.
    output = ffmpeg.output(frames, f"file:{target}", format="mp4", fflags="+bitexact", **options)
    command: list[str] = output.global_args("-hide_banner", "-loglevel", "error").compile(
        cmd=ffmpeg_binary, overwrite_output=True
    )
    return command


def _write_video(config: SyntheticConfig, record: VideoRecord, out: Path, ffmpeg_binary: str) -> None:
    target = out / record.path
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    command = _encoder_command(config, partial, ffmpeg_binary)
    try:
        with tempfile.TemporaryFile() as errors:
            _encode(command, render_video(config, record), errors, record.video_id)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _encode(command: list[str], frames: Iterator[NDArray[np.uint8]], errors: IO[bytes], video_id: str) -> None:
    # FFmpeg's messages go to a file: a pipe that nobody reads would stop it once full.
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors)
    except OSError as error:
        raise SynthesisError(f"{video_id}: cannot start {command[0]!r} ({error.strerror}); check the binary") from error
    pipe = process.stdin
    assert pipe is not None
    broken = False
    try:
        with pipe:
            for frame in frames:
                pipe.write(frame.data)
    except BrokenPipeError:
        broken = True
    except BaseException:
        process.kill()
        raise
    finally:
        code = process.wait()
    if code != 0 or broken:
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()[-SHOWN_ERROR_LINES:]
        raise SynthesisError(f"{video_id}: {command[0]!r} ended with code {code}: {' | '.join(lines) or 'no message'}")
