"""Copies of an extraction in a real object store: verified, resumable, with the index last, despite faults."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cmd_extract.run.publish import LOG_NAME, fetch, publish
from cmd_extract.shard.index import ShardIndex
from cmd_extract.shard.reader import ShardSet
from cmd_extract.sources import remote
from cmd_extract.sources.limits import SourceLimits
from tests.indexes import update_index
from tests.integration.cmd_extract.extraction import call, read_rows
from tests.remote_servers import FaultyProxy, object_store, use_store

pytest.importorskip("s3fs", reason="the extra `remote` is not installed")

LIMITS = SourceLimits(timeout_seconds=20, retries=2)
BUCKET = "shards"


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    with object_store(BUCKET) as url:
        yield url


@pytest.fixture
def proxy(store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    running = FaultyProxy(store)
    monkeypatch.setattr(remote, "_FIRST_PAUSE_SECONDS", 0.05)
    use_store(running.url, monkeypatch)
    try:
        yield running
    finally:
        running.close()


@pytest.fixture
def out(few_shards: Path, tmp_path: Path) -> Path:
    return shutil.copytree(few_shards, tmp_path / "out")


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    return f"s3://{BUCKET}/{request.node.name}"


def file_system() -> Any:
    import fsspec

    return fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)


def stored_names(url: str) -> set[str]:
    return {Path(key).name for key in file_system().find(url.removeprefix("s3://"))}


def stored(url: str, folder: Path) -> Path:
    """Download everything below a URL."""
    system = file_system()
    folder.mkdir()
    for key in system.find(url.removeprefix("s3://")):
        (folder / Path(key).name).write_bytes(system.cat_file(key))
    return folder


def uploads(proxy: FaultyProxy) -> list[str]:
    return [Path(path).name for method, path in proxy.requests if method == "PUT"]


def test_copies_are_complete_and_the_index_comes_last(proxy: FaultyProxy, out: Path, url: str, tmp_path: Path) -> None:
    result = call("publish", out, url)
    assert result.exit_code == 0, result.output
    copy = stored(url, tmp_path / "copy")
    names = {path.name for path in out.iterdir() if path.is_file()} - {LOG_NAME}
    assert {path.name for path in copy.iterdir()} == names
    assert all((copy / name).read_bytes() == (out / name).read_bytes() for name in names)
    assert len(ShardSet(copy).videos) == len(ShardSet(out).videos)
    assert (uploads(proxy)[0], uploads(proxy)[-1]) == ("run.json", "index.json")

    proxy.requests.clear()
    assert call("publish", out, url).exit_code == 0
    assert {method for method, _ in proxy.requests} <= {"HEAD", "GET"}
    assert [path for method, path in proxy.requests if method == "GET" and path.endswith(".h5")] == []


def test_an_interrupted_copy_is_continued(proxy: FaultyProxy, out: Path, url: str, tmp_path: Path) -> None:
    proxy.fault = lambda method, path, earlier: "503" if path.endswith("shard-00002.h5") else ""
    result = call("publish", out, url, "--remote-retries", "1")
    assert result.exit_code == 1
    assert "cannot publish" in result.output
    assert "index.json" not in stored_names(url)
    with (out / LOG_NAME).open("a") as stream:
        stream.write('{"url": "s3://cut')  # a crash while writing
    proxy.fault = lambda method, path, earlier: ""
    proxy.requests.clear()
    assert call("publish", out, url).exit_code == 0
    assert not {"shard-00000.h5", "shard-00001.h5"} & set(uploads(proxy))
    assert len(ShardSet(stored(url, tmp_path / "copy")).videos) == len(ShardSet(out).videos)


@pytest.mark.parametrize("kind", ["503", "cut", "flip"])
def test_faults_that_pass_are_repaired(
    kind: str, proxy: FaultyProxy, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://{BUCKET}/passing-{kind}"
    proxy.fault = lambda method, path, earlier: (
        kind if method == "PUT" and path.endswith("1.h5") and not earlier else ""
    )
    assert publish(out, url, LIMITS).existing == 0
    assert uploads(proxy).count("shard-00001.h5") == 2
    copy = stored(url, tmp_path / "copy")
    assert (copy / "shard-00001.h5").read_bytes() == (out / "shard-00001.h5").read_bytes()


def test_a_store_that_changes_data_is_an_error(proxy: FaultyProxy, out: Path, url: str) -> None:
    proxy.fault = lambda method, path, earlier: "flip" if method == "PUT" and path.endswith("1.h5") else ""
    result = call("publish", out, url, "--remote-retries", "1")
    assert result.exit_code == 1
    assert "the copy does not match" in result.output
    assert "index.json" not in stored_names(url)


def test_a_lost_or_replaced_copy_is_copied_again(proxy: FaultyProxy, out: Path, url: str) -> None:
    publish(out, url, LIMITS)
    system = file_system()
    folder = url.removeprefix("s3://")
    system.rm_file(f"{folder}/shard-00000.h5")
    system.pipe_file(f"{folder}/shard-00001.h5", b"other")
    done = publish(out, url, LIMITS)
    assert done.copied == 2
    assert system.cat_file(f"{folder}/shard-00001.h5") == (out / "shard-00001.h5").read_bytes()


def test_the_old_index_is_removed_before_files_are_replaced(
    proxy: FaultyProxy, out: Path, url: str, tmp_path: Path
) -> None:
    publish(out, url, LIMITS)
    update_index(out, label=["x"] * ShardIndex(out).row_count)
    (table,) = out.glob("index-*.h5")
    proxy.requests.clear()
    done = publish(out, url, LIMITS)
    assert done.copied == 2
    writes = [(method, Path(path).name) for method, path in proxy.requests if method in ("PUT", "DELETE")]
    assert writes == [("DELETE", "index.json"), ("PUT", table.name), ("PUT", "index.json")]
    assert [video.label for video in ShardSet(stored(url, tmp_path / "copy")).videos][:1] == ["x"]
    fetch(url, tmp_path / "fetched", LIMITS)
    assert [path.name for path in (tmp_path / "fetched").glob("index-*")] == [table.name], "not the old table"


def test_notes_of_an_earlier_state_are_removed(proxy: FaultyProxy, out: Path, url: str) -> None:
    (out / "notes.csv").write_text("row,id,note\n")
    publish(out, url, LIMITS)
    assert "notes.csv" in stored_names(url)
    (out / "notes.csv").unlink()
    publish(out, url, LIMITS)
    assert "notes.csv" not in stored_names(url)


def test_copies_follow_an_extraction_with_added_rows(proxy: FaultyProxy, out: Path, url: str, tmp_path: Path) -> None:
    record = json.loads((out / "run.json").read_text())
    more = record | {"parts": [*record["parts"], [1, 1, "0" * 64]]}
    assert call("publish", out, url).exit_code == 0
    assert call("fetch", url, tmp_path / "copy").exit_code == 0
    (out / "run.json").write_text(json.dumps(more))
    assert call("publish", out, url).exit_code == 0
    assert call("fetch", url, tmp_path / "copy").exit_code == 0
    assert json.loads((tmp_path / "copy" / "run.json").read_text()) == more
    (out / "run.json").write_text(json.dumps(record))
    assert "contains another extraction" in call("publish", out, url).output, "it has fewer rows"


def test_damaged_shards_and_other_extractions_are_refused(proxy: FaultyProxy, out: Path, url: str) -> None:
    data = bytearray((out / "shard-00001.h5").read_bytes())
    data[len(data) // 2] ^= 1
    (out / "shard-00001.h5").write_bytes(data)
    result = call("publish", out, url)
    assert result.exit_code == 1
    assert "checksum does not match the index, so it was not published" in result.output
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(record | {"parts": [[24, 7, "0" * 64]]}))
    result = call("publish", out, url)
    assert result.exit_code == 1
    assert "contains another extraction" in result.output
    (out / "index.json").unlink()
    assert "no index.json found" in call("publish", out, url).output


def test_run_publishes_at_its_end(proxy: FaultyProxy, few_shards: Path, out: Path, tmp_path: Path, url: str) -> None:
    command = ("run", few_shards.parent / "videos" / "manifest.csv", out, "--videos-per-shard", 7)
    wrong = call(*command, "--publish", "https://host/folder")
    assert wrong.exit_code == 2
    assert "must start with s3:// or gs://" in wrong.output
    assert "pass it to `cmd-extract merge`" in call(*command, "--publish", url, "--task", 0, "--num-tasks", 2).output
    result = call(*command, "--publish", url)
    assert result.exit_code == 0, result.output
    assert "published: " in result.output
    assert len(ShardSet(stored(url, tmp_path / "copy")).videos) == len(ShardSet(out).videos)


def test_run_publishes_each_shard_and_continues(proxy: FaultyProxy, few_shards: Path, tmp_path: Path, url: str) -> None:
    out, manifest = tmp_path / "out", few_shards.parent / "videos" / "manifest.csv"
    command = ("run", manifest, out, "--videos-per-shard", 7, "--workers", 1, "--publish", url)
    missing = ShardIndex(few_shards).shard(2).first_row
    # The third shard fails: the two before it are published already, without an index.
    source = manifest.parent / read_rows(manifest)[missing]["path"]
    source.rename(tmp_path / "moved")
    result = call(*command, "--max-failures", 0)
    assert result.exit_code == 4, result.output
    assert {"run.json", "shard-00000.h5", "shard-00001.h5"} <= stored_names(url)
    assert "index.json" not in stored_names(url)
    (tmp_path / "moved").rename(source)
    proxy.requests.clear()
    result = call(*command)
    assert result.exit_code == 0, result.output
    assert not {"shard-00000.h5", "shard-00001.h5"} & set(uploads(proxy))
    assert uploads(proxy)[-1] == "index.json"
    copy = stored(url, tmp_path / "copy")
    assert (copy / "index.json").read_bytes() == (few_shards / "index.json").read_bytes()

    # A store that fails does not end the extraction, but the command.
    proxy.fault = lambda method, path, earlier: "503" if method == "PUT" else ""
    words = ["run", manifest, tmp_path / "other", "--videos-per-shard", 12, "--publish", f"{url}-2"]
    result = call(*words, "--remote-retries", 0)
    assert result.exit_code == 1
    assert "shards are not published while the run goes on: request" in result.output
    assert "cannot publish" in result.output
    assert (tmp_path / "other" / "index.json").exists()


def test_fetched_copies_are_complete_and_continued(proxy: FaultyProxy, out: Path, url: str, tmp_path: Path) -> None:
    publish(out, url, LIMITS)
    copy = tmp_path / "copy"
    proxy.fault = lambda method, path, earlier: "cut" if method == "GET" and path.endswith("2.h5") else ""
    result = call("fetch", url, copy, "--remote-retries", "1")
    assert result.exit_code == 1, result.output
    assert "cannot fetch" in result.output
    assert not (copy / "index.json").exists()
    proxy.fault = lambda method, path, earlier: "503" if not earlier else ""
    proxy.requests.clear()
    result = call("fetch", url, copy)
    assert result.exit_code == 0, result.output
    assert "3 existing" in result.output
    names = {path.name for path in out.iterdir() if path.is_file()} - {LOG_NAME}
    assert {path.name for path in copy.iterdir()} == names
    assert all((copy / name).read_bytes() == (out / name).read_bytes() for name in names)
    assert len(ShardSet(copy).videos) == len(ShardSet(out).videos)


def test_damaged_foreign_and_missing_extractions_are_not_fetched(
    proxy: FaultyProxy, out: Path, url: str, tmp_path: Path
) -> None:
    assert "no index.json found" in call("fetch", url, tmp_path / "none").output
    publish(out, url, LIMITS)
    folder = url.removeprefix("s3://")
    file_system().pipe_file(f"{folder}/shard-00001.h5", b"other")
    result = call("fetch", url, tmp_path / "damaged")
    assert (result.exit_code, "shard-00001.h5: damaged" in result.output) == (1, True)
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(record | {"config_hash": "0" * 64}))
    assert "contains another extraction" in call("fetch", url, out).output
    index = json.loads((out / "index.json").read_text())
    index["table"]["name"] = "../../evil.h5"
    file_system().pipe_file(f"{folder}/index.json", json.dumps(index).encode())
    result = call("fetch", url, tmp_path / "evil")
    assert (result.exit_code, "not a file name" in result.output) == (1, True)
    assert not list(tmp_path.rglob("evil.h5"))
