"""Files in folders of this host, `source_type` local, and the example files of the project, `source_type` dummy.

Paths come from untrusted messages. An opened file is inside the configured roots with every symlink resolved, which is
checked on the opened file itself, so that swapping a link between check and open cannot lead out of the roots.

A dummy source is a local source that also accepts names inside the dummy folder as paths, so that the same job works
from every current folder.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from typing_extensions import Buffer

from ingest_project.core.errors import ForbiddenPathError, IngestError, SourceNotFoundError, SourceUnreachableError
from ingest_project.sources import MAX_DEPTH, Pattern, Skipped, SourceFile, refusal, sanitized
from ingest_project.sources.reading import ListingBudget, SourceLimits
from ingest_project.sources.registry import SourceContext

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Linux accepts no longer paths, and `realpath` takes quadratic time in the number of parts.
MAX_PATH_BYTES = 4_095
MAX_PATH_PARTS = 256
_SHOWN_CHARACTERS = 200
_HARD_LINKS = "INGEST_ALLOW_HARD_LINKS"
# O_NONBLOCK: opening a FIFO or a device that replaced the file must not block.
_OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


def open_local(source_config: Mapping[str, Any], context: SourceContext) -> LocalSource:
    """Create the source for a folder of this host; relative paths start at the current folder."""
    polling = context.polling
    roots = AllowedRoots.of(polling.local_roots, "INGEST_LOCAL_ROOTS", hard_links=polling.allow_hard_links)
    return LocalSource(str(source_config.get("path", "")), roots, Path, context.limits)


def open_dummy(source_config: Mapping[str, Any], context: SourceContext) -> LocalSource:
    """Create the source for INGEST_DUMMY_ROOT, or a path in it."""
    polling = context.polling
    roots = AllowedRoots.of([polling.dummy_root], "INGEST_DUMMY_ROOT", hard_links=polling.allow_hard_links)
    locate = partial(_dummy_path, root=polling.dummy_root)
    return LocalSource(str(source_config.get("path") or polling.dummy_root), roots, locate, context.limits)


@dataclass(frozen=True)
class AllowedRoots:
    """Folders that may be read.

    Args:
        folders: absolute paths with symlinks resolved.
        setting: setting with the folders, named in refusals.
        hard_links: allow files with further hard links, which may be outside the folders.
    """

    folders: tuple[str, ...]
    setting: str
    hard_links: bool = False

    @classmethod
    def of(cls, folders: Sequence[Path], setting: str, *, hard_links: bool = False) -> AllowedRoots:
        """Create the roots from the folders of a setting; relative ones start at the current folder."""
        return cls(tuple(os.path.realpath(folder) for folder in folders), setting, hard_links)

    def require_allowed(self, location: Path, named: str) -> None:
        """Refuse a path outside the roots without opening it; it need not exist.

        Raises:
            ForbiddenPathError: the path is outside the roots, or a URL.
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
            location: path of the file.
            named: path from the job, for messages.

        Raises:
            ForbiddenPathError: the file is outside the roots, not a regular file, or not readable for this process.
            SourceNotFoundError: the file does not exist.
            SourceUnreachableError: the file system failed.
        """
        with self._opened(location, named) as descriptor:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ForbiddenPathError(named, "it is not a regular file.")
            self.require_one_name(status, named)
            yield descriptor

    def require_one_name(self, status: os.stat_result, named: str) -> None:
        """Refuse a file with further hard links, which may be outside the folders.

        Raises:
            ForbiddenPathError: the file has further links, and the setting does not allow them.
        """
        if status.st_nlink > 1 and not self.hard_links:
            raise ForbiddenPathError(
                named, f"it has {status.st_nlink} names (hard links), some may be elsewhere. {_HARD_LINKS} allows it."
            )

    @contextmanager
    def opened_folder(self, location: Path, named: str) -> Iterator[int]:
        """Open a folder below the roots and yield its descriptor; raises like `opened_file`."""
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
        if (descriptor := self._open_plain(os.fspath(location), more_flags)) is not None:
            return descriptor
        try:
            resolved = os.path.realpath(location)
            self._require_inside(resolved, named)
            mode = os.lstat(resolved).st_mode
            # Opening some devices has side effects (tapes rewind).
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise ForbiddenPathError(named, "it is not a regular file.")
            return os.open(resolved, _OPEN_FLAGS | more_flags)
        except OSError as error:
            self._require_mounted(os.path.realpath(location), named)
            raise map_error(error, named) from error
        except ValueError as error:
            raise ForbiddenPathError(named, "no file can have such a name.") from error

    def _open_plain(self, path: str, more_flags: int) -> int | None:
        """Open a regular file whose unresolved path is inside the roots; return None if it must be resolved first.

        This opens only regular files, and checks the real path of the opened file: resolving the path first would read
        each of its folders again for every file.
        """
        if os.path.normpath(path) == path and any(_is_inside(folder, path) for folder in self.folders):
            with suppress(OSError, ValueError):
                if stat.S_ISREG(os.lstat(path).st_mode):
                    return os.open(path, _OPEN_FLAGS | more_flags)
        return None

    def _require_inside(self, resolved: str, named: str) -> None:
        if not any(_is_inside(folder, resolved) for folder in self.folders):
            allowed = ", ".join(self.folders)
            raise ForbiddenPathError(named, f"it is outside the folders that {self.setting} allows ({allowed}).")

    def _require_mounted(self, resolved: str, named: str) -> None:
        """Distinguish an unmounted drive, whose files still exist, from a missing file."""
        for folder in self.folders:
            if _is_inside(folder, resolved) and not os.path.isdir(folder):  # noqa: PTH112 - text, as the rest of this module
                raise SourceUnreachableError(named, f"{folder}, which {self.setting} names, is not there")


@dataclass(frozen=True)
class LocalSource:
    """One folder, or one file, below the roots.

    Args:
        path: path from the job or event.
        roots: folders that may be read.
        locate: converts a path from a job to one relative to the current folder.
        limits: limits of time and entries.
    """

    path: str
    roots: AllowedRoots
    locate: Callable[[str], Path]
    limits: SourceLimits

    @property
    def location(self) -> str:
        """`local:` and the folder, symlinks resolved."""
        return self.canonical_location(self.path)

    def canonical_location(self, path: str) -> str:
        """Return `local:` and the absolute path, symlinks resolved."""
        try:
            return f"local:{os.path.realpath(self._at(path))}"
        except (ForbiddenPathError, OSError, ValueError):
            # Even an impossible path needs a stable name in reports.
            return f"local:{path[:MAX_PATH_BYTES]}"

    @cached_property
    def _listed_location(self) -> str:
        """Return the location of the listed folder, which is valid for all its files: the walk follows no symlinks."""
        return f"local:{os.path.realpath(self._at(self.path))}"

    def require_allowed(self, path: str) -> None:
        """Refuse a path outside the roots, symlinks resolved; the path need not exist."""
        self.roots.require_allowed(self._at(path), path)

    def list_files(self, pattern: str) -> Iterator[SourceFile | Skipped]:
        """Walk the folder, one open folder per level. Symlinks to folders are not followed."""
        parsed = Pattern.parse(pattern)
        with self.roots.opened_folder(self._at(self.path), self.path) as folder:
            budget = ListingBudget(self.limits, self.location)
            yield from self._walk(folder, "", parsed, budget)
            budget.end()

    def stat(self, path: str) -> SourceFile:
        """Return size and modification time of the current file."""
        with self.roots.opened_file(self._at(path), path) as descriptor:
            return described(path, os.fstat(descriptor))

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """Open a file, buffered."""
        with (
            self.roots.opened_file(self._at(path), path) as descriptor,
            io.BufferedReader(_LocalFile(descriptor, path), buffer_size=1024**2) as file,
        ):
            # typeshed's BufferedReader is generic; to a caller it is a BinaryIO.
            yield cast("BinaryIO", file)

    def _walk(self, folder: int, below: str, pattern: Pattern, budget: ListingBudget) -> Iterator[SourceFile | Skipped]:
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    budget.count()
                    relative = below + entry.name
                    if _is_folder(entry):
                        yield from self._folder(entry, folder, relative, pattern, budget)
                    elif pattern.matches(relative):
                        yield refusal(self._full(relative), entry.name) or self._file(entry, relative, budget)
        except OSError as error:
            raise map_error(error, self._full(below)) from error

    def _folder(
        self, entry: os.DirEntry[str], folder: int, relative: str, pattern: Pattern, budget: ListingBudget
    ) -> Iterator[SourceFile | Skipped]:
        if not pattern.may_match_below(relative):
            return
        shown = sanitized(self._full(relative))
        if entry.name.startswith("."):
            yield Skipped(shown, "A hidden folder.", visible=False)
            return
        if relative.count("/") >= MAX_DEPTH:
            yield Skipped(shown, f"A folder more than {MAX_DEPTH} levels down.")
            return
        if entry.is_symlink():
            yield Skipped(shown, "A symbolic link to a folder; links are not followed.")
            return
        try:
            opened = os.open(entry.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        except OSError as error:
            yield budget.skipped_folder(map_error(error, shown), shown)
            return
        try:
            yield from self._walk(opened, f"{relative}/", pattern, budget)
        except IngestError as error:
            yield budget.skipped_folder(error, shown)
        finally:
            os.close(opened)

    def _file(self, entry: os.DirEntry[str], relative: str, budget: ListingBudget) -> SourceFile | Skipped:
        full = self._full(relative)
        try:
            if entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                self.roots.require_one_name(status, full)
                return described(full, status, f"{self._listed_location}/{relative}")
            return self.stat(full)
        except (OSError, IngestError) as error:
            return budget.skipped_file(map_error(error, full) if isinstance(error, OSError) else error, full)

    def _at(self, path: str) -> Path:
        """Locate a path after checking its length, because locating resolves it."""
        return self.locate(require_path(path))

    def _full(self, relative: str) -> str:
        return f"{self.path.rstrip('/')}/{relative}" if self.path else relative


class _LocalFile(io.FileIO):
    """A file that raises read errors as errors of a source: network file systems can also fail after open."""

    def __init__(self, descriptor: int, path: str) -> None:
        super().__init__(descriptor, "rb", closefd=False)
        self._path = path

    def readinto(self, buffer: Buffer, /) -> int | None:
        try:
            return super().readinto(buffer)
        except OSError as error:
            raise map_error(error, self._path) from error

    def readall(self) -> bytes:
        try:
            return super().readall()
        except OSError as error:
            raise map_error(error, self._path) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a dangling link: opening it reports that, and only it is skipped


def _dummy_path(path: str, root: Path) -> Path:
    """Locate a path relative to the current folder if that is inside the root, otherwise relative to the root."""
    from_here = Path(path)
    resolved_root = os.path.realpath(root)
    if from_here.is_absolute() or _resolves_below(from_here, resolved_root):
        return from_here
    first, *rest = from_here.parts or (".",)
    return Path(resolved_root, *rest) if first == root.name else Path(resolved_root, path)


def _resolves_below(path: Path, folder: str) -> bool:
    try:
        return Path(os.path.realpath(path)).is_relative_to(folder)
    except ValueError:
        return False  # an impossible name; opening it reports that


def map_error(error: OSError, named: str) -> IngestError:
    """Map the error of a file operation to an error of a source."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
        return SourceNotFoundError(named)
    if error.errno in (errno.EACCES, errno.EPERM):
        return ForbiddenPathError(named, "the user of this process may not read it. Check its owner and mode.")
    if error.errno == errno.ELOOP:
        return ForbiddenPathError(named, "its symbolic links lead nowhere.")
    return SourceUnreachableError(named, error.strerror or error)


def described(path: str, status: os.stat_result, location: str | None = None) -> SourceFile:
    """Describe a file by its status."""
    try:
        modified_at = _EPOCH + timedelta(microseconds=status.st_mtime_ns // 1000)
    except OverflowError:
        # File systems can store times outside the range of a datetime.
        modified_at = None
    return SourceFile(path, path.rpartition("/")[2], status.st_size, modified_at, None, location)


def _is_inside(folder: str, resolved: str) -> bool:
    """Return True if a path is a folder or below it; both must be resolved with `realpath`."""
    return resolved == folder or resolved.startswith(os.path.join(folder, ""))  # noqa: PTH118 - text, for each file


def require_path(named: str) -> str:
    """Return the path if its length bounds the cost of resolving it.

    Raises:
        ForbiddenPathError: the path is a URL, or too long.
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
    import fcntl  # only without /proc (macOS)

    getpath = 50  # F_GETPATH
    return fcntl.fcntl(descriptor, getpath, bytes(1024)).rstrip(b"\x00").decode("utf-8", "surrogateescape")
