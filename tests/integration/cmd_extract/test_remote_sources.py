"""Extraction of remote videos from a real HTTP server and a real object store, with faults."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmd_extract.errors import VideoError
from cmd_extract.shard.reader import ShardSet
from cmd_extract.sources import remote
from cmd_extract.sources.access import fingerprint, sizes, spool
from cmd_extract.sources.limits import SourceLimits
from cmd_extract.sources.location import RemoteFile
from tests.integration.cmd_extract.extraction import SMALL, MakeVideo, call, read_rows
from tests.remote_servers import FaultyServer, faulty_server, google_store, object_store, use_store

# gcsfs asks Google's servers for properties of the bucket through another interface, which the test server lacks.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
pytest.importorskip("s3fs", reason="the extra `remote` is not installed")
pytest.importorskip("gcsfs", reason="the extra `remote` is not installed")

LIMITS = SourceLimits(timeout_seconds=2, retries=2)
BUCKET = "videos"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_FIRST_PAUSE_SECONDS", 0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_video: MakeVideo) -> Path:
    folder = tmp_path_factory.mktemp("served")
    video = make_video(folder / "good.mp4", "-c:v", "libx264", frames=8)
    names = ("503.mp4", "cut.mp4", "slow.mp4", "short.mp4", "long.mp4", "no-range.mp4", "changes.mp4", "always503.mp4")
    for name in names:
        (folder / name).write_bytes(video.read_bytes())
    with tarfile.open(folder / "v.tar", "w") as tar:
        tar.add(video, "run/a.mp4")
        tar.add(video, "run/b.mp4")
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[FaultyServer]:
    with faulty_server(folder) as running:
        running.faults = {
            "503.mp4": "503 2",
            "always503.mp4": "503",
            "cut.mp4": "cut 1",
            "slow.mp4": "slow",
            "short.mp4": "short",
            "long.mp4": "long",
            "no-range.mp4": "no-range",
            "changes.mp4": "changes",
        }
        yield running


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    with object_store(BUCKET) as url:
        yield url


@pytest.fixture
def s3(store: str, monkeypatch: pytest.MonkeyPatch) -> str:
    use_store(store, monkeypatch)
    return store


def put(path: Path, key: str) -> None:
    import fsspec

    fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True).pipe_file(
        f"{BUCKET}/{key}", path.read_bytes()
    )


@pytest.mark.parametrize("name", ["good", "503", "cut", "no-range"])
def test_faults_that_pass_are_repeated(name: str, server: FaultyServer, folder: Path, tmp_path: Path) -> None:
    source = RemoteFile(f"{server.url}/{name}.mp4?token=1")
    path = spool(source, tmp_path, LIMITS)
    assert path.name == "source.mp4"
    assert path.read_bytes() == (folder / "good.mp4").read_bytes()
    assert fingerprint(source, LIMITS) == fingerprint(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", r"the remote file does not exist"),
        ("always503", r"503.*in 3 attempts"),
        ("slow", r"no answer within 0\.5 s \(--remote-timeout\), in 3 attempts"),
        ("short", r"states a size of \d+ bytes, but sends \d+ bytes"),
        ("long", r"states a size of \d+ bytes, but sends \d+ bytes"),
        ("changes", r"has changed while it was read \(version"),
    ],
)
def test_faults_that_last_are_errors(name: str, message: str, server: FaultyServer, tmp_path: Path) -> None:
    limits = SourceLimits(timeout_seconds=0.5, retries=2)
    with pytest.raises(VideoError, match=message):
        spool(RemoteFile(f"{server.url}/{name}.mp4"), tmp_path, limits)
    assert list(tmp_path.iterdir()) == []
    if name == "missing":
        assert server.requests["HEAD missing.mp4"] == 1, "a missing file is not looked for again"


def test_large_files_are_read_in_ranges(server: FaultyServer, folder: Path, tmp_path: Path) -> None:
    data = bytes(range(256)) * (9 << 12)
    (folder / "large.bin").write_bytes(data)
    server.faults["large.bin"] = "cut 1"
    assert spool(RemoteFile(f"{server.url}/large.bin"), tmp_path, LIMITS).read_bytes() == data
    assert server.requests["GET large.bin"] == 3  # two ranges, one of them twice
    server.faults["large.bin"] = "no-range"
    (tmp_path / "again").mkdir()
    with pytest.raises(VideoError, match="must state the true size and support range requests"):
        spool(RemoteFile(f"{server.url}/large.bin"), tmp_path / "again", LIMITS)
    (folder / "large.bin").unlink()


def test_files_over_the_limit_are_not_read(server: FaultyServer, folder: Path, tmp_path: Path) -> None:
    (folder / "big.mp4").write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(VideoError, match="--max-source-mb"):
        spool(RemoteFile(f"{server.url}/big.mp4"), tmp_path, SourceLimits(max_mb=1))
    assert server.requests["GET big.mp4"] == 0
    (folder / "big.mp4").unlink()


def test_an_unreachable_server_is_an_error_of_the_video(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"request for the remote file failed: .* in 3 attempts"):
        spool(RemoteFile("http://127.0.0.1:9/v.mp4"), tmp_path, LIMITS)


def test_a_run_with_faults_records_failures_and_retries_them(
    server: FaultyServer, folder: Path, tmp_path: Path
) -> None:
    names = ["good", "503", "always503", "slow", "missing"]
    lines = [f"{name},{name}.mp4" for name in names]
    lines += ["member,v.tar::run/b.mp4", "nomember,v.tar::run/z.mp4", f"local,{folder / 'good.mp4'}"]
    (tmp_path / "m.csv").write_text("\n".join(["id,path", *lines]) + "\n")
    out = tmp_path / "out"
    limits = ("--remote-timeout", "1", "--remote-retries", "2")
    command = ("run", tmp_path / "m.csv", out, "--root", server.url, *SMALL, *limits, "--videos-per-shard", "8")
    result = call(*command)
    assert result.exit_code == 3, result.output
    failed = {row["path"]: (row["stage"], row["reason"]) for row in read_rows(out / "failures.csv")}
    assert set(failed) == {"always503.mp4", "slow.mp4", "missing.mp4", "v.tar::run/z.mp4"}
    assert {stage for stage, _ in failed.values()} == {"open"}
    assert [video.video_id for video in ShardSet(out).videos] == ["good", "503", "member", "local"]
    fingerprints = {bytes(data) for data in _fingerprints(out)}
    assert fingerprints == {fingerprint(folder / "good.mp4").encode()}

    server.faults = {}
    again = call(*command, "--retry-failures", "open")
    assert again.exit_code == 3, again.output
    assert {row["path"] for row in read_rows(out / "failures.csv")} == {"missing.mp4", "v.tar::run/z.mp4"}
    assert len(ShardSet(out).videos) == 6
    verified = call("verify", out)
    assert verified.exit_code == 0, verified.output
    assert not [path for path in out.rglob("*") if path.name.startswith((".extract-", "source"))]


def _fingerprints(out: Path) -> list[bytes]:
    import h5py

    with h5py.File(out / "shard-00000.h5", "r", locking=False) as file:
        return list(file["video/fingerprint"][:])


def test_changed_and_unreachable_sources_stop_a_restart(server: FaultyServer, folder: Path, tmp_path: Path) -> None:
    (folder / "edited.mp4").write_bytes((folder / "good.mp4").read_bytes())
    (tmp_path / "m.csv").write_text(f"id,path\na,{server.url}/edited.mp4\nb,{server.url}/v.tar::run/a.mp4\n")
    command = ("run", tmp_path / "m.csv", tmp_path / "out", *SMALL, "--remote-retries", "1", "--videos-per-shard", "1")
    assert call(*command).exit_code == 0
    (tmp_path / "out" / "shard-00001.h5").unlink()
    assert call(*command).exit_code == 0, "a process that has checked sizes starts one that reads a source"
    gets = server.requests["GET edited.mp4"]
    assert call(*command).exit_code == 0
    assert server.requests["GET edited.mp4"] == gets, "sizes are compared without reading the file"
    (folder / "edited.mp4").write_bytes((folder / "good.mp4").read_bytes() + b"tail")
    result = call(*command)
    assert (result.exit_code, "edited.mp4: " in result.output) == (1, True)
    (folder / "edited.mp4").unlink()
    assert call(*command).exit_code == 0, "deleted sources are not an error"
    assert call("verify", tmp_path / "out").exit_code == 0
    (folder / "edited.mp4").write_bytes((folder / "good.mp4").read_bytes())
    server.faults["edited.mp4"] = "503"
    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("shard-*.h5")}
    result = call("verify", tmp_path / "out")
    assert result.exit_code == 1, result.output
    assert "edited.mp4 cannot be read" in result.output
    assert "--repair" not in result.output
    assert call("verify", tmp_path / "out", "--repair").exit_code == 1
    assert {path: path.read_bytes() for path in (tmp_path / "out").glob("shard-*.h5")} == before
    result = call(*command)
    assert result.exit_code == 1
    assert "cannot check whether remote source files have changed" in result.output


def test_videos_in_an_object_store(s3: str, folder: Path, tmp_path: Path) -> None:
    for name in ("good.mp4", "v.tar"):
        put(folder / name, f"data/a b/{name}")
    (tmp_path / "list.csv").write_text(
        f"path,label\ns3://{BUCKET}/data/a b/good.mp4,x\ns3://{BUCKET}/data/a b/v.tar::run/b.mp4,y\n"
        f"s3://{BUCKET}/none.mp4,x\ns3://nobucket/none.mp4,x\n"
    )
    listed = call("manifest", tmp_path / "list.csv", tmp_path / "m.csv")
    assert listed.exit_code == 0, listed.output
    assert "4 remote videos; whether they exist was not checked" in listed.output
    out = tmp_path / "out"
    dry = call("run", tmp_path / "m.csv", out, *SMALL, "--dry-run")
    assert "remote    4 videos, not checked" in dry.output
    result = call("run", tmp_path / "m.csv", out, *SMALL, "--remote-retries", "0")
    assert result.exit_code == 3, result.output
    assert [row["reason"] for row in read_rows(out / "failures.csv")] == ["the remote file does not exist"] * 2
    assert {bytes(data) for data in _fingerprints(out)} == {fingerprint(folder / "good.mp4").encode()}
    assert call("run", tmp_path / "m.csv", out, *SMALL).exit_code == 3
    put(folder / "v.tar", "data/a b/good.mp4")
    result = call("run", tmp_path / "m.csv", out, *SMALL)
    assert result.exit_code == 1
    assert "source files have changed" in result.output


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    (tmp_path / "m.csv").write_text("id,path\na,s3://bucket/a.mp4\n")
    result = call("run", tmp_path / "m.csv", tmp_path / "out", *SMALL)
    assert result.exit_code == 1
    assert "pip install 'context-motion-decoupling[remote]'" in result.output


def test_google_cloud_storage(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec.config

    with google_store() as (url, objects):
        monkeypatch.setitem(fsspec.config.conf, "gs", {"endpoint_url": url, "token": "anon"})
        objects["data/v.mp4"] = data = (folder / "good.mp4").read_bytes()
        source = RemoteFile("gs://bucket/data/v.mp4")
        assert spool(source, tmp_path, LIMITS).read_bytes() == data
        assert sizes([source, RemoteFile("gs://bucket/none.mp4")], LIMITS) == [len(data), None]
        state = remote.RemoteObject(source.url, LIMITS).state()
        objects["data/v.mp4"] += b"tail"
        assert remote.RemoteObject(source.url, LIMITS).state() != state
        remote.RemoteObject("gs://bucket/copy.mp4", LIMITS).upload(folder / "good.mp4")
        assert objects["copy.mp4"] == data


@pytest.mark.parametrize("fault", ["endless", "gzip"])
def test_answers_are_read_up_to_the_requested_size_only(
    fault: str, server: FaultyServer, folder: Path, tmp_path: Path
) -> None:
    (folder / "hostile.mp4").write_bytes(bytes(1000))
    server.faults["hostile.mp4"] = fault
    with pytest.raises(
        VideoError, match=r"states a size of 1000 bytes, but sends 100[0-9] bytes for the range 0 to 1000"
    ):
        spool(RemoteFile(f"{server.url}/hostile.mp4"), tmp_path, LIMITS)
    assert server.blocks < 200


FORKS = """
import gc, os, sys, time
from cmd_extract.sources.limits import SourceLimits
from cmd_extract.sources.remote import RemoteObject

file = RemoteObject(sys.argv[1], SourceLimits(timeout_seconds=20))
file.state()
child = os.fork()
if not child:  # such as a data worker: finalizes the connections that it has inherited
    type(file._system).clear_instance_cache()
    del file
    gc.collect()
    os._exit(0)
os.waitpid(child, 0)
start = time.monotonic()
file.state()
print(time.monotonic() - start, flush=True)
os._exit(0)
"""


def test_a_forked_process_does_not_disturb_the_connections_of_its_parent(server: FaultyServer) -> None:
    command = [sys.executable, "-c", FORKS, f"{server.url}/good.mp4"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=90)
    assert float(done.stdout) < 15, "the answer is not noticed before the time limit"
