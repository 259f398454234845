"""Local copies of remote shards, of bounded size, shared by all processes of a machine.

A copy is complete and has the SHA-256 of the index from the moment at which it gets its name. File locks protect the
copies in use from removal, and let one process download a shard while others wait for it. The system releases the locks
of killed processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cmd_extract.errors import CacheError, VideoError
from cmd_extract.sources.access import read_chunks
from cmd_extract.sources.limits import SourceLimits
from cmd_extract.sources.location import RemoteFile
from cmd_extract.sources.remote import REQUEST_BYTES
from cmd_extract.system.files import sync
from cmd_extract.system.locks import exclusive, hold_shared, open_shared, release, remove_unused

_LOCK_NAME = "cache.lock"
_COPY_PREFIX, _PARTIAL_PREFIX = "shard-", ".partial-"
_ROOM_SECONDS = 300.0
_POLL_SECONDS = 0.2
_LOCK_SECONDS = 120.0  # for looking through all copies
# All copies of a shard have the same modification time, so that a reader may go on with a copy that was made again. The
# access time is that of the last use.
_COPY_TIME_NS = 10**18


@dataclass(frozen=True, kw_only=True)
class RemoteShard:
    """One shard of a published extraction.

    Attributes:
        url: its address.
        path: its place in the cache.
        sha256: checksum of its content, from the index.
        size_bytes: size, from the index.
    """

    url: str
    path: Path
    sha256: str
    size_bytes: int


class ShardCache:
    """Folder for copies of remote shards. It can be pickled and used after a fork, and by several threads.

    Args:
        folder: the folder, on a local disk; it may be shared by all runs on this machine.
        max_bytes: total size of all copies.
        limits: time limit and retries of requests.

    Raises:
        CacheError: the folder cannot be created.
    """

    def __init__(self, folder: Path, max_bytes: int, limits: SourceLimits | None = None) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.limits = limits or SourceLimits()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheError(f"{folder}: cannot be created ({error.strerror}); choose another --cache") from error

    def fetch(
        self,
        shard: RemoteShard,
        next_use: Callable[[Path], float] = lambda path: math.inf,
        stop: threading.Event | None = None,
    ) -> int:
        """Return a descriptor of the copy of a shard, which is kept as long as the descriptor is open.

        A missing copy is downloaded. If there is no room, unused copies are removed: those whose next use is the
        farthest, and of equal ones those that were not used for the longest time.

        Args:
            shard: the shard.
            next_use: when a copy will be used again, in any unit; infinity if that is unknown.
            stop: ends waiting and downloading with an error.

        Raises:
            CacheError: the server cannot be reached, the shard has changed there, or there is no room.
        """

        def check() -> None:
            if stop is not None and stop.is_set():
                raise CacheError("stopped")

        requests = 1 + shard.size_bytes // REQUEST_BYTES
        longest = _ROOM_SECONDS + requests * self.limits.timeout_seconds * (1 + self.limits.retries)
        try:
            descriptor = open_shared(shard.path)
            if descriptor is None:
                shard.path.parent.mkdir(exist_ok=True)
                with exclusive(shard.path.with_name(f".{shard.path.name}.lock"), longest, check):
                    descriptor = open_shared(shard.path)  # another process may have downloaded it
                    if descriptor is None:
                        return self._download(shard, next_use, check)
            os.utime(descriptor, ns=(time.time_ns(), _COPY_TIME_NS))
        except VideoError as error:
            raise CacheError(f"{shard.url}: {error.reason}") from error
        except OSError as error:
            raise CacheError(f"cannot write in the cache {self.folder}: {error.strerror or error}") from error
        return descriptor

    def _download(self, shard: RemoteShard, next_use: Callable[[Path], float], check: Callable[[], None]) -> int:
        """Download a shard; the caller holds its lock file."""
        partial = shard.path.with_name(f"{_PARTIAL_PREFIX}{shard.path.name}")
        stream = self._reserve(partial, shard, next_use, check)
        descriptor = None
        try:
            with stream:
                digest, size = hashlib.sha256(), 0
                for chunk in read_chunks(RemoteFile(shard.url), self.limits):
                    check()
                    size += len(chunk)
                    if size > shard.size_bytes:
                        break
                    stream.write(chunk)
                    digest.update(chunk)
                if (size, digest.hexdigest()) != (shard.size_bytes, shard.sha256):
                    raise CacheError(
                        f"{shard.url}: does not match its checksum in the index: it was replaced since the index was "
                        "read, or is damaged; start again, and if that does not help, publish the extraction again"
                    )
                stream.flush()
                sync(partial)
                os.utime(partial, ns=(time.time_ns(), _COPY_TIME_NS))
                descriptor = open_shared(partial)  # while the stream's own lock keeps it from being removed
            if descriptor is None:
                raise CacheError(f"{partial}: was removed while it was written; start again")
            partial.replace(shard.path)
            return descriptor
        except BaseException:
            partial.unlink(missing_ok=True)
            if descriptor is not None:
                release(descriptor)
            raise

    def _reserve(
        self, partial: Path, shard: RemoteShard, next_use: Callable[[Path], float], check: Callable[[], None]
    ) -> BinaryIO:
        """Open a locked file of the size of a shard, once there is room for it."""
        end = time.monotonic() + _ROOM_SECONDS
        while True:
            with exclusive(self.folder / _LOCK_NAME, _LOCK_SECONDS, check):
                missing = self._make_room(shard.size_bytes, next_use)
                if missing <= 0:
                    return _create(partial, shard.size_bytes)
            if shard.size_bytes > self.max_bytes or time.monotonic() > end:
                raise CacheError(
                    f"no room for {shard.path.name} in the cache {self.folder}: the shards in use at once need "
                    f"{(self.max_bytes + missing) / 1e9:.3g} GB, --cache-gb allows {self.max_bytes / 1e9:.3g}; raise it"
                )
            check()
            time.sleep(_POLL_SECONDS)

    def _make_room(self, size: int, next_use: Callable[[Path], float]) -> int:
        """Remove unused copies until ``size`` bytes fit; return how many bytes are missing, 0 or less if they do."""
        found = list(self._files())
        missing = sum(status.st_size for _, status in found) + size - self.max_bytes
        # Unfinished downloads without a lock belong to killed processes.
        order = {path: (not _is_partial(path), -next_use(path), status.st_atime_ns) for path, status in found}
        for path, status in sorted(found, key=lambda each: order[each[0]]) if missing > 0 else []:
            if remove_unused(path):
                missing -= status.st_size
            if missing <= 0:
                break
        return missing

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield all copies and unfinished downloads."""
        for folder in [entry.path for entry in os.scandir(self.folder) if entry.is_dir()]:
            for entry in os.scandir(folder):
                if entry.name.startswith((_COPY_PREFIX, _PARTIAL_PREFIX)):
                    with contextlib.suppress(FileNotFoundError):
                        yield Path(entry.path), entry.stat()


def _create(partial: Path, size: int) -> BinaryIO:
    """Open a locked file, which others count with its final size."""
    stream = partial.open("wb")
    try:
        hold_shared(stream.fileno(), partial)
        stream.truncate(size)
    except BaseException:
        stream.close()
        partial.unlink()
        raise
    return stream


def _is_partial(path: Path) -> bool:
    return path.name.startswith(_PARTIAL_PREFIX)
