"""Choice of the FFmpeg executable, with scripts that print a version as executables, and parsing of FFmpeg's log."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from cmd_extract.decode.ffmpeg import FfmpegBinary, FfmpegLog, find_ffmpeg, read_log
from cmd_extract.decode.transcode import _explain_failure
from cmd_extract.errors import FfmpegError, OutputError, VideoError


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder where ``ffmpeg`` on the PATH and imageio-ffmpeg's executable (named ``wheel``) are searched."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("imageio_ffmpeg.get_ffmpeg_exe", lambda: str(tmp_path / "wheel"))
    return tmp_path


def write_program(path: Path, version: str) -> Path:
    path.write_text(f"#!/bin/sh\necho 'ffmpeg version {version} Copyright (c) the FFmpeg developers'\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("version", "too_old"),
    [
        ("4.2.2-static", True),
        ("4.4.2-0ubuntu0.22.04.1", True),
        ("5.0.1", True),
        ("5.1.9-0+deb12u1", False),
        ("n9.0.2-17-g2a571b6068-20260930", False),
        ("10", False),
        ("N-118000-gabcdef0", False),
        ("2026-01-02-git-abcdef0", False),
    ],
)
def test_too_old(version: str, too_old: bool) -> None:
    assert FfmpegBinary(path="", version=f"ffmpeg version {version}").is_too_old is too_old


def test_ffmpeg_on_the_path_is_preferred(programs: Path) -> None:
    write_program(programs / "wheel", "7.0.2-static")
    system = write_program(programs / "ffmpeg", "5.1.9-0+deb12u1")
    assert find_ffmpeg() == FfmpegBinary(path=str(system), version="ffmpeg version 5.1.9-0+deb12u1")


def test_imageio_ffmpeg_replaces_an_old_ffmpeg_on_the_path(programs: Path) -> None:
    wheel = write_program(programs / "wheel", "7.0.2-static")
    write_program(programs / "ffmpeg", "4.4.2-0ubuntu0.22.04.1")
    assert find_ffmpeg().path == str(wheel)


def test_old_versions_are_rejected(programs: Path) -> None:
    old = write_program(programs / "wheel", "4.2.2-static")
    for explicit in (None, str(old)):
        with pytest.raises(FfmpegError, match=r"version 4\.2\.2-static, need 5\.1 or newer"):
            find_ffmpeg(explicit)


@pytest.mark.parametrize(
    ("text", "first_error", "damage"),
    [
        ("", "", False),
        ("[mpeg4 @ 0x1f] [warning] Invalid and inefficient vfw-avi packed B-frames detected\nmore of it\n", "", False),
        ("[vist#0:0/h264 @ 0x1] [dec:h264 @ 0x2] [warning] corrupt decoded frame\n", "", True),
        ("[h264 @ 0x1f] [error] left block unavailable\n    Last message repeated 2 times\n[error] exiting\n",
         "left block unavailable", True),
        ("ffmpeg: out of paper\n", "ffmpeg: out of paper", True),
    ],
)  # fmt: skip
def test_log_summary(tmp_path: Path, text: str, first_error: str, damage: bool) -> None:
    (tmp_path / "log").write_text(text)
    log = read_log(tmp_path / "log")
    assert (log.first_error, log.damage) == (first_error, damage)
    assert not log.out_of_memory


@pytest.mark.parametrize(
    ("line", "of_output"),
    [
        ("[vost#0:0/mjpeg @ 0x1] [error] Error submitting a packet to the muxer: No space left on device", True),
        ("[out#0/nut @ 0x1] [error] Task finished with error code: -28 (No space left on device)", True),
        ("[error] av_interleaved_write_frame(): No space left on device", True),
        ("[error] Error writing trailer of file:/x.nut: No space left on device", True),
        ("[in#0/mov @ 0x1] [error] Error during demuxing: No space left on device", False),
        ("[h264 @ 0x1] [error] No space left on device", False),
    ],
)
def test_only_errors_of_outputs_mean_a_full_disk(tmp_path: Path, line: str, of_output: bool) -> None:
    (tmp_path / "ffmpeg.log").write_text(f"{line}\n")
    log = read_log(tmp_path / "ffmpeg.log")
    assert (log.output_errors, log.other_errors) == (({errno.ENOSPC}, set()) if of_output else (set(), {errno.ENOSPC}))
    for status in (1, 256 - errno.ENOSPC):
        error = _explain_failure(status, log, tmp_path)
        assert isinstance(error, OutputError if of_output else VideoError)
        if isinstance(error, VideoError):
            assert "No space left on device" in error.reason, "in its own words"


def test_full_disk_without_room_for_a_log(tmp_path: Path) -> None:
    assert isinstance(_explain_failure(256 - errno.ENOSPC, FfmpegLog(), tmp_path), OutputError)
    assert isinstance(_explain_failure(256 - errno.EINVAL, FfmpegLog(), tmp_path), VideoError)
