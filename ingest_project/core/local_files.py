"""Local files: kept private, written completely, and read with their announced length and digest verified.

Rows, attachments, logs and SQLite files hold data that other users should not read, and most are created by libraries
that do not set modes. So every process sets its umask first: folders become 0700 and files 0600.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from typing_extensions import Buffer

from ingest_project.core.errors import SourceChangedError, SourceNotFoundError, StoreUnavailableError

FOLDER_MODE = 0o700
OTHERS = stat.S_IRWXG | stat.S_IRWXO
PIECE_BYTES = 1024**2


def keep_files_private() -> None:
    """Set the umask so that new files of this process and its children are private to its user."""
    os.umask(OTHERS)


def owner_only(path: str, flags: int) -> int:
    """Open a file for `open`, as its `opener`: one that is created is private to this user, whatever the umask is."""
    return os.open(path, flags, 0o600)


def make_private_folder(folder: Path) -> None:
    """Create a folder and its missing parents for this user only; leave existing ones unchanged.

    Raises:
        OSError: it cannot be created, or a file of that name exists.
    """
    for part in reversed((folder, *folder.parents)):
        if not part.is_dir():
            part.mkdir(FOLDER_MODE, exist_ok=True)


@contextmanager
def folder_errors(folder: Path) -> Iterator[None]:
    """Raise errors of the file system as `StoreUnavailableError`.

    Raises:
        StoreUnavailableError: full, read-only, forbidden, broken.
    """
    try:
        yield
    except OSError as error:
        raise StoreUnavailableError(str(folder), error.strerror or error) from error


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte: the system may accept a part at a time, as a nearly full disk does before it rejects the rest.

    Raises:
        OSError: the rest cannot be written.
    """
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, memoryview(data)[written:])


class FileFingerprint(NamedTuple):
    """Identity of a file and time of its last write. A link to the file has the same one, a copy has another."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """Return the fingerprint of a file in its present state."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class BlockReader(io.RawIOBase):
    """An unbuffered file whose subclass returns the next bytes, at most so many, and none at the end."""

    def next_block(self, size: int) -> bytes:
        """Return the next bytes."""
        raise NotImplementedError

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        """Read some of the next bytes."""
        view = memoryview(buffer).cast("B")
        block = self.next_block(len(view))
        view[: len(block)] = block
        return len(block)


class LocalFile:
    """A finished file with its announced length and digest; as a context manager, it is read once from start to end.

    Args:
        path: path of the file, which must not change meanwhile.
        size_bytes: its length.
        sha256: its digest, in hex.
        fingerprint: of the file when its digest was computed. While the file still has it, its digest need not be
            computed again.

    Raises:
        SourceNotFoundError: the file does not exist.
        SourceChangedError: another length (on opening); another digest, or written to meanwhile (after the last byte).
        StoreUnavailableError: the disk cannot be read.
    """

    def __init__(self, path: Path, size_bytes: int, sha256: str, fingerprint: FileFingerprint | None = None) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.sha256 = sha256.lower()
        self.fingerprint = fingerprint

    def __enter__(self) -> Self:
        try:
            self._file = self.path.open("rb", buffering=0)
        except FileNotFoundError:
            raise SourceNotFoundError(str(self.path)) from None
        except OSError as error:
            raise SourceChangedError(str(self.path), f"it cannot be opened: {error.strerror}") from error
        self._digest = None if self._has_fingerprint() else hashlib.sha256()
        actual = os.fstat(self._file.fileno()).st_size
        if actual != self.size_bytes:
            self._file.close()
            raise SourceChangedError(str(self.path), f"it has {actual} bytes, not the announced {self.size_bytes}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def descriptor(self) -> int:
        """Return the descriptor of the open file, for system calls."""
        return self._file.fileno()

    def read(self, size: int) -> bytes:
        """Return the next piece: of this size, except for the last."""
        with folder_errors(self.path):
            chunk = self._file.read(size) or b""
            while len(chunk) < size and (more := self._file.read(size - len(chunk))):
                chunk += more
        if self._digest:
            self._digest.update(chunk)
        return chunk

    def read_all(self) -> bytes:
        """Return the whole content, verified."""
        data = self.read(self.size_bytes)
        self.finish()
        return data

    def pieces(self) -> Iterable[bytes]:
        """Yield the content in pieces, and verify it after the last one."""
        while piece := self.read(PIECE_BYTES):
            yield piece
        self.finish()

    def finish(self) -> None:
        """Verify everything that was read: by its digest, or by the fingerprint that the file had and still has."""
        is_intact = self._digest.hexdigest() == self.sha256 if self._digest else self._has_fingerprint()
        if not is_intact:
            raise SourceChangedError(str(self.path), "its content is not what its checksum announced")

    def _has_fingerprint(self) -> bool:
        return self.fingerprint == FileFingerprint.of(os.fstat(self.descriptor))
