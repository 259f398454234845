"""Output folders of earlier releases: read as before, never added to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest

from cmd_extract import schema
from cmd_extract.decode.source import fingerprint
from cmd_extract.shard.reader import ShardSet
from tests.integration.cmd_extract.test_resume import SIZE, X264, call, write_manifest

MakeVideo = Callable[..., Path]


def make_version_1(out: Path) -> None:
    """Rewrites an output folder as the first releases wrote it: no damage, motion in other chunks."""
    index, run = (json.loads((out / name).read_text()) for name in ("index.json", "run.json"))
    described = index["config"] | {"format_version": 1}
    same = {"version": 1, "config": described, "config_hash": schema.hash_json(described)}
    for entry in index["shards"]:
        path = out / entry["name"]
        with h5py.File(path, "r+") as file:
            del file[schema.VIDEO_DAMAGE]
            for name in (schema.MOTION_GRID, schema.MOTION_VALID):
                data = file[name][:]
                del file[name]
                packing = hdf5plugin.Blosc(cname="lz4", clevel=5, shuffle=hdf5plugin.Blosc.SHUFFLE)
                file.create_dataset(
                    name, data=data, chunks=(8, *data.shape[1:]), maxshape=(None, *data.shape[1:]), **packing
                )
            file.attrs[schema.ATTR_VERSION] = 1
            file.attrs[schema.ATTR_CONFIG] = json.dumps(described, sort_keys=True)
            file.attrs[schema.ATTR_CONFIG_HASH] = same["config_hash"]
        del entry["damaged"]
        entry |= {"sha256": fingerprint(path), "size_bytes": path.stat().st_size}
    del index["totals"]["damaged"], run["summary"]["damaged"]
    index["totals"]["size_bytes"] = sum(entry["size_bytes"] for entry in index["shards"])
    (out / "index.json").write_text(json.dumps(index | same))
    (out / "run.json").write_text(json.dumps(run | same))
    (out / "damaged.csv").unlink()


@pytest.fixture(scope="module")
def versions(make_video: MakeVideo, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of one manifest: an output folder of version 1, with a failure, and one as it is written now."""
    folder = tmp_path_factory.mktemp("versions")
    for name in "ab":
        make_video(folder / f"{name}.mp4", *X264, source="mandelbrot", frames=26)
    manifest = write_manifest(folder, ["a.mp4", "lost.mp4", "b.mp4"])
    assert call("run", manifest, folder / "new", "--workers", 1, "--videos-per-shard", 2, *SIZE)[0] == 3
    shutil.copytree(folder / "new", folder / "old")
    make_version_1(folder / "old")
    return folder / "old", folder / "new"


def test_version_1_is_read(versions: tuple[Path, Path]) -> None:
    old, new = versions
    for command in ("verify", "inspect"):
        code, said = call(command, old)
        assert code == 0, said
    before, now = ShardSet(old), ShardSet(new)
    assert before.videos == now.videos
    assert before.config_hash != now.config_hash
    for entry in now.videos:
        ours, theirs = (s.motion(entry, 0, entry.frame_count).grid_quarter_px for s in (before, now))
        np.testing.assert_array_equal(ours, theirs)
        frames = range(entry.frame_count)
        assert [bytes(j) for j in before.frame_jpegs(entry, frames)] == [
            bytes(j) for j in now.frame_jpegs(entry, frames)
        ]
    assert call("preview", old, "--video", "a.mp4", "--to", old.parent / "p.png")[0] == 0


@pytest.mark.parametrize(
    "command",
    [
        ("run",),
        ("run", "--retry-failures", "all"),
        ("run", "--task", 0, "--num-tasks", 1),
        ("verify", "--repair"),
        ("merge",),
    ],
)
def test_version_1_is_not_added_to(versions: tuple[Path, Path], command: tuple[object, ...], tmp_path: Path) -> None:
    old, _ = versions
    out = tmp_path / "out"
    shutil.copytree(old, out)
    (out / "shard-00001.h5").unlink()
    before = {p.name: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    manifest = (old.parent / "m.csv",) if command[0] == "run" else ()
    rows = ("--videos-per-shard", 2, *SIZE) if command[0] == "run" else ()
    code, said = call(command[0], *manifest, out, *command[1:], *rows)
    assert code == 1, said
    assert "shard format version 1, this release writes version 2. Nothing was changed" in said
    assert {p.name: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_a_version_2_shard_without_damage_is_not_whole(versions: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(versions[1], out)
    with h5py.File(out / "shard-00000.h5", "r+") as file:
        del file[schema.VIDEO_DAMAGE]
    code, said = call("verify", out)
    assert code == 1
    assert "cannot be read" in said
