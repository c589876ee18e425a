"""Connections of the console: bounded in number, and each request's head in size and time."""

from __future__ import annotations

import asyncio

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

# A search text of 2,000 characters has up to 24,000 in an address.
MAX_HEAD_BYTES = 65_536
MAX_CONNECTIONS = 500
HEAD_SECONDS = 10.0
# Time for requests in progress once the server is stopped.
GRACE_SECONDS = 3


def server_config(app: ASGIApp) -> uvicorn.Config:
    """Return how the server runs an application."""
    return uvicorn.Config(
        app,
        port=0,
        http=PromptProtocol,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        # Its own log would have another format, and a line for every request.
        log_config=None,
        access_log=False,
        server_header=False,
    )


class PromptProtocol(H11Protocol):
    """HTTP/1.1 of one connection, which is closed where the head of a request does not come in time.

    The server's own limit is for connections on which nothing comes: one byte every second is something.
    """

    _last: RequestResponseCycle | None = None
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as there
        """Begin to look."""
        super().connection_made(transport)
        self._look_again()

    def connection_lost(self, exc: Exception | None) -> None:
        """Look no more."""
        if self._timer:
            self._timer.cancel()
        super().connection_lost(exc)

    def _look_again(self) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self._close_if_idle)

    def _close_if_idle(self) -> None:
        """Close the connection if no request has begun since the last look, and none is being answered."""
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self.cycle is self._last:
            self.transport.close()
            return
        self._last = self.cycle
        self._look_again()
