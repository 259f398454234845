"""Manifests of folders and tar files in a real object store and on a real web server, with faults."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cmd_extract.shard.reader import ShardSet
from cmd_extract.sources import remote
from tests.integration.cmd_extract.extraction import SMALL, MakeVideo, call, read_rows
from tests.remote_servers import FaultyProxy, GoogleHandler, faulty_server, google_store, object_store, use_store

# gcsfs asks Google's servers for properties of the bucket through another interface, which the test server lacks.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
pytest.importorskip("s3fs", reason="the extra `remote` is not installed")
pytest.importorskip("gcsfs", reason="the extra `remote` is not installed")

BUCKET = "listed"
KEYS = (
    "data/run/b.mp4", "data/run/a b.mp4", "data/walk/deep/c.mp4", "data/walk/é?#%41.avi", "data/walk/",
    "data/notes.txt", "data/.cache/x.mp4", "data/.cache/y.mp4", "data/run/._b.mp4", "database/other.mp4",
)  # fmt: skip
FOUND = [
    ("run/a b", "data/run/a b.mp4", "run"),
    ("run/b", "data/run/b.mp4", "run"),
    ("walk/deep/c", "data/walk/deep/c.mp4", "walk"),
    ("walk/é?#%41", "data/walk/é?#%41.avi", "walk"),
]


def videos(path: Path, prefix: str) -> list[tuple[str, str, str]]:
    return [(row["id"], row["path"].removeprefix(prefix), row["label"]) for row in read_rows(path)]


def tar_bytes(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    import boto3

    keys = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "x"}
    with object_store(BUCKET) as url:
        yield boto3.resource("s3", endpoint_url=url, **keys).Bucket(BUCKET)


@pytest.fixture
def proxy(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """An empty bucket behind a proxy."""
    bucket.objects.delete()
    running = FaultyProxy(bucket.meta.client.meta.endpoint_url)
    monkeypatch.setattr(remote, "_FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(remote, "_PAGE_KEYS", 2)
    use_store(running.url, monkeypatch)
    try:
        yield running
    finally:
        running.close()


def put(bucket: Any, objects: dict[str, bytes]) -> None:
    for key, data in objects.items():
        bucket.put_object(Key=key, Body=data)


def pages(proxy: FaultyProxy) -> int:
    return proxy.requests.count(("GET", f"/{BUCKET}"))


def fail_page(kind: str, first: int, last: int) -> Callable[[str, str, int], str]:
    """A fault of the listing's requests number ``first`` to ``last``."""
    return lambda method, path, earlier: kind if path == f"/{BUCKET}" and first <= earlier <= last else ""


@pytest.mark.parametrize("url", [f"s3://{BUCKET}/data", f"s3://{BUCKET}/data/"])
def test_a_folder_of_an_object_store_is_listed_page_by_page(
    url: str, bucket: Any, proxy: FaultyProxy, tmp_path: Path
) -> None:
    put(bucket, dict.fromkeys(KEYS, b"x"))
    result = call("manifest", url, tmp_path / "m.csv")
    assert result.exit_code == 0, result.output
    assert videos(tmp_path / "m.csv", f"s3://{BUCKET}/") == FOUND
    assert pages(proxy) == 5, "9 keys start with data/"
    assert "4 videos (folder), 2 classes" in result.output
    assert "ignored 1 files without a video extension (1 .txt)" in result.output
    assert "ignored 2 hidden files and folders" in result.output
    assert "not checked" not in result.output


def test_a_whole_bucket_with_split_parts(bucket: Any, proxy: FaultyProxy, tmp_path: Path) -> None:
    put(bucket, dict.fromkeys(("val/run/a.mp4", "train/run/a.mp4", "train/walk/a.mp4"), b"x"))
    result = call("manifest", f"s3://{BUCKET}", tmp_path / "m.csv")
    assert result.exit_code == 0, result.output
    assert [(row["path"], row["label"], row["split"]) for row in read_rows(tmp_path / "m.csv")] == [
        (f"s3://{BUCKET}/train/run/a.mp4", "run", "train"),
        (f"s3://{BUCKET}/train/walk/a.mp4", "walk", "train"),
        (f"s3://{BUCKET}/val/run/a.mp4", "run", "val"),
    ]


def test_a_local_folder_gives_the_same_ids_and_labels(bucket: Any, proxy: FaultyProxy, tmp_path: Path) -> None:
    put(bucket, dict.fromkeys(KEYS, b"x"))
    for key in KEYS:
        path = tmp_path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        if not key.endswith("/"):
            path.write_bytes(b"x")
    assert call("manifest", f"s3://{BUCKET}/data", tmp_path / "remote.csv").exit_code == 0
    assert call("manifest", tmp_path / "data", tmp_path / "local.csv").exit_code == 0
    assert videos(tmp_path / "remote.csv", f"s3://{BUCKET}/") == videos(tmp_path / "local.csv", "")


@pytest.mark.parametrize("kind", ["503", "cut", "half"])
def test_faults_of_single_pages_are_repeated(kind: str, bucket: Any, proxy: FaultyProxy, tmp_path: Path) -> None:
    put(bucket, dict.fromkeys(KEYS, b"x"))
    proxy.fault = fail_page(kind, 2, 3)
    result = call("manifest", f"s3://{BUCKET}/data", tmp_path / "m.csv", "--remote-retries", "2")
    assert result.exit_code == 0, result.output
    assert videos(tmp_path / "m.csv", f"s3://{BUCKET}/") == FOUND
    assert pages(proxy) == 7, "only the third page is requested again"


@pytest.mark.parametrize("kind", ["503", "cut", "half"])
def test_faults_that_last_give_no_manifest(kind: str, bucket: Any, proxy: FaultyProxy, tmp_path: Path) -> None:
    put(bucket, dict.fromkeys(KEYS, b"x"))
    proxy.fault = fail_page(kind, 2, 99)
    result = call("manifest", f"s3://{BUCKET}/data", tmp_path / "m.csv", "--remote-retries", "1")
    assert result.exit_code == 1
    assert f"s3://{BUCKET}/data: request for the remote file failed: " in result.output
    assert "in 2 attempts" in result.output
    assert not (tmp_path / "m.csv").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("s3://nobucket/data", "s3://nobucket/data: no such bucket; check the URL"),
        (f"s3://{BUCKET}/none", "no such folder, or it is empty; check the URL. Single videos and lists"),
        (f"s3://{BUCKET}/data/a.mp4", "no such folder, or it is empty; check the URL. Single videos and lists"),
        ("s3://", "the URL names no bucket"),
        (f"s3://{BUCKET}/data/notes", "contains no videos (folder) and, directly in it, no tar files"),
        (f"s3://{BUCKET}/none.tar", "none.tar: the remote file does not exist"),
        ("https://host/data", "web servers cannot list their files: enter the URLs of the videos in the column 'path'"),
    ],
)
def test_unusable_urls(source: str, message: str, bucket: Any, proxy: FaultyProxy, tmp_path: Path) -> None:
    put(bucket, {"data/a.mp4": b"x", "data/notes/n.txt": b"x", "data/notes/deep/v.tar": b"x"})
    result = call("manifest", source, tmp_path / "m.csv")
    assert result.exit_code == 1, result.output
    assert message in result.output
    assert not (tmp_path / "m.csv").exists()


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    result = call("manifest", "s3://bucket/data", tmp_path / "m.csv")
    assert result.exit_code == 1
    assert "pip install 'context-motion-decoupling[remote]'" in result.output


def test_remote_tar_files_give_the_manifest_of_local_ones_and_are_not_downloaded(
    bucket: Any, proxy: FaultyProxy, tmp_path: Path
) -> None:
    large = os.urandom(1 << 20)
    for number in range(3):
        members = {f"{n:04}.{kind}": data for n in range(3) for kind, data in (("mp4", large), ("cls", b"%d\n" % n))}
        (tmp_path / f"train-{number}.tar").write_bytes(tar_bytes(members))
    put(bucket, {f"sets/{path.name}": path.read_bytes() for path in tmp_path.glob("*.tar")})
    remote_result = call("manifest", f"s3://{BUCKET}/sets", tmp_path / "remote.csv")
    assert remote_result.exit_code == 0, remote_result.output
    assert "9 videos (tar), 3 classes" in remote_result.output
    assert call("manifest", tmp_path, tmp_path / "local.csv").exit_code == 0
    assert videos(tmp_path / "remote.csv", f"s3://{BUCKET}/sets/") == videos(tmp_path / "local.csv", "")
    assert videos(tmp_path / "remote.csv", f"s3://{BUCKET}/sets/")[1] == ("train-0/0001", "train-0.tar::0001.mp4", "1")
    assert sum(proxy.sent) < (9 << 20) / 8, "headers and classes only"


@pytest.mark.parametrize("kind", ["503", "cut", "half"])
def test_faults_while_headers_are_read(kind: str, bucket: Any, proxy: FaultyProxy, tmp_path: Path) -> None:
    put(bucket, {"v.tar": tar_bytes({f"run/{n}.mp4": bytes(100_000) for n in range(3)})})
    proxy.fault = lambda method, path, earlier: kind if method == "GET" and earlier == 1 else ""
    result = call("manifest", f"s3://{BUCKET}/v.tar", tmp_path / "m.csv", "--remote-retries", "1")
    assert result.exit_code == 0, result.output
    assert videos(tmp_path / "m.csv", f"s3://{BUCKET}/") == [
        (f"run/{n}", f"v.tar::run/{n}.mp4", "run") for n in range(3)
    ]
    proxy.fault = lambda method, path, earlier: kind if method == "GET" else ""
    result = call("manifest", f"s3://{BUCKET}/v.tar", tmp_path / "n.csv", "--remote-retries", "1")
    assert result.exit_code == 1
    assert f"s3://{BUCKET}/v.tar: request for the remote file failed: " in result.output
    assert "in 2 attempts" in result.output
    assert not (tmp_path / "n.csv").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tar_bytes({"a.mp4": bytes(5000)})[:3000], "b.tar: truncated in member 'a.mp4'; copy or download it again"),
        (b"\x1f\x8b" + bytes(600), "b.tar: the tar file is compressed (gzip)"),
        (tar_bytes({"a.txt": b"x"}), "no videos found"),
    ],
)
def test_damaged_remote_archives_give_no_manifest(
    content: bytes, message: str, bucket: Any, proxy: FaultyProxy, tmp_path: Path
) -> None:
    put(bucket, {"b.tar": content})
    result = call("manifest", f"s3://{BUCKET}", tmp_path / "m.csv")
    assert result.exit_code == 1
    assert message in result.output
    assert not (tmp_path / "m.csv").exists()


def test_an_unreadable_archive_stops_the_others(bucket: Any, proxy: FaultyProxy, tmp_path: Path) -> None:
    put(bucket, {"0.tar": b"\x1f\x8b" + bytes(600)})
    put(bucket, {"1.tar": tar_bytes({f"{number}.mp4": bytes(70_000) for number in range(200)})})
    result = call("manifest", f"s3://{BUCKET}", tmp_path / "m.csv")
    assert result.exit_code == 1
    assert "0.tar: the tar file is compressed (gzip)" in result.output
    assert proxy.requests.count(("GET", f"/{BUCKET}/1.tar")) < 150


def test_the_manifests_can_be_extracted(bucket: Any, proxy: FaultyProxy, tmp_path: Path, make_video: MakeVideo) -> None:
    data = make_video(tmp_path / "v.mp4", "-c:v", "libx264", frames=8).read_bytes()
    put(bucket, {"data/run/é #1?.mp4": data, "sets/0.tar": tar_bytes({"0.mp4": data, "0.cls": b"walk"})})
    for name, url in (("folder", f"s3://{BUCKET}/data"), ("tar", f"s3://{BUCKET}/sets")):
        result = call("manifest", url, tmp_path / f"{name}.csv")
        assert result.exit_code == 0, result.output
        result = call("run", tmp_path / f"{name}.csv", tmp_path / name, *SMALL)
        assert result.exit_code == 0, result.output
    assert [video.label for name in ("folder", "tar") for video in ShardSet(tmp_path / name).videos] == ["run", "walk"]


def test_a_tar_file_on_a_web_server(tmp_path: Path) -> None:
    (tmp_path / "v 1.tar").write_bytes(tar_bytes({"run/a.mp4": bytes(200_000), "walk/b.mp4": b"x"}))
    with faulty_server(tmp_path) as server:
        (tmp_path / "v-1.tar").write_bytes((tmp_path / "v 1.tar").read_bytes())
        result = call("manifest", f"{server.url}/v-1.tar", tmp_path / "m.csv")
        assert result.exit_code == 0, result.output
        assert videos(tmp_path / "m.csv", server.url) == [
            ("run/a", "/v-1.tar::run/a.mp4", "run"),
            ("walk/b", "/v-1.tar::walk/b.mp4", "walk"),
        ]
        server.faults["v-1.tar"] = "slow"
        result = call(
            "manifest", f"{server.url}/v-1.tar", tmp_path / "n.csv", "--remote-timeout", "0.3", "--remote-retries", "0"
        )
        assert result.exit_code == 1
        assert "no answer within 0.3 s (--remote-timeout)" in result.output


def test_a_folder_in_google_cloud_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec.config

    monkeypatch.setattr(remote, "_PAGE_KEYS", 2)
    with google_store() as (url, objects):
        monkeypatch.setitem(fsspec.config.conf, "gs", {"endpoint_url": url, "token": "anon"})
        objects |= dict.fromkeys(KEYS, b"x")
        result = call("manifest", "gs://bucket/data", tmp_path / "m.csv")
        assert result.exit_code == 0, result.output
        assert videos(tmp_path / "m.csv", "gs://bucket/") == FOUND
        assert "no such folder, or it is empty" in call("manifest", "gs://bucket/none", tmp_path / "n.csv").output


def test_a_listing_that_never_ends_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec.config

    monkeypatch.setattr(remote, "_PAGE_KEYS", 2)
    monkeypatch.setattr(GoogleHandler, "same_page", True)
    with google_store() as (url, objects):
        monkeypatch.setitem(fsspec.config.conf, "gs", {"endpoint_url": url, "token": "anon"})
        objects |= dict.fromkeys(KEYS, b"x")
        result = call("manifest", "gs://bucket/data", tmp_path / "m.csv")
    assert result.exit_code == 1
    assert "gs://bucket/data: the server sends the same page of its listing again and again" in result.output
