"""One moment by which a whole conversation with a server must be over, enforced where bytes are received.

A time-out for each read does not stop a server that sends one byte at a time, least of all in the headers, which are
read far below this project's code. So every socket of this package looks at the deadline of its thread at every read.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class Deadline:
    """A moment on the monotonic clock.

    Args:
        total: from now.
    """

    def __init__(self, total: timedelta) -> None:
        self.total = total
        self._at = time.monotonic() + total.total_seconds()

    def seconds_left(self) -> float:
        """More than zero.

        Raises:
            TimeoutError: it has passed.
        """
        left = self._at - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"not finished within {self.total.total_seconds():g} s")
        return left

    def within(self, limit: timedelta) -> Deadline:
        """This deadline, or one so far from now if that is sooner."""
        sooner = Deadline(limit)
        return sooner if sooner._at < self._at else self

    def postpone(self, seconds: float) -> None:
        """Leave out time that was not the server's, such as waiting for a free place."""
        self._at += seconds


_CURRENT: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


@contextmanager
def deadline_in_force(deadline: Deadline) -> Iterator[None]:
    """Bound everything that sockets of this package receive in this thread."""
    token = _CURRENT.set(deadline)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def shortened(timeout: float | None) -> float | None:
    """This time-out, or what is left until the deadline if that is less.

    Raises:
        TimeoutError: the deadline has passed.
    """
    deadline = _CURRENT.get()
    if deadline is None:
        return timeout
    left = deadline.seconds_left()
    return left if timeout is None else min(timeout, left)


class DeadlineSocket(socket.socket):
    """A socket that keeps to the deadline."""

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        """Receive, within the deadline."""
        _shorten(self)
        return super().recv_into(buffer, nbytes, flags)


class DeadlineSSLSocket(ssl.SSLSocket):
    """The same over TLS."""

    def recv_into(self, buffer: WriteableBuffer, nbytes: int | None = None, flags: int = 0) -> int:
        """Receive, within the deadline."""
        _shorten(self)
        return super().recv_into(buffer, nbytes, flags)


def _shorten(connected: socket.socket) -> None:
    before = connected.gettimeout()
    now = shortened(before)
    # Setting it costs a system call.
    if now != before:
        connected.settimeout(now)
