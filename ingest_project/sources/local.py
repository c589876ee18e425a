"""Files in folders of this host, `source_type` local, and the example files of the project, `source_type` dummy.

Paths come from strangers. A file that is opened is inside the configured roots with every symlink resolved, and that is
checked on the opened file itself: a link that is swapped between check and open does not lead out.

A dummy source is a local one with one more convenience: a path is also understood as a name inside the dummy folder, so
that the same job works from every current folder.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from ingest_project.core.errors import ForbiddenPathError, IngestError
from ingest_project.sources.allowed_roots import MAX_PATH_BYTES, AllowedRoots, described, map_error, require_path
from ingest_project.sources.context import SourceContext
from ingest_project.sources.limits import ListingBudget, SourceLimits
from ingest_project.sources.protocol import MAX_DEPTH, Skipped, SourceFile, printable
from ingest_project.sources.selection import Pattern, refusal

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


def open_local(source_config: Mapping[str, Any], context: SourceContext) -> LocalSource:
    """Make the source of a folder of this host; relative paths start at the current folder."""
    polling = context.polling
    roots = AllowedRoots.of(polling.local_roots, "INGEST_LOCAL_ROOTS", hard_links=polling.allow_hard_links)
    return LocalSource(str(source_config.get("path", "")), roots, Path, context.limits)


def open_dummy(source_config: Mapping[str, Any], context: SourceContext) -> LocalSource:
    """Make the source of the folder of INGEST_DUMMY_ROOT; without a path, all of it."""
    polling = context.polling
    roots = AllowedRoots.of([polling.dummy_root], "INGEST_DUMMY_ROOT", hard_links=polling.allow_hard_links)
    locate = partial(_dummy_path, root=polling.dummy_root)
    return LocalSource(str(source_config.get("path") or polling.dummy_root), roots, locate, context.limits)


@dataclass(frozen=True)
class LocalSource:
    """One folder, or one file, below the roots.

    Args:
        path: as the job or event names it.
        roots: folders that may be read.
        locate: from a path as named to one relative to the current folder.
        limits: of time and entries.
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
            # A path that no file can have still needs a stable name in reports.
            return f"local:{path[:MAX_PATH_BYTES]}"

    @cached_property
    def _listed_location(self) -> str:
        """Location of the folder that is listed. No symlink is followed below it: it holds for all of its files."""
        return f"local:{os.path.realpath(self._at(self.path))}"

    def require_allowed(self, path: str) -> None:
        """Refuse a path outside the roots, symlinks resolved, whether it exists or not."""
        self.roots.require_allowed(self._at(path), path)

    def list_files(self, pattern: str) -> Iterator[SourceFile | Skipped]:
        """Walk the folder, one open folder per level. Symlinks to folders are not followed."""
        parsed = Pattern.parse(pattern)
        with self.roots.opened_folder(self._at(self.path), self.path) as folder:
            yield from self._walk(folder, "", parsed, ListingBudget(self.limits, self.location))

    def stat(self, path: str) -> SourceFile:
        """Return size and time of change of the file that is there now."""
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
                for entry in budget.counted(entries):
                    yield from self._entry(entry, folder, below, pattern, budget)
        except OSError as error:
            raise map_error(error, self._full(below)) from error

    def _entry(
        self, entry: os.DirEntry[str], folder: int, below: str, pattern: Pattern, budget: ListingBudget
    ) -> Iterator[SourceFile | Skipped]:
        relative = below + entry.name
        if _is_folder(entry):
            if pattern.may_match_below(relative):
                yield from self._folder(entry, folder, relative, pattern, budget)
        elif pattern.matches(relative):
            yield refusal(self._full(relative), entry.name) or self._file(entry, relative)

    def _folder(
        self, entry: os.DirEntry[str], folder: int, relative: str, pattern: Pattern, budget: ListingBudget
    ) -> Iterator[SourceFile | Skipped]:
        if entry.name.startswith("."):
            yield Skipped(printable(self._full(relative)), "A hidden folder.", visible=False)
        elif relative.count("/") >= MAX_DEPTH:
            yield Skipped(printable(self._full(relative)), f"A folder more than {MAX_DEPTH} levels down.")
        elif entry.is_symlink():
            yield Skipped(printable(self._full(relative)), "A symbolic link to a folder; links are not followed.")
        else:
            yield from self._subfolder(entry.name, folder, relative, pattern, budget)

    def _subfolder(
        self, name: str, folder: int, relative: str, pattern: Pattern, budget: ListingBudget
    ) -> Iterator[SourceFile | Skipped]:
        try:
            opened = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        except FileNotFoundError:
            return  # removed during the walk
        except PermissionError:
            yield Skipped(printable(self._full(relative)), "A folder that this process may not read.")
            return
        try:
            yield from self._walk(opened, f"{relative}/", pattern, budget)
        finally:
            os.close(opened)

    def _file(self, entry: os.DirEntry[str], relative: str) -> SourceFile | Skipped:
        full = self._full(relative)
        try:
            if entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                self.roots.require_one_name(status, full)
                return described(full, status, f"{self._listed_location}/{relative}")
            return self.stat(full)
        except FileNotFoundError:
            return Skipped(full, "It was removed while the folder was read.", visible=False)
        except IngestError as error:
            return Skipped(full, str(error))

    def _at(self, path: str) -> Path:
        """Locate a path; the bound comes first, because locating resolves it."""
        return self.locate(require_path(path))

    def _full(self, relative: str) -> str:
        return f"{self.path.rstrip('/')}/{relative}" if self.path else relative


class _LocalFile(io.FileIO):
    """A file whose read errors are a source's errors: network file systems fail after open, too."""

    def __init__(self, descriptor: int, path: str) -> None:
        super().__init__(descriptor, "rb", closefd=False)
        self._path = path

    def readinto(self, buffer: WriteableBuffer, /) -> int | None:
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
        return False  # a link that leads nowhere: opening it says so, and only it is skipped


def _dummy_path(path: str, root: Path) -> Path:
    """Locate a path: from the current folder where that is inside the root, otherwise inside the root."""
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
        return False  # a name that no file can have; opening it says so
