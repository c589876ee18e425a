"""The attachment store in a local folder, the default: a temporary name first, then one rename.

What is put is linked where the file system allows it, and copied otherwise; either way every byte is read and compared
with the digest first. Metadata is kept in a hidden file beside (`.name.json`), not in extended attributes: those are
lost by most ways to copy a folder, and some file systems have none. It is renamed into place before its file and names
the length and time of the content it belongs to, so that a kill between the two can be told from the finished pair.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ingest_project.errors import ForbiddenPath, SourceMissing, StoreUnavailable
from ingest_project.stores.attachment_metadata import SHA256, kept_metadata
from ingest_project.stores.attachment_names import require_plain
from ingest_project.stores.attachments import StoredAttachment
from ingest_project.stores.local_file import LocalFile
from ingest_project.stores.places import folder_errors

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator, Mapping
    from datetime import timedelta

COPY_BYTES = 1024**2
INCOMING = ".uploading"
# The link shares its bytes with the file it was made from: nobody must change them in place.
READ_ONLY = 0o444
# Other file systems, and those without links or with too many of one file.
NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES, errno.ENOSYS}


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

    def put(
        self, local_path: Path, destination: str, *, size_bytes: int, sha256: str, metadata: Mapping[str, str]
    ) -> StoredAttachment:
        """Store a local file; see `attachments.AttachmentStore.put`. What is there already is left alone."""
        path = self._path(destination)
        kept = kept_metadata(metadata, sha256)
        stored = StoredAttachment(str(path), size_bytes, sha256)
        if path.is_file() and self._described(path) == kept and path.stat().st_size == size_bytes:
            return stored
        temporary = self._incoming / uuid.uuid4().hex
        try:
            with self._errors(destination):
                path.parent.mkdir(parents=True, exist_ok=True)
            with LocalFile(local_path, size_bytes, sha256) as file:
                self._bring(file, temporary)
            with self._errors(destination):
                self._describe(path, temporary, kept)
                temporary.replace(path)
                if self._sync:
                    _sync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        return stored

    def stat(self, destination: str) -> StoredAttachment | None:
        """What is stored; see `attachments.AttachmentStore.stat`. A file put by others is read to know its digest."""
        path = self._path(destination)
        try:
            size = path.stat().st_size if path.is_file() else None
            if size is None:
                return None
            sha256 = self._described(path).get(SHA256) or _digest(path)
        except FileNotFoundError:
            return None
        return StoredAttachment(str(path), size, sha256)

    def metadata(self, destination: str) -> Mapping[str, str]:
        """What was put with the file; see `attachments.AttachmentStore.metadata`."""
        path = self._path(destination)
        if not path.is_file():
            raise SourceMissing(str(path))
        return self._described(path)

    def open(self, destination: str) -> BinaryIO:
        """The bytes; see `attachments.AttachmentStore.open`."""
        path = self._path(destination)
        try:
            return path.open("rb")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise SourceMissing(str(path)) from None

    def remove_abandoned(self, older_than: timedelta, below: str = "") -> int:  # noqa: ARG002 - all are in one folder
        """Remove what killed uploaders left; see `attachments.AttachmentStore.remove_abandoned`."""
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

    def _path(self, destination: str) -> Path:
        """Where a destination is.

        Raises:
            ForbiddenPath: it leads out of the store, by itself or through a link that somebody made in it.
        """
        path = self._root / require_plain(destination)
        if not path.parent.resolve().is_relative_to(self._root) or path.is_symlink():
            raise ForbiddenPath(destination[:200], "a link leads out of the store.")
        return path

    @contextlib.contextmanager
    def _errors(self, destination: str) -> Iterator[None]:
        """Tell a file where a folder is needed, or the other way round, from a disk that fails."""
        try:
            with folder_errors(self._root):
                yield
        except StoreUnavailable as error:
            if isinstance(error.__cause__, FileExistsError | NotADirectoryError | IsADirectoryError):
                raise ForbiddenPath(destination[:200], "something else of that name is in the way.") from error
            raise

    def _bring(self, file: LocalFile, temporary: Path) -> None:
        if not self._link(file, temporary):
            self._copy(file, temporary)
            return
        for _ in _pieces(file):
            pass
        file.finish()
        if self._sync:
            with folder_errors(self._root):
                os.fsync(file.descriptor)

    def _link(self, file: LocalFile, temporary: Path) -> bool:
        """Give the file's bytes a further name, if the file system can."""
        with folder_errors(self._root):
            try:
                os.link(file.path, temporary)
            except OSError as error:
                if error.errno in NO_LINK:
                    return False
                raise
            if not os.path.samestat(temporary.lstat(), os.fstat(file.descriptor)):
                # The path is a symbolic link, and so is the new name now.
                temporary.unlink()
                return False
            temporary.chmod(READ_ONLY)
        return True

    def _copy(self, file: LocalFile, temporary: Path) -> None:
        with folder_errors(self._root), temporary.open("xb", buffering=0) as target:
            for piece in _pieces(file):
                _write(target, piece)
            file.finish()
            if self._sync:
                os.fsync(target.fileno())
        temporary.chmod(READ_ONLY)

    def _describe(self, path: Path, content: Path, kept: Mapping[str, str]) -> None:
        """Put the hidden file that describes this content in place."""
        described = {"content": _version(content), "metadata": dict(kept)}
        temporary = self._incoming / uuid.uuid4().hex
        temporary.write_text(json.dumps(described, ensure_ascii=False), encoding="utf-8")
        temporary.replace(_sidecar(path))

    def _described(self, path: Path) -> dict[str, str]:
        """What was put with the content that is there; nothing when the hidden file is of another content."""
        try:
            described: dict[str, Any] = json.loads(_sidecar(path).read_bytes())
            return dict(described["metadata"]) if described["content"] == _version(path) else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}


def _pieces(file: LocalFile) -> Iterator[bytes]:
    while piece := file.read(COPY_BYTES):
        yield piece


def _write(target: io.FileIO, piece: bytes) -> None:
    """All of it: a nearly full disk takes a part, and refuses the next."""
    written = target.write(piece)
    while written < len(piece):
        written += target.write(memoryview(piece)[written:])


def _version(path: Path) -> list[int]:
    """What tells one content from another without reading it."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _sidecar(path: Path) -> Path:
    return path.with_name(f".{path.name}.json")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
