"""One object store with three back ends, opened by its address, and the local back end.

Another package adds a back end by an entry point in the group `ingest_project.stores`: its name is the scheme of the
addresses, its value a `StoreFactory`. The SDK of a remote back end is loaded only when that back end is opened.

In a local folder, an object is written under a temporary name and then renamed. A local file is linked if the file
system supports it, and copied otherwise. A link that still has the fingerprint under which its digest was computed is
complete; any other content is read and compared with the digest first. Metadata is stored in a hidden file next to the
object (`.name.json`), not in extended attributes, which most ways to copy a folder lose and some file systems lack.
This description is written before its object and contains the length and time of the content, so that a kill between
the two leaves a detectable mismatch. The first description of a name is linked into place, which only one writer can
do: from then on `may_replace` decides by it which writers may replace the object. Paths are strings there, for speed
with thousands of small files.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from ingest_project.core import plugins
from ingest_project.core.errors import (
    ForbiddenPathError,
    PermanentError,
    SettingsError,
    SourceNotFoundError,
    StoreUnavailableError,
)
from ingest_project.core.local_files import FileFingerprint, LocalFile, folder_errors, write_all
from ingest_project.core.settings import Settings
from ingest_project.platform.azure import OneLakeOptions, is_address, onelake_options
from ingest_project.platform.object_store.store import (
    UNFINISHED,
    MayReplace,
    ObjectStore,
    S3Options,
    StoredObject,
    StoreFactory,
    StoreOptions,
    location_of,
    require_safe_name,
    s3_options,
)

INCOMING = ".uploading"
# No writer needs a whole day.
ORPHANED_AFTER = timedelta(days=1)
# A hard link shares its bytes with the original, which nobody may change in place.
READ_ONLY = 0o400
# Another file system, one without links or with too many of one file; or a missing file, which reading reports.
NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES, errno.ENOSYS, errno.ENOENT}


_ONELAKE = "ingest_project.platform.object_store.onelake:open_onelake"
STORES: plugins.Plugins[StoreFactory] = plugins.Plugins(
    plugins.STORES,
    {
        "file": "ingest_project.platform.object_store:open_folder",
        "s3": "ingest_project.platform.object_store.s3:open_s3",
        **dict.fromkeys(("abfs", "abfss", "http", "https"), _ONELAKE),
    },
)


def open_store(
    url: str, s3: S3Options | None = None, onelake: OneLakeOptions | None = None, settings: Settings | None = None
) -> ObjectStore:
    """Return the store at an address, without contacting a remote service.

    Args:
        url: a folder, `file:///folder`, `s3://bucket/prefix`, any form of `azure.parse_address`, or an address with a
            scheme of another package.
        s3: connection options of S3.
        onelake: connection options of OneLake.
        settings: settings of this process, for the stores of other packages.

    Raises:
        SettingsError: the address has none of these forms.
        ForbiddenPathError: a host or level of OneLake that cannot be written.
        StoreUnavailableError: the folder cannot be created.
    """
    try:
        factory = STORES.named(_scheme(url), "scheme of a store")
    except PermanentError as error:
        raise SettingsError(f"{url[:200]} is no store: {error}") from None
    return factory(url, StoreOptions(s3 or S3Options(), onelake or OneLakeOptions(), settings))


def open_configured_store(url: str, settings: Settings) -> ObjectStore:
    """Return the store at an address, with the connection options from the settings; see `open_store`."""
    return open_store(url, s3_options(settings.storage), onelake_options(settings.onelake), settings)


def _scheme(url: str) -> str:
    if is_address(url):
        return "abfss"
    scheme, separator, _ = url.partition("://")
    return scheme.lower() if separator else "file"


def open_folder(url: str, _options: StoreOptions) -> FolderStore:
    """Return the store in a folder, which is created if missing.

    Raises:
        SettingsError: the address is not a folder.
    """
    location = location_of(url)
    if not isinstance(location, Path):
        raise SettingsError(f"{url} is no folder.")
    return FolderStore(location)


class FolderStore:
    """An `ObjectStore` in a local folder.

    A power cut (not a kill) may lose or empty the objects of the last seconds; their size then differs from the
    recorded one.

    Args:
        folder: created if missing.
    """

    def __init__(self, folder: Path) -> None:
        with folder_errors(folder):
            (folder / INCOMING).mkdir(parents=True, exist_ok=True)
            self._root = folder.resolve()
        self.scratch = self._root / INCOMING
        self.remove_orphaned(ORPHANED_AFTER)

    def location(self, name: str) -> str:
        """Return the path of an object.

        Raises:
            ForbiddenPathError: the path leads out of the store, directly or through a symbolic link.
        """
        name = require_safe_name(name)
        path = f"{self._root}/{name}"
        first, *others = name.split("/")
        # Only with a link in it must a path be resolved.
        links = map(os.path.islink, accumulate(others, "{}/{}".format, initial=f"{self._root}/{first}"))
        if any(links) and (Path(path).is_symlink() or not Path(path).parent.resolve().is_relative_to(self._root)):
            raise ForbiddenPathError(name[:200], "a link leads out of the store.")
        return path

    def put(
        self,
        name: str,
        content: LocalFile | bytes,
        *,
        metadata: Mapping[str, str] | None = None,
        may_replace: MayReplace | None = None,
    ) -> StoredObject:
        """Store an object; see `ObjectStore.put`."""
        path = self.location(name)
        with folder_errors(self._root):
            present = _present(path) if may_replace else None
        if may_replace and present and not may_replace(present):
            return present
        temporary = self._temporary()
        try:
            with self._errors(name):
                os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
                self._store_temporary(content, temporary)
                if metadata:
                    self._describe(path, temporary, metadata, may_replace)
                os.replace(temporary, path)  # noqa: PTH105
        except BaseException:
            _remove(temporary)
            raise
        if not isinstance(content, bytes):
            # A rename onto another link to the same file does nothing and leaves both names.
            _remove(temporary)
        return StoredObject(path, len(content) if isinstance(content, bytes) else content.size_bytes, metadata or {})

    def stat(self, name: str) -> StoredObject | None:
        """Return size and metadata; see `ObjectStore.stat`."""
        path = self.location(name)
        if (status := self._status(path)) is None:
            return None
        description = _description(path)
        is_described = description is not None and description.content == _version(status)
        return StoredObject(path, status.st_size, description.metadata if description and is_described else {})

    @contextmanager
    def local_path(self, name: str) -> Iterator[Path]:
        """Return the file itself; see `ObjectStore.local_path`."""
        path = self.location(name)
        if self._status(path) is None:
            raise SourceNotFoundError(path)
        yield Path(path)

    def remove(self, name: str) -> None:
        """Remove an object; see `ObjectStore.remove`."""
        path = self.location(name)
        self._status(path)
        with folder_errors(self._root):
            Path(path).unlink(missing_ok=True)
            Path(_description_path(path)).unlink(missing_ok=True)

    def remove_orphaned(self, older_than: timedelta) -> int:
        """Remove the temporary files of killed writers; see `ObjectStore.remove_orphaned`."""
        oldest = time.time() - older_than.total_seconds()
        removed = 0
        with folder_errors(self._root), os.scandir(self.scratch) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    # Use ctime: a hard link's mtime is when its content was written, possibly long ago.
                    if entry.stat().st_ctime < oldest:
                        Path(entry.path).unlink()
                        removed += 1
        return removed

    def _status(self, path: str) -> os.stat_result | None:
        """Return the status of an object's file; None if there is none.

        Raises:
            StoreUnavailableError: the folder cannot be read, or is not there: the objects of an unmounted drive exist.
        """
        with folder_errors(self._root):
            if (status := _status(path)) is None:
                os.stat(self.scratch)  # noqa: PTH116
        return status

    def _temporary(self) -> str:
        return f"{self.scratch}/{os.urandom(16).hex()}"

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """Distinguish a file in place of a folder, or vice versa, from a failing disk."""
        try:
            with folder_errors(self._root):
                yield
        except StoreUnavailableError as error:
            if isinstance(error.__cause__, FileExistsError | NotADirectoryError | IsADirectoryError):
                raise ForbiddenPathError(name[:200], "another file or folder has that name.") from error
            raise

    def _store_temporary(self, content: LocalFile | bytes, temporary: str) -> None:
        """Create the content under a temporary name in the store, verified and read-only."""
        if isinstance(content, bytes):
            _write_new(temporary, [content])
        elif _link(content, temporary) and _is_complete(temporary, content):
            os.chmod(temporary, READ_ONLY)  # noqa: PTH101
        else:
            with content:
                _write_new(temporary, content.pieces())

    def _describe(self, path: str, content: str, metadata: Mapping[str, str], may_replace: MayReplace | None) -> None:
        """Store the description of a content; `may_replace` decides if another writer has stored one first."""
        described = {"content": _version(os.stat(content)), "metadata": dict(metadata)}  # noqa: PTH116
        temporary = self._temporary()
        _write_new(temporary, [json.dumps(described, ensure_ascii=False).encode()])
        try:
            if not _claimed(temporary, _description_path(path)):
                if may_replace and (present := _present(path)):
                    may_replace(present)
                os.replace(temporary, _description_path(path))  # noqa: PTH105
        finally:
            _remove(temporary)


class _Description(NamedTuple):
    """The hidden file of an object.

    Args:
        content: length and time of the content to which the metadata belongs.
    """

    content: list[int]
    metadata: dict[str, str]


def _link(file: LocalFile, temporary: str) -> bool:
    """Link the file to a temporary name; return False if the file system cannot."""
    try:
        os.link(file.path, temporary)
    except OSError as error:
        if error.errno in NO_LINK:
            return False
        raise
    return True


def _is_complete(temporary: str, file: LocalFile) -> bool:
    """Verify a link by its fingerprint or by reading the file; remove a link to a symbolic link.

    Raises:
        SourceChangedError: the content is not the announced one.
    """
    status = os.lstat(temporary)
    if file.fingerprint == FileFingerprint.of(status) and status.st_size == file.size_bytes:
        return True
    with file:
        if os.path.samestat(status, os.fstat(file.descriptor)):
            for _ in file.pieces():
                pass
            return True
    os.unlink(temporary)  # noqa: PTH108
    return False


def _write_new(path: str, pieces: Iterable[bytes]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, READ_ONLY)
    try:
        for piece in pieces:
            write_all(descriptor, piece)
    finally:
        os.close(descriptor)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)  # noqa: PTH108


def _status(path: str) -> os.stat_result | None:
    """Return the status of a file; None if there is no file."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _present(path: str) -> StoredObject | None:
    """Return the object with a name, or the claim of a writer that was killed before it stored the content."""
    status, description = _status(path), _description(path)
    if status is None and description is None:
        return None
    is_finished = status is not None and (description is None or description.content == _version(status))
    size_bytes = status.st_size if status is not None and is_finished else UNFINISHED
    return StoredObject(path, size_bytes, description.metadata if description else {})


def _claimed(description: str, path: str) -> bool:
    """Claim an unused name: of several concurrent writers, one succeeds.

    On a file system without links, the last of several simultaneous writers wins.
    """
    try:
        os.link(description, path)
    except OSError as error:
        if error.errno in NO_LINK | {errno.EEXIST}:
            return False
        raise
    return True


def _description(path: str) -> _Description | None:
    """Read the hidden file of an object; None without a readable one."""
    try:
        described = json.loads(Path(_description_path(path)).read_bytes())
        return _Description(described["content"], dict(described["metadata"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _version(status: os.stat_result) -> list[int]:
    """Return length and time, which identify a content without reading the file."""
    return [status.st_size, status.st_mtime_ns]


def _description_path(path: str) -> str:
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name}.json"
