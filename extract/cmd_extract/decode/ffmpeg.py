"""The FFmpeg executable of a run: finding it, checking its version, reading its log."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from cmd_extract.errors import FfmpegError

MIN_VERSION = (5, 1)
"""First FFmpeg release with ``-fps_mode``; with an older one every video would fail."""

LOG_LEVEL = "level+warning"
"""Value of FFmpeg's ``-loglevel``: prefix every line with its level, and include warnings.

Concealed damage is reported as a warning only.
"""

_VERSION_NUMBER = re.compile(r"ffmpeg version n?(\d+)(?:\.(\d+))?")
_MAX_ERROR_LINES = 500
_MAX_LINE_BYTES = 4096
_ADDRESS = re.compile(r"\[[^\]]* @ 0x[0-9a-f]+\] ?")
_LEVEL = re.compile(r"\[(panic|fatal|error|warning|info|verbose|debug)\] ?")
_ERROR_LEVELS = ("panic", "fatal", "error")
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


def find_ffmpeg(explicit: str | None = None) -> FfmpegBinary:
    """Find the FFmpeg executable to use.

    Without ``explicit`` this is the ``ffmpeg`` on the PATH if it is recent enough, otherwise the one that ships with
    the package imageio-ffmpeg.

    Args:
        explicit: path or command name; no other executable is tried.

    Raises:
        FfmpegError: there is no FFmpeg, it does not run, or it is older than ``MIN_VERSION``.
    """
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
        errors: the last error lines, without memory addresses, which would differ between runs.
        damage: whether FFmpeg reported an error, or a warning about damaged data that it decoded anyway.
    """

    errors: tuple[str, ...]
    damage: bool


def read_log(path: Path) -> FfmpegLog:
    """Summarize a log written with ``LOG_LEVEL``; it is read line by line, since a damaged source may produce a lot."""
    errors: deque[str] = deque(maxlen=_MAX_ERROR_LINES)
    damage, level = False, "error"
    with path.open("rb") as stream:
        while raw := stream.readline(_MAX_LINE_BYTES):
            line = _ADDRESS.sub("", raw.decode(errors="replace")).strip()
            prefix = _LEVEL.match(line)
            # A line without a level continues the line before.
            level, text = (prefix[1], line[prefix.end() :]) if prefix else (level, line)
            if text and level in _ERROR_LEVELS:
                errors.append(text)
            elif level == "warning" and _DAMAGE_WARNING.search(text):
                damage = True
    return FfmpegLog(errors=tuple(errors), damage=damage or bool(errors))
