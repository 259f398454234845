"""The FFmpeg executable of a run: finding it, checking its version, reading its log."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from cmd_extract.errors import NO_ROOM, FfmpegError

MIN_VERSION = (5, 1)
"""First FFmpeg release with ``-fps_mode``; with an older one every video would fail."""

LOG_LEVEL = "level+warning"
"""Value of FFmpeg's ``-loglevel``: prefix every line with its level, and include warnings.

Concealed damage is reported as a warning only.
"""

_FFMPEG_PYTHON_NAMES = ("input", "output", "merge_outputs", "compile")
_REINSTALL = (
    "uninstall the other package (`pip uninstall ffmpeg python-ffmpeg`) or remove its folder from PYTHONPATH, then run "
    "`pip install --force-reinstall ffmpeg-python`"
)
_VERSION_NUMBER = re.compile(r"ffmpeg version n?(\d+)(?:\.(\d+))?")
_MAX_LINE_BYTES = 4096
_ADDRESS = re.compile(r"\[[^\]]* @ 0x[0-9a-f]+\] ?")
_LEVEL = re.compile(r"\[(panic|fatal|error|warning|info|verbose|debug)\] ?")
_ERROR_LEVELS = ("panic", "fatal", "error")
# FFmpeg 6 and newer name the output (``[out#0/nut @ ...]``), older versions say what they were doing.
_ABOUT_OUTPUT = re.compile(
    r"^\[(out|vost)#|av_interleaved_write_frame|rror writing (trailer|header)|rror opening output|ould not write"
)
_OUT_OF_MEMORY = re.compile(
    r"an't allocate|annot allocate|ould not allocate|get_buffer\(\) failed|pthread_create\(\) failed"
)
_DAMAGE_WARNING = re.compile(r"corrupt decoded frame|corrupt input packet|concealing")


@dataclass(frozen=True, kw_only=True)
class FfmpegBinary:
    """An FFmpeg executable.

    Attributes:
        path: path of the executable.
        version: first line of ``ffmpeg -version`` without the copyright notice, e.g.
            ``ffmpeg version 5.1.9-0+deb12u1``.
    """

    path: str
    version: str

    @property
    def is_too_old(self) -> bool:
        """Whether the version is below ``MIN_VERSION``; builds without a release number (``N-118000-g...``) pass."""
        match = _VERSION_NUMBER.match(self.version)
        return match is not None and (int(match[1]), int(match[2] or 0)) < MIN_VERSION


def require_ffmpeg_python() -> None:
    """Check that the module ``ffmpeg`` is that of the package ffmpeg-python; other packages have one of the same name.

    Raises:
        FfmpegError: it is missing or another one.
    """
    try:
        module = importlib.import_module("ffmpeg")
    except Exception as error:  # another package may fail in any way
        raise FfmpegError(
            f"ffmpeg: the Python module 'ffmpeg' cannot be imported ({type(error).__name__}: {error}); {_REINSTALL}"
        ) from error
    if not all(hasattr(module, name) for name in _FFMPEG_PYTHON_NAMES):
        place = getattr(module, "__file__", None) or "an unknown place"
        raise FfmpegError(
            f"ffmpeg: the Python module 'ffmpeg' at {place} does not belong to the package ffmpeg-python; {_REINSTALL}"
        )


def find_ffmpeg(explicit: str | None = None) -> FfmpegBinary:
    """Find the FFmpeg executable to use.

    Without ``explicit`` this is the ``ffmpeg`` on the PATH if it is recent enough, otherwise the one that ships with
    the package imageio-ffmpeg.

    Args:
        explicit: path or command name; no other executable is tried.

    Raises:
        FfmpegError: there is no FFmpeg, it does not run, or it is older than ``MIN_VERSION``; or another package
            replaces ffmpeg-python, which describes the commands.
    """
    require_ffmpeg_python()
    if explicit is not None:
        found = shutil.which(explicit)
        if found is None:
            raise FfmpegError(f"ffmpeg: {explicit!r} is not an executable file; give the path of an ffmpeg binary")
        return _require_min_version(_read_version(found))
    found = shutil.which("ffmpeg")
    if found is not None and not (system := _read_version(found)).is_too_old:
        return system
    import imageio_ffmpeg

    return _require_min_version(_read_version(str(Path(imageio_ffmpeg.get_ffmpeg_exe()).resolve())))


def _require_min_version(binary: FfmpegBinary) -> FfmpegBinary:
    if binary.is_too_old:
        required = ".".join(map(str, MIN_VERSION))
        raise FfmpegError(
            f"ffmpeg: {binary.path} is {binary.version.removeprefix('ffmpeg ')}, need {required} or newer; choose "
            "another one with --ffmpeg, or upgrade the package imageio-ffmpeg"
        )
    return binary


def _read_version(path: str) -> FfmpegBinary:
    try:
        # Old builds reject -nostdin before -version, so stdin is closed instead.
        done = subprocess.run([path, "-version"], capture_output=True, stdin=subprocess.DEVNULL, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise FfmpegError(f"ffmpeg: {path} does not run: {error}") from error
    lines = done.stdout.decode(errors="replace").splitlines()
    match = re.match(r"(ffmpeg version \S+)", lines[0] if lines else "")
    if match is None:
        raise FfmpegError(f"ffmpeg: {path} -version prints no version; give the path of an ffmpeg binary")
    return FfmpegBinary(path=path, version=match.group(1))


@dataclass(frozen=True, kw_only=True)
class FfmpegLog:
    """Summary of the log of one FFmpeg process.

    Attributes:
        first_error: the first error line, without memory addresses, which would differ between runs; empty if none.
        damage: whether FFmpeg reported an error, or a warning about damaged data that it decoded anyway.
        out_of_memory: whether an allocation failed.
        output_errors, other_errors: numbers of errors that would mean a full disk, in lines about an output and in
            others, in which they mean something else.
    """

    first_error: str = ""
    damage: bool = False
    out_of_memory: bool = False
    output_errors: frozenset[int] = frozenset()
    other_errors: frozenset[int] = frozenset()


def read_log(path: Path) -> FfmpegLog:
    """Summarize a log written with ``LOG_LEVEL``; it is read line by line, since a damaged source may produce a lot."""
    log, level = FfmpegLog(), "error"
    with path.open("rb") as stream:
        while raw := stream.readline(_MAX_LINE_BYTES):
            line = raw.decode(errors="replace").strip()
            text = _ADDRESS.sub("", line)
            prefix = _LEVEL.match(text)
            # A line without a level continues the line before.
            level, text = (prefix[1], text[prefix.end() :]) if prefix else (level, text)
            if text and level in _ERROR_LEVELS:
                numbers = {number for number in NO_ROOM if os.strerror(number) in text}
                of_output = numbers if _ABOUT_OUTPUT.search(line) else set()
                log = FfmpegLog(
                    first_error=log.first_error or text,
                    damage=True,
                    out_of_memory=log.out_of_memory or _OUT_OF_MEMORY.search(text) is not None,
                    output_errors=log.output_errors | of_output,
                    other_errors=log.other_errors | (numbers - of_output),
                )
            elif level == "warning" and _DAMAGE_WARNING.search(text):
                log = replace(log, damage=True)
    return log
