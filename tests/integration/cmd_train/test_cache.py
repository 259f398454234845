"""Training on published shards through a small cache: the same batches as from a local folder, also after a kill."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cmd_extract.cli.main import main as extract_main
from cmd_extract.errors import CacheError, ShardError
from cmd_extract.shard.index import ShardIndex
from cmd_extract.shard.reader import ShardSet
from cmd_extract.shard.remote import CachedShardSet, RemoteFolder
from cmd_extract.sources import remote
from cmd_extract.sources.limits import SourceLimits
from cmd_train.cli.main import main
from cmd_train.data.epoch_sampler import EpochSampler
from cmd_train.data.read_ahead import ReadAhead, shards_per_block
from tests.command_line import call
from tests.integration.cmd_train.training import finish, launch, metrics, options, same, weights
from tests.remote_servers import FaultyServer, faulty_server, object_store, use_store

pytest.importorskip("s3fs", reason="the extra `remote` is not installed")


@pytest.fixture(scope="module")
def small_shards(few_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same videos in eight shards."""
    out = tmp_path_factory.mktemp("small") / "shards"
    manifest = few_shards.parent / "videos" / "manifest.csv"
    result = call(extract_main, "run", manifest, out, "--workers", 2, "--videos-per-shard", 3)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def server(few_shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.setattr(remote, "_FIRST_PAUSE_SECONDS", 0.05)
    with faulty_server(few_shards) as running:
        yield running


def sizes(folder: Path) -> list[int]:
    return [shard.size_bytes for shard in ShardIndex(folder).shards()]


def remote_folder(url: str, cache: Path, max_bytes: int) -> RemoteFolder:
    return RemoteFolder(url=url, cache=cache, max_bytes=max_bytes, limits=SourceLimits(timeout_seconds=10, retries=2))


def copies(cache: Path) -> int:
    total = 0
    for path in cache.rglob("*.h5"):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            total += path.stat().st_size if "shard-" in path.name else 0
    return total


@pytest.fixture(scope="module")
def local_run(small_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("local") / "run"
    words = options(optim__epochs=2, optim__batch_size=2, data__shuffle_shards=1)
    result = call(main, "pretrain", small_shards, run, *words)
    assert result.exit_code == 0, result.output
    return run


def test_published_shards_read_like_local_ones(server: FaultyServer, few_shards: Path, tmp_path: Path) -> None:
    local = ShardSet(few_shards)
    cached = CachedShardSet(remote_folder(server.url, tmp_path / "cache", 3 * max(sizes(few_shards))))
    assert (cached.videos, cached.data_hash) == (local.videos, local.data_hash)
    for entry in [*local.videos, *local.videos[:3]]:
        assert list(map(bytes, cached.frame_jpegs(entry, [0, 3]))) == list(map(bytes, local.frame_jpegs(entry, [0, 3])))
        assert np.array_equal(cached.motion(entry, 0, 5).grid_quarter_px, local.motion(entry, 0, 5).grid_quarter_px)
        assert copies(tmp_path / "cache") <= 3 * max(sizes(few_shards))


def test_a_damaged_index_in_the_cache_is_downloaded_again(
    server: FaultyServer, few_shards: Path, tmp_path: Path
) -> None:
    folder = remote_folder(server.url, tmp_path / "cache", 3 * max(sizes(few_shards)))
    CachedShardSet(folder)
    (table,) = (tmp_path / "cache").rglob("index-*.h5")
    table.write_bytes(table.read_bytes()[:-1])
    assert CachedShardSet(folder).videos == ShardSet(few_shards).videos


def test_training_through_a_small_cache_with_faults(small_shards: Path, local_run: Path, tmp_path: Path) -> None:
    gb = 6.5 * max(sizes(small_shards)) / 1e9  # of eight shards; with two workers, up to ten samples are in work
    words = options(optim__epochs=2, optim__batch_size=2, data__shuffle_shards=1, data__workers=2)
    record = tmp_path / "record"
    record.mkdir()
    with faulty_server(small_shards) as server:
        server.faults = {"shard-00001.h5": "503 2", "shard-00002.h5": "cut 2"}
        arguments = [server.url, tmp_path / "run", "--cache", tmp_path / "cache", "--cache-gb", gb, *words]
        output = finish(launch(1, arguments, RECORD=str(record), KILL_AT="0:15"))
        assert "shuffling the videos of 1 shards at a time" in output
        output = finish(launch(1, arguments, RECORD=str(record)))
    assert "Finished after 24 steps" in output, output
    assert same(weights(tmp_path / "run"), weights(local_run))
    assert metrics(tmp_path / "run")[-1] == metrics(local_run)[-1]
    assert copies(tmp_path / "cache") <= gb * 1e9


def test_two_ranks_share_the_copies(server: FaultyServer, few_shards: Path, tmp_path: Path) -> None:
    gb = 2.5 * sum(sizes(few_shards)) / 1e9
    words = options(optim__epochs=2, data__workers=1)
    arguments = [server.url, tmp_path / "run", "--cache", tmp_path / "cache", "--cache-gb", gb, *words]
    output = finish(launch(2, arguments))
    assert "Finished after 6 steps" in output, output
    names = [f"shard-{number:05d}.h5" for number in range(len(sizes(few_shards)))]
    assert [server.requests[f"GET {name}"] for name in names] == [1] * len(names)


def test_shards_in_an_object_store(few_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with object_store("bucket") as url:
        monkeypatch.setenv("FSSPEC_S3_ENDPOINT_URL", url)
        use_store(url, monkeypatch)
        out = shutil.copytree(few_shards, tmp_path / "out")
        assert call(extract_main, "publish", out, "s3://bucket/set").exit_code == 0
        gb = 3 * sum(sizes(few_shards)) / 1e9
        arguments = ["--cache", tmp_path / "cache", "--cache-gb", gb, *options(optim__epochs=1)]
        result = call(main, "pretrain", "s3://bucket/set", tmp_path / "run", *arguments)
        assert result.exit_code == 0, result.output
        assert "Finished after 3 steps" in result.output


@pytest.mark.parametrize(("workers", "room"), [(0, 4.1), (2, 6.5)])
def test_read_ahead_keeps_the_order_and_the_bound(
    small_shards: Path, tmp_path: Path, workers: int, room: float
) -> None:
    limit = int(room * max(sizes(small_shards)))
    with faulty_server(small_shards) as server:
        shards = CachedShardSet(remote_folder(server.url, tmp_path / "cache", limit))
        numbers = np.array([entry.shard for entry in shards.videos])
        sampler = EpochSampler(
            video_count=24,
            global_batch=2,
            epochs=3,
            seed=3,
            shards=tuple(numbers.tolist()),
            shuffle_shards=1,
            first_step=5,
        )
        seen = []
        for batch in ReadAhead(sampler, numbers, shards.remote_shards, shards.cache, workers):
            seen.append(batch)
            for _, position in batch:
                assert shards.remote_shards[numbers[position % 24]].path.exists()
            assert copies(tmp_path / "cache") <= limit
        assert seen == list(sampler)
        assert server.requests.total() > 0


def test_unusable_caches_are_explained(server: FaultyServer, few_shards: Path, tmp_path: Path) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"

    def refused(*words: object) -> str:
        result = call(main, "pretrain", *words)
        assert result.exit_code in (1, 2)
        return result.output

    assert "give --cache DIR and --cache-gb N" in refused(server.url, run, *options())
    assert "are for published shards" in refused(few_shards, run, "--cache", cache, *options())
    assert "give one URL" in refused(server.url, few_shards, run, *options())
    largest = max(sizes(few_shards)) / 1e9
    assert f"at least {3 * largest * 1.01:.3g} GB are needed" in refused(
        server.url, run, "--cache", cache, "--cache-gb", 2.5 * largest, *options()
    )
    both = ["--cache", cache, "--cache-gb", 3.2 * largest]
    assert "the shards that are in use at once need" in refused(
        server.url, run, *both, *options(data__shuffle_shards=3, data__workers=1)
    )
    assert "no index.json found" in refused(f"{server.url}/nothing", run, *both, *options())
    (tmp_path / "file").write_text("")
    assert "choose another --cache" in refused(server.url, run, "--cache", tmp_path / "file" / "cache", "--cache-gb", 1)


def test_an_unreachable_server_is_an_error(few_shards: Path, tmp_path: Path) -> None:
    with faulty_server(few_shards) as server:
        url = server.url
    folder = RemoteFolder(url=url, cache=tmp_path, max_bytes=1, limits=SourceLimits(timeout_seconds=2, retries=0))
    with pytest.raises(CacheError, match="request for the remote file failed"):
        CachedShardSet(folder)


def test_names_in_an_index_cannot_leave_the_cache(few_shards: Path, tmp_path: Path) -> None:
    index = json.loads((few_shards / "index.json").read_text())
    index["table"]["name"] = "../index.h5"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.json").write_text(json.dumps(index))
    with faulty_server(tmp_path / "site") as server, pytest.raises(ShardError, match="is not a file name"):
        CachedShardSet(remote_folder(server.url, tmp_path / "cache", 10**9))


def test_blocks_are_the_largest_that_fit() -> None:
    assert shards_per_block([10] * 8, 70) == 3
    assert shards_per_block([10, 10, 10, 4], 70) == 3
    assert shards_per_block([10] * 3, 70) == 0
    with pytest.raises(CacheError, match="too little for shards of up to"):
        shards_per_block([10, 10], 29)
