"""Limits of time and entries for one source, and sockets and readers that keep to a deadline.

Silence is ended by the time-out of each read. A server that sends a byte now and then is never silent, so that every
answer has a total time as well, every file a least speed, and every look at a source a total time and a number of
entries.
"""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from ingest_project.core.errors import PermanentError, SourceUnreachableError
from ingest_project.core.settings import PollingSettings
from ingest_project.platform.http.deadlines import Deadline, DeadlineSocket, deadline_in_force

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Item = TypeVar("Item")

LEAST_BYTES_PER_SECOND = 1_024
PAUSES = timedelta(seconds=10)
ENTRIES_SETTING = "INGEST_MAX_LISTING_ENTRIES"
SECONDS_SETTING = "INGEST_MAX_LISTING_SECONDS"


@dataclass(frozen=True)
class SourceLimits:
    """What one source may take.

    Args:
        timeout_seconds: without a byte.
        max_entries: of one look at it.
        max_listing_seconds: of one look at it.
    """

    timeout_seconds: float = 30.0
    max_entries: int = 1_000_000
    max_listing_seconds: float = 3_600.0

    @classmethod
    def of(cls, settings: PollingSettings) -> SourceLimits:
        """As the settings have it."""
        return cls(settings.source_timeout_seconds, settings.max_listing_entries, settings.max_listing_seconds)

    @property
    def answer_time(self) -> timedelta:
        """For an answer without a body, from its first byte to its last."""
        return timedelta(seconds=2 * self.timeout_seconds)

    @property
    def page_time(self) -> timedelta:
        """For one page of a listing."""
        return timedelta(seconds=10 * self.timeout_seconds)

    @property
    def attempts_time(self) -> timedelta:
        """For an answer that a client library asks for several times, its pauses included."""
        return self.page_time + PAUSES


class ListingBudget:
    """What is left of the limits in one look at a source.

    Args:
        limits: at its beginning.
        location: for messages.
    """

    def __init__(self, limits: SourceLimits, location: str) -> None:
        self._limits = limits
        self._location = location
        self._entries = 0
        self._until = time.monotonic() + limits.max_listing_seconds

    def count(self, entries: int = 1) -> None:
        """Take note of entries that were read, whatever becomes of them.

        Raises:
            PermanentError: there are too many.
            SourceUnreachableError: it has taken too long.
        """
        self._entries += entries
        if self._entries > self._limits.max_entries:
            raise PermanentError(
                f"{self._location} has more than {self._limits.max_entries} entries (limit: {ENTRIES_SETTING}). "
                "Name a folder further down."
            )
        self.seconds_left()

    def counted(self, entries: Iterator[Item]) -> Iterator[Item]:
        """The same entries, counted one by one."""
        for entry in entries:
            self.count()
            yield entry

    def seconds_left(self) -> float:
        """More than zero.

        Raises:
            SourceUnreachableError: it has taken too long.
        """
        left = self._until - time.monotonic()
        if left <= 0:
            raise SourceUnreachableError(
                self._location,
                f"listing it took more than {self._limits.max_listing_seconds:g} s (limit: {SECONDS_SETTING})",
            )
        return left

    def page_time(self) -> timedelta:
        """For the next page: its own time, or what is left of the whole."""
        return min(self._limits.page_time, timedelta(seconds=self.seconds_left()))


class Pace:
    """The least speed of something that is read piece by piece.

    Args:
        limits: its time-out decides how long it may be slower.
        location: for messages.
    """

    def __init__(self, limits: SourceLimits, location: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = 2 * limits.timeout_seconds
        self._location = location
        self._clock = clock
        self._seconds = 0.0
        self._bytes = 0

    def timed(self, read: Callable[[], bytes]) -> bytes:
        """One piece, read now; what its user does in between is not the server's time.

        Raises:
            SourceUnreachableError: the last stretch brought too little.
        """
        before = self._clock()
        piece = read()
        self._seconds += self._clock() - before
        self._bytes += len(piece)
        if self._seconds >= self._interval and piece:
            if self._bytes < LEAST_BYTES_PER_SECOND * self._seconds:
                raise SourceUnreachableError(
                    self._location,
                    f"it is too slow: {self._bytes} bytes in {self._seconds:.0f} s, under {LEAST_BYTES_PER_SECOND} "
                    "bytes a second",
                )
            self._seconds, self._bytes = 0.0, 0
        return piece


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
