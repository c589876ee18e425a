"""Limits of time and entries of one source.

The time-out of each read ends silence. A server that sends a byte now and then is never silent: so every answer has a
total time as well, every file a least speed, and every listing a total time and a number of entries.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from ingest_project.core.errors import PermanentError, SourceUnreachableError
from ingest_project.core.settings import PollingSettings
from ingest_project.platform.http.pinned_transport import Deadline, DeadlineSocket, deadline_in_force

Item = TypeVar("Item")

_RETRY_PAUSES = timedelta(seconds=10)
_ENTRIES_SETTING = "INGEST_MAX_LISTING_ENTRIES"
_SECONDS_SETTING = "INGEST_MAX_LISTING_SECONDS"


@dataclass(frozen=True)
class SourceLimits:
    """Limits of one source.

    Args:
        timeout_seconds: without a byte.
        max_entries: of one listing, all folders and pages together.
        max_listing_seconds: of one listing.
    """

    timeout_seconds: float = 30.0
    max_entries: int = 1_000_000
    max_listing_seconds: float = 3_600.0

    @classmethod
    def of(cls, settings: PollingSettings) -> SourceLimits:
        """Take the limits from the settings."""
        return cls(settings.source_timeout_seconds, settings.max_listing_entries, settings.max_listing_seconds)

    @property
    def answer_time(self) -> timedelta:
        """Total time of an answer without a body."""
        return timedelta(seconds=2 * self.timeout_seconds)

    @property
    def page_time(self) -> timedelta:
        """Total time of one page of a listing."""
        return timedelta(seconds=10 * self.timeout_seconds)

    @property
    def attempts_time(self) -> timedelta:
        """Total time of an answer that a client library requests several times, its pauses included."""
        return self.page_time + _RETRY_PAUSES


class ListingBudget:
    """The entries and the time that are left for one listing.

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
        """Count entries that were read, taken or not.

        Raises:
            PermanentError: there are too many.
            SourceUnreachableError: it has taken too long.
        """
        self._entries += entries
        if self._entries > self._limits.max_entries:
            raise PermanentError(
                f"{self._location} has more than {self._limits.max_entries} entries (limit: {_ENTRIES_SETTING}). "
                "Name a folder further down."
            )
        self.seconds_left()

    def counted(self, entries: Iterator[Item]) -> Iterator[Item]:
        """Yield the same entries and count them."""
        for entry in entries:
            self.count()
            yield entry

    def counted_in_time(self, entries: Iterator[Item]) -> Iterator[Item]:
        """Yield the same entries and count them; each request for more has the time of a page."""
        while True:
            with deadline_in_force(Deadline(self.page_time())):
                try:
                    entry = next(entries)
                except StopIteration:
                    return
            self.count()
            yield entry

    def seconds_left(self) -> float:
        """Return the time that is left, more than zero.

        Raises:
            SourceUnreachableError: it has taken too long.
        """
        left = self._until - time.monotonic()
        if left <= 0:
            raise SourceUnreachableError(
                self._location,
                f"listing it took more than {self._limits.max_listing_seconds:g} s (limit: {_SECONDS_SETTING})",
            )
        return left

    def page_time(self) -> timedelta:
        """Return the time for the next page, at most what is left of the whole."""
        return min(self._limits.page_time, timedelta(seconds=self.seconds_left()))


def with_deadline(connection: socket.socket) -> socket.socket:
    """Return the same connection as a socket that keeps to the deadline in force."""
    if isinstance(connection, DeadlineSocket):
        return connection
    timeout = connection.gettimeout()
    bounded = DeadlineSocket(fileno=connection.detach())
    bounded.settimeout(timeout)
    return bounded
