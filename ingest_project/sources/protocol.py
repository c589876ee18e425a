"""The protocol of every kind of source: list its files lazily, describe one, and open one for reading.

`registry.open_source` makes a source for one `source_config`. Making one connects to nothing; the first listing, `stat`
or `open` does. Another package adds a kind of source by an entry point, see `registry`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import BinaryIO, Protocol

# What databases and file systems can hold.
MAX_SIZE_BYTES = 2**63 - 1
MAX_DEPTH = 32
_PRINTED_LENGTH = 200


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file as its source describes it.

    Args:
        path: the argument of `open` and `stat`, in the terms of the source; goes into the file event.
        name: last part of the path.
        size_bytes: as listed; None where a source does not say.
        modified_at: UTC; None where a source does not say.
        etag: the source's own name for this version, where it has one.
        location: its canonical address where the listing gives it; None: call `canonical_location`.
    """

    path: str
    name: str
    size_bytes: int | None
    modified_at: datetime | None
    etag: str | None = None
    location: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Skipped:
    """An entry of a listing that is not taken.

    Args:
        path: in the terms of the source; characters that cannot be written as UTF-8 are replaced.
        reason: one of a few sentences, without the file's name: reasons are counted.
        visible: worth showing to a person; False for what is skipped every day (hidden files, locks, half-written
            uploads) and only counted.
    """

    path: str
    reason: str
    visible: bool = True


class Source(Protocol):
    """One location that files come from.

    Every method raises from the same few classes: ForbiddenPathError (not allowed, now or later),
    SourceAccessDeniedError (the source refuses us), SourceNotFoundError (does not exist), SourceUnreachableError (may
    work later).
    """

    @property
    def location(self) -> str:
        """Address of the source for logs and messages, e.g. `local:/data/in`; never a secret."""
        ...

    def require_allowed(self, path: str) -> None:
        """Refuse a path that may not be read, without contacting the source: a message that names it is bad.

        Raises:
            ForbiddenPathError: outside what this system may read.
        """
        ...

    def list_files(self, pattern: str) -> Iterator[SourceFile | Skipped]:
        """Yield the files that match, one by one as they are read, in no particular order.

        Memory stays bounded however many files there are. Files that do not match are left out.

        Args:
            pattern: glob relative to the source's path, see `selection.Pattern`.

        Raises:
            PermanentError: the pattern is malformed.
        """
        ...

    def open(self, path: str) -> AbstractContextManager[BinaryIO]:
        """Open a file for reading inside a `with`. Failures while reading raise like failures to open."""
        ...

    def stat(self, path: str) -> SourceFile:
        """Describe one file as it is at this moment."""
        ...

    def canonical_location(self, path: str) -> str:
        """Return the one address of a file, unique over all sources: two ways to name a file give the same.

        Also for a path that may not be read, and without requiring that the file exists.
        """
        ...


def printable(text: str) -> str:
    """Shorten a stranger's text for messages and replace what cannot be printed."""
    shown = text[:_PRINTED_LENGTH].encode("utf-8", "replace").decode()
    return "".join(char if char.isprintable() else "\ufffd" for char in shown)
