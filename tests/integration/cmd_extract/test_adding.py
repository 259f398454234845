"""Runs that add to an existing output: manifests with new rows, and another FFmpeg."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import pytest

from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.shard.reader import ShardSet
from tests.integration.cmd_extract.extraction import SIZE, X264, MakeVideo, all_files, call, contents, write_manifest

NAMES = ["a.mp4", "b.mp4", "lost.mp4", "c.mp4", "d.mp4"]
OPTIONS = ("--workers", 1, *SIZE)


@pytest.fixture(scope="module")
def original(make_video: MakeVideo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four videos and the extraction of the first three rows, two per shard."""
    folder = tmp_path_factory.mktemp("adding")
    for number, name in enumerate("abcd"):
        make_video(folder / f"{name}.mp4", *X264, frames=3 + number)
    assert call("run", write_manifest(folder, NAMES[:3]), folder / "out", "--videos-per-shard", 2, *OPTIONS)[0] == 3
    return folder


@pytest.mark.parametrize("tasks", [0, 2])
def test_new_rows_are_added_without_touching_finished_shards(folder: Path, tasks: int) -> None:
    out, manifest = folder / "out", write_manifest(folder, NAMES)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("shard-*.h5")}
    run = ("run", manifest, out, *OPTIONS)
    plan = call(*run, "--dry-run")[1]
    assert "5 videos" in plan
    if tasks:
        for task in range(tasks):
            code, output = call(*run, "--task", task, "--num-tasks", tasks)
            assert code == 0, output
        assert call("merge", out)[0] == 3
    else:
        code, output = call(*run)
        assert code == 3, output
        assert "videos    4 (2 in this run)" in output
    after = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("shard-*.h5")}
    assert sorted(after) == [f"shard-0000{number}.h5" for number in range(4)], "one row per new shard, by default"
    assert {name: after[name] for name in before} == before
    shards = ShardSet(out)
    assert [(entry.row, entry.video_id) for entry in shards.videos] == [
        (row, name) for row, name in enumerate(NAMES) if name != "lost.mp4"
    ]
    code, output = call("verify", out)
    assert code == 0, output
    finished = contents(out)
    assert call(*run)[0] == 3
    assert contents(out) == finished


def test_rows_can_be_added_while_the_first_ones_are_unfinished(folder: Path) -> None:
    out = folder / "out"
    (out / "shard-00000.h5").unlink()
    assert call("run", write_manifest(folder, NAMES), out, *OPTIONS, "--videos-per-shard", 1)[0] == 3
    assert call("run", write_manifest(folder, [*NAMES, "a2.mp4"]), out, *OPTIONS)[0] == 3
    parts = json.loads((out / "run.json").read_text())["parts"]
    assert [(rows, per_shard) for rows, per_shard, *_ in parts] == [(3, 2), (2, 1), (1, 1)]
    assert call("verify", out)[0] == 0


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (NAMES[:2], (), "manifest: 3 rows, now 2; rows can only be added at the end"),
        (["a.mp4", "z.mp4", *NAMES[2:]], (), "manifest: the first 3 rows, ids or paths have changed"),
        (NAMES[:3], ("--videos-per-shard", 1), "videos_per_shard: 2 is now 1"),
        (NAMES, ("--gop", 6), "gop: 12 is now 6"),
    ],
)
def test_other_changes_are_refused(folder: Path, names: list[str], options: tuple[object, ...], message: str) -> None:
    out = folder / "out"
    before = all_files(out)
    for more in ((), ("--task", 0, "--num-tasks", 1), ("--dry-run",)):
        code, output = call("run", write_manifest(folder, names), out, *OPTIONS, *options, *more)
        assert code == 1, output
        assert message in output
        assert "Nothing was changed" in output
    assert all_files(out) == before


@pytest.mark.parametrize("tasks", [(), ("--task", 0, "--num-tasks", 1)])
def test_a_refused_run_adds_no_rows(folder: Path, tasks: tuple[object, ...]) -> None:
    out = folder / "out"
    record = (out / "run.json").read_bytes()
    with (folder / "a.mp4").open("ab") as stream:
        stream.write(b"more")
    code, output = call("run", write_manifest(folder, NAMES), out, *OPTIONS, *tasks)
    assert code == 1
    assert "source files have changed" in output
    assert (out / "run.json").read_bytes() == record
    assert call("run", write_manifest(folder, [*NAMES[:3], "d.mp4"]), out, *OPTIONS, "--dry-run")[0] == 1


def test_labels_of_an_index_without_the_added_rows_cannot_be_replaced(folder: Path) -> None:
    out, manifest = folder / "out", write_manifest(folder, NAMES)
    # Their videos fail, so that a task adds the rows, but no shard.
    for name in NAMES[3:]:
        (folder / name).unlink()
    assert call("run", manifest, out, *OPTIONS, "--task", 0, "--num-tasks", 2, "--max-failures", 0)[0] == 4
    code, output = call("relabel", out, manifest)
    assert code == 1
    assert "has only 2 of 4 shards" in output


def other_release(folder: Path, ffmpeg: FfmpegBinary, version: str) -> Path:
    path = folder / f"ffmpeg-{version}"
    path.write_text(
        f'#!/bin/sh\n[ "$1" = -version ] && echo "ffmpeg version {version}" && exit\nexec \'{ffmpeg.path}\' "$@"\n'
    )
    path.chmod(0o755)
    return path


def test_another_release_of_the_same_ffmpeg_is_accepted_by_name(folder: Path, ffmpeg: FfmpegBinary) -> None:
    out, manifest = folder / "new", write_manifest(folder, NAMES[:2])
    run = ("run", manifest, out, *OPTIONS, "--videos-per-shard", 1)
    releases = {version: other_release(folder, ffmpeg, version) for version in ("7.1.2", "7.1.3", "8.0")}
    assert call(*run, "--ffmpeg", releases["7.1.2"])[0] == 0
    (out / "shard-00001.h5").unlink()
    code, output = call(*run, "--ffmpeg", releases["7.1.3"])
    assert code == 1
    assert "ffmpeg: 'ffmpeg version 7.1.2' is now 'ffmpeg version 7.1.3'; `cmd-extract run` continues" in output
    assert "if called with --accept-ffmpeg 7.1.3)" in output
    for name, accepted in (("7.1.3", "7.1.2"), ("8.0", "8.0")):
        code, output = call(*run, "--ffmpeg", releases[name], "--accept-ffmpeg", accepted)
        assert code == 2, output
        assert "accept_ffmpeg" in output
    assert "--accept-ffmpeg" not in call(*run, "--ffmpeg", releases["8.0"])[1]
    code, output = call(*run, "--ffmpeg", releases["7.1.3"], "--accept-ffmpeg", "7.1.3")
    assert code == 0, output
    used = []
    for path in sorted(out.glob("shard-*.h5")):
        with h5py.File(path) as file:
            used.append(json.loads(file.attrs["software"])["ffmpeg"])
            assert json.loads(file.attrs["config"])["ffmpeg"] == "ffmpeg version 7.1.2"
    assert used == ["ffmpeg version 7.1.2", "ffmpeg version 7.1.3"]
    assert call("verify", out)[0] == 0
    assert call(*run, "--ffmpeg", releases["7.1.2"])[0] == 0
