"""Where nothing of ours may go, and servers that try to send us there."""

from __future__ import annotations

import contextlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

WAIT_SECONDS = 0.2


class Listener:
    """Whoever connects is counted, heard for a moment, and hung up on.

    Attributes:
        port: of 127.0.0.1.
        connections: how many there were.
        received: what all of them said.
    """

    def __init__(self) -> None:
        self.connections = 0
        self.received = b""
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.connections += 1
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(WAIT_SECONDS)
                    self.received += connection.recv(65_536)


class Redirecting:
    """A web server that answers every request with a redirect, and keeps what it was asked.

    Args:
        location: where to.
        status: of the answer.
    """

    def __init__(self, location: str, status: int = 307) -> None:
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def redirect(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                owner.asked.append((self.command, self.path, dict(self.headers)))
                self.send_response(status)
                self.send_header("Location", location)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_HEAD = do_POST = do_PUT = redirect  # noqa: N815 - the base class's names

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as above
                """Nothing on the tests' screen."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
