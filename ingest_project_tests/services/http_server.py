"""A web server with the habits and faults of servers on the Internet.

It runs in threads of its own on a free port of 127.0.0.1 and can be used without pytest:

    with HttpServer() as server:
        download(server.url("/files/a.pdf?size=100000"))
        assert server.count("/files/a.pdf") == 1

`/files/<name>` is a good server: content by the ending of the name (`content_of`), ETag, Last-Modified and ranges. Its
query changes it: `size`, `etag=no`, `modified=no`, `ranges=no`, `type=<media type>`, `version=<n>` (other bytes and
ETag). Files of one's own are published with `publish`. The other paths are in `_ROUTES`.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import re
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self, cast
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import pytest

from ingest_project_tests.services.unvisited import on_an_unvisited_port

DEFAULT_SIZE = 100_000
# Of every file here, in seconds since 1970.
CHANGED_AT = 1_700_000_000.0
EMOJI_NAME = "🚀" * 300 + ".pdf"
TRAVERSAL_NAME = "../../x"
ERROR_PAGE = b"<!DOCTYPE html>\n<html><head><title>Not here</title></head><body>Please log in.</body></html>"

_BEGINNINGS = {
    "pdf": b"%PDF-1.7\n",
    "png": b"\x89PNG\r\n\x1a\n",
    "jpg": b"\xff\xd8\xff\xe0",
    "gif": b"GIF89a",
    "zip": b"PK\x03\x04",
    "docx": b"PK\x03\x04",
    "gz": b"\x1f\x8b\x08",
}
_TYPES = {
    "pdf": "application/pdf",
    "png": "image/png",
    "jpg": "image/jpeg",
    "gif": "image/gif",
    "zip": "application/zip",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "gz": "application/gzip",
    "txt": "text/plain",
    "csv": "text/csv",
}
_BLOCK = hashlib.shake_256(b"content").digest(64 * 1024)


@dataclass(frozen=True)
class Request:
    """One request as it arrived.

    Args:
        path: without query.
        query: its names and values.
        headers: names in lower case.
        at: monotonic time.
    """

    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    at: float


@dataclass(frozen=True)
class PublishedFile:
    """A file that somebody put on the server."""

    content: bytes
    content_type: str
    etag: str


@lru_cache(maxsize=16)
def content_of(name: str, size: int = DEFAULT_SIZE, version: str = "1") -> bytes:
    """Return the bytes of `/files/<name>?size=…&version=…`: they begin as files of that kind do."""
    beginning = _BEGINNINGS.get(name.rpartition(".")[2], b"")
    if not beginning:
        line = f"line of version {version} of {name}\n".encode()
        return (line * (size // len(line) + 1))[:size]
    beginning += f"{version} {name}\n".encode()
    return (beginning + _BLOCK * (size // len(_BLOCK) + 1))[:size]


def content_type_of(name: str) -> str:
    """Return the media type by the ending of a name."""
    return _TYPES.get(name.rpartition(".")[2], "application/octet-stream")


@dataclass
class HttpServer:
    """The server; starts when it is made, stops with `close` or at the end of its `with` block.

    Args:
        host: address to listen on.
        tls: to speak https.
        authorization: the Authorization header that `/private/…` wants.
        drip_seconds: pause between the bytes of the slow routes.
    """

    host: str = "127.0.0.1"
    tls: ssl.SSLContext | None = None
    authorization: str = "Bearer open sesame"
    drip_seconds: float = 0.05
    requests: list[Request] = field(default_factory=list)
    published: dict[str, PublishedFile] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stopping = threading.Event()
        self._server = on_an_unvisited_port(lambda port: _Server(self, port))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def url(self, path: str, host: str | None = None) -> str:
        """Return the address of a path, under another name of this host if given."""
        name = host or (f"[{self.host}]" if ":" in self.host else self.host)
        return f"{'https' if self.tls else 'http'}://{name}:{self.port}{path}"

    def redirect_to(self, target: str, status: int = 302) -> str:
        """Return an address that redirects to another."""
        return self.url(f"/redirect?status={status}&to={quote(target, safe='')}")

    def publish(self, path: str, content: bytes, content_type: str | None = None, etag: str | None = None) -> str:
        """Put a file on the server; return its address."""
        media_type = content_type or content_type_of(path)
        etag = etag or f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        self.published[path] = PublishedFile(content, media_type, etag)
        return self.url(quote(path))

    def withdraw(self, path: str) -> None:
        """Remove it: 404 from now on."""
        del self.published[path]

    def received(self, path: str) -> list[Request]:
        """Return the requests for one path, in order."""
        return [request for request in self.requests if request.path == path]

    def count(self, path: str) -> int:
        """Count the requests for a path."""
        return len(self.received(path))

    @property
    def connections(self) -> int:
        """How many connections were accepted so far."""
        return self._server.accepted

    def close(self) -> None:
        """Stop, even in the middle of a response."""
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server.close_connections()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, owner: HttpServer, port: int) -> None:
        self.owner = owner
        self.accepted = 0
        self._open: set[socket.socket] = set()
        self._handlers: list[threading.Thread] = []
        self.address_family = socket.AF_INET6 if ":" in owner.host else socket.AF_INET
        super().__init__((owner.host, port), _Handler)

    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        connection = cast("socket.socket", request)
        self.accepted += 1
        self._open.add(connection)
        thread = threading.Thread(target=self._serve, args=(connection, client_address), daemon=True)
        self._handlers.append(thread)
        thread.start()

    def _serve(self, connection: socket.socket, client_address: object) -> None:
        wrapped = connection
        # What a client breaks off is the client's business.
        with contextlib.suppress(OSError, ValueError):
            if self.owner.tls:
                wrapped = self.owner.tls.wrap_socket(connection, server_side=True)
                self._open.add(wrapped)
            self.finish_request(wrapped, client_address)
        self._open -= {connection, wrapped}
        self.shutdown_request(wrapped)
        connection.close()

    def close_connections(self) -> None:
        """Wake every handler that waits for its client."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._handlers:
            thread.join(timeout=5)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 0
    server: _Server

    @property
    def owner(self) -> HttpServer:
        return self.server.owner

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Print nothing: `HttpServer.requests` has every request."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        path = unquote(parts.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.current = Request(path, query, headers, time.monotonic())
        self.owner.requests.append(self.current)
        if path in self.owner.published:
            file = self.owner.published[path]
            self.send_file(file.content, file.content_type, file.etag)
            return
        answer = next((answer for prefix, answer in _ROUTES if path.startswith(prefix)), None)
        if answer:
            answer(self)
        else:
            self.send_status(404)

    def send_file(self, content: bytes, content_type: str, etag: str | None) -> None:
        """Return all of it, or the requested range."""
        query = self.current.query
        validators = {
            "ETag": None if query.get("etag") == "no" else etag,
            "Last-Modified": None if query.get("modified") == "no" else formatdate(CHANGED_AT, usegmt=True),
        }
        start = None if query.get("ranges") == "no" else self._range_start(validators)
        headers = {"Content-Type": content_type, **{name: value for name, value in validators.items() if value}}
        if start is None:
            self.send_answer(200, content, headers)
        elif start >= len(content):
            self.send_answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        else:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send_answer(206, memoryview(content)[start:], headers)

    def _range_start(self, validators: Mapping[str, str | None]) -> int | None:
        range_header = re.fullmatch(r"bytes=(\d+)-", self.current.headers.get("range", ""))
        condition = self.current.headers.get("if-range")
        return (
            int(range_header[1]) if range_header and (condition is None or condition in validators.values()) else None
        )

    def send_status(self, status: int, headers: Mapping[str, str] | None = None) -> None:
        """Send an error with a short text."""
        self.send_answer(status, f"status {status}\n".encode(), {"Content-Type": "text/plain", **(headers or {})})

    def send_answer(
        self, status: int, body: bytes | memoryview, headers: Mapping[str, str], length: int | None = None
    ) -> None:
        """Send a whole answer, or one with a wrong length."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body) if length is None else length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.connection.sendall(body)

    def send_head(self, headers: Mapping[str, str]) -> None:
        """Send the head of a 200 whose body is sent separately; the connection ends after it."""
        self.close_connection = True
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def drip(self, data: bytes) -> None:
        """Send one byte at a time until the client or this server stops."""
        for byte in data:
            if self.owner.stopping.wait(self.owner.drip_seconds):
                return
            self.connection.sendall(bytes([byte]))

    def break_off(self) -> None:
        """End the connection in the middle."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    @property
    def named(self) -> tuple[str, bytes, str]:
        """Name, content and ETag of the file that the end of the path names."""
        name = self.current.path.rpartition("/")[2]
        version = self.current.query.get("version", "1")
        size = int(self.current.query.get("size", DEFAULT_SIZE))
        return name, content_of(name, size, version), f'"{version}-{size}"'


def _file(handler: _Handler) -> None:
    name, content, etag = handler.named
    handler.send_file(content, handler.current.query.get("type", content_type_of(name)), etag)


def _status(handler: _Handler) -> None:
    """`/status/503?retry_after=7`."""
    retry_after = handler.current.query.get("retry_after")
    status = int(handler.current.path.rpartition("/")[2])
    handler.send_status(status, {"Retry-After": retry_after} if retry_after else None)


def _flaky(handler: _Handler) -> None:
    """`/flaky/a.pdf?failures=2`: 503 that often, then the file."""
    if handler.owner.count(handler.current.path) <= int(handler.current.query.get("failures", 1)):
        handler.send_status(503)
    else:
        _file(handler)


def _slow_headers(handler: _Handler) -> None:
    handler.close_connection = True
    handler.drip(b"HTTP/1.1 200 OK\r\nX-Padding: " + b"x" * 60_000)


def _slow_body(handler: _Handler) -> None:
    _, content, _ = handler.named
    handler.send_head({"Content-Length": str(len(content))})
    handler.drip(content)


def _silent(handler: _Handler) -> None:
    handler.close_connection = True
    handler.owner.stopping.wait()


def _stalled(handler: _Handler) -> None:
    """Send half of the file, then nothing."""
    _, content, etag = handler.named
    handler.send_head({"Content-Length": str(len(content)), "ETag": etag})
    handler.connection.sendall(content[: len(content) // 2])
    handler.owner.stopping.wait()


def _endless(handler: _Handler) -> None:
    handler.send_head({"Content-Type": "application/pdf"})
    with contextlib.suppress(OSError):
        handler.connection.sendall(_BEGINNINGS["pdf"])
        while not handler.owner.stopping.is_set():
            handler.connection.sendall(_BLOCK)


def _too_long(handler: _Handler) -> None:
    """Announce more than is sent."""
    _, content, _ = handler.named
    handler.send_answer(200, content, {}, length=len(content) + 1_000)
    handler.break_off()


def _too_short(handler: _Handler) -> None:
    """Announce less than is sent: the rest must not become the next answer."""
    _, content, _ = handler.named
    rest = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
    handler.send_answer(200, content + rest, {}, length=len(content))


def _cut(handler: _Handler) -> None:
    """`/cut/once/…`, `/cut/always/…`: half of the requested bytes, then the connection ends."""
    if handler.current.path.startswith("/cut/once/") and handler.owner.count(handler.current.path) > 1:
        _file(handler)
        return
    _, content, etag = handler.named
    start = handler._range_start({"ETag": etag}) or 0
    rest = content[start:]
    headers = {"ETag": etag, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
    if handler.current.query.get("etag") == "no":
        headers = {}
    handler.send_answer(206 if start else 200, rest[: len(rest) // 2], headers, length=len(rest))
    handler.break_off()


def _changed(handler: _Handler) -> None:
    """Cut the file in the middle, and answer a request for the rest with another version's."""
    name, content, _ = handler.named
    if handler.owner.count(handler.current.path) == 1:
        handler.send_answer(200, content[: len(content) // 2], {"ETag": '"same"'}, length=len(content))
        handler.break_off()
    else:
        handler.send_file(content_of(name, len(content), "2"), content_type_of(name), '"same"')


def _no_length(handler: _Handler) -> None:
    """Send a body that ends with the connection. `cut=yes`: in the middle, the first time."""
    _, content, _ = handler.named
    handler.send_head({})
    if handler.current.query.get("cut") and handler.owner.count(handler.current.path) == 1:
        content = content[: len(content) // 2]
    handler.connection.sendall(content)


def _chunked(handler: _Handler) -> None:
    """Send in chunks. `cut=yes`: without the last one."""
    _, content, _ = handler.named
    handler.send_head({"Transfer-Encoding": "chunked"})
    for start in range(0, len(content), 30_000):
        piece = content[start : start + 30_000]
        handler.connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
    if not handler.current.query.get("cut"):
        handler.connection.sendall(b"0\r\n\r\n")


def _redirect(handler: _Handler) -> None:
    """`/redirect?to=<address>&status=302`."""
    status = int(handler.current.query.get("status", 302))
    handler.send_status(status, {"Location": handler.current.query["to"]})


def _redirect_loop(handler: _Handler) -> None:
    handler.send_status(302, {"Location": "/redirect-loop"})


def _endless_redirect(handler: _Handler) -> None:
    """Redirect with a body that never ends."""
    handler.close_connection = True
    handler.send_response(302)
    handler.send_header("Location", "/files/a.pdf")
    handler.end_headers()
    with contextlib.suppress(OSError):
        while not handler.owner.stopping.is_set():
            handler.connection.sendall(_BLOCK)


def _error_page(handler: _Handler) -> None:
    handler.send_answer(200, ERROR_PAGE, {"Content-Type": "text/html; charset=utf-8"})


def _error_json(handler: _Handler) -> None:
    handler.send_answer(200, b'{"error": "not found"}', {"Content-Type": "application/json"})


def _gzipped(handler: _Handler) -> None:
    _, content, etag = handler.named
    body = gzip.compress(content)
    handler.send_answer(200, body, {"Content-Encoding": "gzip", "ETag": etag})


def _deflated(handler: _Handler) -> None:
    """`/deflated/…?raw=yes`: without the zlib header."""
    _, content, _ = handler.named
    window = -zlib.MAX_WBITS if handler.current.query.get("raw") else zlib.MAX_WBITS
    packer = zlib.compressobj(wbits=window)
    handler.send_answer(200, packer.compress(content) + packer.flush(), {"Content-Encoding": "deflate"})


@lru_cache(maxsize=1)
def _bomb_body() -> bytes:
    # Members one after another are one gzip stream, and quicker to make than one member of this size.
    return gzip.compress(bytes(4 * 1024**2)) * 64


def _bomb(handler: _Handler) -> None:
    """Send 256 MB of zeros in 256 KB."""
    handler.send_answer(200, _bomb_body(), {"Content-Encoding": "gzip"})


def _encoded(handler: _Handler) -> None:
    """`/encoded/a.pdf?as=utf-8`: send the unchanged file with any Content-Encoding."""
    _, content, _ = handler.named
    handler.send_answer(200, content, {"Content-Encoding": handler.current.query["as"]})


def _brotli(handler: _Handler) -> None:
    handler.send_answer(200, b"\x0b\x02\x80hello\x03", {"Content-Encoding": "br"})


def _named(handler: _Handler) -> None:
    """`/named/traversal`, `/named/emoji`, or any header by `?disposition=…`."""
    dispositions = {
        "/named/traversal": f'attachment; filename="{TRAVERSAL_NAME}"',
        "/named/emoji": f"attachment; filename*=UTF-8''{quote(EMOJI_NAME)}",
    }
    disposition = handler.current.query.get("disposition") or dispositions[handler.current.path]
    headers = {"Content-Type": "application/pdf", "Content-Disposition": disposition}
    handler.send_answer(200, content_of("named.pdf", 1_000), headers)


def _private(handler: _Handler) -> None:
    if handler.current.headers.get("authorization") == handler.owner.authorization:
        _file(handler)
    else:
        handler.send_status(401, {"WWW-Authenticate": "Bearer"})


def _echo(handler: _Handler) -> None:
    """Return the request's headers and query as JSON."""
    body = json.dumps({"headers": handler.current.headers, "query": handler.current.query}).encode()
    handler.send_answer(200, body, {"Content-Type": "application/json"})


def _empty(handler: _Handler) -> None:
    handler.send_answer(200, b"", {"Content-Type": "application/pdf"})


def _cookie(handler: _Handler) -> None:
    handler.send_answer(200, b"text", {"Set-Cookie": "track=1; Path=/"})


def _not_http(handler: _Handler) -> None:
    handler.connection.sendall(b"220 mail.example.com ESMTP\r\n")
    handler.break_off()


_ROUTES: tuple[tuple[str, Callable[[_Handler], None]], ...] = (
    ("/files/", _file),
    ("/status/", _status),
    ("/flaky/", _flaky),
    ("/slow/headers", _slow_headers),
    ("/slow/body/", _slow_body),
    ("/silent", _silent),
    ("/stalled/", _stalled),
    ("/endless", _endless),
    ("/too-long/", _too_long),
    ("/too-short/", _too_short),
    ("/cut/", _cut),
    ("/changed/", _changed),
    ("/no-length/", _no_length),
    ("/chunked/", _chunked),
    ("/redirect-loop", _redirect_loop),
    ("/redirect-endless", _endless_redirect),
    ("/redirect", _redirect),
    ("/error-page/", _error_page),
    ("/error-json/", _error_json),
    ("/gzipped/", _gzipped),
    ("/deflated/", _deflated),
    ("/bomb", _bomb),
    ("/brotli/", _brotli),
    ("/encoded/", _encoded),
    ("/named", _named),
    ("/private/", _private),
    ("/echo", _echo),
    ("/empty", _empty),
    ("/cookie", _cookie),
    ("/not-http", _not_http),
)


@pytest.fixture
def http_server() -> Iterator[HttpServer]:
    """A server of its own for one test."""
    with HttpServer() as server:
        yield server
