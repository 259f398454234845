"""Transcoding of one video by one FFmpeg process: canonical stream, small frames and keyframes from a single decode.

The JPEGs are wrapped in NUT, a container with exact time stamps and packet sizes, so they can be separated without
searching for markers. All outputs come from one filter graph and pass every frame through, so frame n of one output is
frame n of the others.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import av.error
import ffmpeg

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import LOG_LEVEL, FfmpegBinary, FfmpegLog, read_log
from cmd_extract.decode.source import SourceInfo, input_options, input_url, open_input
from cmd_extract.errors import OutputError, VideoError
from cmd_extract.system.process import prepare_program

# Frames of the canonical stream are numbered instead of timed: MPEG-4 rejects the fine time bases of variable frame
# rates, and the stream's time stamps are never read.
_CANONICAL_TIME_BASE = "1/25"
_STAMP_OPTIONS = {"format": "nut", "fps_mode": "passthrough", "c:v": "rawvideo", "pix_fmt": "yuv420p"}
_NO_SCENE_CUTS = 1_000_000_000
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_OUT_OF_MEMORY = re.compile(
    r"an't allocate|annot allocate|ould not allocate|get_buffer\(\) failed|pthread_create\(\) failed"
)


@dataclass(frozen=True, kw_only=True)
class TranscodedFiles:
    """Output files of ``transcode``.

    Attributes:
        canonical: stream to read motion vectors from; None if the source's own vectors are used.
        frames: small frames, one JPEG per packet, with the source's time stamps; None if frames are not stored.
        keyframes: one JPEG of canonical size for each I-frame of the canonical stream; None without that stream.
        stamps: one tiny packet per frame with the source's time stamps; None if ``frames`` has them or there is no
            canonical stream.
        decode_errors: whether FFmpeg met damaged data and continued.
    """

    canonical: Path | None
    frames: Path | None
    keyframes: Path | None
    stamps: Path | None = None
    decode_errors: bool = False


def build_command(
    source: Path, info: SourceInfo, config: ExtractConfig, files: TranscodedFiles, binary: FfmpegBinary
) -> list[str]:
    """Return the arguments of the FFmpeg process that writes ``files``.

    Every encoder runs with one thread, so its output is reproducible.
    """
    own_vectors = files.canonical is None
    options: dict[str, Any] = {"threads": 1, **input_options()}
    # If the picture size changes, the scaler adapts; a new filter graph would lose frames.
    options["reinit_filter"] = 0
    if own_vectors:
        # Motion vectors do not follow a rotation requested by the container, so the pictures must not either.
        options["noautorotate"] = None
    picture = ffmpeg.input(input_url(source), **options)[str(info.stream_index)]
    if config.fps is not None:
        picture = picture.filter("fps", fps=config.fps)
    picture = picture.filter("scale", config.width, config.height, flags="bicubic").filter("setsar", 1)
    paths = [path for path in (files.canonical, files.frames, files.keyframes, files.stamps) if path is not None]
    branches = picture.filter_multi_output("split", len(paths)) if len(paths) > 1 else [picture]
    outputs = []
    for number, path in enumerate(paths):
        branch = branches[number]
        if path == files.canonical:
            branch = branch.filter("settb", _CANONICAL_TIME_BASE).filter("setpts", "N")
            outputs.append(ffmpeg.output(branch, input_url(path), format="avi", **_canonical_options(config)))
            continue
        if path == files.stamps:
            # A corner of the picture in the pixel format of the canonical stream: no cost, no further conversion.
            outputs.append(ffmpeg.output(branch.filter("crop", 2, 2, 0, 0), input_url(path), **_STAMP_OPTIONS))
            continue
        if path == files.frames:
            branch = branch.filter("scale", *config.frame_size, flags="area", out_range="full")
        else:
            # I-frames of a canonical stream are exactly every gop-th frame, since scene cuts insert none.
            branch = branch.filter("select", f"not(mod(n,{config.gop}))").filter("scale", out_range="full")
        outputs.append(ffmpeg.output(branch, input_url(path), **_jpeg_options(config)))
    merged = ffmpeg.merge_outputs(*outputs).global_args(
        "-hide_banner", "-nostdin", "-nostats", "-loglevel", LOG_LEVEL, "-filter_complex_threads", "1"
    )
    return [str(part) for part in ffmpeg.compile(merged, cmd=binary.path, overwrite_output=True)]


def _canonical_options(config: ExtractConfig) -> dict[str, Any]:
    common: dict[str, Any] = {
        "fps_mode": "passthrough",
        "enc_time_base": _CANONICAL_TIME_BASE,
        "g": config.gop,
        "bf": 0,
        "threads": 1,
        "pix_fmt": "yuv420p",
        "fflags": "+bitexact",
        "flags:v": "+bitexact",
    }
    if config.codec == "mpeg4":
        return common | {"c:v": "mpeg4", "q:v": config.resolved_quality, "sc_threshold": _NO_SCENE_CUTS}
    h264 = {"c:v": "libx264", "preset": "veryfast", "crf": config.resolved_quality, "refs": 1}
    return common | h264 | {"keyint_min": config.gop, "sc_threshold": 0, "x264-params": "scenecut=0:open-gop=0"}


def _jpeg_options(config: ExtractConfig) -> dict[str, Any]:
    return {
        "format": "nut",
        "fps_mode": "passthrough",
        "c:v": "mjpeg",
        "q:v": config.jpeg_quality,
        "pix_fmt": "yuvj420p",
        "threads": 1,
        "fflags": "+bitexact",
        "flags:v": "+bitexact",
    }


def transcode(
    source: Path,
    info: SourceInfo,
    config: ExtractConfig,
    workdir: Path,
    binary: FfmpegBinary,
    *,
    own_vectors: bool = False,
) -> TranscodedFiles:
    """Run FFmpeg on one source.

    A truncated or damaged source yields the frames that can be decoded.

    Args:
        source: the video file.
        info: result of ``probe``.
        config: the extraction configuration.
        workdir: existing folder for the outputs.
        binary: the FFmpeg to run.
        own_vectors: whether the source's own vectors are used; then only the small frames are made.

    Raises:
        VideoError: FFmpeg failed; the reason contains its last error.
        OutputError: FFmpeg could not write its outputs.
    """
    files = TranscodedFiles(
        canonical=None if own_vectors else workdir / "canonical.avi",
        frames=workdir / "frames.nut" if config.store_frames else None,
        keyframes=None if own_vectors else workdir / "keyframes.nut",
        stamps=None if own_vectors or config.store_frames else workdir / "stamps.nut",
    )
    if own_vectors and files.frames is None:
        return files
    status, log = _run(build_command(source, info, config, files, binary), workdir / "ffmpeg.log")
    if any(_OUT_OF_MEMORY.search(line) for line in log.errors):
        # An error even if FFmpeg exits with 0: the picture it had no memory for is missing from the outputs.
        raise VideoError("memory", "ffmpeg needs more memory than --max-memory-mb allows")
    if status != 0:
        raise _explain_failure(status, log.errors, workdir)
    return replace(files, decode_errors=log.damage)


def _run(command: Sequence[str], log: Path) -> tuple[int, FfmpegLog]:
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            preexec_fn=prepare_program,
        ) as process,
    ):
        try:
            status = process.wait()
        except BaseException:
            # FFmpeg must not outlive an interrupt.
            process.kill()
            raise
    return status, read_log(log)


def _explain_failure(status: int, errors: Sequence[str], workdir: Path) -> VideoError | OutputError:
    """Return an OutputError if the outputs cannot be written, otherwise a VideoError."""
    # FFmpeg exits with the low byte of its negative error code.
    code = 256 - status if status > 0 else 0
    for write_error in _WRITE_ERRORS:
        if code == write_error or any(os.strerror(write_error) in line for line in errors):
            return OutputError(f"cannot write in {workdir}: {os.strerror(write_error)}")
    if status == -signal.SIGXFSZ:
        return OutputError(f"cannot write in {workdir}: {os.strerror(errno.EFBIG)}")
    if status < 0:
        return VideoError("crash", f"ffmpeg was killed by {signal.Signals(-status).name}")
    return VideoError("transcode", f"ffmpeg exited with status {status}: {errors[-1] if errors else 'no output'}")


def read_packets(path: Path) -> Iterator[tuple[float, bytes]]:
    """Yield (time stamp in seconds, bytes) for each packet of a NUT output, in order.

    Raises:
        VideoError: the file holds no packets, because no frame of the source could be decoded.
    """
    try:
        with open_input(path) as container:
            stream = container.streams.video[0]
            time_base = stream.time_base
            for packet in container.demux(stream):
                if packet.size and packet.pts is not None and time_base is not None:
                    yield float(packet.pts * time_base), bytes(packet)
    except (av.error.FFmpegError, IndexError) as error:
        raise VideoError("transcode", "no frame of the video could be decoded") from error
