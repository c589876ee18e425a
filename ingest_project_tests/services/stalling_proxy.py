"""A TCP proxy to a local server whose connections can be stalled: they stay open and transfer nothing."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

from ingest_project_tests.services.raw_server import RawServer

PIECE = 65_536
LOOK_SECONDS = 0.05


class StallingProxy(RawServer):
    """Behave like a network that dropped a connection without notifying either side; a context manager.

    Args:
        target_port: of the server.
    """

    def __init__(self, target_port: int) -> None:
        super().__init__(self._pass_on)
        self.stall_new = False
        self._target_port = target_port
        self._over = threading.Event()
        self._stalled = threading.Event()

    def stall(self) -> None:
        """From now on the connections that there are carry nothing; later ones do."""
        stalled, self._stalled = self._stalled, threading.Event()
        stalled.set()

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        super().__exit__(*exc)

    def _pass_on(self, near: socket.socket) -> None:
        stalled = self._stalled
        if self.stall_new:
            stalled = threading.Event()
            stalled.set()
        with socket.create_connection(("127.0.0.1", self._target_port)) as far:
            pump = threading.Thread(target=self._pump, args=(far, near, stalled))
            pump.start()
            self._pump(near, far, stalled)
            pump.join()

    def _pump(self, source: socket.socket, target: socket.socket, stalled: threading.Event) -> None:
        source.settimeout(LOOK_SECONDS)
        with suppress(OSError):
            while not self._over.is_set():
                if stalled.is_set():
                    self._over.wait()
                    return
                try:
                    piece = source.recv(PIECE)
                except TimeoutError:
                    continue
                if not piece:
                    break
                if not stalled.is_set():
                    target.sendall(piece)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)
