"""Finds the one FFmpeg binary that a run uses and reads its version."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cmd_extract.errors import FfmpegError

OLDEST = (5, 1)
"""The first FFmpeg that knows ``-fps_mode``; with an older one every video would fail."""

_NUMBER = re.compile(r"ffmpeg version n?(\d+)(?:\.(\d+))?")


@dataclass(frozen=True, kw_only=True)
class FfmpegBinary:
    """One FFmpeg binary.

    Attributes:
        path: the executable.
        version: the first line of ``ffmpeg -version``, e.g. ``ffmpeg version 5.1.9-0+deb12u1 ...``, without the
            copyright notice.
    """

    path: str
    version: str

    @property
    def is_too_old(self) -> bool:
        """Whether it is older than ``OLDEST``; builds that name no release (``N-118000-g...``) are taken for new."""
        match = _NUMBER.match(self.version)
        return match is not None and (int(match[1]), int(match[2] or 0)) < OLDEST


def find_ffmpeg(explicit: str | None = None) -> FfmpegBinary:
    """The binary asked for, else the system's if it is not too old, else the one in the wheel imageio-ffmpeg.

    Args:
        explicit: path or command name to use and nothing else.

    Raises:
        FfmpegError: there is none, it does not run, or it is older than ``OLDEST``.
    """
    if explicit is not None:
        found = shutil.which(explicit)
        if found is None:
            raise FfmpegError(f"ffmpeg: {explicit!r} is not an executable file; give the path of an ffmpeg binary")
        return _refuse_old(_describe(found))
    found = shutil.which("ffmpeg")
    if found is not None and not (system := _describe(found)).is_too_old:
        return system
    import imageio_ffmpeg

    return _refuse_old(_describe(str(Path(imageio_ffmpeg.get_ffmpeg_exe()).resolve())))


def _refuse_old(binary: FfmpegBinary) -> FfmpegBinary:
    if binary.is_too_old:
        oldest = ".".join(map(str, OLDEST))
        raise FfmpegError(
            f"ffmpeg: {binary.path} is {binary.version.removeprefix('ffmpeg ')}, need {oldest} or newer; name another "
            "with --ffmpeg, or upgrade the package imageio-ffmpeg"
        )
    return binary


def _describe(path: str) -> FfmpegBinary:
    try:
        # -nostdin is not accepted before -version by old builds; stdin is closed instead.
        done = subprocess.run([path, "-version"], capture_output=True, stdin=subprocess.DEVNULL, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise FfmpegError(f"ffmpeg: {path} does not run: {error}") from error
    lines = done.stdout.decode(errors="replace").splitlines()
    match = re.match(r"(ffmpeg version \S+)", lines[0] if lines else "")
    if match is None:
        raise FfmpegError(f"ffmpeg: {path} does not say its version; give the path of an ffmpeg binary")
    return FfmpegBinary(path=path, version=match.group(1))
