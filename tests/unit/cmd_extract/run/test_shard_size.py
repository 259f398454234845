"""Shards that are closed by their expected size; the files are sparse and occupy no disk space."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cmd_extract.config import ExtractConfig
from cmd_extract.decode.ffmpeg import FfmpegBinary
from cmd_extract.errors import ShardError
from cmd_extract.manifest.rows import ManifestFile
from cmd_extract.run.job import RunJob
from cmd_extract.run.pipeline import prepare_folders
from cmd_extract.run.plan import Planned
from cmd_extract.run.plan_file import PLAN_NAME
from cmd_extract.run.record import RunIdentity, add_rows, plan_run, read_record
from cmd_extract.run.recorded_run import read_recorded_run
from cmd_extract.sources.location import RemoteFile, Root

MB = 10**6
HOUR = 277 * MB  # one hour of 340 x 256 pixels, as Kinetics has it


def write_sources(folder: Path, sizes: Sequence[int]) -> ManifestFile:
    for number, size in enumerate(sizes):
        with (folder / f"{number}.mp4").open("wb") as stream:
            stream.truncate(size)
    (folder / "m.csv").write_text("id,path\n" + "".join(f"v{i},{i}.mp4\n" for i in range(len(sizes))))
    return ManifestFile(folder / "m.csv")


def job_in(folder: Path) -> RunJob:
    binary = FfmpegBinary(path="", version="ffmpeg version 7.1")
    out = folder / "out"
    return RunJob(root=folder, out=out, scratch=out, config=ExtractConfig(), binary=binary, manifest=folder / "m.csv")


def plan(folder: Path, videos: int | None = None, gigabytes: float | None = None, root: Root | None = None) -> Planned:
    source = ManifestFile(folder / "m.csv")
    return plan_run(folder / "out", source, videos, shard_gb=gigabytes, root=root or folder)


def sizes(planned: Planned) -> list[int]:
    return [len(shard.rows) for shard in planned.plans]


def record(folder: Path, planned: Planned) -> Planned:
    job = job_in(folder)
    identity, planned = prepare_folders(job, planned)
    add_rows(job, identity)
    return planned


def test_hours_of_video_do_not_share_a_shard_but_seconds_do(tmp_path: Path) -> None:
    write_sources(tmp_path, [HOUR] * 10)
    assert sizes(plan(tmp_path, 256)) == [3, 3, 3, 1], "4 GB at four times the size of the sources"
    assert sizes(plan(tmp_path, 256, 1.0)) == [1] * 10, "a video of more than the limit has a shard of its own"
    assert sizes(plan(tmp_path, 2)) == [2] * 5
    write_sources(tmp_path, [HOUR // 360] * 600)
    assert sizes(plan(tmp_path, 256)) == [256, 256, 88]
    assert plan(tmp_path, 256).parts[0].sizes == ()


def test_size_is_unknown_for_remote_sources_tar_members_and_missing_files(tmp_path: Path) -> None:
    write_sources(tmp_path, [HOUR] * 4)
    with (tmp_path / "big.tar").open("wb") as stream:
        stream.truncate(100 * HOUR)
    rows = ["a,big.tar::0.mp4", "b,gone.mp4", "c,https://host/0.mp4", "d,a:b.mp4"]
    (tmp_path / "m.csv").write_text("\n".join(["id,path", *rows]))
    assert sizes(plan(tmp_path, 256, 0.001)) == [4]
    (tmp_path / "0.mp4").rename(tmp_path / "a:b.mp4")
    assert sizes(plan(tmp_path, 256, 0.001)) == [3, 1]
    assert sizes(plan(tmp_path, 256, 0.001, RemoteFile("https://host/videos"))) == [4]


def test_recorded_boundaries_stay_when_sources_change_or_disappear(tmp_path: Path) -> None:
    write_sources(tmp_path, [HOUR, HOUR, MB, MB, 9 * HOUR, MB])
    before = record(tmp_path, plan(tmp_path, 256, 2.0))
    assert sizes(before) == [1, 3, 1, 1]
    assert before.parts[0].sizes == ((1, 1), (3, 1), (1, 2))
    for number in range(6):
        (tmp_path / f"{number}.mp4").unlink()
    for name in ("recorded plan", "no plan"):
        again = plan(tmp_path)
        assert list(again.plans) == list(before.plans), name
        assert again.is_saved == (name == "recorded plan")
        assert list(read_recorded_run(tmp_path / "out").planned.plans) == list(before.plans)
        (tmp_path / "out" / PLAN_NAME).unlink(missing_ok=True)
    # Rows that are added are divided by their own sizes.
    write_sources(tmp_path, [1, 1, 1, 1, 1, 1, HOUR, HOUR, HOUR])
    added = record(tmp_path, plan(tmp_path, 256))
    assert sizes(added) == [1, 3, 1, 1, 3]
    assert [part.shard_gb for part in added.parts] == [2.0, 4.0]
    with pytest.raises(ShardError, match=r"shard_gb: 4\.0 is now 3\.0"):
        prepare_folders(job_in(tmp_path), plan(tmp_path, gigabytes=3.0))


def test_of_two_tasks_that_plan_at_once_one_decides(tmp_path: Path) -> None:
    write_sources(tmp_path, [HOUR] * 6)
    first = plan(tmp_path, 256)
    write_sources(tmp_path, [3 * HOUR] * 6)
    second = plan(tmp_path, 256)
    assert (sizes(first), sizes(second)) == ([3, 3], [1] * 6)
    assert sizes(record(tmp_path, first)) == [3, 3]
    assert sizes(record(tmp_path, second)) == [3, 3]
    found = read_record(tmp_path / "out")
    assert found
    assert found.identity == RunIdentity.of(job_in(tmp_path), first)


def test_a_saved_plan_of_the_same_command_counts_before_its_rows_are_recorded(tmp_path: Path) -> None:
    write_sources(tmp_path, [HOUR] * 6)
    record(tmp_path, plan(tmp_path, 256))
    (tmp_path / "out" / "run.json").unlink()
    write_sources(tmp_path, [1] * 6)
    assert sizes(plan(tmp_path, 256)) == [3, 3], "as for the tasks of an array, which start at once"
    assert sizes(plan(tmp_path, 256, 5.0)) == [6]


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
def test_unusable_limits_are_rejected(tmp_path: Path, limit: float) -> None:
    write_sources(tmp_path, [1])
    with pytest.raises(ValueError, match=r"shard_gb: must be positive and at most 1000000, got"):
        plan(tmp_path, gigabytes=limit)


@pytest.mark.parametrize("damage", [[[3, 1]], [[0, 2], [6, 1]], [[6, 1.0]], 5])
def test_damaged_boundaries_are_refused(tmp_path: Path, damage: object) -> None:
    write_sources(tmp_path, [HOUR] * 6)
    record(tmp_path, plan(tmp_path, 256))
    path = tmp_path / "out" / "run.json"
    content = json.loads(path.read_text())
    content["parts"][0][4] = damage
    path.write_text(json.dumps(content))
    with pytest.raises(ShardError, match="not a valid record"):
        plan(tmp_path)


def test_another_root_does_not_move_boundaries(tmp_path: Path) -> None:
    write_sources(tmp_path, [HOUR] * 6)
    before = record(tmp_path, plan(tmp_path, 256))
    job = replace(job_in(tmp_path), root=tmp_path / "moved")
    assert prepare_folders(job, plan(tmp_path, root=job.root))[1].parts == before.parts
