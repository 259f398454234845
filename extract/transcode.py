"""One FFmpeg process per video: decodes the source once, writes the canonical stream, small frames and keyframes.

The JPEGs are wrapped in NUT, a container that keeps exact time stamps and packet sizes, so that they can be taken apart
without looking for markers. All three outputs come from one filter graph and pass every frame through, so that frame n
of one is frame n of the others.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import av.error
import ffmpeg

from extract.config import ExtractConfig
from extract.ffmpeg_binary import FfmpegBinary
from extract.source import SourceFacts, VideoError, input_options, input_url

# A clock for the canonical stream only, whose time stamps nobody reads: MPEG-4 refuses the fine time bases that
# variable frame rates need, so its frames are simply numbered.
_CANONICAL_TIME_BASE = "1/25"
_NEVER = 1_000_000_000
_STDERR_BYTES = 4000


@dataclass(frozen=True, kw_only=True)
class TranscodedFiles:
    """The files that ``transcode`` leaves behind.

    Attributes:
        canonical: the stream that motion vectors are read from.
        frames: small frames, one JPEG a packet, with the source's time stamps.
        keyframes: JPEGs at canonical size, one for each I-frame of the canonical stream.
    """

    canonical: Path
    frames: Path
    keyframes: Path


def build_command(
    source: Path, facts: SourceFacts, config: ExtractConfig, files: TranscodedFiles, binary: FfmpegBinary
) -> list[str]:
    """The argument list of the FFmpeg process; every coder runs with one thread, so that its bytes are reproducible."""
    inlet = ffmpeg.input(input_url(source), threads=1, **input_options())
    picture = inlet[str(facts.stream_index)]
    if config.fps is not None:
        picture = picture.filter("fps", fps=config.fps)
    picture = picture.filter("scale", config.width, config.height, flags="bicubic").filter("setsar", 1)
    branches = picture.filter_multi_output("split", 3)
    canonical = branches[0].filter("settb", _CANONICAL_TIME_BASE).filter("setpts", "N")
    frames = branches[1].filter("scale", *config.frame_size, flags="area", out_range="full")
    # I-frames stand at every gop-th frame exactly: scene cuts may not insert any (see _canonical_options).
    keyframes = branches[2].filter("select", f"not(mod(n,{config.gop}))").filter("scale", out_range="full")
    outputs = [
        ffmpeg.output(canonical, input_url(files.canonical), format="avi", **_canonical_options(config)),
        ffmpeg.output(frames, input_url(files.frames), **_jpeg_options(config)),
        ffmpeg.output(keyframes, input_url(files.keyframes), **_jpeg_options(config)),
    ]
    merged = ffmpeg.merge_outputs(*outputs).global_args(
        "-hide_banner", "-nostdin", "-nostats", "-loglevel", "error", "-filter_complex_threads", "1"
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
        return common | {"c:v": "mpeg4", "q:v": config.resolved_quality, "sc_threshold": _NEVER}
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
    source: Path, facts: SourceFacts, config: ExtractConfig, workdir: Path, binary: FfmpegBinary
) -> TranscodedFiles:
    """Runs FFmpeg on one source.

    A source that breaks off or is damaged in places gives the frames that decode.

    Returns:
        The files, inside ``workdir``.

    Raises:
        VideoError: FFmpeg failed; the reason holds its last words.
    """
    files = TranscodedFiles(
        canonical=workdir / "canonical.avi", frames=workdir / "frames.nut", keyframes=workdir / "keyframes.nut"
    )
    command = build_command(source, facts, config, files, binary)
    log = workdir / "ffmpeg.log"
    with (
        log.open("wb") as stderr,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr) as process,
    ):
        try:
            status = process.wait()
        except BaseException:
            # An interrupt must not leave FFmpeg running.
            process.kill()
            raise
    if status != 0:
        raise VideoError("transcode", f"ffmpeg ended with status {status}: {_last_words(log)}")
    return files


def _last_words(log: Path) -> str:
    """The last line FFmpeg wrote, without the memory addresses that would differ from run to run."""
    with log.open("rb") as stream:
        stream.seek(0, 2)
        stream.seek(max(0, stream.tell() - _STDERR_BYTES))
        lines = stream.read().decode(errors="replace").splitlines()
    words = [line.partition("] ")[2] if line.startswith("[") else line for line in lines if line.strip()]
    return words[-1] if words else "it said nothing"


def read_packets(path: Path) -> Iterator[tuple[float, bytes]]:
    """Yields (time stamp in seconds, JPEG bytes) of one of the JPEG outputs, in order.

    Raises:
        VideoError: the file holds no frames, because no frame of the source could be decoded.
    """
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            time_base = stream.time_base
            for packet in container.demux(stream):
                if packet.size and packet.pts is not None and time_base is not None:
                    yield float(packet.pts * time_base), bytes(packet)
    except (av.error.FFmpegError, IndexError) as error:
        raise VideoError("transcode", "no frame of the video could be decoded") from error
