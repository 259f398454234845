"""One FFmpeg process per video: decodes the source once, writes the canonical stream, small frames and keyframes.

The JPEGs are wrapped in NUT, a container that keeps exact time stamps and packet sizes, so that they can be taken apart
without looking for markers. All three outputs come from one filter graph and pass every frame through, so that frame n
of one is frame n of the others.
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
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.decode.ffmpeg_log import LOG_LEVEL, read_log
from cmd_extract.decode.source import SourceFacts, input_options, input_url, open_input
from cmd_extract.errors import OutputError, VideoError
from cmd_extract.system.process import prepare_program

# A clock for the canonical stream only, whose time stamps nobody reads: MPEG-4 refuses the fine time bases that
# variable frame rates need, so its frames are simply numbered.
_CANONICAL_TIME_BASE = "1/25"
_STAMP_OPTIONS = {"format": "nut", "fps_mode": "passthrough", "c:v": "rawvideo", "pix_fmt": "yuv420p"}
_NEVER = 1_000_000_000
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_OUT_OF_MEMORY = re.compile(
    r"an't allocate|annot allocate|ould not allocate|get_buffer\(\) failed|pthread_create\(\) failed"
)


@dataclass(frozen=True, kw_only=True)
class TranscodedFiles:
    """The files that ``transcode`` leaves behind.

    Attributes:
        canonical: the stream that motion vectors are read from; None if they are the source's own.
        frames: small frames, one JPEG a packet, with the source's time stamps; None if they are not wanted.
        keyframes: JPEGs at canonical size, one for each I-frame of the canonical stream; None as it is.
        stamps: a packet of next to nothing for each frame, with the source's time stamps; None where ``frames`` has
            them, or where there is no canonical stream.
        decode_errors: whether FFmpeg has met damage, and went on.
    """

    canonical: Path | None
    frames: Path | None
    keyframes: Path | None
    stamps: Path | None = None
    decode_errors: bool = False


def build_command(
    source: Path, facts: SourceFacts, config: ExtractConfig, files: TranscodedFiles, binary: FfmpegBinary
) -> list[str]:
    """The argument list of the FFmpeg process; every coder runs with one thread, so that its bytes are reproducible.

    Which outputs it makes is said by ``files``.
    """
    own_vectors = files.canonical is None
    options: dict[str, Any] = {"threads": 1, **input_options()}
    # A picture size that changes on the way is met by the scaler; a new filter graph would lose frames.
    options["reinit_filter"] = 0
    if own_vectors:
        # The vectors know nothing of a rotation that the container asks for.
        options["noautorotate"] = None
    picture = ffmpeg.input(input_url(source), **options)[str(facts.stream_index)]
    if config.fps is not None:
        picture = picture.filter("fps", fps=config.fps)
    picture = picture.filter("scale", config.width, config.height, flags="bicubic").filter("setsar", 1)
    wanted = [path for path in (files.canonical, files.frames, files.keyframes, files.stamps) if path is not None]
    branches = picture.filter_multi_output("split", len(wanted)) if len(wanted) > 1 else [picture]
    outputs = []
    for number, path in enumerate(wanted):
        branch = branches[number]
        if path == files.canonical:
            branch = branch.filter("settb", _CANONICAL_TIME_BASE).filter("setpts", "N")
            outputs.append(ffmpeg.output(branch, input_url(path), format="avi", **_canonical_options(config)))
            continue
        if path == files.stamps:
            # A corner of the picture, in the colours of the canonical stream: costs nothing and changes nothing.
            outputs.append(ffmpeg.output(branch.filter("crop", 2, 2, 0, 0), input_url(path), **_STAMP_OPTIONS))
            continue
        if path == files.frames:
            branch = branch.filter("scale", *config.frame_size, flags="area", out_range="full")
        else:
            # Those of a canonical stream stand at every gop-th frame exactly: scene cuts may not insert any.
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
    source: Path,
    facts: SourceFacts,
    config: ExtractConfig,
    workdir: Path,
    binary: FfmpegBinary,
    *,
    own_vectors: bool = False,
) -> TranscodedFiles:
    """Runs FFmpeg on one source; with ``own_vectors`` it makes the small frames only.

    A source that breaks off or is damaged in places gives the frames that decode.

    Returns:
        The files, inside ``workdir``.

    Raises:
        VideoError: FFmpeg failed; the reason holds its last words.
        OutputError: it could not write.
    """
    files = TranscodedFiles(
        canonical=None if own_vectors else workdir / "canonical.avi",
        frames=workdir / "frames.nut" if config.store_frames else None,
        keyframes=None if own_vectors else workdir / "keyframes.nut",
        stamps=None if own_vectors or config.store_frames else workdir / "stamps.nut",
    )
    if own_vectors and files.frames is None:
        return files  # there is nothing to make
    command = build_command(source, facts, config, files, binary)
    log = workdir / "ffmpeg.log"
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
            # An interrupt must not leave FFmpeg running.
            process.kill()
            raise
    said = read_log(log)
    if any(_OUT_OF_MEMORY.search(line) for line in said.errors):
        # Whatever its status: a picture that found no memory is missing from the outputs.
        raise VideoError("memory", "ffmpeg needs more memory than --max-memory-mb allows")
    if status != 0:
        raise _explain(status, said.errors, workdir)
    return replace(files, decode_errors=said.damage)


def _explain(status: int, words: Sequence[str], workdir: Path) -> VideoError | OutputError:
    """Tells a bad video from a machine that lacks something."""
    # FFmpeg ends with the low byte of its negative error code.
    code = 256 - status if status > 0 else 0
    said = words[-1] if words else "it said nothing"
    for unwritable in _UNWRITABLE:
        if code == unwritable or any(os.strerror(unwritable) in line for line in words):
            return OutputError(f"cannot write in {workdir}: {os.strerror(unwritable)}")
    if status == -signal.SIGXFSZ:
        return OutputError(f"cannot write in {workdir}: {os.strerror(errno.EFBIG)}")
    if status < 0:
        return VideoError("crash", f"ffmpeg was killed by {signal.Signals(-status).name}")
    return VideoError("transcode", f"ffmpeg ended with status {status}: {said}")


def read_packets(path: Path) -> Iterator[tuple[float, bytes]]:
    """Yields (time stamp in seconds, bytes) of the packets of one of the outputs in NUT, in order.

    Raises:
        VideoError: the file holds no frames, because no frame of the source could be decoded.
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
