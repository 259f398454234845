"""Output folders of another shard format version: every command rejects them and changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import pytest

from cmd_extract import schema
from cmd_extract.shard.reader import ShardSet
from tests.integration.cmd_extract.extraction import SIZE, X264, MakeVideo, all_files, call, write_manifest

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


def test_an_older_index_is_replaced_by_merge(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    text = (out / schema.INDEX_NAME).read_text()
    (out / schema.INDEX_NAME).write_text(json.dumps(json.loads(text) | {"version": schema.INDEX_VERSION - 1}))
    code, output = call("inspect", out)
    assert (code, f"run `cmd-extract merge {out}` to rebuild it, without extracting again" in output) == (1, True)
    assert call("merge", out, "--allow-failures")[0] == 0
    assert (out / schema.INDEX_NAME).read_text() == text
    assert ShardSet(out).videos == ShardSet(finished).videos


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"version": schema.INDEX_VERSION + 1}, "update this project to read it"),
        ({"totals": {}}, "incomplete or edited; run `cmd-extract merge"),
        ({"split_columns": [1]}, "incomplete or edited"),
        ({"shards": 10**30}, "incomplete or edited"),
        ({"rows": 4}, "label/code has 3 items, expected 4"),
    ],
)
def test_an_index_that_was_edited_is_named(
    finished: Path, tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    head = json.loads((out / schema.INDEX_NAME).read_text())
    (out / schema.INDEX_NAME).write_text(json.dumps(head | changed))
    code, output = call("inspect", out)
    assert (code, message in output) == (1, True), output
    assert f"{out}/index" in output


def test_an_index_that_is_up_to_date_is_kept(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    (out / "index-0123456789abcdef.h5").touch()  # left by a killed process
    before = (out / schema.INDEX_NAME).stat().st_ino
    (out / schema.FAILURES_NAME).unlink()
    assert call("merge", out, "--allow-failures")[0] == 0
    assert (out / schema.INDEX_NAME).stat().st_ino == before
    assert (out / schema.FAILURES_NAME).exists()
    header, *rows = (finished.parent / "m.csv").read_text().splitlines()
    manifest = finished.parent / "labels.csv"
    manifest.write_text("\n".join([f"{header},label", *(f"{row},x" for row in rows)]))
    assert call("relabel", out, manifest)[0] == 0
    assert len(list(out.glob("index-*.h5"))) == 1, "tables that no index names are removed"
    code, output = call("merge", out, "--allow-failures", "--manifest", finished.parent / "m.csv")
    assert code == 0, output
    assert "note: the labels, groups and splits in" in output


def test_verify_finds_a_table_of_chunks_that_does_not_match(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    with h5py.File(out / "shard-00000.h5", "r+") as file:
        file[schema.MOTION_VALID_CHUNK][0, 0] += 1
    code, output = call("verify", out, "--quick")
    assert code == 1
    assert "motion/valid_chunk does not match motion/valid" in output


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
    before = all_files(other)
    manifest = (finished.parent / "m.csv",) if command[0] == "run" else ()
    rows = ("--videos-per-shard", 2, *SIZE) if command[0] == "run" else ()
    code, output = call(command[0], *manifest, other, *command[1:], *rows)
    assert code == 1, output
    assert (
        f"contains an extraction of shard format version {OTHER}. This release reads version {schema.FORMAT_VERSION}"
        in output
    )
    assert "Nothing was changed" in output
    assert all_files(other) == before


@pytest.mark.parametrize("command", [("verify", "--no-sources"), ("inspect",), ("preview", "--video", "a.mp4")])
def test_another_version_is_not_read(other: Path, command: tuple[object, ...]) -> None:
    code, output = call(command[0], other, *command[1:])
    assert code == 1, output
    assert f"version {OTHER}, this release reads version " in output


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
