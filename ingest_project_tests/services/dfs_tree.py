"""The storage of the DFS test server: file systems of files and folders with committed and uncommitted data.

Contents are in memory, or in files of a folder when large ones are wanted; names and properties are in memory always.
"""

from __future__ import annotations

import bisect
import itertools
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Protocol


class DfsError(Exception):
    """An answer that is no success: HTTP status, the service's code, a sentence."""

    def __init__(self, status: int, code: str, message: str = "") -> None:
        self.status = status
        self.code = code
        self.message = message or code
        super().__init__(f"{status} {code}")


class Content(Protocol):
    """Bytes that may be written at any offset."""

    def write(self, offset: int, data: bytes) -> None:
        """Write at an offset, which may be beyond the end."""

    def read(self, offset: int, length: int) -> bytes:
        """Return the content."""

    def truncate(self, size: int) -> None:
        """Remove the content after a position."""

    def remove(self) -> None:
        """Remove the content."""


class MemoryContent:
    """Bytes in memory."""

    def __init__(self) -> None:
        self._data = bytearray()

    def write(self, offset: int, data: bytes) -> None:
        """Write at an offset; see `Content`."""
        if offset > len(self._data):
            self._data.extend(bytes(offset - len(self._data)))
        self._data[offset : offset + len(data)] = data

    def read(self, offset: int, length: int) -> bytes:
        """Return the content."""
        return bytes(self._data[offset : offset + length])

    def truncate(self, size: int) -> None:
        """Remove the content after a position."""
        del self._data[size:]

    def remove(self) -> None:
        """Remove the content."""
        self._data = bytearray()


class FileContent:
    """Bytes in a file of a folder."""

    def __init__(self, folder: Path) -> None:
        self._path = str(folder / uuid.uuid4().hex)

    def write(self, offset: int, data: bytes) -> None:
        """Write at an offset; see `Content`."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT)
        try:
            while data:
                written = os.pwrite(descriptor, data, offset)
                data, offset = data[written:], offset + written
        finally:
            os.close(descriptor)

    def read(self, offset: int, length: int) -> bytes:
        """Return the content."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY)
        except FileNotFoundError:
            return b""
        try:
            return os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)

    def truncate(self, size: int) -> None:
        """Remove the content after a position."""
        if os.path.exists(self._path):  # noqa: PTH110 - strings: a benchmark passes here
            os.truncate(self._path, size)

    def remove(self) -> None:
        """Remove the content."""
        if os.path.exists(self._path):  # noqa: PTH110
            os.unlink(self._path)  # noqa: PTH108


_versions = itertools.count(1)


@dataclass
class Entry:
    """One file or folder.

    Args:
        uncommitted: appended pieces by offset, and their lengths; they become part of the file when it is flushed.
    """

    is_directory: bool
    content: Content | None = None
    size: int = 0
    uncommitted: dict[int, int] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    created: float = field(default_factory=time.time)
    modified: float = field(default_factory=time.time)
    etag: str = ""

    def __post_init__(self) -> None:
        self.touch()

    def touch(self) -> None:
        """Make a new version."""
        self.modified = time.time()
        self.etag = f'"0x{next(_versions):016X}"'

    def append(self, position: int, data: bytes) -> None:
        """Keep a piece for the next flush."""
        if position < self.size:
            raise DfsError(400, "InvalidFlushPosition", "The position is before the end of the committed data.")
        if self.content is not None:
            self.content.write(position, data)
        self.uncommitted[position] = len(data)

    def flush(self, position: int) -> None:
        """Make the file end at a position, if everything before it has been appended."""
        end = self.size
        for offset in sorted(self.uncommitted):
            if offset != end:
                break
            end += self.uncommitted[offset]
        if end != position:
            raise DfsError(400, "InvalidFlushPosition", f"The uncommitted data ends at {end}, not at {position}.")
        self.uncommitted.clear()
        if self.content is not None:
            self.content.truncate(position)
        self.size = position
        self.touch()


class FileSystem:
    """The entries of one file system by path; the root is the empty path."""

    def __init__(self, folder: Path | None = None) -> None:
        self.lock = RLock()
        self._folder = folder
        self._entries: dict[str, Entry] = {"": Entry(is_directory=True)}
        self._sorted: list[str] | None = None

    def get(self, path: str, code: str = "PathNotFound") -> Entry:
        """Return an entry that must exist."""
        try:
            return self._entries[path]
        except KeyError:
            raise DfsError(404, code, "The specified path does not exist.") from None

    def find(self, path: str) -> Entry | None:
        """Return an entry, or None."""
        return self._entries.get(path)

    def make_folders(self, path: str) -> None:
        """Create a folder and its parents."""
        parts = path.split("/") if path else []
        for count in range(1, len(parts) + 1):
            above = "/".join(parts[:count])
            entry = self._entries.get(above)
            if entry is None:
                self._put(above, Entry(is_directory=True))
            elif not entry.is_directory:
                raise DfsError(409, "PathConflict", f"{above} is a file.")

    def create_file(self, path: str) -> Entry:
        """Create an empty file, replacing any file of that name."""
        old = self._entries.get(path)
        if old is not None and old.is_directory:
            raise DfsError(409, "PathConflict", "The path is a directory.")
        self.make_folders(path.rpartition("/")[0])
        if old is not None and old.content is not None:
            old.content.remove()
        entry = Entry(is_directory=False, content=FileContent(self._folder) if self._folder else MemoryContent())
        self._put(path, entry)
        return entry

    def rename(self, source: str, target: str) -> None:
        """Move a file or a folder with all that is in it, over any file of the new name."""
        entry = self.get(source, "SourcePathNotFound")
        parent = self._entries.get(target.rpartition("/")[0])
        if parent is None or not parent.is_directory:
            raise DfsError(404, "RenameDestinationParentPathNotFound")
        old = self._entries.get(target)
        if old is not None and (old.is_directory != entry.is_directory or old.is_directory):
            raise DfsError(409, "PathAlreadyExists")
        if f"{target}/".startswith(f"{source}/"):
            raise DfsError(409, "InvalidRenameSourcePath")
        if old is not None and old.content is not None:
            old.content.remove()
        for path in list(self._below(source)) if entry.is_directory else []:
            self._put(target + path[len(source) :], self._entries.pop(path))
        del self._entries[source]
        self._put(target, entry)
        self._sorted = None

    def delete(self, path: str, *, recursive: bool) -> None:
        """Remove a file, or a folder with all that is in it."""
        entry = self.get(path)
        below = list(self._below(path)) if entry.is_directory else []
        if below and not recursive:
            raise DfsError(409, "DirectoryNotEmpty")
        for name in (*below, path):
            removed = self._entries.pop(name)
            if removed.content is not None:
                removed.content.remove()
        self._sorted = None

    def listing(
        self, directory: str, *, recursive: bool, after: str, limit: int
    ) -> tuple[list[tuple[str, Entry]], str]:
        """Return a page of entries below a folder by path, and the path before the next page (empty: no more)."""
        if not self.get(directory).is_directory:
            raise DfsError(409, "PathConflict", "The path is a file.")
        found: list[tuple[str, Entry]] = []
        skip = len(directory) + 1 if directory else 0
        for path in self._below(directory, after):
            if not recursive and "/" in path[skip:]:
                continue
            if len(found) == limit:
                return found, found[-1][0]
            found.append((path, self._entries[path]))
        return found, ""

    def _put(self, path: str, entry: Entry) -> None:
        if path not in self._entries:
            self._sorted = None
        self._entries[path] = entry

    def _below(self, directory: str, after: str = "") -> Iterator[str]:
        if self._sorted is None:
            self._sorted = sorted(self._entries)
        ordered, prefix = self._sorted, f"{directory}/" if directory else ""
        for index in range(bisect.bisect_right(ordered, max(after, prefix)), len(ordered)):
            if not ordered[index].startswith(prefix):
                return
            yield ordered[index]
