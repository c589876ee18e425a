"""Keep local files private, write them completely, and read them with their announced length and digest verified.

Rows, attachments, logs and SQLite files contain data that other users should not read, and libraries that set no modes
create most of them. So every process sets its umask first: folders become 0700 and files 0600.
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
    """Open a file as the `opener` of `open`, so that a new file is private to this user regardless of the umask."""
    return os.open(path, flags, 0o600)


def make_private_folder(folder: Path) -> None:
    """Create a folder and its missing parents for this user only; leave existing ones unchanged.

    Raises:
        OSError: the folder cannot be created, or a file of that name exists.
    """
    for part in reversed((folder, *folder.parents)):
        if not part.is_dir():
            part.mkdir(FOLDER_MODE, exist_ok=True)


@contextmanager
def folder_errors(folder: Path) -> Iterator[None]:
    """Raise errors of the file system as `StoreUnavailableError`.

    Raises:
        StoreUnavailableError: the disk is full, read-only or broken, or access is denied.
    """
    try:
        yield
    except OSError as error:
        raise StoreUnavailableError(str(folder), error.strerror or error) from error


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte: the system may accept only a part per call, e.g. a nearly full disk before it rejects the rest.

    Raises:
        OSError: the rest cannot be written.
    """
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, memoryview(data)[written:])


class FileFingerprint(NamedTuple):
    """Identity of a file and time of its last write. A hard link has the same fingerprint, a copy has another."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """Return the fingerprint of a file in its current state."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class BlockReader(io.RawIOBase):
    """An unbuffered file; a subclass returns the next bytes, at most `size`, and none at the end."""

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
    """A complete file with its announced length and digest; use it as a context manager to read it once, in order.

    Args:
        path: path of the file, which must not change during the read.
        size_bytes: announced length.
        sha256: announced digest, in hexadecimal.
        fingerprint: fingerprint of the file when its digest was computed. While it is unchanged, the digest need not
            be computed again.

    Raises:
        SourceNotFoundError: the file does not exist.
        SourceChangedError: the length differs (on opening), or the digest, or the file was written to (at the end).
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
        """Return the next piece, which has this size unless it is the last one."""
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
        """Verify everything that was read, by an unchanged fingerprint or by the digest."""
        is_intact = self._digest.hexdigest() == self.sha256 if self._digest else self._has_fingerprint()
        if not is_intact:
            raise SourceChangedError(str(self.path), "its content is not what its checksum announced")

    def _has_fingerprint(self) -> bool:
        return self.fingerprint == FileFingerprint.of(os.fstat(self.descriptor))
