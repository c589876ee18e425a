"""Read files at a least speed, and over connections that break: reading resumes where it stopped."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import BinaryIO, Protocol, cast

import stamina
from typing_extensions import Buffer

from ingest_project.core.errors import SourceChangedError, SourceUnreachableError
from ingest_project.platform.http.pinned_transport import Deadline, deadline_in_force
from ingest_project.sources.limits import SourceLimits

LEAST_BYTES_PER_SECOND = 1_024
_BUFFER_BYTES = 1024**2
_RECONNECTIONS_WITHOUT_PROGRESS = 3
_FIRST_PAUSE_SECONDS = 0.2


class OpenedFile(Protocol):
    """A file that is read from some position to its end."""

    size_bytes: int | None
    modified_at: datetime | None

    def read(self, size: int) -> bytes:
        """Return some of the next bytes, at most `size`; empty at the end.

        Raises:
            SourceUnreachableError: the connection broke.
        """
        ...

    def close(self) -> None:
        """Stop reading and give the connection back; never raises."""
        ...


class Pace:
    """Measures the speed of what is read piece by piece.

    Args:
        limits: their time-out decides how long the server may be slower.
        location: for messages.
    """

    def __init__(self, limits: SourceLimits, location: str) -> None:
        self._interval = 2 * limits.timeout_seconds
        self._location = location
        self._seconds = 0.0
        self._bytes = 0

    def timed(self, read: Callable[[], bytes]) -> bytes:
        """Read one piece; the time that the caller takes in between does not count.

        Raises:
            SourceUnreachableError: the server is slower than the least speed.
        """
        before = time.monotonic()
        piece = read()
        self._seconds += time.monotonic() - before
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


@contextmanager
def resumed_reading(open_at: Callable[[int], OpenedFile], location: str, limits: SourceLimits) -> Iterator[BinaryIO]:
    """Open a buffered file whose cut connection is replaced, up to three times without a byte in between.

    Args:
        open_at: opens the file at a position, on a connection of its own.
        location: of the file, for messages.
        limits: of its source; they hold over all connections together.
    """
    raw = _ResumedFile(open_at, location, Pace(limits, location))
    with io.BufferedReader(raw, buffer_size=_BUFFER_BYTES) as file:
        # typeshed's BufferedReader is generic; to a caller it is a BinaryIO.
        yield cast("BinaryIO", file)


def skip_bytes(file: OpenedFile, count: int, pace: Pace) -> None:
    """Read and drop so many bytes: for servers that cannot begin in the middle."""
    while count and (block := pace.timed(partial(file.read, min(count, _BUFFER_BYTES)))):
        count -= len(block)


class PacedReader(io.RawIOBase):
    """A file that a client library reads, held to the least speed.

    Args:
        file: closed by its opener.
        limits: of its source.
        location: for messages.
    """

    def __init__(self, file: BinaryIO, limits: SourceLimits, location: str) -> None:
        self._file = file
        self._limits = limits
        self._pace = Pace(limits, location)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        """Read some of the next bytes, within the time of a page."""
        view = memoryview(buffer).cast("B")
        with deadline_in_force(Deadline(self._limits.page_time)):
            block = self._pace.timed(partial(self._file.read, len(view)))
        view[: len(block)] = block
        return len(block)


class _ResumedFile(io.RawIOBase):
    """The unbuffered part of `resumed_reading`."""

    def __init__(self, open_at: Callable[[int], OpenedFile], location: str, pace: Pace) -> None:
        super().__init__()
        self._pace = pace
        self._open_at = open_at
        self._location = location
        self._file = open_at(0)
        self._version = (self._file.size_bytes, self._file.modified_at)
        self._position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer).cast("B")
        block = self._pace.timed(partial(self._next_block, len(view)))
        view[: len(block)] = block
        return len(block)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def _next_block(self, size: int) -> bytes:
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
