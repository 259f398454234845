"""Time stamps equal those of the source with and without frames, for every reader."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.integration.cmd_extract.test_sources import X264, extract, only

MakeVideo = Callable[..., Path]
# "variable.mkv": time stamps 0, 1, 4, 9, ... thirtieths of a second.
SOURCES = {
    "30.mp4": X264,
    "30.avi": ("-c:v", "mpeg4", "-bf", "2"),
    "variable.mkv": (*X264, "-vf", "setpts=N*N/30/TB", "-fps_mode", "passthrough"),
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("transcode", ["always", "auto"])
def test_source_time_stamps_are_kept_without_frames(
    make_video: MakeVideo, tmp_path: Path, name: str, transcode: str
) -> None:
    found = {}
    readers = ["pyav", "mvextractor"] if find_spec("mvextractor") and transcode == "always" else ["pyav"]
    source = make_video(tmp_path / name, *SOURCES[name], source="mandelbrot", frames=30)
    for kind in ("with", *readers):
        (tmp_path / kind).mkdir()
        shutil.copy(source, tmp_path / kind)
        options = ("--transcode", transcode, "--gop", "7")
        options += () if kind == "with" else ("--no-frames", "--reader", kind)
        out, failures = extract(tmp_path / kind, *options)
        assert not failures
        found[kind] = out
    (shards, entry), (bare, bare_entry) = only(found["with"]), only(found["pyav"])
    assert bare_entry == entry
    times = bare._reader(entry).pts_seconds(0)
    expected = np.arange(30) ** 2 / 30 if name == "variable.mkv" else np.arange(30) / 30
    np.testing.assert_allclose(times, expected, atol=1e-3)
    np.testing.assert_array_equal(times, shards._reader(entry).pts_seconds(0))
    ours, theirs = bare.motion(entry, 0, 30), shards.motion(entry, 0, 30)
    np.testing.assert_array_equal(ours.grid_quarter_px, theirs.grid_quarter_px)
    for number in range(len(entry.keyframe_indices)):
        assert bytes(bare.keyframe_jpeg(entry, number)) == bytes(shards.keyframe_jpeg(entry, number))
    assert len({(found[reader] / "shard-00000.h5").read_bytes() for reader in readers}) == 1
