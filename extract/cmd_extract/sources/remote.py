"""Remote files, read in ranges with retries and time limits through fsspec (extra ``remote``).

Nothing else in this project opens network connections, and FFmpeg never does.
"""

from __future__ import annotations

import importlib
import os
import random
import select
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from cmd_extract.errors import RunError, VideoError
from cmd_extract.sources.limits import SourceLimits

REQUEST_BYTES = 8 << 20
"""Maximum size of a range that is requested at once."""

_MODULES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs"}
_CHUNK_BYTES = 256 << 10
_PAGE_KEYS = 1000  # the most that both kinds of stores list at once
_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.5, 8.0
_TRY_AGAIN, _ABSENT = (408, 425, 429), (404, 410)
_VERSION_KEYS = ("ETag", "etag", "Last-Modified", "LastModified", "generation", "mtime", "updated")


def require_remote(urls: Iterable[str]) -> None:
    """Import the modules that read these URLs, so that child processes find them loaded.

    Raises:
        RunError: a package is missing.
    """
    for scheme in sorted({url.partition("://")[0] for url in urls}):
        for module in ("fsspec", _MODULES[scheme]):
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise RunError(
                    f"{scheme}:// sources require the extra `remote`, but {module} cannot be imported ({error}); run "
                    "`pip install 'context-motion-decoupling[remote]'`"
                ) from None


@dataclass(frozen=True)
class RemoteState:
    """Size of a remote file, and what changes with its content.

    Attributes:
        size: bytes.
        version: ETag, generation or modification time, as far as the server states them.
    """

    size: int
    version: str


class RemoteObject:
    """One remote file; requests are repeated after errors that may pass.

    Args:
        url: its address.
        limits: time limit and retries of each request.

    Raises:
        VideoError: stage ``open``: the URL cannot be used.
    """

    def __init__(self, url: str, limits: SourceLimits) -> None:
        self._url, self._limits = url, limits
        self._system, self._path = _open_system(url, limits)

    def state(self) -> RemoteState:
        """Return size and version.

        Raises:
            VideoError: stage ``open``: the file does not exist, cannot be read or states no size.
        """
        info = self._attempt(self._system._info)
        size = info.get("size")
        if info.get("type") == "directory" or size is None:
            raise VideoError("open", "not a file, or the server states no size")
        return RemoteState(int(size), "; ".join(str(info[key]) for key in _VERSION_KEYS if info.get(key)))

    def fetch(self, start: int, stop: int) -> bytes:
        """Return the bytes from ``start`` up to ``stop``, or fewer at the end of the file.

        Raises:
            VideoError: they cannot be read.
        """
        is_http = self._url.startswith(("http://", "https://"))
        request = partial(_read_range, self._system) if is_http else self._system._cat_file
        data: bytes = self._attempt(request, start=start, end=stop)
        return data

    def names(self) -> list[str]:
        """Return the names of the files in this folder; none if it does not exist.

        Raises:
            VideoError: it cannot be listed.
        """
        try:
            entries = self._attempt(self._system._ls, detail=True)
        except VideoError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return []
            raise
        return sorted(PurePosixPath(entry["name"]).name for entry in entries if entry["type"] == "file")

    def names_below(self) -> list[str]:
        """Return the names of all objects below this folder of an object store, relative to it, in byte order.

        There are none if the folder does not exist. Pages are requested one by one, so that each has its own time limit
        and retries.

        Raises:
            VideoError: they cannot be listed.
        """
        if not self._path:
            raise VideoError("open", "the URL names no bucket")
        request = partial(_s3_page if self._url.startswith("s3://") else _gs_page, self._system)
        keys, token = self._attempt(request, token="")
        while token:
            page, following = self._attempt(request, token=token)
            if following == token:
                raise VideoError("open", "the server sends the same page of its listing again and again")
            keys += page
            token = following
        start = len(_key_prefix(self._path))
        return sorted((key[start:] for key in keys if not key.endswith("/")), key=os.fsencode)

    def upload(self, path: Path) -> None:
        """Replace the remote file by a local one.

        Raises:
            VideoError: it cannot be written.
        """
        requests = 1 + path.stat().st_size // REQUEST_BYTES
        self._attempt(self._system._put_file, local=path, seconds=self._limits.timeout_seconds * requests)

    def remove(self) -> None:
        """Remove the remote file.

        Raises:
            VideoError: it cannot be removed.
        """
        self._attempt(self._system._rm_file)

    def _attempt(
        self, request: Callable[..., Any], *, local: Path | None = None, seconds: float = 0.0, **arguments: Any
    ) -> Any:
        """Call a coroutine of the file system, again after errors that may pass."""
        from fsspec.asyn import sync

        words = (self._path,) if local is None else (str(local), self._path)
        seconds = seconds or self._limits.timeout_seconds
        for attempt in range(self._limits.retries + 1):
            try:
                return sync(self._system.loop, request, *words, timeout=seconds, **arguments)
            except MemoryError:
                raise
            except Exception as raised:  # the libraries raise their own kinds
                error = _true_error(raised)
                if _is_final(error) or attempt == self._limits.retries:
                    raise VideoError("open", _reason(error, attempt + 1, seconds)) from error
            pause = min(_FIRST_PAUSE_SECONDS * 2**attempt, _MAX_PAUSE_SECONDS)
            time.sleep(pause * random.uniform(0.5, 1.0))  # so that many workers do not return at the same time
        raise AssertionError("the last attempt returns or raises")


class RemoteReader:
    """Reads ranges of one remote file; a context manager that checks at its end that the file has not changed.

    Args:
        url, limits: see ``RemoteObject``.

    Attributes:
        state: size and version when it was opened.

    Raises:
        VideoError: stage ``open``: the file does not exist, cannot be read or states no size.
    """

    def __init__(self, url: str, limits: SourceLimits) -> None:
        self._file = RemoteObject(url, limits)
        self.state = self._file.state()

    def __enter__(self) -> RemoteReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and (now := self._file.state()) != self.state:
            if now.size != self.state.size:
                change = f"{self.state.size} bytes at first, then {now.size}"
            else:
                change = f"version {self.state.version!r} at first, then {now.version!r}"
            raise VideoError("open", f"has changed while it was read ({change}); extract it again")

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from ``start`` up to ``stop``, at most ``REQUEST_BYTES``.

        Raises:
            VideoError: they cannot be read.
        """
        # One byte more than there should be: a longer file than stated must not be truncated silently.
        data = self._file.fetch(start, stop + (stop == self.state.size))
        if len(data) != stop - start:
            raise VideoError(
                "open",
                f"the server states a size of {self.state.size} bytes, but sends {len(data)} bytes for the range "
                f"{start} to {stop}; it must state the true size and support range requests",
            )
        return data


def _key_prefix(path: str) -> str:
    """Return what the keys of all objects in a folder start with; ``path`` starts with the bucket."""
    folder = path.partition("/")[2]
    return f"{folder}/" if folder else ""


async def _s3_page(system: Any, path: str, *, token: str) -> tuple[list[str], str]:
    """Return the keys on one page of a listing, and the token of the next page; '' on the last one."""
    words = {"Bucket": path.partition("/")[0], "Prefix": _key_prefix(path), "MaxKeys": _PAGE_KEYS, **system.req_kw}
    page = await system._call_s3("list_objects_v2", **words, **({"ContinuationToken": token} if token else {}))
    keys = [entry["Key"] for entry in page.get("Contents", ())]
    return keys, page["NextContinuationToken"] if page["IsTruncated"] else ""


async def _gs_page(system: Any, path: str, *, token: str) -> tuple[list[str], str]:
    """As ``_s3_page``."""
    words = {"prefix": _key_prefix(path), "maxResults": _PAGE_KEYS, "pageToken": token or None}
    page = await system._call(
        "GET", "b/{}/o", path.partition("/")[0], **words, fields="items(name),nextPageToken", json_out=True
    )
    return [entry["name"] for entry in page.get("items", ())], page.get("nextPageToken", "")


async def _read_range(system: Any, url: str, *, start: int, end: int) -> bytes:
    """Return a range of a file from fsspec's HTTP file system, and one byte more at most, whatever the server sends."""
    headers = {**system.kwargs.get("headers", {}), "Range": f"bytes={start}-{max(start, end - 1)}"}
    session = await system.set_session()
    async with session.get(system.encode_url(url), **(system.kwargs | {"headers": headers})) as response:
        system._raise_not_found_for_status(response, url)
        data = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            data += chunk
            if len(data) > end - start:
                response.close()  # the rest may be endless
                break
    return bytes(data[: end - start + 1])


def _reason(error: Exception, attempts: int, seconds: float) -> str:
    if isinstance(error, FileNotFoundError):
        return "the remote file does not exist"
    if isinstance(error, TimeoutError):
        text = f"no answer within {seconds:g} s (--remote-timeout)"
    else:
        text = f"{type(error).__name__}: {error}"
    return f"request for the remote file failed: {text}" + (f", in {attempts} attempts" if attempts > 1 else "")


def _true_error(error: Exception) -> Exception:
    """Return the error behind ``FileNotFoundError``, which fsspec raises for every failed request by HTTP."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or not isinstance(cause, Exception):
        return error
    is_http = isinstance(cause, TimeoutError) or type(cause).__module__.startswith("aiohttp")
    return cause if is_http and getattr(cause, "status", None) not in _ABSENT else error


def _is_final(error: Exception) -> bool:
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | ImportError | TypeError):
        return True
    status = getattr(error, "status", None) or getattr(error, "code", None)  # aiohttp; gcsfs
    return isinstance(status, int) and 400 <= status < 500 and status not in _TRY_AGAIN


def _open_system(url: str, limits: SourceLimits) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path in it.

    Credentials, endpoints and other settings are those of fsspec and of the cloud's own tools. Retries of the
    libraries are turned off, because they would multiply with those of ``RemoteReader``.
    """
    require_remote([url])
    import fsspec
    from fsspec.config import conf

    scheme = url.partition("://")[0]
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme in ("http", "https"):
        import aiohttp

        headers = {**conf.get("http", {}).get("headers", {}), **conf.get("https", {}).get("headers", {})}
        # A compressed answer would have another size.
        options["headers"] = headers | {"Accept-Encoding": "identity"}
        options["client_kwargs"] = {
            "timeout": aiohttp.ClientTimeout(total=limits.timeout_seconds),
            "auto_decompress": False,  # a small compressed answer could become huge
        }
    elif scheme == "s3":
        given = conf.get("s3", {}).get("config_kwargs", {})
        options["config_kwargs"] = given | {
            "connect_timeout": limits.timeout_seconds,
            "read_timeout": limits.timeout_seconds,
            "retries": {"total_max_attempts": 1},
        }
    try:
        system, path = fsspec.core.url_to_fs(url, **options)
    except Exception as error:
        raise VideoError("open", f"not a usable URL: {type(error).__name__}: {error}") from error
    if scheme == "s3":
        system.retries = 1
    _loops.add(system.loop)
    return system, path


_loops: set[Any] = set()
"""Event loops of fsspec in which requests are made; it has one per process."""


def _leave_loops() -> None:
    """Separate the event loops of a forked process from those of its parent.

    Both share the kernel's list of awaited connections. When the child finalizes its copies of the connections, it
    would remove the parent's from the list, and the parent would wait for answers that have arrived, until the time
    limit.
    """
    for loop in _loops:
        selector = getattr(loop, "_selector", None)
        if selector is not None and isinstance(getattr(selector, "_selector", None), _EPOLL):
            selector._selector = select.epoll()
    _loops.clear()


_EPOLL = getattr(select, "epoll", ())  # Linux only
os.register_at_fork(after_in_child=_leave_loops)
