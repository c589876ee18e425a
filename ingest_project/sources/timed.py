"""Sockets and readers that keep to a deadline, for client libraries that know time-outs of single reads only."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, BinaryIO

from ingest_project.sources.source_limits import Pace
from ingest_project.web.deadlines import Deadline, DeadlineSocket, deadline_in_force

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from typing import TypeVar

    from _typeshed import WriteableBuffer

    from ingest_project.sources.source_limits import ListingBudget, SourceLimits

    Item = TypeVar("Item")


def keeping_deadline(connection: socket.socket) -> socket.socket:
    """The same connection, which keeps to the deadline in force."""
    if isinstance(connection, DeadlineSocket):
        return connection
    timeout = connection.gettimeout()
    bounded = DeadlineSocket(fileno=connection.detach())
    bounded.settimeout(timeout)
    return bounded


def within_budget(entries: Iterator[Item], budget: ListingBudget) -> Iterator[Item]:
    """The same entries, counted; what leads to the next one is within the time of a page."""
    while True:
        with deadline_in_force(Deadline(budget.page_time())):
            try:
                entry = next(entries)
            except StopIteration:
                return
        budget.count()
        yield entry


class PacedReader(io.RawIOBase):
    """A file that must come at a least speed.

    Args:
        file: closed by who opened it.
        limits: of its source.
        location: for messages.
    """

    def __init__(self, file: BinaryIO, limits: SourceLimits, location: str) -> None:
        self._file = file
        self._limits = limits
        self._pace = Pace(limits, location)

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Some of the next bytes, within the time of a page."""
        view = memoryview(buffer).cast("B")
        with deadline_in_force(Deadline(self._limits.page_time)):
            block = self._pace.timed(lambda: self._file.read(len(view)))
        view[: len(block)] = block
        return len(block)
