"""Members of tar files, found by their headers and read in place: nothing is unpacked and no link is followed."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import BinaryIO, cast

from cmd_extract.errors import VideoError
from cmd_extract.sources.location import member_name

READ_INDEX_BYTES = 64 << 10
"""Bytes read at once while looking for headers."""
KEPT_BYTES = 1024
"""Maximum number of bytes kept of a member."""

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
_MAX_HEADER_BYTES = 1 << 20  # names and extended attributes of one member
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


@dataclass(frozen=True)
class TarIndex:
    """Content of a tar file.

    Attributes:
        members: maps names of regular files to offset and size of their data; of equal names, the last one counts.
        others: names of links, devices and sparse files, and of files outside the archive's folder (``../name``).
        contents: maps names of the members that were to be kept to the start of their data.
        problem: why the archive cannot be read, from where on; empty if it is complete.
    """

    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)
    contents: dict[str, bytes] = field(default_factory=dict)
    problem: str = ""

    def find(self, name: str) -> tuple[int, int]:
        """Return offset and size of a member.

        Raises:
            VideoError: there is no such regular file in the archive; with ``FileNotFoundError`` as its cause if the
                archive is complete.
        """
        place = self.members.get(name)
        if place is not None:
            return place
        if name in self.others:
            raise VideoError("open", f"{name!r} is a link, device or sparse file, or outside the archive's folder")
        missing = f"the tar file has no member {name!r}"
        if self.problem:
            raise VideoError("open", f"{missing} before its damage: {self.problem}")
        raise VideoError("open", missing) from FileNotFoundError(name)


class _Ranges(io.RawIOBase):
    """A seekable stream over a function that reads ranges of bytes."""

    def __init__(self, read: Callable[[int, int], bytes], length: int) -> None:
        self._read, self._length, self._position = read, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # what BufferedReader passes
        stop = min(self._position + len(buffer), self._length)
        data = self._read(self._position, stop) if stop > self._position else b""
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


class _HeaderReader(io.BufferedReader):
    """A buffered stream that refuses to read a huge header, which ``tarfile`` would keep in memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_HEADER_BYTES:
            raise ValueError(f"header of {size} bytes")
        return super().read(size)


def read_index(
    read: Callable[[int, int], bytes], length: int, keep: Callable[[str], bool] = lambda name: False
) -> TarIndex:
    """Read the headers of a tar file.

    Args:
        read: returns the bytes from the first offset up to the second.
        length: size of the archive in bytes.
        keep: called with the name of each member; returns whether to keep the first ``KEPT_BYTES`` of its data.

    Raises:
        VideoError: the file is compressed or not a tar file.
    """
    start = read(0, min(8, length))
    for magic, name in _MAGIC.items():
        if start.startswith(magic):
            raise VideoError(
                "open",
                f"the tar file is compressed ({name}), which allows no access to single members; decompress it first "
                "(videos hardly become smaller by compression)",
            )
    index = TarIndex()
    stream = cast(BinaryIO, _HeaderReader(_Ranges(read, length), READ_INDEX_BYTES))
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            problem = _add_members(archive, index, length, keep) or _check_end(stream, archive.offset, length)
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        if not index.members:
            raise VideoError("open", f"not a tar file, or damaged at its start: {error}") from None
        problem = f"damaged ({error})"
    return replace(index, problem=problem)


def _add_members(archive: tarfile.TarFile, index: TarIndex, length: int, keep: Callable[[str], bool]) -> str:
    """Add all members to ``index``; return why the last one is incomplete, or ''."""
    last = -1
    while (info := archive.next()) is not None:
        if info.size < 0 or info.offset <= last:  # it would lead back to an earlier header
            raise tarfile.ReadError(f"header of {info.size} bytes of data at byte {info.offset}")
        last = info.offset
        archive.members.clear()  # type: ignore[attr-defined] # it keeps all headers in memory
        name = member_name(info.name)
        if info.offset_data + info.size > length:
            return f"truncated in member {name!r}"
        index.members.pop(name, None)
        index.contents.pop(name, None)
        index.others.discard(name)
        if info.type in _REGULAR and not info.issparse() and ".." not in name.split("/"):
            index.members[name] = (info.offset_data, info.size)
            if keep(name):  # mostly in the buffer, behind the header
                stream = cast(BinaryIO, archive.fileobj)
                stream.seek(info.offset_data)
                index.contents[name] = stream.read(min(info.size, KEPT_BYTES))
        elif not info.isdir():
            index.others.add(name)
    return ""


def _check_end(stream: BinaryIO, offset: int, length: int) -> str:
    """Return a problem unless the archive ends with a block of zeros: ``tarfile`` takes a damaged header as the end."""
    stream.seek(offset)
    block = stream.read(tarfile.BLOCKSIZE)
    if not block and offset >= length:
        return f"truncated at byte {length}: no end-of-archive marker"
    return f"no valid header at byte {offset}" if any(block) else ""
