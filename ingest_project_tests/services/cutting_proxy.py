"""Forward TCP connections to a local server, and cut them in the middle of a response on request."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Self

PIECE = 16_384


class CuttingProxy:
    """A context manager.

    Args:
        target_port: of the server.
        cut_after: bytes of one connection's answers after which it is cut, as long as `cuts` are left.
        cuts: how many are cut.
    """

    def __init__(self, target_port: int, cut_after: int = 0, cuts: int = 0) -> None:
        self.cut_after = cut_after
        self.cuts = cuts
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._listener]
        self._threads = [threading.Thread(target=self._accept)]

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_exc: object) -> None:
        _shut(self._listener)
        self._threads[0].join()
        for connection in self._open:
            _shut(connection)
        for thread in self._threads[1:]:
            thread.join()
        for connection in self._open:
            connection.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target_port))
                self._open += [near, far]
                pumps = ((near, far, self._pass_on), (far, near, self._pass_on_or_cut))
                for source, target, pump in pumps:
                    thread = threading.Thread(target=pump, args=(source, target))
                    self._threads.append(thread)
                    thread.start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(PIECE):
                target.sendall(piece)
        _shut(target)

    def _pass_on_or_cut(self, source: socket.socket, target: socket.socket) -> None:
        passed = 0
        with suppress(OSError):
            while piece := source.recv(PIECE):
                passed += len(piece)
                if self.cuts and passed > self.cut_after:
                    self.cuts -= 1
                    break
                target.sendall(piece)
        _shut(source)
        _shut(target)


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
