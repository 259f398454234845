"""A labeled synthetic dataset in which foreground motion and background are statistically independent.

The label is the motion class, the group is the context class (texture and palette of the background). A method that
learns motion retrieves videos of the same label, one that only learns appearance retrieves videos of the same group.
``cmd_extract.synthetic.scenes`` renders the frames; FFmpeg encodes them as ordinary H.264 with B-frames.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import joblib
import numpy as np
from numpy.typing import NDArray

from cmd_extract.errors import SynthesisError
from cmd_extract.manifest.records import write_manifest
from cmd_extract.schema import VideoRecord
from cmd_extract.synthetic.scenes import MOTIONS, draw_frames, make_scene, video_rng
from cmd_extract.synthetic.textures import CONTEXTS
from cmd_extract.system.files import atomic_write, remove_leftovers, write_atomically
from cmd_extract.system.validation import require, require_range

_MANIFEST_NAME = "manifest.csv"
_CONFIG_NAME = "synthetic.json"
_SPLIT_COLUMN = "split"
_MAX_ERROR_LINES = 10


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """Settings of a synthetic dataset.

    Attributes:
        videos_per_combination: number of videos per pair of motion and context, at least 2 (one train, one test).
        width, height: frame size in pixels, even, at least 64.
        frames: number of frames per video.
        fps: frames per second.
        seed: random seed, at least 0.
        motions: motion classes, a subset of ``cmd_extract.synthetic.scenes.MOTIONS``.
        contexts: context classes, a subset of ``cmd_extract.synthetic.textures.CONTEXTS``.
    """

    videos_per_combination: int = 6
    width: int = 340
    height: int = 256
    frames: int = 96
    fps: int = 30
    seed: int = 0
    motions: tuple[str, ...] = MOTIONS
    contexts: tuple[str, ...] = CONTEXTS

    def __post_init__(self) -> None:
        require_range(self, "videos_per_combination", ge=2, le=10_000)
        require_range(self, "width", "height", ge=64, le=4096)
        for name in ("width", "height"):
            require(getattr(self, name) % 2 == 0, f"{name}: must be even, got {getattr(self, name)}")
        require_range(self, "frames", ge=2, le=100_000)
        require_range(self, "fps", ge=1, le=240)
        require_range(self, "seed", ge=0, lt=2**63)
        for name, known in (("motions", MOTIONS), ("contexts", CONTEXTS)):
            values = getattr(self, name)
            require(
                bool(values) and set(values) <= set(known) and len(set(values)) == len(values),
                f"{name}: must be one or more distinct names out of {', '.join(known)}, got {values}",
            )

    @property
    def test_videos_per_combination(self) -> int:
        """Number of test videos per pair: a quarter, rounded, but at least one."""
        return max(1, (self.videos_per_combination + 2) // 4)


def plan(config: SyntheticConfig) -> tuple[VideoRecord, ...]:
    """Return the manifest of a synthetic dataset; every pair of motion and context is equally frequent in each part.

    Returns:
        Records ordered by motion, context and number, with ids such as ``left-bricks-00``, paths such as
        ``videos/left-bricks-00.mp4``, the motion as label, the context as group and the part in column ``split``.
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
                        splits={_SPLIT_COLUMN: part},
                    )
                )
    return tuple(records)


def render_video(config: SyntheticConfig, record: VideoRecord) -> Iterator[NDArray[np.uint8]]:
    """Render the frames of one video of ``plan``, each (height, width, 3) uint8 RGB.

    The frames depend on the record's id, label and group and on the seed, frame size and frame count only, not on the
    number of videos or on the other classes.
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
    """Write a synthetic dataset, or the missing videos of one that was interrupted.

    Videos are written atomically, and the manifest once all videos exist.

    Args:
        config: settings of the dataset.
        out: output folder of ``videos/``, ``manifest.csv`` and ``synthetic.json`` (the configuration).
        ffmpeg_binary: FFmpeg with the encoder libx264.
        workers: number of rendering processes.
        progress: called with the number of finished videos, including those of earlier runs, and of all videos.

    Returns:
        Path of the manifest.

    Raises:
        ValueError: ``workers`` is below 1, or ``out`` contains a dataset with other settings.
        SynthesisError: FFmpeg cannot be started or fails.
    """
    require(workers >= 1, f"workers: must be at least 1, got {workers}")
    (out / "videos").mkdir(parents=True, exist_ok=True)
    for folder in (out, out / "videos"):
        remove_leftovers(folder)
    _claim_folder(config, out)
    records = plan(config)
    missing = [record for record in records if not (out / record.path).is_file()]
    done = len(records) - len(missing)
    progress(done, len(records))
    jobs = (joblib.delayed(_write_video)(config, record, out, ffmpeg_binary) for record in missing)
    # Unordered, so that a slow video does not delay the progress of later ones.
    for _ in joblib.Parallel(n_jobs=workers, return_as="generator_unordered")(jobs) if missing else ():
        done += 1
        progress(done, len(records))
    write_manifest(records, out / _MANIFEST_NAME)
    return out / _MANIFEST_NAME


def _claim_folder(config: SyntheticConfig, out: Path) -> None:
    """Record the settings in the output folder.

    Raises:
        ValueError: the folder contains a dataset with other settings.
    """
    path = out / _CONFIG_NAME
    text = json.dumps(asdict(config), indent=2) + "\n"
    if not path.is_file():
        write_atomically(path, text)
    elif path.read_text(encoding="utf-8") != text:
        raise ValueError(f"out: {out} contains videos with other settings ({path}); choose another folder or remove it")


def _encoder_command(config: SyntheticConfig, target: Path, ffmpeg_binary: str) -> list[str]:
    import ffmpeg  # see require_ffmpeg_python

    size = (config.width, config.height)  # ffmpeg-python joins a tuple, but splits a string
    frames = ffmpeg.input("pipe:", format="rawvideo", pix_fmt="rgb24", video_size=size, framerate=config.fps)
    # One thread, since the encoder's output must not depend on the number of cores.
    options = {"vcodec": "libx264", "preset": "veryfast", "crf": 23, "bf": 2, "pix_fmt": "yuv420p", "threads": 1}
    # Without "file:" FFmpeg would take the part of a path before a colon for a protocol.
    output = ffmpeg.output(frames, f"file:{target}", format="mp4", fflags="+bitexact", **options)
    command: list[str] = output.global_args("-hide_banner", "-loglevel", "error").compile(
        cmd=ffmpeg_binary, overwrite_output=True
    )
    return command


def _write_video(config: SyntheticConfig, record: VideoRecord, out: Path, ffmpeg_binary: str) -> None:
    with atomic_write(out / record.path) as temporary, tempfile.TemporaryFile() as errors:
        command = _encoder_command(config, temporary, ffmpeg_binary)
        _encode(command, render_video(config, record), errors, record.video_id)


def _encode(command: list[str], frames: Iterator[NDArray[np.uint8]], errors: IO[bytes], video_id: str) -> None:
    # FFmpeg logs to a file: it would block on a full pipe that nobody reads.
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
        lines = errors.read().decode(errors="replace").strip().splitlines()[-_MAX_ERROR_LINES:]
        raise SynthesisError(f"{video_id}: {command[0]!r} exited with code {code}: {' | '.join(lines) or 'no output'}")
