"""Locations as written in a manifest."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmd_extract.sources.location import (
    RemoteFile,
    Root,
    Source,
    TarMember,
    is_tar_name,
    locate,
    parse_root,
    relative_text,
    root_text,
)

LOCAL, WEB, BUCKET = Path("/data"), RemoteFile("https://host/data/"), RemoteFile("s3://bucket/videos")


@pytest.mark.parametrize(
    ("path", "root", "source"),
    [
        ("a/b.mp4", LOCAL, Path("/data/a/b.mp4")),
        ("/x/b.mp4", LOCAL, Path("/x/b.mp4")),
        ("/x/b.mp4", WEB, Path("/x/b.mp4")),
        ("s3://b/k.mp4", LOCAL, RemoteFile("s3://b/k.mp4")),
        ("gs://b/k.mp4", WEB, RemoteFile("gs://b/k.mp4")),
        ("a b#1.mp4", WEB, RemoteFile("https://host/data/a%20b%231.mp4")),
        ("a b.mp4", BUCKET, RemoteFile("s3://bucket/videos/a b.mp4")),
        ("v.tar::./a/b.mp4", LOCAL, TarMember(Path("/data/v.tar"), "a/b.mp4")),
        ("v.TAR::a::b.mp4", LOCAL, TarMember(Path("/data/v.TAR"), "a::b.mp4")),
        ("v.tar.gz::a.mp4", LOCAL, TarMember(Path("/data/v.tar.gz"), "a.mp4")),
        ("v.tar::../a.mp4", LOCAL, TarMember(Path("/data/v.tar"), "../a.mp4")),
        ("v.tar::a.mp4", BUCKET, TarMember(RemoteFile("s3://bucket/videos/v.tar"), "a.mp4")),
        ("https://h/v.tar::a.mp4", LOCAL, TarMember(RemoteFile("https://h/v.tar"), "a.mp4")),
        # Names of ordinary files.
        ("a::b.mp4", LOCAL, Path("/data/a::b.mp4")),
        ("v.tar", LOCAL, Path("/data/v.tar")),
        ("file:///etc/passwd", LOCAL, Path("/data/file:/etc/passwd")),
        ("ftp://h/a.mp4", LOCAL, Path("/data/ftp:/h/a.mp4")),
    ],
)
def test_paths_of_a_manifest(path: str, root: Root, source: Source) -> None:
    assert locate(path, root) == source


def test_roots_are_restored_from_their_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_root(root_text(Path("videos"))) == tmp_path / "videos"
    assert parse_root(root_text(BUCKET)) == BUCKET


def test_locations_below_the_root_are_written_relative_to_it() -> None:
    for path in ("a/b.mp4", "v.tar::a.mp4", "s3://b/k.mp4", "/x/v.tar::a.mp4"):
        assert relative_text(locate(path, LOCAL), LOCAL) == path


def test_names_of_tar_files() -> None:
    assert all(map(is_tar_name, ("a.tar", "a.TAR", "a.tar.gz", "a.tgz", "a.tar.zst")))
    assert not any(map(is_tar_name, ("a.mp4", "tar", "a.tar.mp4x5", "a.star")))
