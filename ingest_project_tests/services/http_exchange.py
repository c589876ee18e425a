"""The small part of HTTP/1.1 that the protocol servers need, fast enough for benchmarks: a thread per connection."""

from __future__ import annotations

import socket
import socketserver
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock, Thread
from typing import Self
from urllib.parse import parse_qsl, unquote

REASONS = {200: "OK", 201: "Created", 202: "Accepted", 206: "Partial Content"}


class CutError(Exception):
    """Close the connection now, without an answer."""


@dataclass
class Request:
    """One request; its body is read on demand."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    connection: Connection
    unread: int = 0

    def body(self, *, at_most: int | None = None) -> bytes:
        """Return the body, or its beginning."""
        wanted = self.unread if at_most is None else min(self.unread, at_most)
        data = self.connection.rfile.read(wanted)
        if len(data) < wanted:
            raise CutError
        self.unread -= len(data)
        return data


@dataclass
class Answer:
    """What is answered. A body of None is no body; `body_size` is said of it (HEAD)."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    body_size: int | None = None
    stop_after: int | None = None


class Connection(socketserver.StreamRequestHandler):
    """Serves requests on one connection until the client leaves."""

    server: HttpServer
    disable_nagle_algorithm = True
    wbufsize = 0
    rbufsize = 1 << 17

    def handle(self) -> None:
        """Serve one request after the other."""
        self.server.opened(self.connection)
        try:
            while (request := self._read()) is not None:
                answer = self.server.respond(request)
                if request.unread:
                    request.body()
                self._write(request, answer)
        except (CutError, ConnectionError, TimeoutError, ValueError):
            pass
        finally:
            self.server.closed(self.connection)

    def _read(self) -> Request | None:
        line = self.rfile.readline(65_537)
        if not line.strip():
            return None
        method, target, _ = line.decode("latin-1").split(" ", 2)
        headers: dict[str, str] = {}
        while (header := self.rfile.readline(65_537)) not in {b"\r\n", b"\n", b""}:
            name, _, value = header.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        path, _, query = target.partition("?")
        request = Request(method, unquote(path), dict(parse_qsl(query, keep_blank_values=True)), headers, self)
        request.unread = int(headers.get("content-length") or 0)
        if headers.get("expect", "").lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return request

    def _write(self, request: Request, answer: Answer) -> None:
        lines = [f"HTTP/1.1 {answer.status} {REASONS.get(answer.status, 'Refused')}"]
        size = len(answer.body) if answer.body_size is None else answer.body_size
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        lines.append(f"Content-Length: {size}\r\n\r\n")
        head = "\r\n".join(lines).encode("latin-1", "replace")
        body = b"" if request.method == "HEAD" else answer.body
        if answer.stop_after is not None:
            self.connection.sendall(head + body[: answer.stop_after])
            raise CutError
        if len(body) < 1 << 16:
            self.connection.sendall(head + body)
        else:
            self.connection.sendall(head)
            self.connection.sendall(body)


class HttpServer(socketserver.ThreadingTCPServer):
    """A server on 127.0.0.1 that answers with one function; a context manager that leaves no socket behind.

    Args:
        respond: answers a request.
        port: to listen at; any free one by default.
        tls: what it shows; without, it speaks plain http.
    """

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, respond: Callable[[Request], Answer], port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.respond = respond
        self._lock = Lock()
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), Connection)
        self._scheme = "https" if tls else "http"
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True)

    @property
    def url(self) -> str:
        """Its address."""
        return f"{self._scheme}://127.0.0.1:{self.server_address[1]}"

    def opened(self, connection: socket.socket) -> None:
        """Record a connection."""
        with self._lock:
            self._connections.add(connection)

    def closed(self, connection: socket.socket) -> None:
        """Remove the record of a connection."""
        with self._lock:
            self._connections.discard(connection)

    def __enter__(self) -> Self:
        self._thread = Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.shutdown()
        self._thread.join()
        with self._lock:
            for connection in self._connections:
                # A client may have left a moment ago.
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self.server_close()


class ServedOverHttp:
    """A service behind an `HttpServer`: it answers from `with` to the end of the block."""

    _http: HttpServer

    def __enter__(self) -> Self:
        self._http.__enter__()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._http.__exit__()
