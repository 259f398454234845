"""The cache of remote shards: bounded, shared by processes, and complete copies only, despite faults."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmd_extract.errors import CacheError
from cmd_extract.shard import cache as cache_module
from cmd_extract.shard.cache import RemoteShard, ShardCache
from cmd_extract.sources import remote
from cmd_extract.sources.limits import SourceLimits
from cmd_extract.system.locks import exclusive, release
from tests.paths import ROOT
from tests.remote_servers import FaultyServer, faulty_server

pytest.importorskip("aiohttp", reason="the extra `remote` is not installed")

SIZE = 300_000
LIMITS = SourceLimits(timeout_seconds=5, retries=2)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.setattr(remote, "_FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(cache_module, "_ROOM_SECONDS", 0.3)
    folder = tmp_path / "server"
    folder.mkdir()
    for number in range(4):
        (folder / f"shard-{number}.h5").write_bytes(os.urandom(1000) * (SIZE // 1000))
    with faulty_server(folder) as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "cache", 3 * SIZE, LIMITS)


def shard(server: FaultyServer, cache: ShardCache, number: int) -> RemoteShard:
    name = f"shard-{number}.h5"
    data = (server.folder / name).read_bytes()
    path = cache.folder / "set" / name
    return RemoteShard(
        url=f"{server.url}/{name}", path=path, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data)
    )


def fetch(cache: ShardCache, shard: RemoteShard) -> None:
    release(cache.fetch(shard))


def cached(cache: ShardCache) -> set[str]:
    return {path.name for path in cache.folder.rglob("*") if path.is_file()}


def test_a_copy_is_reused(server: FaultyServer, cache: ShardCache) -> None:
    first = shard(server, cache, 0)
    fetch(cache, first)
    assert first.path.read_bytes() == (server.folder / "shard-0.h5").read_bytes()
    before = server.requests.total()
    fetch(cache, first)
    assert server.requests.total() == before
    assert cached(cache) == {"shard-0.h5"}


def test_unused_copies_are_removed_the_farthest_use_first(server: FaultyServer, cache: ShardCache) -> None:
    shards = [shard(server, cache, number) for number in range(4)]
    in_use = cache.fetch(shards[0])
    fetch(cache, shards[1])
    fetch(cache, shards[2])
    next_use = {shards[0].path: 9.0, shards[1].path: 2.0, shards[2].path: 5.0}
    release(cache.fetch(shards[3], lambda path: next_use.get(path, 0.0)))
    assert cached(cache) == {"shard-0.h5", "shard-1.h5", "shard-3.h5"}
    release(in_use)
    fetch(cache, shards[1])
    fetch(cache, shards[2])  # without plan: shard 0 was not used for the longest time
    assert cached(cache) == {"shard-1.h5", "shard-2.h5", "shard-3.h5"}


def test_copies_in_use_are_never_removed(server: FaultyServer, cache: ShardCache) -> None:
    held = [cache.fetch(shard(server, cache, number)) for number in range(3)]
    with pytest.raises(CacheError, match=r"need 0\.0012 GB, --cache-gb allows 0\.0009"):
        cache.fetch(shard(server, cache, 3))
    assert cached(cache) == {"shard-0.h5", "shard-1.h5", "shard-2.h5"}
    release(held[1])
    release(cache.fetch(shard(server, cache, 3)))
    assert cached(cache) == {"shard-0.h5", "shard-2.h5", "shard-3.h5"}


@pytest.mark.parametrize("fault", ["503 2", "cut 2"])
def test_faults_that_pass_are_survived(server: FaultyServer, cache: ShardCache, fault: str) -> None:
    server.faults["shard-0.h5"] = fault
    first = shard(server, cache, 0)
    fetch(cache, first)
    assert first.path.read_bytes() == (server.folder / "shard-0.h5").read_bytes()


@pytest.mark.parametrize(("fault", "reason"), [("503", "503"), ("slow", "no answer within 1 s")])
def test_faults_that_stay_are_errors(server: FaultyServer, tmp_path: Path, fault: str, reason: str) -> None:
    cache = ShardCache(tmp_path / "cache", 3 * SIZE, SourceLimits(timeout_seconds=1, retries=0))
    server.faults["shard-0.h5"] = fault
    with pytest.raises(CacheError, match=rf"shard-0\.h5: request .*{reason}"):
        cache.fetch(shard(server, cache, 0))
    assert cached(cache) == set()


def test_a_replaced_shard_is_an_error(server: FaultyServer, cache: ShardCache) -> None:
    first = shard(server, cache, 0)
    (server.folder / "shard-0.h5").write_bytes(bytes(SIZE))
    with pytest.raises(CacheError, match=r"shard-0\.h5: does not match its checksum in the index"):
        cache.fetch(first)
    (server.folder / "shard-0.h5").write_bytes(bytes(2 * SIZE))
    with pytest.raises(CacheError, match="does not match"):
        cache.fetch(first)
    assert cached(cache) == set()


def test_several_processes_download_once(server: FaultyServer, cache: ShardCache) -> None:
    first = shard(server, cache, 0)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=fetch, args=(cache, first)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert server.requests["GET shard-0.h5"] == 1
    assert cached(cache) == {"shard-0.h5"}


PROGRAM = """
import sys
from pathlib import Path
from cmd_extract.shard.cache import RemoteShard, ShardCache
url, folder, sha256, size, allowed = sys.argv[1:]
cache = ShardCache(Path(folder), int(allowed))
path = Path(folder) / "set" / url.rpartition("/")[2]
cache.fetch(RemoteShard(url=url, path=path, sha256=sha256, size_bytes=int(size)))
print("held", flush=True)
sys.stdin.read()
"""


def start(cache: ShardCache, shard: RemoteShard, limit: int = resource.RLIM_INFINITY) -> subprocess.Popen[str]:
    arguments = [shard.url, cache.folder, shard.sha256, shard.size_bytes, cache.max_bytes]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )


def test_a_killed_process_blocks_nobody(server: FaultyServer, cache: ShardCache) -> None:
    first, second = shard(server, cache, 0), shard(server, cache, 1)
    server.faults["shard-0.h5"] = "slow"
    downloading, holding = start(cache, first), start(cache, second)
    try:
        assert holding.stdout is not None
        assert holding.stdout.readline() == "held\n"
        end = time.monotonic() + 30
        while ".partial-shard-0.h5" not in cached(cache):
            assert time.monotonic() < end
            time.sleep(0.05)
        tight = ShardCache(cache.folder, 2 * SIZE, LIMITS)
        with pytest.raises(CacheError, match="no room"):
            tight.fetch(shard(server, cache, 2))
    finally:
        for process in (downloading, holding):
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=30)
    server.faults.clear()
    fetch(tight, shard(server, cache, 2))
    fetch(tight, first)
    assert {name for name in cached(cache) if name.endswith(".h5")} == {"shard-0.h5", "shard-2.h5"}


def test_a_full_disk_is_named(server: FaultyServer, cache: ShardCache) -> None:
    process = start(cache, shard(server, cache, 0), limit=SIZE // 2)
    _, errors = process.communicate("", timeout=60)
    assert f"cannot write in the cache {cache.folder}: File too large" in errors
    assert cached(cache) == set()


def test_waiting_for_another_download_can_be_stopped(server: FaultyServer, cache: ShardCache) -> None:
    first = shard(server, cache, 0)
    stop = threading.Event()
    first.path.parent.mkdir()
    threading.Timer(0.3, stop.set).start()
    with exclusive(first.path.with_name(".shard-0.h5.lock"), 1), pytest.raises(CacheError, match="stopped"):
        cache.fetch(first, stop=stop)
