"""The attachment store in a local folder, the default: a temporary name first, then one rename.

What is put is linked where the file system allows it, and copied otherwise. A link that still has the seal under which
its digest was computed is whole; anything else is read and compared with the digest first. Metadata is kept in a hidden
file beside (`.name.json`), not in extended attributes: those are lost by most ways to copy a folder, and some file
systems have none. It comes into place before its file and names the length and time of the content it belongs to, so
that a kill between the two can be told from the finished pair. The first one of a name is linked into place, which only
one writer can do: from then on the name belongs to the attachment that it names.

Paths are strings where files are put: thousands of small files pass there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

from ingest_project.attachments.storage.store import (
    SHA256,
    StoredAttachment,
    kept_metadata,
    require_owner,
    require_plain,
    require_portable,
)
from ingest_project.core.errors import ForbiddenPathError, SourceNotFoundError, StoreUnavailableError
from ingest_project.platform.object_store.files import FileFingerprint, LocalFile, write_all
from ingest_project.platform.object_store.locations import folder_errors

COPY_BYTES = 1024**2
INCOMING = ".uploading"
# The link shares its bytes with the file it was made from: nobody must change them in place.
READ_ONLY = 0o400
# Other file systems, those without links or with too many of one file; and nothing to link, which reading it will tell.
NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES, errno.ENOSYS, errno.ENOENT}


class FolderAttachments:
    """See `attachments.AttachmentStore`.

    Args:
        folder: made when it is not there.
        sync: wait until each file and its name are on the disk itself. Without it a power cut (not a kill) may lose or
            empty the files of the last seconds; `stat` tells, since neither length nor digest are right then.
    """

    def __init__(self, folder: Path, *, sync: bool = False) -> None:
        self._sync = sync
        with folder_errors(folder):
            (folder / INCOMING).mkdir(parents=True, exist_ok=True)
            self._root = folder.resolve()
        self._incoming = self._root / INCOMING

    def put(  # noqa: PLR0913 - each is passed by name
        self,
        local_path: Path,
        destination: str,
        *,
        size_bytes: int,
        sha256: str,
        metadata: Mapping[str, str],
        seal: FileFingerprint | None = None,
    ) -> StoredAttachment:
        """Store a local file; see `attachments.AttachmentStore.put`. What is there already is left alone."""
        path = self._path(require_portable(destination))
        kept = kept_metadata(metadata, sha256)
        stored = StoredAttachment(path, size_bytes, sha256)
        present = _status(path)
        _require_owner(path, destination, kept, is_there=present is not None)
        if present and present.st_size == size_bytes and _described(path, present) == kept:
            return stored
        temporary = self._temporary()
        try:
            with self._errors(destination):
                _make_folder(os.path.dirname(path))  # noqa: PTH120
                self._bring(LocalFile(local_path, size_bytes, sha256), seal, temporary)
                self._describe(path, destination, temporary, kept)
                os.replace(temporary, path)  # noqa: PTH105
                if self._sync:
                    _sync(os.path.dirname(path))  # noqa: PTH120
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108
            raise
        return stored

    def stat(self, destination: str) -> StoredAttachment | None:
        """What is stored; see `attachments.AttachmentStore.stat`. A file put by others is read to know its digest."""
        path = self._path(destination)
        if (present := _status(path)) is None:
            return None
        try:
            sha256 = _described(path, present).get(SHA256) or _digest(path)
        except FileNotFoundError:
            return None
        return StoredAttachment(path, present.st_size, sha256)

    def metadata(self, destination: str) -> Mapping[str, str]:
        """What was put with the file; see `attachments.AttachmentStore.metadata`."""
        path = self._path(destination)
        if (present := _status(path)) is None:
            raise SourceNotFoundError(path)
        return _described(path, present)

    def open(self, destination: str) -> BinaryIO:
        """The bytes; see `attachments.AttachmentStore.open`."""
        path = self._path(destination)
        try:
            return Path(path).open("rb")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise SourceNotFoundError(path) from None

    def remove_orphaned(self, older_than: timedelta, below: str = "") -> int:  # noqa: ARG002 - all are in one folder
        """Remove what killed uploaders left; see `attachments.AttachmentStore.remove_orphaned`."""
        oldest = time.time() - older_than.total_seconds()
        removed = 0
        with folder_errors(self._root), os.scandir(self._incoming) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    # The time of change: a link has the time its content was written, long ago perhaps.
                    if entry.stat().st_ctime < oldest:
                        Path(entry.path).unlink()
                        removed += 1
        return removed

    def close(self) -> None:
        """Nothing is held."""

    def _path(self, destination: str) -> str:
        """Where a destination is.

        Raises:
            ForbiddenPathError: it leads out of the store, by itself or through a link that somebody made in it.
        """
        plain = require_plain(destination)
        path = f"{self._root}/{plain}"
        if self._has_link(plain) and (Path(path).is_symlink() or not self._is_inside(path)):
            raise ForbiddenPathError(destination[:200], "a link leads out of the store.")
        return path

    def _has_link(self, plain: str) -> bool:
        """Whether any part of a path is a symbolic link: hardly ever, and where none is, nothing has to be resolved."""
        path = str(self._root)
        with contextlib.suppress(OSError):
            for part in plain.split("/"):
                path = f"{path}/{part}"
                if stat.S_ISLNK(os.lstat(path).st_mode):
                    return True
        return False

    def _is_inside(self, path: str) -> bool:
        return Path(path).parent.resolve().is_relative_to(self._root)

    def _temporary(self) -> str:
        return f"{self._incoming}/{os.urandom(16).hex()}"

    @contextlib.contextmanager
    def _errors(self, destination: str) -> Iterator[None]:
        """Tell a file where a folder is needed, or the other way round, from a disk that fails."""
        try:
            with folder_errors(self._root):
                yield
        except StoreUnavailableError as error:
            if isinstance(error.__cause__, FileExistsError | NotADirectoryError | IsADirectoryError):
                raise ForbiddenPathError(destination[:200], "something else of that name is in the way.") from error
            raise

    def _bring(self, file: LocalFile, seal: FileFingerprint | None, temporary: str) -> None:
        """Give the file, or a copy of it, a temporary name in the store, and make sure of its content."""
        if not (_link(file, temporary) and _is_whole(temporary, file, seal)):
            with file:
                _copy(file, temporary)
        os.chmod(temporary, READ_ONLY)  # noqa: PTH101
        if self._sync:
            _sync(temporary)

    def _describe(self, path: str, destination: str, content: str, kept: Mapping[str, str]) -> None:
        """Put the hidden file that describes this content in place, unless somebody else's came there meanwhile."""
        described = {"content": _version(os.stat(content)), "metadata": dict(kept)}  # noqa: PTH116
        temporary = self._temporary()
        _write_new(temporary, [json.dumps(described, ensure_ascii=False).encode()])
        try:
            if not _claimed(temporary, _sidecar(path)):
                _require_owner(path, destination, kept, is_there=_status(path) is not None)
                os.replace(temporary, _sidecar(path))  # noqa: PTH105
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)  # noqa: PTH108


def _link(file: LocalFile, temporary: str) -> bool:
    """Give the file's bytes a further name, if the file system can."""
    try:
        os.link(file.path, temporary)
    except OSError as error:
        if error.errno in NO_LINK:
            return False
        raise
    return True


def _is_whole(temporary: str, file: LocalFile, seal: FileFingerprint | None) -> bool:
    """Whether a link leads to the file itself: then its content is the announced one, by its seal or by reading it.

    Raises:
        SourceChangedError: it is not.
    """
    status = os.lstat(temporary)
    if seal == FileFingerprint.of(status) and status.st_size == file.size_bytes:
        return True
    with file:
        if os.path.samestat(status, os.fstat(file.descriptor)):
            for _ in _pieces(file):
                pass
            return True
    # The file's path is a symbolic link, and so is the new name.
    os.unlink(temporary)  # noqa: PTH108
    return False


def _copy(file: LocalFile, temporary: str) -> None:
    _write_new(temporary, _pieces(file))


def _pieces(file: LocalFile) -> Iterator[bytes]:
    """The content, checked at its end."""
    while piece := file.read(COPY_BYTES):
        yield piece
    file.finish()


def _write_new(path: str, pieces: Iterable[bytes]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for piece in pieces:
            write_all(descriptor, piece)
    finally:
        os.close(descriptor)


def _make_folder(folder: str) -> None:
    try:
        os.mkdir(folder)  # noqa: PTH102
    except FileExistsError:
        return  # or a file, which the rename will tell
    except FileNotFoundError:
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103


def _status(path: str) -> os.stat_result | None:
    """Of a file; None where there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _require_owner(path: str, destination: str, kept: Mapping[str, str], *, is_there: bool) -> None:
    """Refuse a name that another attachment has: one whose file is there, or that was killed before it was."""
    owned_by = _sidecar_metadata(path)
    if is_there or owned_by:
        require_owner(destination, owned_by, kept)


def _claimed(description: str, sidecar: str) -> bool:
    """Whether a name that nobody had is this attachment's now. Of several that try at once, one succeeds.

    Where the file system has no links, of several that begin at the same moment the last one stays.
    """
    try:
        os.link(description, sidecar)
    except OSError as error:
        if error.errno in NO_LINK | {errno.EEXIST}:
            return False
        raise
    return True


def _sidecar_metadata(path: str) -> dict[str, str]:
    """What the hidden file says, of whatever content; nothing where there is none that can be read."""
    try:
        return dict(json.loads(Path(_sidecar(path)).read_bytes())["metadata"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _described(path: str, status: os.stat_result) -> dict[str, str]:
    """What was put with the content that is there; nothing when the hidden file is of another content."""
    try:
        described: dict[str, Any] = json.loads(Path(_sidecar(path)).read_bytes())
        return dict(described["metadata"]) if described["content"] == _version(status) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _version(status: os.stat_result) -> list[int]:
    """What tells one content from another without reading it."""
    return [status.st_size, status.st_mtime_ns]


def _sidecar(path: str) -> str:
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name}.json"


def _digest(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
