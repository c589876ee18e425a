"""Folders that may be read, and opening files and folders so that nothing outside them can be read."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ingest_project.core.errors import ForbiddenPathError, IngestError, SourceNotFoundError, SourceUnreachableError
from ingest_project.sources.protocol import SourceFile

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Linux takes no longer path. `realpath` takes time with the square of the number of parts.
MAX_PATH_BYTES = 4_095
MAX_PATH_PARTS = 256
_SHOWN_CHARACTERS = 200
_HARD_LINKS = "INGEST_ALLOW_HARD_LINKS"
# O_NONBLOCK: opening a FIFO or a device that took the file's place must not wait for its other end.
_OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


@dataclass(frozen=True)
class AllowedRoots:
    """Folders that may be read.

    Args:
        folders: absolute, symlinks resolved.
        setting: the setting that holds them, named in refusals.
        hard_links: whether a file may be read that has a further name, which may be outside the folders.
    """

    folders: tuple[str, ...]
    setting: str
    hard_links: bool = False

    @classmethod
    def of(cls, folders: Sequence[Path], setting: str, *, hard_links: bool = False) -> AllowedRoots:
        """Resolve the folders of a setting; relative ones start at the current folder."""
        return cls(tuple(os.path.realpath(folder) for folder in folders), setting, hard_links)

    def require_allowed(self, location: Path, named: str) -> None:
        """Refuse a path outside the roots; nothing is opened, and it need not exist.

        Raises:
            ForbiddenPathError: outside the roots, or a URL.
        """
        require_path(named)
        try:
            self._require_inside(os.path.realpath(location), named)
        except (OSError, ValueError) as error:
            raise ForbiddenPathError(named, "no file can have such a name.") from error

    @contextmanager
    def opened_file(self, location: Path, named: str) -> Iterator[int]:
        """Open a regular file below the roots and yield its descriptor.

        Args:
            location: its path.
            named: as the job names it, for messages.

        Raises:
            ForbiddenPathError: outside the roots, not a regular file, or not readable for this process.
            SourceNotFoundError: it does not exist.
            SourceUnreachableError: the file system failed.
        """
        with self._opened(location, named) as descriptor:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ForbiddenPathError(named, "it is not a regular file.")
            self.require_one_name(status, named)
            yield descriptor

    def require_one_name(self, status: os.stat_result, named: str) -> None:
        """Refuse a file with a further name: no path shows whether that name is outside of the folders.

        Raises:
            ForbiddenPathError: it has one, and the setting does not allow it.
        """
        if status.st_nlink > 1 and not self.hard_links:
            raise ForbiddenPathError(
                named,
                f"it has {status.st_nlink} names (hard links), some may be elsewhere. {_HARD_LINKS} allows it.",
            )

    @contextmanager
    def opened_folder(self, location: Path, named: str) -> Iterator[int]:
        """Open a folder below the roots and yield its descriptor; raises as `opened_file` does."""
        with self._opened(location, named, os.O_DIRECTORY) as descriptor:
            yield descriptor

    @contextmanager
    def _opened(self, location: Path, named: str, more_flags: int = 0) -> Iterator[int]:
        descriptor = self._open(location, named, more_flags)
        try:
            self._require_inside(_path_of(descriptor), named)
            yield descriptor
        finally:
            os.close(descriptor)

    def _open(self, location: Path, named: str, more_flags: int) -> int:
        require_path(named)
        try:
            resolved = os.path.realpath(location)
            self._require_inside(resolved, named)
            mode = os.lstat(resolved).st_mode
            # Opening some devices has effects of its own (tapes rewind), so that it is not even tried.
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise ForbiddenPathError(named, "it is not a regular file.")
            return os.open(resolved, _OPEN_FLAGS | more_flags)
        except OSError as error:
            self._require_mounted(os.path.realpath(location), named)
            raise map_error(error, named) from error
        except ValueError as error:
            raise ForbiddenPathError(named, "no file can have such a name.") from error

    def _require_inside(self, resolved: str, named: str) -> None:
        if not any(_is_inside(folder, resolved) for folder in self.folders):
            allowed = ", ".join(self.folders)
            raise ForbiddenPathError(named, f"it is outside the folders that {self.setting} allows ({allowed}).")

    def _require_mounted(self, resolved: str, named: str) -> None:
        """Distinguish a drive that is not mounted, whose files still exist, from a file that is missing."""
        for folder in self.folders:
            if _is_inside(folder, resolved) and not os.path.isdir(folder):  # noqa: PTH112 - text, as the rest of this module
                raise SourceUnreachableError(named, f"{folder}, which {self.setting} names, is not there")


def map_error(error: OSError, named: str) -> IngestError:
    """Map the error of a file operation to a source's."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
        return SourceNotFoundError(named)
    if error.errno in (errno.EACCES, errno.EPERM):
        return ForbiddenPathError(named, "the user of this process may not read it. Check its owner and mode.")
    if error.errno == errno.ELOOP:
        return ForbiddenPathError(named, "its symbolic links lead nowhere.")
    return SourceUnreachableError(named, error.strerror or error)


def described(path: str, status: os.stat_result, location: str | None = None) -> SourceFile:
    """Describe a file by its status."""
    modified_at = None
    # File systems hold times that a datetime cannot.
    with suppress(OverflowError):
        modified_at = _EPOCH + timedelta(microseconds=status.st_mtime_ns // 1000)
    name = path.rpartition("/")[2]
    return SourceFile(path, name, size_bytes=status.st_size, modified_at=modified_at, location=location)


def _is_inside(folder: str, resolved: str) -> bool:
    """Return whether a path is a folder or below it; both as `realpath` gives them."""
    return resolved == folder or resolved.startswith(os.path.join(folder, ""))  # noqa: PTH118 - text, for each file


def require_path(named: str) -> str:
    """Return the path if it may be resolved: the cost of that is bounded.

    Raises:
        ForbiddenPathError: a URL, or longer than a path can be.
    """
    if len(named.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES or named.count("/") > MAX_PATH_PARTS:
        raise ForbiddenPathError(
            named[:_SHOWN_CHARACTERS], f"a path has at most {MAX_PATH_BYTES} bytes and {MAX_PATH_PARTS} parts."
        )
    if "://" in named or named.startswith("file:"):
        raise ForbiddenPathError(named, "a local path is needed, not a URL.")
    return named


def _path_of(descriptor: int) -> str:
    """Return the real path of an opened file."""
    link = f"/proc/self/fd/{descriptor}"
    if os.path.exists(link):  # noqa: PTH110 - pathlib would add an object per file
        return os.readlink(link)  # noqa: PTH115
    import fcntl  # noqa: PLC0415 - only where there is no /proc (macOS)

    getpath = 50  # F_GETPATH
    return fcntl.fcntl(descriptor, getpath, bytes(1024)).rstrip(b"\x00").decode("utf-8", "surrogateescape")
