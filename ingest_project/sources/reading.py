"""Limits of time and entries of one source, and resumable reading of files within them.

The timeout of each read bounds silence. A server that occasionally sends a byte is never silent, so every answer also
has a total time, every file a minimum speed, and every listing a total time and a maximum number of entries. If the
connection breaks, reading resumes at the same position, as long as the file has the same version.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import BinaryIO, Protocol, TypeVar, cast

import stamina

from ingest_project.core.errors import (
    ForbiddenPathError,
    IngestError,
    PermanentError,
    SourceAccessDeniedError,
    SourceChangedError,
    SourceNotFoundError,
    SourceUnreachableError,
    TransientError,
    UnreadableListingError,
)
from ingest_project.core.local_files import BlockReader
from ingest_project.core.settings import PollingSettings
from ingest_project.platform.http.pinned_transport import Deadline, deadline_in_force
from ingest_project.platform.http.response import Pace
from ingest_project.sources import Skipped

MIN_BYTES_PER_SECOND = 1_024
Item = TypeVar("Item")

_RETRY_PAUSES = timedelta(seconds=10)
_ENTRIES_SETTING = "INGEST_MAX_LISTING_ENTRIES"
_SECONDS_SETTING = "INGEST_MAX_LISTING_SECONDS"
_BUFFER_BYTES = 1024**2
_RECONNECTIONS_WITHOUT_PROGRESS = 3
_FIRST_PAUSE_SECONDS = 0.2
# The errors of one folder; any other is that of the whole listing.
_SKIPPED_FOLDER: Mapping[type[IngestError], str] = {
    SourceNotFoundError: "A folder that was removed.",
    ForbiddenPathError: "A folder that this process may not read.",
    SourceAccessDeniedError: "A folder that its server does not let us into.",
    UnreadableListingError: "A folder whose listing is not understood.",
    SourceUnreachableError: "A folder that cannot be listed now.",
}


@dataclass(frozen=True)
class SourceLimits:
    """Limits of one source.

    Args:
        timeout_seconds: longest silence of a server.
        max_entries: maximum number of entries of one listing, including all folders and pages.
        max_listing_seconds: longest time of one listing.
    """

    timeout_seconds: float = 30.0
    max_entries: int = 1_000_000
    max_listing_seconds: float = 3_600.0

    @classmethod
    def of(cls, settings: PollingSettings) -> SourceLimits:
        """Create the limits from the settings."""
        return cls(settings.source_timeout_seconds, settings.max_listing_entries, settings.max_listing_seconds)

    @property
    def answer_time(self) -> timedelta:
        """Return the total time of an answer without a body."""
        return timedelta(seconds=2 * self.timeout_seconds)

    @property
    def page_time(self) -> timedelta:
        """Return the total time of one page of a listing."""
        return timedelta(seconds=10 * self.timeout_seconds)

    @property
    def attempts_time(self) -> timedelta:
        """Return the total time of a request that a client library retries, including its pauses."""
        return self.page_time + _RETRY_PAUSES


class ListingBudget:
    """Remaining entries and time of one listing, and its last failure to list a folder or describe a file.

    Args:
        limits: limits of the whole listing.
        location: location of the listing for messages.
    """

    def __init__(self, limits: SourceLimits, location: str) -> None:
        self._limits = limits
        self._location = location
        self._entries = 0
        self._failure: TransientError | None = None
        self._until = time.monotonic() + limits.max_listing_seconds

    def count(self, entries: int = 1) -> None:
        """Count entries that were read, whether accepted or not.

        Raises:
            PermanentError: the limit of entries is exceeded.
            SourceUnreachableError: the time limit is exceeded.
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
        """Yield the same entries and count them; each request for more is bounded by the time of a page."""
        while True:
            with deadline_in_force(Deadline(self.page_time())):
                try:
                    entry = next(entries)
                except StopIteration:
                    return
            self.count()
            yield entry

    def seconds_left(self) -> float:
        """Return the seconds left, more than zero.

        Raises:
            SourceUnreachableError: the time limit is exceeded.
        """
        left = self._until - time.monotonic()
        if left <= 0:
            raise SourceUnreachableError(
                self._location,
                f"listing it took more than {self._limits.max_listing_seconds:g} s (limit: {_SECONDS_SETTING})",
            )
        return left

    def skipped_folder(self, error: IngestError, shown: str) -> Skipped:
        """Return the entry for a folder below the first one that cannot be listed; `end` raises what may be over later.

        Raises:
            IngestError: the error, if it concerns all folders: the server is away, or a limit is exceeded.
        """
        if type(error) not in _SKIPPED_FOLDER or getattr(error, "location", "") == self._location:
            raise error
        if isinstance(error, TransientError):
            self._failure = error
        return Skipped(shown, _SKIPPED_FOLDER[type(error)], visible=not isinstance(error, SourceNotFoundError))

    def skipped_file(self, error: IngestError, shown: str) -> Skipped:
        """Return the entry for a file that cannot be described; `end` raises what may be over later."""
        reason = "It cannot be described."
        if isinstance(error, TransientError):
            self._failure, reason = error, "It cannot be described now."
        elif isinstance(error, SourceNotFoundError):
            reason = "It was removed while the folder was read, or is a link that leads nowhere."
        elif isinstance(error, SourceAccessDeniedError | ForbiddenPathError):
            reason = f"No access: {error.reason.rstrip('.')}."
        return Skipped(shown, reason)

    def end(self) -> None:
        """End the listing.

        Raises:
            TransientError: a folder could not be listed, or a file not described.
        """
        if self._failure:
            raise self._failure

    def page_time(self) -> timedelta:
        """Return the time for the next page, at most the rest of the listing's time."""
        return min(self._limits.page_time, timedelta(seconds=self.seconds_left()))


class OpenedFile(Protocol):
    """A file that is being read from a position to its end."""

    size_bytes: int | None
    modified_at: datetime | None

    def read(self, size: int) -> bytes:
        """Return some of the next bytes, at most `size`; empty at the end.

        Raises:
            SourceUnreachableError: the connection broke.
        """

    def close(self) -> None:
        """Stop reading and release the connection; never raises."""


def pace_of(limits: SourceLimits, location: str) -> Pace:
    """Return the check of the minimum speed of one file or page, whose error is SourceUnreachableError."""
    failure = partial(SourceUnreachableError, location)
    return Pace(MIN_BYTES_PER_SECOND, 2 * limits.timeout_seconds, failure)


@contextmanager
def resumed_reading(open_at: Callable[[int], OpenedFile], location: str, limits: SourceLimits) -> Iterator[BinaryIO]:
    """Open a buffered file that reconnects after a break, up to three times without a byte in between.

    Args:
        open_at: opens the file at a position, on a new connection.
        location: location of the file for messages.
        limits: limits of its source, which apply to all connections together.
    """
    raw = _ResumedFile(open_at, location, pace_of(limits, location))
    with io.BufferedReader(raw, buffer_size=_BUFFER_BYTES) as file:
        # typeshed's BufferedReader is generic; to a caller it is a BinaryIO.
        yield cast("BinaryIO", file)


def skip_bytes(file: OpenedFile, count: int, pace: Pace) -> None:
    """Read and discard `count` bytes, for servers that cannot start at a position."""
    while count and (block := pace.timed(partial(file.read, min(count, _BUFFER_BYTES)))):
        count -= len(block)


class PacedReader(BlockReader):
    """A file read by a client library, with an enforced minimum speed.

    Args:
        file: the file, which its opener closes.
        limits: limits of its source.
        location: location of the file for messages.
    """

    def __init__(self, file: BinaryIO, limits: SourceLimits, location: str) -> None:
        self._file = file
        self._limits = limits
        self._pace = pace_of(limits, location)

    def next_block(self, size: int) -> bytes:
        """Return the next bytes, within the time of a page."""
        with deadline_in_force(Deadline(self._limits.page_time)):
            return self._pace.timed(partial(self._file.read, size))


class _ResumedFile(BlockReader):
    """The unbuffered part of `resumed_reading`."""

    def __init__(self, open_at: Callable[[int], OpenedFile], location: str, pace: Pace) -> None:
        super().__init__()
        self._pace = pace
        self._open_at = open_at
        self._location = location
        self._file = open_at(0)
        self._version = (self._file.size_bytes, self._file.modified_at)
        self._position = 0

    def next_block(self, size: int) -> bytes:
        return self._pace.timed(partial(self._resumed, size))

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def _resumed(self, size: int) -> bytes:
        try:
            return self._read(size)
        except SourceUnreachableError:
            return self._resume(size)

    def _resume(self, size: int) -> bytes:
        for attempt in stamina.retry_context(
            SourceUnreachableError,
            attempts=_RECONNECTIONS_WITHOUT_PROGRESS,
            timeout=None,
            wait_initial=_FIRST_PAUSE_SECONDS,
            wait_jitter=0.0,
        ):
            with attempt:
                self._file = self._open_at(self._position)
                if (self._file.size_bytes, self._file.modified_at) != self._version:
                    raise SourceChangedError(
                        self._location, "the connection was cut, and by then it was another version"
                    )
                return self._read(size)
        raise AssertionError("the last attempt either returns or raises")

    def _read(self, size: int) -> bytes:
        try:
            block = self._file.read(size)
            self._require_complete(block)
        except SourceUnreachableError:
            self._file.close()
            raise
        self._position += len(block)
        return block

    def _require_complete(self, block: bytes) -> None:
        size, _ = self._version
        if not block and size is not None and self._position < size:
            raise SourceUnreachableError(self._location, f"it ended after {self._position} of {size} bytes")
