"""The files inside a tar archive on this host, `source_type` tar.

The archive must be in the folders of INGEST_LOCAL_ROOTS. A file's path is `archive.tar!name/in/it`; names in the
archive are compared and shown, never used as paths of this host.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import Buffer

from ingest_project.core.errors import SourceNotFoundError, UnreadableListingError
from ingest_project.sources import Pattern, Skipped, SourceFile, refusal
from ingest_project.sources.local import AllowedRoots
from ingest_project.sources.reading import ListingBudget, SourceLimits
from ingest_project.sources.registry import SourceContext

SEPARATOR = "!"
# A header of a tar archive is read in one piece, however large it says that it is.
MAX_HEADER_BYTES = 1024**2


class TarOptions(BaseModel):
    """The `source_config` of a tar archive.

    Args:
        path: of the archive.
        folder: inside of it, whose files are listed.
    """

    model_config = ConfigDict(extra="ignore")

    path: str = Field(min_length=1)
    folder: str = ""


def open_tar(source_config: Mapping[str, Any], context: SourceContext) -> TarSource:
    """Make the source of an archive; nothing is opened yet."""
    polling = context.polling
    roots = AllowedRoots.of(polling.local_roots, "INGEST_LOCAL_ROOTS", hard_links=polling.allow_hard_links)
    options = TarOptions.model_validate(source_config)
    return TarSource(options.path, options.folder.strip("/"), roots, context.limits)


@dataclass(frozen=True)
class TarSource:
    """One archive; see `ingest_project.sources.Source`.

    Args:
        archive: its path, as the job names it.
        folder: inside of it; empty for all of it.
        roots: folders of this host that may be read.
        limits: of time and entries.
    """

    archive: str
    folder: str
    roots: AllowedRoots
    limits: SourceLimits

    @property
    def location(self) -> str:
        """`tar:`, the archive and the folder."""
        return self.canonical_location(f"{self.archive}{SEPARATOR}{self.folder}")

    def canonical_location(self, path: str) -> str:
        """Return `tar:`, the archive with symlinks resolved, and the name inside of it."""
        archive, _, name = path.partition(SEPARATOR)
        return f"tar:{os.path.realpath(archive)}{SEPARATOR}{_plain(name)}"

    def require_allowed(self, path: str) -> None:
        """Refuse an archive outside of the roots."""
        archive, _, _ = path.partition(SEPARATOR)
        self.roots.require_allowed(Path(archive), path)

    def list_files(self, pattern: str) -> Iterator[SourceFile | Skipped]:
        """Yield the files of the archive that match, as its headers are read."""
        parsed = Pattern.parse(pattern)
        budget = ListingBudget(self.limits, self.location)
        below = f"{self.folder}/" if self.folder else ""
        with self._opened(self.archive) as descriptor:
            for member in budget.counted(_members(descriptor, self.location)):
                name = _plain(member.name)
                if name.startswith(below) and parsed.matches(name.removeprefix(below)):
                    yield self._entry(member, name)

    def stat(self, path: str) -> SourceFile:
        """Describe the last file of this name."""
        archive, _, _ = path.partition(SEPARATOR)
        with self._opened(archive) as descriptor:
            return _described(path, self._member(descriptor, path))

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """Open the last file of this name."""
        archive, _, _ = path.partition(SEPARATOR)
        with self._opened(archive) as descriptor:
            member = self._member(descriptor, path)
            with io.BufferedReader(_Content(descriptor, member.offset_data, member.size)) as file:
                yield cast("BinaryIO", file)

    @contextmanager
    def _opened(self, archive: str) -> Iterator[int]:
        with self.roots.opened_file(Path(archive), archive) as descriptor:
            yield descriptor

    def _member(self, descriptor: int, path: str) -> tarfile.TarInfo:
        name = _plain(path.partition(SEPARATOR)[2])
        members = ListingBudget(self.limits, self.location).counted(_members(descriptor, path))
        # In an archive that was appended to, the last one of a name counts.
        found = None
        for member in members:
            found = member if _plain(member.name) == name and _problem(member) == "" else found
        if found is None:
            raise SourceNotFoundError(path)
        return found

    def _entry(self, member: tarfile.TarInfo, name: str) -> SourceFile | Skipped:
        path = f"{self.archive}{SEPARATOR}{name}"
        if any(part.startswith(".") for part in name.split("/")[:-1]):
            return Skipped(path, "In a hidden folder.", visible=False)
        problem = _problem(member)
        if problem:
            return Skipped(path, problem, visible=not member.isdir())
        return refusal(path, name.rpartition("/")[2]) or _described(path, member)


class _Content(io.RawIOBase):
    """Some bytes of an open file."""

    def __init__(self, descriptor: int, start: int, size: int) -> None:
        self._descriptor, self._at, self._end = descriptor, start, start + size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer).cast("B")
        block = os.pread(self._descriptor, min(len(view), self._end - self._at), self._at)
        view[: len(block)] = block
        self._at += len(block)
        return len(block)


class _Headers(io.FileIO):
    """The archive as `tarfile` reads it for its headers."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header says that it has {size} bytes")
        return super().read(size) or b""


def _members(descriptor: int, location: str) -> Iterator[tarfile.TarInfo]:
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        with _Headers(os.dup(descriptor)) as file, tarfile.open(fileobj=cast("BinaryIO", file), mode="r:") as archive:
            while (member := archive.next()) is not None:
                # Its own list of members would grow with the archive.
                archive.members = []  # type: ignore[attr-defined]
                yield member
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise UnreadableListingError(location, f"no tar archive that can be read ({error})") from error


def _problem(member: tarfile.TarInfo) -> str:
    if member.isdir():
        return "A folder."
    return "" if member.isreg() and not member.issparse() else "Not a regular file."


def _described(path: str, member: tarfile.TarInfo) -> SourceFile:
    modified_at = datetime.fromtimestamp(member.mtime, UTC)
    return SourceFile(path, path.rpartition("/")[2].rpartition(SEPARATOR)[2], member.size, modified_at)


def _plain(name: str) -> str:
    """Return a name in the archive without its `./` and without slashes at its ends."""
    return "/".join(part for part in name.split("/") if part not in {"", "."})
