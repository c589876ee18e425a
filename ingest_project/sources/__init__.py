"""The protocol of sources (list files lazily, describe a file, open a file), and the selection of listed files.

`registry.open_source` creates a source for one `source_config` without connecting; the first listing, `stat` or `open`
connects. Another package adds a kind of source by an entry point, see `registry`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import BinaryIO, Protocol

import msgspec

from ingest_project.contracts.files import file_type_of, is_readable
from ingest_project.core.errors import IngestError, PermanentError

# Limits of databases and file systems.
MAX_SIZE_BYTES = 2**63 - 1
MAX_DEPTH = 32
_PRINTED_LENGTH = 200


class SourceFile(msgspec.Struct, frozen=True, gc=False):
    """One file as described by its source. Equality ignores `location`.

    Args:
        path: argument of `open` and `stat`, in the source's own form; part of the file event.
        name: last part of the path.
        size_bytes: size; None if the source does not report it.
        modified_at: time of the last change, UTC; None if the source does not report it.
        etag: the source's own identifier of this version, if it has one.
        location: canonical address, if the listing contains it; None: call `canonical_location`.
    """

    path: str
    name: str
    size_bytes: int | None
    modified_at: datetime | None
    etag: str | None = None
    location: str | None = None

    def __eq__(self, other: object) -> bool:
        """Compare all fields but `location`."""
        return isinstance(other, SourceFile) and self._compared == other._compared

    def __hash__(self) -> int:
        """Hash all fields but `location`."""
        return hash(self._compared)

    @property
    def _compared(self) -> tuple[object, ...]:
        return self.path, self.name, self.size_bytes, self.modified_at, self.etag


@dataclass(frozen=True, slots=True)
class Skipped:
    """An entry of a listing that is not taken.

    Args:
        path: path in the source's own form, with characters that are not valid UTF-8 replaced.
        reason: one of a few sentences without the file's name, because reasons are counted.
        visible: True to show it to people; False for files that are routinely skipped (hidden files, locks,
            unfinished uploads) and only counted.
    """

    path: str
    reason: str
    visible: bool = True


class Source(Protocol):
    """One location with files.

    Every method raises only these errors: ForbiddenPathError (never allowed), SourceAccessDeniedError (the source
    denies access), SourceNotFoundError (does not exist), SourceUnreachableError (may succeed later).
    """

    @property
    def location(self) -> str:
        """Return the address of the source for logs and messages, without secrets, e.g. `local:/data/in`."""

    def require_allowed(self, path: str) -> None:
        """Refuse a path that may never be read, without contacting the source.

        Raises:
            ForbiddenPathError: this system may not read the path.
        """

    def list_files(self, pattern: str) -> Iterator[SourceFile | Skipped]:
        """Yield the matching files as they are listed, unordered.

        Memory use is bounded regardless of the number of files. Files that do not match are left out.

        Args:
            pattern: glob relative to the source's path, see `Pattern`.

        Raises:
            PermanentError: the pattern is malformed.
        """

    def open(self, path: str) -> AbstractContextManager[BinaryIO]:
        """Open a file for reading inside a `with`. Failures while reading raise like failures to open."""

    def stat(self, path: str) -> SourceFile:
        """Describe the current version of a file."""

    def canonical_location(self, path: str) -> str:
        """Return the canonical address of a file: unique across sources, and the same for all spellings of a path.

        Works for paths that may not be read, and for files that do not exist.
        """


def sanitized(text: str) -> str:
    """Shorten an untrusted text for messages and replace unprintable characters."""
    shown = text[:_PRINTED_LENGTH].encode("utf-8", "replace").decode()
    return "".join(char if char.isprintable() else "\ufffd" for char in shown)


ANY_DEPTH = "**"
_WILDCARDS = "*?["
MAX_PATTERN_LENGTH = 1_000
MAX_REASONS = 50
OTHER_REASONS = "Further reasons."
# Excel keeps an owner file next to an open workbook; .part, .tmp and similar files are unfinished uploads.
LOCK_PREFIX = "~$"
UNFINISHED_TYPES = ("part", "tmp", "partial", "filepart", "crdownload")
_DEEPER_ENTRIES = 1_000
_DEEPER_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Pattern:
    """A glob over paths below the source's own, with `/` between folders.

    `*`, `?` and `[…]` match within one name, `**` matches any number of folders: `*.csv` matches files in the folder
    itself, `**/*.csv` also those in all subfolders. Case matters except in the extension: `*.csv` matches `A.CSV`.

    Args:
        parts: one glob per folder level; the last one is for the file's name.
    """

    parts: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Parse the pattern of a job; an empty one matches every file of the folder.

        Raises:
            PermanentError: the pattern leaves the folder, or is too long.
        """
        if len(text) > MAX_PATTERN_LENGTH:
            raise PermanentError(f"file_pattern has {len(text)} characters; at most {MAX_PATTERN_LENGTH} are allowed.")
        parts = [part for part in text.split("/") if part not in ("", ".")]
        if text.startswith("/") or ".." in parts or "\x00" in text:
            raise PermanentError(
                f"file_pattern {text[:100]!r} must stay below the source's path: no '..', no leading '/'."
            )
        if not parts or parts[-1] == ANY_DEPTH:
            parts.append("*")
        return cls((*parts[:-1], _lower_ending(parts[-1])))

    @property
    def recursive(self) -> bool:
        """Return True if folders of any depth may contain matches."""
        return ANY_DEPTH in self.parts

    @property
    def fixed_beginning(self) -> str:
        """Return the common prefix of all matches, e.g. `2026/in-` for `2026/in-*/**`, for object stores to list."""
        text = "/".join(self.parts)
        literal = text[: min((text.find(char) for char in _WILDCARDS if char in text), default=len(text))]
        # The extension matches in any case, so it is not fixed.
        name = literal.rpartition("/")[2]
        return literal[: len(literal) - len(name)] + name.partition(".")[0]

    def matches(self, relative_path: str) -> bool:
        """Return True if the pattern matches the file at this path relative to the source's."""
        *folders, name = relative_path.split("/")
        return _parts_match((*folders, _lower_ending(name)), self.parts)

    def may_match_below(self, relative_folder: str) -> bool:
        """Return True if a folder may contain matches."""
        folders = relative_folder.split("/")
        if self.recursive:
            fixed = self.parts[: self.parts.index(ANY_DEPTH)]
            return all(fnmatchcase(folder, part) for folder, part in zip(folders, fixed, strict=False))
        return len(folders) < len(self.parts) and _parts_match(tuple(folders), self.parts[: len(folders)])


def refusal(path: str, name: str, size_bytes: int = 0) -> Skipped | None:
    """Return the reason to skip a matching file; None to take it. The path is used in the report only.

    Args:
        path: in the terms of the source.
        name: last part of it.
        size_bytes: as listed, where the source does not say only what can be.
    """
    shown = path.encode("utf-8", "replace").decode()
    if shown != path:
        return Skipped(shown, "Its name is not UTF-8.")
    kind = file_type_of(name)
    if name.startswith("."):
        return Skipped(path, "A hidden file.", visible=False)
    if name.startswith(LOCK_PREFIX):
        return Skipped(path, "A lock file of an open workbook.", visible=False)
    if kind in UNFINISHED_TYPES:
        return Skipped(path, "A file that is still being written.", visible=False)
    if not 0 <= size_bytes <= MAX_SIZE_BYTES:
        return Skipped(path, "Its size is impossible.")
    return None if is_readable(kind) else Skipped(path, f"No reader reads {kind or 'files without an ending'}.")


def only_accepted(
    entries: Iterable[SourceFile | Skipped], refusal_of: Callable[[SourceFile], str]
) -> Iterator[SourceFile | Skipped]:
    """Yield the entries of a listing; turn files that their dataset refuses into skipped entries.

    Args:
        entries: entries of a listing.
        refusal_of: returns why the dataset refuses a file; empty if it accepts the file.
    """
    for entry in entries:
        reason = refusal_of(entry) if isinstance(entry, SourceFile) else ""
        yield Skipped(sanitized(entry.path), reason) if reason else entry


def count_reason(counts: MutableMapping[str, int], reason: str) -> None:
    """Count the reason of a skipped file. Untrusted names can cause unlimited reasons: further ones are merged."""
    known = reason if reason in counts or len(counts) < MAX_REASONS else OTHER_REASONS
    counts[known] = counts.get(known, 0) + 1


def ready_at(file: SourceFile, now: datetime, min_age: timedelta) -> datetime | None:
    """Return when a recently changed file can be ingested; None if it can be ingested now.

    Clocks differ: a time slightly ahead of ours counts as recent, one far ahead is ignored.
    """
    if file.modified_at is None or file.modified_at <= now - min_age or file.modified_at >= now + min_age:
        return None
    return max(file.modified_at, now) + min_age


def files_further_down(source: Source, pattern: str) -> dict[str, int]:
    """Count by reason the files that the pattern would match if it reached all folders; empty for none.

    Explains an empty listing. Takes a bounded time, and ignores failures.
    """
    parts = pattern.split("/")
    if ANY_DEPTH in parts:
        return {}
    deeper = "/".join([*parts[:-1], ANY_DEPTH, parts[-1] or "*"])
    # Files of the folder itself have already been refused individually, e.g. for their type.
    found = _count(source, deeper) - _count(source, pattern)
    return (
        {f"In a folder that the pattern {pattern!r} does not reach; {deeper!r} takes it.": found} if found > 0 else {}
    )


def _count(source: Source, pattern: str) -> int:
    found, until = 0, time.monotonic() + _DEEPER_SECONDS
    with contextlib.suppress(IngestError):
        for number, entry in enumerate(source.list_files(pattern), 1):
            found += isinstance(entry, SourceFile)
            if number >= _DEEPER_ENTRIES or time.monotonic() > until:
                break
    return found


def _lower_ending(name: str) -> str:
    stem, dot, ending = name.rpartition(".")
    return f"{stem}.{ending.lower()}" if dot else name


def _parts_match(names: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    """Match level by level; on a mismatch only the last `**` takes another level, so time is at most names x parts."""
    name = part = 0
    retry_part, retry_name = -1, 0
    while name < len(names):
        if part < len(parts) and parts[part] == ANY_DEPTH:
            retry_part, retry_name = part, name
            part += 1
        elif part < len(parts) and fnmatchcase(names[name], parts[part]):
            name, part = name + 1, part + 1
        elif retry_part >= 0:
            retry_name += 1
            name, part = retry_name, retry_part + 1
        else:
            return False
    return all(rest == ANY_DEPTH for rest in parts[part:])
