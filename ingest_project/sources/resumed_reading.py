"""Reading a file over connections that break: it goes on where it stopped, as long as it is the same file."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from ingest_project.core.errors import SourceChangedError, SourceUnreachableError
from ingest_project.sources.limits import Pace, SourceLimits
from ingest_project.sources.server_connection import OpenedFile

OpenAt = Callable[[int], tuple["Releasable", OpenedFile]]

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BUFFER_BYTES = 1024**2
ATTEMPTS_WITHOUT_PROGRESS = 3
FIRST_PAUSE_SECONDS = 0.2


class Releasable(Protocol):
    """What is held while a file is read, e.g. the lease of a connection."""

    def release(self) -> None:
        """Give it back; a second time does nothing."""
        ...


class _NoLease:
    def release(self) -> None:
        """Do nothing: the client of this source keeps its connections itself."""


NO_LEASE: Releasable = _NoLease()


@contextmanager
def resumed_reading(open_at: OpenAt, location: str, limits: SourceLimits | None = None) -> Iterator[BinaryIO]:
    """A file's bytes, buffered. A cut connection is replaced up to three times without a byte in between.

    Args:
        open_at: opens the file at a position, on a connection of its own.
        location: of the file, for messages.
        limits: of its source; they hold over all connections together.
    """
    raw = _ResumedFile(open_at, location, Pace(limits or SourceLimits(), location))
    with io.BufferedReader(raw, buffer_size=BUFFER_BYTES) as file:
        # typeshed's BufferedReader is generic; to a caller it is a BinaryIO.
        yield cast("BinaryIO", file)


def pass_over(file: OpenedFile, count: int, pace: Pace) -> None:
    """Read so many bytes and drop them: where a server cannot begin in the middle."""
    while count and (block := pace.timed(partial(file.read, min(count, BUFFER_BYTES)))):
        count -= len(block)


class _ResumedFile(io.RawIOBase):
    """The unbuffered part."""

    def __init__(self, open_at: OpenAt, location: str, pace: Pace) -> None:
        super().__init__()
        self._pace = pace
        self._open_at = open_at
        self._location = location
        self._lease, self._file = open_at(0)
        self._version = (self._file.size_bytes, self._file.modified_at)
        self._position = 0
        self._failures = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        block = self._pace.timed(lambda: self._next_block(len(view)))
        view[: len(block)] = block
        return len(block)

    def close(self) -> None:
        if not self.closed:
            self._purge()
        super().close()

    def _next_block(self, size: int) -> bytes:
        while True:
            try:
                block = self._file.read(size)
                if not block:
                    self._require_complete()
            except SourceUnreachableError as error:
                self._resume(error)
            else:
                self._position += len(block)
                self._failures = 0
                return block

    def _require_complete(self) -> None:
        size, _ = self._version
        if size is not None and self._position < size:
            raise SourceUnreachableError(self._location, f"it ended after {self._position} of {size} bytes")

    def _resume(self, error: SourceUnreachableError) -> None:
        while True:
            self._purge()
            self._failures += 1
            if self._failures > ATTEMPTS_WITHOUT_PROGRESS:
                raise error
            time.sleep(FIRST_PAUSE_SECONDS * 2.0 ** (self._failures - 1))
            try:
                self._lease, self._file = self._open_at(self._position)
            except SourceUnreachableError as again:
                error = again
                continue
            self._require_same()
            return

    def _require_same(self) -> None:
        found = (self._file.size_bytes, self._file.modified_at)
        if found != self._version:
            raise SourceChangedError(self._location, "the connection was cut, and by then it was another version")

    def _purge(self) -> None:
        self._file.close()
        self._lease.release()
