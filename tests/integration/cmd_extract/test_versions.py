"""Output folders of another shard format version: every command rejects them and changes nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from cmd_extract import schema
from cmd_extract.shard.reader import ShardSet
from tests.integration.cmd_extract.test_resume import SIZE, X264, call, write_manifest

MakeVideo = Callable[..., Path]
OTHER = schema.FORMAT_VERSION + 1


@pytest.fixture(scope="module")
def finished(make_video: MakeVideo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished output folder, with a failure; its manifest is in the parent folder."""
    folder = tmp_path_factory.mktemp("versions")
    for name in "ab":
        make_video(folder / f"{name}.mp4", *X264, source="mandelbrot", frames=26)
    manifest = write_manifest(folder, ["a.mp4", "lost.mp4", "b.mp4"])
    assert call("run", manifest, folder / "out", "--workers", 1, "--videos-per-shard", 2, *SIZE)[0] == 3
    return folder / "out"


@pytest.fixture
def other(finished: Path, tmp_path: Path) -> Path:
    """A copy of the folder that claims to be of another format version."""
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    for path in out.glob(schema.SHARD_GLOB):
        with h5py.File(path, "r+") as file:
            file.attrs[schema.ATTR_VERSION] = OTHER
    for name in (schema.INDEX_NAME, schema.RUN_NAME):
        content = json.loads((out / name).read_text())
        (out / name).write_text(json.dumps(content | {"version": OTHER}))
    return out


@pytest.fixture
def first_version(finished: Path, tmp_path: Path) -> Path:
    """A copy of the folder in format version 1, which has no tables of motion chunks."""
    out = tmp_path / "first"
    shutil.copytree(finished, out)
    index = json.loads((out / schema.INDEX_NAME).read_text())
    for entry in index["shards"]:
        path = out / entry["name"]
        with h5py.File(path, "r+") as file:
            file.attrs[schema.ATTR_VERSION] = 1
            del file[schema.MOTION_GRID_CHUNK], file[schema.MOTION_VALID_CHUNK]
        entry |= {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size_bytes": path.stat().st_size}
    totals = index["totals"] | {"size_bytes": sum(entry["size_bytes"] for entry in index["shards"])}
    (out / schema.INDEX_NAME).write_text(json.dumps(index | {"version": 1, "totals": totals}))
    record = json.loads((out / schema.RUN_NAME).read_text())
    (out / schema.RUN_NAME).write_text(json.dumps(record | {"version": 1}))
    return out


def test_version_1_can_be_read_but_not_continued(finished: Path, first_version: Path) -> None:
    old, new = ShardSet(first_version), ShardSet(finished)
    assert old.videos == new.videos
    for entry in new.videos:
        frames = range(entry.frame_count)
        assert old.frame_jpegs(entry, frames) == new.frame_jpegs(entry, frames)
        assert old.keyframe_jpeg(entry, 0) == new.keyframe_jpeg(entry, 0)
        for start in range(entry.frame_count):
            motions = [shards.motion(entry, start, entry.frame_count) for shards in (old, new)]
            assert np.array_equal(motions[0].grid_quarter_px, motions[1].grid_quarter_px)
            assert np.array_equal(motions[0].valid, motions[1].valid)
    code, output = call("verify", first_version, "--no-sources")
    assert code == 0, output
    assert call("inspect", first_version)[0] == 0
    before = files(first_version)
    code, output = call("run", finished.parent / "m.csv", first_version, "--videos-per-shard", 2, *SIZE)
    assert code == 1
    assert "shard format version 1. This release reads versions 1 and 2, but continues" in output
    assert "choose another output folder" in output
    assert files(first_version) == before


def test_verify_finds_a_table_of_chunks_that_does_not_match(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    with h5py.File(out / "shard-00000.h5", "r+") as file:
        file[schema.MOTION_VALID_CHUNK][0, 0] += 1
    code, output = call("verify", out, "--quick")
    assert code == 1
    assert "motion/valid_chunk does not match motion/valid" in output


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "command",
    [
        ("run",),
        ("run", "--retry-failures", "all"),
        ("run", "--task", 0, "--num-tasks", 1),
        ("run", "--dry-run"),
        ("verify",),
        ("verify", "--repair"),
        ("merge",),
        ("status",),
    ],
)
def test_another_version_is_not_continued(finished: Path, other: Path, command: tuple[object, ...]) -> None:
    (other / "shard-00001.h5").unlink()
    before = files(other)
    manifest = (finished.parent / "m.csv",) if command[0] == "run" else ()
    rows = ("--videos-per-shard", 2, *SIZE) if command[0] == "run" else ()
    code, output = call(command[0], *manifest, other, *command[1:], *rows)
    assert code == 1, output
    assert f"contains an extraction of shard format version {OTHER}. This release reads versions 1 and 2" in output
    assert "Nothing was changed" in output
    assert files(other) == before


@pytest.mark.parametrize("command", [("verify", "--no-sources"), ("inspect",), ("preview", "--video", "a.mp4")])
def test_another_version_is_not_read(other: Path, command: tuple[object, ...]) -> None:
    code, output = call(command[0], other, *command[1:])
    assert code == 1, output
    assert f"version {OTHER}, this release reads versions 1 and 2" in output


def test_a_shard_without_damage_column_is_not_intact(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    with h5py.File(out / "shard-00000.h5", "r+") as file:
        del file[schema.VIDEO_DAMAGE]
    code, output = call("verify", out)
    assert code == 1
    assert "cannot be read" in output


def test_the_extractor_version_is_recorded(finished: Path) -> None:
    record = json.loads((finished / schema.RUN_NAME).read_text())
    assert record["extractor_version"] == schema.EXTRACTOR_VERSION
    with h5py.File(finished / "shard-00000.h5") as file:
        assert json.loads(file.attrs[schema.ATTR_CONFIG])["extractor_version"] == schema.EXTRACTOR_VERSION
        assert "motion-vector-extractor" not in json.loads(file.attrs[schema.ATTR_SOFTWARE])
