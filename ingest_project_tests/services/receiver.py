"""A server that stores POST requests of any protocol."""

from __future__ import annotations

import time
from abc import abstractmethod
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Self


@dataclass
class Receiver:
    """The server, on a free port of this machine.

    Attributes:
        requests: path and headers of each request.
        status: of the answers.
        delay_seconds: before each answer.
    """

    requests: list[dict[str, str]] = field(default_factory=list)
    status: int = 200
    delay_seconds: float = 0.0

    @abstractmethod
    def take(self, body: bytes) -> None:
        """Keep the body of a request."""

    def __enter__(self) -> Self:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                time.sleep(receiver.delay_seconds)
                receiver.requests.append({"path": self.path, **{k.lower(): v for k, v in self.headers.items()}})
                receiver.take(body)
                self.send_response(receiver.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Be quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Its address, as a setting takes it."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"
