"""Positional reads of many files, with a bounded number of open descriptors."""

from __future__ import annotations

import os
import resource
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_MAX_DESCRIPTORS = 4096
# Linux reads at least this much ahead, so that a gap of this size costs no more than a second request.
_MAX_GAP_BYTES = 128 * 1024


class FileStamp(NamedTuple):
    """Identifies the content of a file.

    Attributes:
        size_bytes, mtime_ns: size and modification time.
    """

    size_bytes: int
    mtime_ns: int


class OpenFiles:
    """Open descriptors of files, shared by all readers of a folder; opening one again is a single system call.

    Reads name their position, so descriptors may be used after a fork. A copy made by pickle starts without any. Not
    safe for use by several threads at once.

    Args:
        limit: maximum number of open descriptors; None for half of what the process may open.
    """

    def __init__(self, limit: int | None = None) -> None:
        soft_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        allowed = _MAX_DESCRIPTORS if soft_limit == resource.RLIM_INFINITY else soft_limit // 2
        self._limit = max(1, min(allowed, _MAX_DESCRIPTORS)) if limit is None else limit
        self._descriptors: OrderedDict[Path, int] = OrderedDict()
        weakref.finalize(self, _close_all, self._descriptors)

    def __reduce__(self) -> tuple[Any, ...]:
        return OpenFiles, (self._limit,)

    def stamp(self, path: Path) -> FileStamp:
        """Return size and modification time of a file."""
        file = os.fstat(self._descriptor(path, None))
        return FileStamp(file.st_size, file.st_mtime_ns)

    def read(self, path: Path, stamp: FileStamp, start: int, count: int) -> bytes:
        """Read ``count`` bytes of a file from position ``start`` on.

        Raises:
            OSError: the file cannot be read, is shorter, or is not the file that had the stamp.
        """
        if start < 0 or count < 0 or start + count > stamp.size_bytes:
            raise OSError(f"{path}: bytes {start} to {start + count} of a file of {stamp.size_bytes} bytes")
        data = os.pread(self._descriptor(path, stamp), count, start)
        if len(data) != count:
            raise OSError(f"{path}: truncated; {len(data)} of {count} bytes from position {start} on could be read")
        return data

    def prepare(self, path: Path) -> None:
        """Do what is needed before others open a file by its path; nothing for local files."""

    def _open(self, path: Path) -> int:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self, path: Path) -> None:
        """Close a file, if it is open."""
        if path in self._descriptors:
            os.close(self._descriptors.pop(path))

    def _descriptor(self, path: Path, stamp: FileStamp | None) -> int:
        descriptor = self._descriptors.get(path)
        if descriptor is not None:
            self._descriptors.move_to_end(path)
            return descriptor
        while len(self._descriptors) >= self._limit:
            os.close(self._descriptors.popitem(last=False)[1])
        descriptor = self._open(path)
        file = os.fstat(descriptor)
        if stamp is not None and (file.st_size, file.st_mtime_ns) != stamp:
            os.close(descriptor)
            raise OSError(f"{path}: replaced while it was in use; start again")
        self._descriptors[path] = descriptor
        return descriptor


def _close_all(descriptors: OrderedDict[Path, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])


def read_ranges(read: Callable[[int, int], bytes], ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
    """Read ranges of a file; ranges that are close to each other are read at once.

    Args:
        read: reads a number of bytes from a position on.
        ranges: start and end of each range, in any order.

    Returns:
        The bytes of each range.
    """
    found: dict[tuple[int, int], memoryview] = {}
    group: list[tuple[int, int]] = []
    end = 0

    def read_group() -> None:
        first = group[0][0]
        data = memoryview(read(first, end - first))
        found.update({(start, stop): data[start - first : stop - first] for start, stop in group})

    for start, stop in sorted(set(ranges)):
        if group and start - end > _MAX_GAP_BYTES:
            read_group()
            group.clear()
        end = max(end, stop) if group else stop
        group.append((start, stop))
    if group:
        read_group()
    return [found[pair] for pair in ranges]
