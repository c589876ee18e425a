"""A forbidden server that counts connections, and servers that redirect to it."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self

from ingest_project_tests.services.http_exchange import Answer, HttpServer, Request, ServedOverHttp
from ingest_project_tests.services.unvisited import on_an_unvisited_port

WAIT_SECONDS = 0.2


class Listener:
    """Count connections, read from each for a moment, and close it.

    Attributes:
        port: of 127.0.0.1.
        connections: how many there were.
        received: what all of them said.
    """

    def __init__(self) -> None:
        self.connections = 0
        self.received = b""
        self._socket = on_an_unvisited_port(lambda port: socket.create_server(("127.0.0.1", port)))
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


class Redirecting(ServedOverHttp):
    """A web server that answers every request with a redirect, and records the requests.

    Args:
        location: where to.
        status: of the answer.
    """

    def __init__(self, location: str, status: int = 307) -> None:
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self._answer = Answer(status, {"Location": location})
        self._http = HttpServer(self._respond)
        self.url = self._http.url
        self.port = int(self._http.server_address[1])

    def _respond(self, request: Request) -> Answer:
        request.body()
        self.requests.append((request.method, request.path, request.headers))
        return self._answer
