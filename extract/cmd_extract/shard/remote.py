"""Published shards, used like those of a local folder; they are read through a cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmd_extract.errors import CacheError, ShardError, VideoError
from cmd_extract.schema import INDEX_NAME
from cmd_extract.shard.cache import RemoteShard, ShardCache
from cmd_extract.shard.folders import Folders, open_folders
from cmd_extract.shard.index import ShardIndex, find_indexes
from cmd_extract.shard.index_format import check_head
from cmd_extract.shard.reader import ShardSet
from cmd_extract.sources.access import read_chunks
from cmd_extract.sources.limits import SourceLimits
from cmd_extract.sources.location import RemoteFile
from cmd_extract.system.files import atomic_write, write_atomically
from cmd_extract.system.reading import OpenFiles

# A process needs few open shards at once, and each open one is kept in the cache.
_OPEN_SHARDS = 2
_MAX_INDEX_BYTES = 16 << 30


@dataclass(frozen=True, kw_only=True)
class RemoteFolder:
    """Shards published with ``cmd-extract publish``, and the cache through which they are read.

    Attributes:
        url: folder in an object store or on a web server.
        cache: folder of the cache, on a local disk; see ``ShardCache``.
        max_bytes: maximum size of the cache.
        limits: time limit and retries of requests.
    """

    url: str
    cache: Path
    max_bytes: int
    limits: SourceLimits = field(default_factory=SourceLimits)


class CachedFiles(OpenFiles):
    """Open descriptors of shards; a shard that is opened is downloaded if there is no copy in the cache.

    Args:
        cache: the cache.
        shards: the shards by their places in the cache.
    """

    def __init__(self, cache: ShardCache, shards: Mapping[Path, RemoteShard]) -> None:
        super().__init__(_OPEN_SHARDS)
        self._cache, self._shards = cache, shards

    def __reduce__(self) -> tuple[Any, ...]:
        return CachedFiles, (self._cache, self._shards)

    def prepare(self, path: Path) -> None:
        """Download a shard if there is no copy, and open it, so that the copy is kept.

        Raises:
            CacheError: see ``ShardCache.fetch``.
        """
        self.stamp(path)

    def _open(self, path: Path) -> int:
        if not path.exists():
            # What this process has open must not be all that is left to remove.
            for other in list(self._descriptors):
                self.close(other)
        return self._cache.fetch(self._shards[path])


class CachedShardSet(ShardSet):
    """Published shards; a shard is downloaded on its first access unless the cache has a copy.

    Args:
        remote: the shards and their cache.

    Attributes:
        folders: the folder in the cache, as a tuple of one.
        videos, header, config_hash, data_hash: as in ``ShardSet``; ``data_hash`` is that of the published folder.
        cache: the cache.
        remote_shards: the shards, by number (``VideoEntry.shard``).

    Raises:
        CacheError: the server cannot be reached, or the cache cannot be written.
        ShardError: there is no complete extraction at the URL.
    """

    def __init__(self, remote: RemoteFolder) -> None:
        self.cache = ShardCache(remote.cache, remote.max_bytes, remote.limits)
        url = remote.url.rstrip("/")
        folder = _fetch_index(url, self.cache)
        self.remote_shards = tuple(
            RemoteShard(
                url=f"{url}/{entry.name}", path=folder / entry.name, sha256=entry.sha256, size_bytes=entry.size_bytes
            )
            for entry in ShardIndex(folder).shards()
        )
        super().__init__(folder, CachedFiles(self.cache, {shard.path: shard for shard in self.remote_shards}))


def open_shards(shards: Folders | RemoteFolder) -> ShardSet:
    """Open the shards of local folders, or published ones.

    Raises:
        CacheError, ShardError: see ``CachedShardSet`` and ``open_folders``.
    """
    return CachedShardSet(shards) if isinstance(shards, RemoteFolder) else open_folders(shards)


def _fetch_index(url: str, cache: ShardCache) -> Path:
    """Download the index of a published extraction; return its folder in the cache.

    The folder depends on URL and index, so that shards in it always are those of this index.
    """
    try:
        index = _download(f"{url}/{INDEX_NAME}", cache.limits)
    except VideoError as error:
        if error.is_missing:
            raise ShardError(
                f"{url}: no {INDEX_NAME} found; give the URL of a folder that `cmd-extract publish` has completed"
            ) from None
        raise CacheError(f"{url}: {error.reason}") from error
    table = _parse_head(f"{url}/{INDEX_NAME}", index)["table"]
    folder = cache.folder / hashlib.sha256(f"{url}\n".encode() + index).hexdigest()[:16]
    try:
        if not find_indexes(folder):  # or damaged
            folder.mkdir(parents=True, exist_ok=True)
            _fetch_table(f"{url}/{table['name']}", folder / table["name"], table["sha256"], cache.limits)
            write_atomically(folder / INDEX_NAME, index)
    except VideoError as error:
        raise CacheError(f"{url}/{table['name']}: {error.reason}") from error
    except OSError as error:
        raise CacheError(f"cannot write in the cache {cache.folder}: {error.strerror}") from error
    return folder


def _parse_head(url: str, index: bytes) -> dict[str, Any]:
    remedy = "publish the extraction again"
    try:
        head = json.loads(index)
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{url}: not an index of shards ({error}); {remedy}") from None
    return check_head(url, head, remedy)


def _fetch_table(url: str, path: Path, sha256: str, limits: SourceLimits) -> None:
    digest = hashlib.sha256()
    with atomic_write(path) as temporary:
        with temporary.open("wb") as stream:
            for chunk in read_chunks(RemoteFile(url), limits, _MAX_INDEX_BYTES):
                stream.write(chunk)
                digest.update(chunk)
        if digest.hexdigest() != sha256:
            raise CacheError(f"{url}: does not match its checksum in {INDEX_NAME}; start again, or publish it again")


def _download(url: str, limits: SourceLimits) -> bytes:
    return b"".join(read_chunks(RemoteFile(url), limits, _MAX_INDEX_BYTES))
