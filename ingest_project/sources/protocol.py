"""What every kind of source can do: list its files lazily, tell about one, and open one for reading.

A source is opened for one `source_config` by `registry.open_source`. Making one does not connect to anything; the first
listing, stat or open does. A package of its own adds a kind of source by an entry point, see `registry`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, BinaryIO, Protocol

from ingest_project.sources.context import SourceContext


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file as its source describes it.

    Args:
        path: what `open` and `stat` take, in the terms of the source; goes into the file event.
        name: last part of the path.
        size_bytes: as listed; None where a source does not say.
        modified_at: UTC; None where a source does not say.
        etag: the source's own name for this version, where it has one.
        location: its canonical address where listing it brought that along; None to ask `canonical_location`.
    """

    path: str
    name: str
    size_bytes: int | None
    modified_at: datetime | None
    etag: str | None = None
    location: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that was found and is not taken.

    Args:
        path: in the terms of the source; characters that cannot be written as UTF-8 are replaced.
        reason: one sentence.
        visible: worth showing to a person; False for what is skipped every day (hidden files, locks, half-written
            uploads) and only counted.
    """

    path: str
    reason: str
    visible: bool = True


class Source(Protocol):
    """One place that files come from.

    Every method raises from the same few classes: ForbiddenPathError (not allowed, now or later),
    SourceAccessDeniedError (the
    source does not let us in), SourceNotFoundError (not there), SourceUnreachableError (may work later).
    """

    @property
    def location(self) -> str:
        """Address of the place for logs and messages, e.g. `local:/data/in`; never a secret."""
        ...

    def require_allowed(self, path: str) -> None:
        """Refuse a path that may not be read, now or later, without asking the source: a message that names it is bad.

        Raises:
            ForbiddenPathError: outside what this system may read.
        """
        ...

    def list_files(self, pattern: str) -> Iterator[SourceFile | Skipped]:
        """What the place holds, one by one as it is read, in no particular order.

        Memory stays bounded however many files there are. What the pattern does not ask for is left out.

        Args:
            pattern: glob relative to the source's path, see `selection.Pattern`.

        Raises:
            PermanentError: the pattern is malformed.
        """
        ...

    def open(self, path: str) -> AbstractContextManager[BinaryIO]:
        """The file's bytes, to be read inside a `with`. Failures while reading raise like failures to open."""
        ...

    def stat(self, path: str) -> SourceFile:
        """What the source says about one file at this moment."""
        ...

    def canonical_location(self, path: str) -> str:
        """The one address of a file, unique over all sources: two ways to name a file give the same.

        It answers for a path that may not be read as well, and does not need the file to be there.
        """
        ...


SourceFactory = Callable[[Mapping[str, Any], SourceContext], Source]
"""Makes a source from a job's `source_config` and what this system lets it use."""
