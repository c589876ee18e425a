"""A TCP server whose behaviour on each connection the test defines, for faults that real servers do not have."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from ingest_project_tests.services.unvisited import on_an_unvisited_port

WAIT_SECONDS = 30


class RawServer:
    """A context manager; at its end every connection is cut.

    Args:
        behave: what happens on a connection; it is closed at the end.
    """

    def __init__(self, behave: Callable[[socket.socket], None]) -> None:
        self.connections = 0
        self._behave = behave
        self._listener = on_an_unvisited_port(lambda port: socket.create_server(("127.0.0.1", port)))
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self.port = int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        """As a web server."""
        return f"http://127.0.0.1:{self.port}/"

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_exc: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                self._open.append(connection)
                thread = threading.Thread(target=self._serve, args=(connection,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(WAIT_SECONDS)
        with connection, suppress(OSError):
            self._behave(connection)


def silent(connection: socket.socket) -> None:
    """Accept, read, and never say anything."""
    while connection.recv(65_536):
        pass


def request(connection: socket.socket) -> bytes:
    """The head of an HTTP request."""
    head = b""
    while b"\r\n\r\n" not in head:
        piece = connection.recv(65_536)
        if not piece:
            raise ConnectionError
        head += piece
    return head
