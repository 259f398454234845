"""Servers on loopback for tests of remote sources: HTTP with faults, and an S3 object store."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import parse_qs, unquote

if TYPE_CHECKING:
    import pytest


class FaultyServer:
    """Serves the files of a folder with range requests, and with faults by file name.

    Attributes:
        url: address of the folder.
        requests: number of requests by method and name.
        faults: maps names to a fault: ``503 N`` and ``cut N`` for the first N requests, ``slow`` (no bytes after the
            header), ``short`` and ``long`` (wrong size in the answer to HEAD), ``no-range``, ``changes`` (the ETag),
            ``endless`` (a body of up to 1 GiB without a size), ``gzip`` (100 MB of zeros, compressed).
        blocks: MiB sent in endless bodies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: dict[str, str] = {}
        self.requests: Counter[str] = Counter()
        self.blocks = 0
        self._seen: dict[str, int] = defaultdict(int)
        self.stopping = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None: ...

            def do_HEAD(self) -> None:
                outer.answer(self, body=False)

            def do_GET(self) -> None:
                outer.answer(self, body=True)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _strikes(self, name: str, fault: str) -> bool:
        """Whether a fault of the form ``fault N`` applies to this request."""
        kind, _, count = self.faults.get(name, "").partition(" ")
        self._seen[name] += kind == fault
        return kind == fault and (not count or self._seen[name] <= int(count))

    def answer(self, handler: BaseHTTPRequestHandler, *, body: bool) -> None:
        name = handler.path.partition("?")[0].lstrip("/")
        self.requests[f"{handler.command} {name}"] += 1
        fault = self.faults.get(name, "")
        path = self.folder / name
        if not path.is_file():
            self._error(handler, 404)
            return
        if self._strikes(name, "503"):
            self._error(handler, 503)
            return
        if body and fault == "endless":
            self._send_endlessly(handler)
            return
        data = path.read_bytes()
        if body and fault == "gzip":
            data = gzip.compress(bytes(100_000_000))
            handler.send_response(200)
            handler.send_header("Content-Encoding", "gzip")
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            self._send(handler, name, data)
            return
        start, stop = self._range(handler, len(data)) if fault != "no-range" else (0, len(data))
        partial = fault != "no-range" and "Range" in handler.headers
        length = stop - start
        if not body:
            length += {"short": -100, "long": 100}.get(fault, 0)
        handler.send_response(206 if partial else 200)
        if partial:
            handler.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        handler.send_header("Content-Length", str(length))
        tag = self.requests.total() if fault == "changes" else f"{path.stat().st_mtime_ns}"
        handler.send_header("ETag", f'"{tag}"')
        handler.end_headers()
        if body:
            self._send(handler, name, data[start:stop])

    def _send_endlessly(self, handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(ConnectionError):
            for _ in range(1024):
                handler.wfile.write(bytes(1 << 20))
                self.blocks += 1

    def _send(self, handler: BaseHTTPRequestHandler, name: str, data: bytes) -> None:
        if self.faults.get(name) == "slow":
            self.stopping.wait(30)
            handler.close_connection = True
            return
        with contextlib.suppress(ConnectionError):
            if self._strikes(name, "cut"):
                handler.wfile.write(data[: len(data) // 2])
                handler.close_connection = True
            else:
                handler.wfile.write(data)

    @staticmethod
    def _range(handler: BaseHTTPRequestHandler, length: int) -> tuple[int, int]:
        start, _, last = handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        return int(start), min(int(last) + 1, length) if last else length

    @staticmethod
    def _error(handler: BaseHTTPRequestHandler, status: int) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", "0")
        handler.end_headers()


@contextlib.contextmanager
def faulty_server(folder: Path) -> Iterator[FaultyServer]:
    server = FaultyServer(folder)
    try:
        yield server
    finally:
        server.close()


class FaultyProxy:
    """Forwards requests to an object store, with faults.

    Attributes:
        url: address of the proxy.
        requests: method and path of each request, in order.
        sent: number of bytes in each answer.
        fault: called with method, path and the number of earlier requests of this method and path; returns ``503``,
            ``cut`` (connection closed without an answer), ``half`` (closed within the answer), ``flip`` (one byte of an
            upload is changed) or ''.
    """

    def __init__(self, target: str) -> None:
        self.requests: list[tuple[str, str]] = []
        self.sent: list[int] = []
        self.fault: Callable[[str, str, int], str] = lambda method, path, earlier: ""
        host, _, port = target.removeprefix("http://").partition(":")
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None: ...

            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                request = (self.command, self.path.partition("?")[0])
                fault = outer.fault(*request, outer.requests.count(request))
                outer.requests.append(request)
                if fault == "cut":
                    self.close_connection = True
                    return
                if fault == "503":
                    FaultyServer._error(self, 503)
                    return
                if fault == "flip" and body:
                    middle = len(body) // 2
                    body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
                upstream = http.client.HTTPConnection(host, int(port), timeout=30)
                upstream.request(self.command, self.path, body or None, dict(self.headers))
                answer = upstream.getresponse()
                data = answer.read()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                        self.send_header(name, value)
                length = answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(data))
                self.send_header("Content-Length", length)
                self.end_headers()
                outer.sent.append(len(data))
                self.close_connection |= fault == "half"
                self.wfile.write(data[: len(data) // 2] if fault == "half" else data)
                upstream.close()

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward  # noqa: N815 - names of the base class

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextlib.contextmanager
def object_store(bucket: str) -> Iterator[str]:
    """Run an S3 server with an empty bucket in this process; yields its address."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        import boto3

        end = time.monotonic() + 30
        client = boto3.client("s3", endpoint_url=url, aws_access_key_id="k", aws_secret_access_key="s", region_name="x")
        while True:
            try:
                client.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "x"})
                break
            except Exception:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)
        yield url
    finally:
        server.stop()


class GoogleHandler(BaseHTTPRequestHandler):
    """The requests of Google Cloud Storage's JSON interface that list, read and write objects."""

    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, bytes]] = {}
    same_page: ClassVar[bool] = False  # whether listings never end

    def log_message(self, format: str, *args: object) -> None: ...

    def answer(self, data: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path.endswith("/o"):
            self.list_objects(parse_qs(query))
            return
        name = unquote(path.rpartition("/o/")[2])
        data = self.objects.get(name)
        if data is None or "/o/" not in path:
            self.answer(b'{"error": {"code": 404, "message": "No such object"}}', 404)
        elif "alt=media" in query or path.startswith("/download/"):
            start, stop = FaultyServer._range(self, len(data))
            self.answer(data[start:stop], 206 if "Range" in self.headers else 200)
        else:
            state = {"size": str(len(data)), "etag": hashlib.md5(data).hexdigest(), "generation": "1"}
            dates = {"updated": "2026-01-01T00:00:00.000Z", "timeCreated": "2026-01-01T00:00:00.000Z"}
            self.answer(json.dumps({"name": name, "bucket": "bucket", **state, **dates}).encode())

    def list_objects(self, query: dict[str, list[str]]) -> None:
        names = sorted(name for name in self.objects if name.startswith(query.get("prefix", [""])[0]))
        start = 0 if self.same_page else int(query.get("pageToken", ["0"])[0])
        stop = start + int(query["maxResults"][0])
        page: dict[str, object] = {"items": [{"name": name} for name in names[start:stop]]} if names else {}
        self.answer(json.dumps(page | ({"nextPageToken": str(stop)} if stop < len(names) else {})).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        kind = self.headers["Content-Type"]
        boundary = kind.partition("boundary=")[2].strip("'\"").encode()
        parts = body.split(b"--" + boundary)[1:3]
        metadata, data = (part.partition(b"\n\n")[2] or part.partition(b"\r\n\r\n")[2] for part in parts)
        self.objects[json.loads(metadata)["name"]] = data.removesuffix(b"\n").removesuffix(b"\r")
        self.answer(b"{}")


@contextlib.contextmanager
def google_store() -> Iterator[tuple[str, dict[str, bytes]]]:
    """Run a minimal server of Google's interface; yields its address and its objects by name."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), GoogleHandler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", GoogleHandler.objects
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        GoogleHandler.objects.clear()


def use_store(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have ``s3://`` URLs lead to a server on this machine."""
    import fsspec.config

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": url})
