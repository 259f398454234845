"""Reading the bytes of sources: presence, size, checksum, and copies that FFmpeg can open."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cmd_extract.errors import VideoError
from cmd_extract.sources.limits import SourceLimits
from cmd_extract.sources.location import RemoteFile, Source, TarMember
from cmd_extract.sources.remote import REQUEST_BYTES, RemoteReader, require_remote
from cmd_extract.sources.tar import TarIndex, read_index

_KEPT_INDEXES = 8
_MAX_SUFFIX = 8
_CHECKS_AT_ONCE = 32
_indexes: dict[tuple[str, str], TarIndex] = {}
_indexes_lock = threading.Lock()


@dataclass(frozen=True)
class _Bytes:
    """An open file.

    Attributes:
        length: size in bytes.
        version: changes with the content.
        read: returns the bytes from the first offset up to the second.
    """

    length: int
    version: str
    read: Callable[[int, int], bytes]


@contextlib.contextmanager
def _open(file: Path | RemoteFile, limits: SourceLimits) -> Iterator[_Bytes]:
    """Open a local or remote file.

    Raises:
        VideoError: stage ``open``: it does not exist, cannot be read, or has changed at the end of the block.
    """
    if isinstance(file, RemoteFile):
        with RemoteReader(file.url, limits) as reader:
            yield _Bytes(reader.state.size, reader.state.version, reader.read)
        return
    with contextlib.ExitStack() as stack:
        try:
            descriptor = stack.enter_context(_open_regular(file))
        except (OSError, ValueError) as error:
            raise VideoError("open", f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error
        status = os.fstat(descriptor)

        def read(start: int, stop: int) -> bytes:
            try:
                data = os.pread(descriptor, stop - start, start)
            except OSError as error:
                raise VideoError("open", f"cannot read {file}: {error.strerror}") from error
            if len(data) != stop - start:
                raise VideoError("open", f"{file} has become shorter while it was read")
            return data

        yield _Bytes(status.st_size, f"{status.st_ino} {status.st_mtime_ns}", read)


@contextlib.contextmanager
def _open_regular(path: Path) -> Iterator[int]:
    # Without O_NONBLOCK, opening a pipe waits for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise VideoError("open", "not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def _index_of(archive: Path | RemoteFile, opened: _Bytes) -> TarIndex:
    """Return the index of an open archive; this process keeps the last few."""
    key = (str(archive), f"{opened.length} {opened.version}")
    with _indexes_lock:  # so that several threads do not read the same archive
        if key not in _indexes:
            index = read_index(opened.read, opened.length)
            while len(_indexes) >= _KEPT_INDEXES:
                del _indexes[next(iter(_indexes))]
            _indexes[key] = index
        return _indexes[key]


def tar_index(archive: Path | RemoteFile, limits: SourceLimits | None = None) -> TarIndex:
    """Return the members of a tar file.

    Raises:
        VideoError: it cannot be read, is compressed or not a tar file.
    """
    with _open(archive, limits or SourceLimits()) as opened:
        return _index_of(archive, opened)


def _file_of(source: RemoteFile | TarMember) -> Path | RemoteFile:
    return source.archive if isinstance(source, TarMember) else source


def read_chunks(source: RemoteFile | TarMember, limits: SourceLimits, max_bytes: int | None = None) -> Iterator[bytes]:
    """Yield the bytes of a source in order.

    Raises:
        VideoError: it cannot be read, or has more than ``max_bytes``.
    """
    with _open(_file_of(source), limits) as opened:
        start, size = 0, opened.length
        if isinstance(source, TarMember):
            start, size = _index_of(source.archive, opened).find(source.member)
        if max_bytes is not None and size > max_bytes:
            option = " of --max-source-mb" if max_bytes == limits.max_mb << 20 else ""
            raise VideoError("open", f"has {size} bytes, more than the {max_bytes >> 20} MiB{option}")
        for offset in range(start, start + size, REQUEST_BYTES):
            yield opened.read(offset, min(offset + REQUEST_BYTES, start + size))


def read_archive(archive: Path | RemoteFile, limits: SourceLimits, keep: Callable[[str], bool]) -> TarIndex:
    """Read the members of a tar file once, unlike ``tar_index``, from several threads at once.

    Args:
        archive: the tar file.
        limits: time limit and retries of requests.
        keep: see ``read_index``.

    Raises:
        VideoError: it cannot be read, is compressed or not a tar file.
    """
    with _open(archive, limits) as opened:
        return read_index(opened.read, opened.length, keep)


def spool(source: Source, folder: Path, limits: SourceLimits) -> Path:
    """Return a local file with the bytes of a source: the file itself, or a copy.

    Args:
        source: the source.
        folder: existing folder for the copy, named ``source`` with the suffix of the source.
        limits: maximum size; time limit and retries of requests.

    Raises:
        VideoError: stage ``open``: the source cannot be read.
        OSError: the copy cannot be written.
    """
    if isinstance(source, Path):
        return source
    name = source.member if isinstance(source, TarMember) else source.url.partition("?")[0]
    suffix = PurePosixPath(name).suffix
    usable = suffix[1:].isascii() and suffix[1:].isalnum() and len(suffix) <= _MAX_SUFFIX
    target = folder / f"source{suffix.lower() if usable else ''}"
    try:
        with target.open("xb") as stream:
            for chunk in read_chunks(source, limits, limits.max_mb << 20):
                stream.write(chunk)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return target


def fingerprint(source: Source, limits: SourceLimits | None = None) -> str:
    """Return the SHA-256 (hex) of a source.

    Raises:
        VideoError: it cannot be opened or is a folder, device, pipe or socket, which might never reach its end.
        OSError: a local file cannot be read.
    """
    if isinstance(source, Path):
        with _open_regular(source) as descriptor, os.fdopen(descriptor, "rb", closefd=False) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    digest = hashlib.sha256()
    for chunk in read_chunks(source, limits or SourceLimits()):
        digest.update(chunk)
    return digest.hexdigest()


def problem_of(source: Source) -> str:
    """Return why a local file, or a member of a local tar file, cannot be read; '' if it can.

    Remote files are not looked for.
    """
    if is_remote(source):
        return ""
    if isinstance(source, Path):
        found = os.path.isfile(source)  # noqa: PTH113 (Path.is_file raises for overlong names)
        return "" if found else "not found"
    assert isinstance(source, TarMember), "remote files are excluded above"
    try:
        tar_index(source.archive).find(source.member)
    except VideoError as error:
        return error.reason
    return ""


def means_deleted(error: BaseException) -> bool:
    """Return whether an error of ``fingerprint`` means that the source or its tar file does not exist, or not any more.

    A tar file that is damaged, compressed or something else says nothing about its members.
    """
    cause = error.__cause__ if isinstance(error, VideoError) else error
    return isinstance(cause, FileNotFoundError | NotADirectoryError)


def is_remote(source: Source) -> bool:
    """Return whether a source is read over the network."""
    return not isinstance(source, Path) and isinstance(_file_of(source), RemoteFile)


def require_packages(sources: Sequence[Source]) -> None:
    """Import the packages that read the remote ones among the sources.

    Raises:
        RunError: one is missing.
    """
    files = {_file_of(source) for source in sources if not isinstance(source, Path)}
    require_remote({file.url for file in files if isinstance(file, RemoteFile)})


def sizes(sources: Sequence[Source], limits: SourceLimits) -> list[int | None]:
    """Return the size of each source in bytes; None if it does not exist any more.

    Raises:
        VideoError: a remote file cannot be reached, or its tar file not be read.
    """
    remote = [source for source in sources if is_remote(source)]
    if not remote:
        return list(map(_local_size, sources))
    with ThreadPoolExecutor(_CHECKS_AT_ONCE) as pool:
        found = dict(zip(remote, pool.map(lambda source: _remote_size(source, limits), remote), strict=True))
    return [found[source] if is_remote(source) else _local_size(source) for source in sources]


def _local_size(source: Source) -> int | None:
    try:
        if isinstance(source, Path):
            return source.stat().st_size
        assert isinstance(source, TarMember), "remote files are looked up separately"
        return tar_index(source.archive).find(source.member)[1]
    except (OSError, VideoError):
        return None


def _remote_size(source: Source, limits: SourceLimits) -> int | None:
    try:
        if isinstance(source, TarMember):
            member = tar_index(source.archive, limits).members.get(source.member)
            return None if member is None else member[1]
        assert isinstance(source, RemoteFile), "local files are looked up separately"
        return RemoteReader(source.url, limits).state.size
    except VideoError as error:
        if error.is_missing:
            return None
        raise
