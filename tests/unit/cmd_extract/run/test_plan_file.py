"""Plans of manifest files: read as a stream, reused, read shard by shard."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import pytest

from cmd_extract.errors import ManifestError
from cmd_extract.manifest.records import read_manifest
from cmd_extract.manifest.rows import ListedRows, ManifestFile
from cmd_extract.run.division import plan_shards
from cmd_extract.run.plan import Planned, ShardLimits, read_each
from cmd_extract.run.plan_file import PLAN_NAME, load_plan, save_plan

# Rows of every form that CSV allows: quotes, line breaks in cells, blank lines, other line ends, no UTF-8.
AWKWARD = (
    b"\xef\xbb\xbflabel,path,id\r\n\r\n"
    b'a,"x\ny.mp4",one\r\n'
    b"\n\n"
    b'"b ""c""",caf\xe9.mp4,two\n'
    b'd,"back\\slash, \xe4\xb8\xad.mp4",three\n'
    b"e,z.mp4,\xe5\x9b\x9b\n"
    b"f,last.mp4,five"
)


def write_rows(path: Path, count: int) -> ManifestFile:
    path.write_text("id,path\n" + "".join(f"v{i},{i}.mp4\n" for i in range(count)))
    return ManifestFile(path)


@pytest.mark.parametrize("videos_per_shard", [1, 2, 3, 256])
@pytest.mark.parametrize("ends", [b"\n", b"\r", b"\r\n"])
def test_rows_of_a_shard_are_those_of_the_whole_manifest(tmp_path: Path, videos_per_shard: int, ends: bytes) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(AWKWARD.replace(b"\r\n", b"\n").replace(b"\n", ends))
    records = read_manifest(path, check_paths=False)
    assert [r.video_id for r in records] == ["one", "two", "three", "四", "five"]
    streamed, listed = (
        plan_shards(rows, limits=ShardLimits(videos_per_shard)) for rows in (ManifestFile(path), ListedRows(records))
    )
    assert [p.read_records() for p in streamed.plans] == [p.read_records() for p in listed.plans]
    assert [p.rows_hash for p in streamed.plans] == [p.rows_hash for p in listed.plans]
    for plans in (streamed.plans, listed.plans, streamed.plans[::2], [*streamed.plans[2:], *streamed.plans[:2]]):
        assert list(read_each(plans)) == [plan.read_records() for plan in plans]
    assert streamed.parts == listed.parts
    rows = json.dumps([[r.row, r.video_id, r.path] for r in records], separators=(",", ":"))
    assert streamed.parts[0].manifest_hash == hashlib.sha256(rows.encode()).hexdigest()
    assert streamed.manifest_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    pickled = [pickle.dumps(plan) for plan in streamed.plans]
    path.unlink()
    read = [record for plan in map(pickle.loads, pickled) for record in plan.read_records()]
    assert tuple(read) == records, "a worker on another machine need not see the manifest"


@pytest.mark.parametrize("count", [8160, 8161, 20_000])
def test_parts_do_not_depend_on_the_blocks_in_which_rows_are_read(tmp_path: Path, count: int) -> None:
    streamed = plan_shards(write_rows(tmp_path / "m.csv", count))
    listed = plan_shards(ListedRows(read_manifest(tmp_path / "m.csv", check_paths=False)))
    assert streamed.parts == listed.parts
    assert [(p.rows, p.rows_hash) for p in streamed.plans] == [(p.rows, p.rows_hash) for p in listed.plans]
    more = plan_shards(write_rows(tmp_path / "m.csv", count + 9000), streamed.parts)
    assert more.parts[:-1] == streamed.parts
    assert [p.rows for p in more.plans[: len(streamed.plans)]] == [p.rows for p in streamed.plans]
    assert plan_shards(ManifestFile(tmp_path / "m.csv"), more.parts).parts == more.parts
    fewer = plan_shards(write_rows(tmp_path / "m.csv", count - 1), streamed.parts)
    assert [part.rows for part in fewer.parts] == [count - 1]


def test_rows_of_many_shards_are_read_in_parts(tmp_path: Path) -> None:
    plans = plan_shards(write_rows(tmp_path / "m.csv", 10_000), limits=ShardLimits(3000)).plans
    assert [len(records) for records in read_each(plans)] == [3000, 3000, 3000, 1000]
    assert [r.row for records in read_each(plans) for r in records] == list(range(10_000))


def test_equal_ids_far_apart_are_found(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "m.csv", 20_000).path
    with path.open("a") as stream:
        stream.write("new,x.mp4\nv7,y.mp4\nv3,z.mp4\n")
    with pytest.raises(ManifestError, match=r"line 20003, column 'id': 'v7' is also the id of line 9;"):
        plan_shards(ManifestFile(path))


def test_a_manifest_that_changes_after_planning_is_noticed(tmp_path: Path) -> None:
    plans = plan_shards(write_rows(tmp_path / "m.csv", 6), limits=ShardLimits(2)).plans
    text = (tmp_path / "m.csv").read_text()
    (tmp_path / "m.csv").write_text(text.replace("3.mp4", "8.mp4"))
    assert [r.path for r in plans[0].read_records()] == ["0.mp4", "1.mp4"]
    with pytest.raises(ManifestError, match=r"has changed since it was read \(rows 2 to 3, counted from 0\)"):
        plans[1].read_records()
    with pytest.raises(ManifestError, match=r"has changed since it was read \(rows 2 to 3, counted from 0\)"):
        list(read_each(plans))
    (tmp_path / "m.csv").write_text(text[:-20])
    with pytest.raises(ManifestError, match=r"m\.csv: has changed since it was read"):
        plans[2].read_records()


def saved(tmp_path: Path) -> tuple[ManifestFile, Planned]:
    source = write_rows(tmp_path / "m.csv", 10)
    planned = plan_shards(source, limits=ShardLimits(4))
    save_plan(tmp_path, planned)
    return source, planned


def test_a_saved_plan_is_that_of_the_manifest(tmp_path: Path) -> None:
    source, planned = saved(tmp_path)
    loaded = load_plan(tmp_path, source, planned.parts, ShardLimits())
    assert loaded
    assert loaded.is_saved
    assert (loaded.parts, loaded.manifest_sha256) == (planned.parts, planned.manifest_sha256)
    assert list(loaded.plans) == list(planned.plans)
    assert [r.row for r in loaded.plans[2].read_records()] == [8, 9]


def test_a_saved_plan_of_something_else_is_not_used(tmp_path: Path) -> None:
    source, planned = saved(tmp_path)
    assert load_plan(tmp_path, source, (), ShardLimits()) is None, "of a run that has not been recorded"
    assert load_plan(tmp_path, source, planned.parts, ShardLimits(3)) is None
    assert load_plan(tmp_path / "elsewhere", source, planned.parts, ShardLimits()) is None
    write_rows(source.path, 11)
    assert load_plan(tmp_path, source, planned.parts, ShardLimits()) is None, "the manifest has changed"
    write_rows(source.path, 10)
    assert load_plan(tmp_path, source, planned.parts, ShardLimits(4))
    file = tmp_path / PLAN_NAME
    content = file.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"x" * 100):
        file.write_bytes(damaged)
        assert load_plan(tmp_path, source, planned.parts, ShardLimits()) is None
