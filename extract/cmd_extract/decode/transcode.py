"""Transcoding of one video by one FFmpeg process: canonical stream, small frames and keyframes from a single decode.

The JPEGs are wrapped in NUT, a container with exact packet sizes, so they can be separated without searching for
markers. All outputs come from one filter graph and pass every frame through, so frame n of one output is frame n of the
others. Encoders and containers restrict time stamps: they must increase, and fit a time base. Frames are therefore
numbered for them, and a filter prints the source's own time stamps to standard output.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import LOG_LEVEL, FfmpegBinary, FfmpegLog, read_log
from cmd_extract.decode.source import SourceInfo, input_options, input_url, open_input
from cmd_extract.decode.stamps import JUMP_SECONDS
from cmd_extract.decode.streams import time_base_of
from cmd_extract.errors import NO_ROOM, OutputError, VideoError
from cmd_extract.system.process import has_other_threads, memory_left, prepare_program

with contextlib.suppress(Exception):  # another package of that name; find_ffmpeg reports it
    import ffmpeg

_NUMBERS_TIME_BASE = Fraction(1, 25)
"""Frames are numbered in this time base; MPEG-4 rejects the fine ones of variable frame rates."""
_NO_SCENE_CUTS = 1_000_000_000
_LOADED_BYTES = 32 * 2**20
"""With less memory than this FFmpeg crashes while it is loaded, 20 MiB in the builds tried."""
_NEEDS_MORE = "ffmpeg needs more memory than --max-memory-mb allows"


@dataclass(frozen=True, kw_only=True)
class TranscodedFiles:
    """Output files of ``transcode``.

    Attributes:
        canonical: stream to read motion vectors from; None if the source's own vectors are used, or none.
        frames: small frames, one JPEG per packet; None if frames are not stored.
        keyframes: one JPEG of canonical size for each I-frame of the canonical stream; None without that stream.
        stamps: text with the source's time stamps, see ``read_printed_stamps``; with ``--fps`` those before conversion.
        decode_errors: whether FFmpeg met damaged data and continued.
        first_error: its first error line, empty if there is none.
    """

    canonical: Path | None
    frames: Path | None
    keyframes: Path | None
    stamps: Path | None = None
    decode_errors: bool = False
    first_error: str = ""


def build_command(
    source: Path, info: SourceInfo, config: ExtractConfig, files: TranscodedFiles, binary: FfmpegBinary
) -> list[str]:
    """Return the arguments of the FFmpeg process that writes ``files``.

    Every encoder runs with one thread, so its output is reproducible.
    """
    options: dict[str, Any] = {"threads": 1, **input_options()}
    # If the picture size changes, the scaler adapts; a new filter graph would lose frames.
    options["reinit_filter"] = 0
    if files.canonical is None and config.transcode == "never":
        # Motion vectors do not follow a rotation requested by the container, so the pictures must not either. With
        # ``auto``, the own vectors of rotated sources are not used.
        options["noautorotate"] = None
    picture = ffmpeg.input(input_url(source), **options)[str(info.stream_index)]
    # The filter prints a frame's time stamp only together with an entry of its metadata.
    picture = picture.filter("metadata", mode="add", key="frame", value="0")
    picture = picture.filter("metadata", mode="print", key="frame", file="-")
    if config.fps is not None:
        picture = picture.filter("setpts", _without_long_gaps(info)).filter("fps", fps=config.fps)
    picture = picture.filter("settb", str(_NUMBERS_TIME_BASE)).filter("setpts", "N")
    picture = picture.filter("scale", config.width, config.height, flags="bicubic").filter("setsar", 1)
    paths = [path for path in (files.canonical, files.frames, files.keyframes) if path is not None]
    branches = picture.filter_multi_output("split", len(paths)) if len(paths) > 1 else [picture]
    outputs = []
    for number, path in enumerate(paths):
        branch = branches[number]
        if path == files.canonical:
            outputs.append(ffmpeg.output(branch, input_url(path), format="avi", **_canonical_options(config)))
            continue
        if path == files.frames:
            branch = branch.filter("scale", *config.frame_size, flags="area", out_range="full")
        else:
            # I-frames of a canonical stream are exactly every gop-th frame, since scene cuts insert none.
            branch = branch.filter("select", f"not(mod(n,{config.gop}))").filter("scale", out_range="full")
        outputs.append(ffmpeg.output(branch, input_url(path), **_jpeg_options(config)))
    # Keep the frames that can be decoded, however few.
    general = ["-hide_banner", "-nostdin", "-nostats", "-loglevel", LOG_LEVEL, "-max_error_rate", "1"]
    if config.fps is None:
        general.append("-copyts")  # FFmpeg's own corrections depend on the container; see stamps.py for the rule
    merged = ffmpeg.merge_outputs(*outputs).global_args(*general, "-filter_complex_threads", "1")
    return [str(part) for part in ffmpeg.compile(merged, cmd=binary.path, overwrite_output=True)]


def _without_long_gaps(info: SourceInfo) -> str:
    """Return an expression for the filter ``setpts`` that bounds the number of copies which ``--fps`` makes of a frame.

    A gap longer than ``JUMP_SECONDS`` is shortened to that; a clock that steps back by more than a second continues one
    frame interval after the frame before. Variables: 0 is the shift so far, 1 the step, 2 the corrected step.
    """
    return (
        "if(isnan(PREV_OUTPTS),PTS,"
        "st(1,PTS+ld(0)-PREV_OUTPTS);"
        f"st(2,if(gt(ld(1)*TB,{JUMP_SECONDS}),{JUMP_SECONDS}/TB,if(lt(ld(1)*TB,-1),{info.frame_interval},ld(1))));"
        "st(0,ld(0)+ld(2)-ld(1));"
        "PREV_OUTPTS+ld(2))"
    )


def _canonical_options(config: ExtractConfig) -> dict[str, Any]:
    common: dict[str, Any] = {
        "fps_mode": "passthrough",
        "enc_time_base": _NUMBERS_TIME_BASE,
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
        "enc_time_base": _NUMBERS_TIME_BASE,
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
    frames_only: bool = False,
) -> TranscodedFiles:
    """Run FFmpeg on one source.

    A truncated or damaged source yields the frames that can be decoded.

    Args:
        source: the video file.
        info: result of ``probe``.
        config: the extraction configuration.
        workdir: existing folder for the outputs.
        binary: the FFmpeg to run.
        frames_only: make only the small frames, because the source's own vectors are used or no vectors at all.

    Raises:
        VideoError: FFmpeg failed; the reason contains its first error.
        OutputError: FFmpeg could not write its outputs.
    """
    files = TranscodedFiles(
        canonical=None if frames_only else workdir / "canonical.avi",
        frames=workdir / "frames.nut" if config.store_frames else None,
        keyframes=None if frames_only else workdir / "keyframes.nut",
    )
    if frames_only and files.frames is None:
        return files
    if (left := memory_left()) is not None and left < _LOADED_BYTES:
        raise VideoError("memory", _NEEDS_MORE)
    stamps = workdir / "stamps.txt"
    status, log = _run(build_command(source, info, config, files, binary), workdir / "ffmpeg.log", stamps)
    if log.out_of_memory:
        # An error even if FFmpeg exits with 0: the picture it had no memory for is missing from the outputs.
        raise VideoError("memory", _NEEDS_MORE)
    if status != 0:
        raise _explain_failure(status, log, workdir)
    return replace(files, stamps=stamps, decode_errors=log.damage, first_error=log.first_error)


def _run(command: Sequence[str], log: Path, stamps: Path) -> tuple[int, FfmpegLog]:
    with (
        log.open("wb") as stderr,
        stamps.open("wb") as stdout,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            preexec_fn=None if has_other_threads() else prepare_program,
        ) as process,
    ):
        try:
            status = process.wait()
        except BaseException:
            # FFmpeg must not outlive an interrupt.
            process.kill()
            raise
    return status, read_log(log)


def _explain_failure(status: int, log: FfmpegLog, workdir: Path) -> VideoError | OutputError:
    """Return an OutputError if there is no room for the outputs, otherwise a VideoError."""
    # FFmpeg exits with the low byte of its negative error code. On a full disk there may be no log.
    code = 256 - status if status > 0 else 0
    unlogged = {code} & NO_ROOM - log.other_errors
    for number in log.output_errors or unlogged:
        return OutputError(f"cannot write in {workdir}: {os.strerror(number)}")
    if status == -signal.SIGXFSZ:
        return OutputError(f"cannot write in {workdir}: {os.strerror(errno.EFBIG)}")
    if status < 0:
        return VideoError("crash", f"ffmpeg was killed by {signal.Signals(-status).name}")
    return VideoError("transcode", f"ffmpeg exited with status {status}: {log.first_error or 'no output'}")


def read_packets(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (frame number, bytes) for each packet of a NUT output, in order.

    Raises:
        VideoError: the file holds no packets, because no frame of the source could be decoded.
    """
    try:
        with open_input(path) as container:
            stream = container.streams.video[0]
            frames_per_tick = time_base_of(stream) / _NUMBERS_TIME_BASE
            for packet in container.demux(stream):
                if packet.size and packet.pts is not None:
                    yield round(packet.pts * frames_per_tick), bytes(packet)
    except (av.error.FFmpegError, IndexError) as error:
        raise VideoError("transcode", "no frame of the video could be decoded") from error
