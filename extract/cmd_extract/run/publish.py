"""Copies a finished extraction to object storage, or from there, and verifies the copies.

``run.json`` is copied first and marks the destination, ``index.json`` last: a destination with an index is complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from types import TracebackType

from cmd_extract.errors import RunError, ShardError, VideoError
from cmd_extract.schema import INDEX_NAME, INDEX_TABLE_PATTERN, NOTES_NAME, PREVIOUS_INDEX_NAME, RUN_NAME
from cmd_extract.shard.index import ShardIndex
from cmd_extract.shard.index_format import check_head, read_checksums
from cmd_extract.sources.access import fingerprint, read_chunks
from cmd_extract.sources.limits import SourceLimits
from cmd_extract.sources.location import RemoteFile
from cmd_extract.sources.remote import RemoteObject, RemoteState, require_remote
from cmd_extract.system.files import atomic_write, remove_leftovers, sync, write_atomically

LOG_NAME = "published.jsonl"
"""Records in the output folder which copies have been verified."""

WRITABLE = ("s3://", "gs://")
"""Beginnings of URLs that can be published to."""

_TABLES = INDEX_TABLE_PATTERN.format("*")
_LOCAL_ONLY = (LOG_NAME, PREVIOUS_INDEX_NAME)
_MAX_RECORD_BYTES = 64 << 20
_IDENTITY = ("format", "version", "config_hash")


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A verified copy of a file.

    Attributes:
        url: its address.
        sha256: checksum of its content.
        size: bytes.
        version: what the store states that changes with the content, see ``RemoteState``.
    """

    url: str
    sha256: str
    size: int
    version: str


@dataclass(frozen=True, kw_only=True)
class Copied:
    """Result of ``publish`` and ``fetch``.

    Attributes:
        copied: number of files that were copied.
        existing: number of files that already had a verified copy.
        copied_bytes: size of the copied files.
    """

    copied: int
    existing: int
    copied_bytes: int


def check_url(url: str) -> None:
    """Check that a URL can be published to, and import the packages for it.

    Raises:
        ValueError: it is not that of an object store.
        RunError: a package is missing.
    """
    if not url.startswith(WRITABLE):
        raise ValueError(f"{url!r} is not a folder in an object store; it must start with {' or '.join(WRITABLE)}")
    require_remote([url])


def publish(
    out: Path,
    url: str,
    limits: SourceLimits | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Copied:
    """Copy a finished extraction to ``url``; continue where an earlier call was interrupted.

    Every copy is read back and compared by its SHA-256. Copies that were verified before and have kept size and
    version are not read again.

    Args:
        out: output folder with an index.
        url: folder in an object store, starting with one of ``WRITABLE``.
        limits: time limit and retries of requests.
        progress: called with the number of finished files and their total.

    Raises:
        ValueError: see ``check_url``.
        ShardError: the extraction is not finished, a shard is damaged, or ``url`` contains another extraction.
        RunError: the store cannot be reached or written, or a copy differs.
    """
    check_url(url)
    index = ShardIndex(out)
    checksums = index.checksums()
    publisher = _Publisher(out, url.rstrip("/"), limits or SourceLimits())
    try:
        publisher.check_destination()
        names = _ordered_names(out, index.table_path.name)
        # At no time may an index describe other shards than those stored with it.
        if not publisher.is_current(INDEX_NAME, fingerprint(out / INDEX_NAME)):
            publisher.remove(INDEX_NAME)
        if NOTES_NAME not in names:
            publisher.remove(NOTES_NAME)  # of an earlier state
        sizes = []
        for number, name in enumerate(names):
            if name == INDEX_NAME:
                index.check_in_place()
            sizes.append(publisher.copy(name, checksums.get(name)))
            progress(number + 1, len(names))
    except VideoError as error:
        raise RunError(f"cannot publish {out} to {url}: {error.reason}") from None
    return _summary(sizes)


class ShardUploader:
    """Copies shards to an object store in the background, while a run builds others.

    A context manager that waits for the copies at its end, unless the block fails. After a copy has failed, no further
    ones are made; ``publish`` makes those that are missing, and reports what is wrong.

    Args:
        out, url, limits: see ``publish``.
        warn: called with the reason why a copy has failed.
    """

    def __init__(self, out: Path, url: str, limits: SourceLimits, warn: Callable[[str], None]) -> None:
        self._publisher, self._warn = _Publisher(out, url.rstrip("/"), limits), warn
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._started = self._failed = False

    def add(self, name: str, sha256: str) -> None:
        """Copy a finished shard, after those that were added before."""
        self._pool.submit(self._copy, name, sha256)

    def _copy(self, name: str, sha256: str) -> None:
        if self._failed:
            return
        try:
            if not self._started:
                self._publisher.check_destination()
                self._publisher.remove(INDEX_NAME)  # it does not describe the new shards
                self._publisher.copy(RUN_NAME, None)
                self._started = True
            self._publisher.copy(name, sha256)
        except (VideoError, RunError, ShardError, OSError) as error:
            self._failed = True
            reason = error.reason if isinstance(error, VideoError) else str(error)
            self._warn(f"shards are not published while the run goes on: {reason}")

    def __enter__(self) -> ShardUploader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=error is not None)


def _summary(sizes: Sequence[int | None]) -> Copied:
    copied = [size for size in sizes if size is not None]
    return Copied(copied=len(copied), existing=len(sizes) - len(copied), copied_bytes=sum(copied))


def fetch(
    url: str,
    out: Path,
    limits: SourceLimits | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Copied:
    """Copy a published extraction to a local folder; continue where an earlier call was interrupted.

    Shards are compared with their SHA-256 in the index. Existing ones that match are kept.

    Args:
        url: see ``publish``.
        out: local folder; it is created if missing.
        limits, progress: see ``publish``.

    Raises:
        ValueError: see ``check_url``.
        ShardError: there is no finished extraction at ``url``, a shard there is damaged, or ``out`` contains another
            extraction.
        RunError: the store cannot be reached.
    """
    check_url(url)
    source, limits = url.rstrip("/"), limits or SourceLimits()
    out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    try:
        names = RemoteObject(source, limits).names()
        if not {RUN_NAME, INDEX_NAME} <= set(names):
            raise ShardError(f"{url}: no {INDEX_NAME} found; give the URL of a completely published extraction")
        record = _download(source, RUN_NAME, limits)
        here = out / RUN_NAME
        if here.exists() and not _is_continued_by(here.read_bytes(), record):
            raise ShardError(f"{out} contains another extraction; nothing was changed; choose another folder")
        index = _download(source, INDEX_NAME, limits)
        head = check_head(f"{url}/{INDEX_NAME}", json.loads(index), "publish it again with this release")
        table = head["table"]["name"]
        sizes = [_fetch_file(source, out / table, head["table"]["sha256"], limits)]
        checksums = read_checksums(out / table, head)
        # There must be no index while the files that it describes are replaced.
        if not (out / INDEX_NAME).exists() or (out / INDEX_NAME).read_bytes() != index:
            (out / INDEX_NAME).unlink(missing_ok=True)
        write_atomically(here, record)
        others = {name for name in names if name not in (RUN_NAME, INDEX_NAME) and not fnmatch(name, _TABLES)}
        files = sorted({*others, *checksums} - {table})
        for number, name in enumerate(files):
            sizes.append(_fetch_file(source, out / _plain_name(name), checksums.get(name), limits))
            progress(number + 1, len(files))
    except VideoError as error:
        raise RunError(f"cannot fetch {url}: {error.reason}") from None
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ShardError(f"{url}: not a valid extraction ({type(error).__name__}: {error}); publish it again") from None
    write_atomically(out / INDEX_NAME, index)
    for path in {*out.glob(_TABLES)} - {ShardIndex(out).table_path}:
        path.unlink()
    return _summary(sizes)


def _download(source: str, name: str, limits: SourceLimits) -> bytes:
    return b"".join(read_chunks(RemoteFile(f"{source}/{name}"), limits, limits.max_mb << 20))


def _plain_name(name: str) -> str:
    """Return a name that stays in the folder it is joined to; the index may have been written by others."""
    if name != Path(name).name or name in ("", ".", ".."):
        raise ShardError(f"{name!r}: not a file name; the index is invalid")
    return name


def _fetch_file(source: str, path: Path, sha256: str | None, limits: SourceLimits) -> int | None:
    """Download a file; return its size, or None if it existed with this checksum."""
    if sha256 is not None and path.exists() and fingerprint(path) == sha256:
        return None
    with atomic_write(path) as temporary:
        with temporary.open("wb") as stream:
            for chunk in read_chunks(RemoteFile(f"{source}/{path.name}"), limits):
                stream.write(chunk)
        if sha256 is not None and (found := fingerprint(temporary)) != sha256:
            raise ShardError(
                f"{source}/{path.name}: damaged (SHA-256 {found}, expected {sha256}); publish the extraction again"
            )
        return temporary.stat().st_size


def _is_continued_by(copy: bytes, original: bytes) -> bool:
    """Return whether one ``run.json`` is of the same extraction as another, perhaps before manifest rows were added."""
    old, new = json.loads(copy), json.loads(original)
    same = [old[key] for key in _IDENTITY] == [new[key] for key in _IDENTITY]
    return same and old["parts"] == new["parts"][: len(old["parts"])]


def _ordered_names(out: Path, table: str) -> list[str]:
    """Return the names of the files to copy: ``run.json`` first, the index last; no temporary files or old tables."""
    found = sorted(path.name for path in out.iterdir() if path.is_file() and not path.name.startswith("."))
    found = [name for name in found if name == table or not fnmatch(name, _TABLES)]
    others = [name for name in found if name not in (RUN_NAME, INDEX_NAME, *_LOCAL_ONLY)]
    return [RUN_NAME, *others, INDEX_NAME]


class _Publisher:
    """Copies single files of ``out`` to ``url`` and records verified copies."""

    def __init__(self, out: Path, url: str, limits: SourceLimits) -> None:
        self._out, self._url, self._limits = out, url, limits
        self._log = out / LOG_NAME
        self._copies = _read_log(self._log)

    def _object(self, name: str) -> RemoteObject:
        return RemoteObject(f"{self._url}/{name}", self._limits)

    def _state(self, name: str) -> RemoteState | None:
        """Return size and version of a copy; None if there is none."""
        try:
            return self._object(name).state()
        except VideoError as error:
            if error.is_missing:
                return None
            raise

    def check_destination(self) -> None:
        """Check that the destination is empty or contains a copy of the same extraction."""
        try:
            there = self._object(RUN_NAME).fetch(0, _MAX_RECORD_BYTES)
        except VideoError as error:
            if error.is_missing:
                return
            raise
        try:
            same = _is_continued_by(there, (self._out / RUN_NAME).read_bytes())
        except (ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise ShardError(f"{self._url} contains another extraction; nothing was changed; choose another URL")

    def is_current(self, name: str, sha256: str) -> bool:
        """Return whether there is a copy that was verified and has not changed since."""
        copy = self._copies.get(f"{self._url}/{name}")
        if copy is None or copy.sha256 != sha256:
            return False
        state = self._state(name)
        return state is not None and (state.size, state.version) == (copy.size, copy.version)

    def remove(self, name: str) -> None:
        """Remove a copy, if there is one."""
        if self._state(name) is not None:
            self._object(name).remove()

    def copy(self, name: str, expected: str | None) -> int | None:
        """Copy a file and verify the copy.

        Returns:
            Its size; None if there was a verified copy.
        """
        path = self._out / name
        if expected is not None and self.is_current(name, expected):
            return None
        sha256 = fingerprint(path)
        if expected not in (None, sha256):
            raise ShardError(
                f"{path}: checksum does not match the index, so it was not published; run `cmd-extract verify "
                f"{self._out} --repair`, then publish again"
            )
        if self.is_current(name, sha256):
            return None
        target, problem = self._object(name), ""
        for _ in range(self._limits.retries + 1):
            target.upload(path)
            state = target.state()
            problem = self._difference(name, sha256)
            if not problem:
                self._record(Copy(url=f"{self._url}/{name}", sha256=sha256, size=state.size, version=state.version))
                return path.stat().st_size
        raise RunError(f"{self._url}/{name}: the copy does not match {path}: {problem}")

    def _difference(self, name: str, sha256: str) -> str:
        """Read a copy back; return why it is not verified, or ''."""
        try:
            found = fingerprint(RemoteFile(f"{self._url}/{name}"), self._limits)
        except VideoError as error:  # some stores have checksums of their own, and refuse to deliver damaged data
            return error.reason
        return "" if found == sha256 else f"SHA-256 {found}, expected {sha256}"

    def _record(self, copy: Copy) -> None:
        with self._log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(copy)) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        sync(self._out)
        self._copies[copy.url] = copy


def _read_log(path: Path) -> dict[str, Copy]:
    """Return the last verified copy for each URL; a line that was cut off by a crash does not count."""
    copies: dict[str, Copy] = {}
    if path.exists():
        for line in path.read_text("utf-8", errors="replace").splitlines():
            try:
                copy = Copy(**json.loads(line))
            except (ValueError, TypeError):
                continue
            copies[copy.url] = copy
    return copies
