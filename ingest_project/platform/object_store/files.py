"""Local files on their way into a store: written whole, and held to their announced length and digest."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from ingest_project.core.errors import SourceChangedError, SourceNotFoundError
from ingest_project.platform.object_store.locations import folder_errors


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte: the system may take a part at a time, and a nearly full disk does before it refuses the rest.

    Raises:
        OSError: what is left cannot be written.
    """
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, memoryview(data)[written:])


class LocalFile:
    """Reads a file once, from its start to its end; a context manager.

    Args:
        path: a finished file.
        size_bytes: its length.
        sha256: its digest, in hex.

    Raises:
        SourceNotFoundError: there is no such file.
        SourceChangedError: it is not of this length (when it is opened), or not of this digest (when its end was read).
        StoreUnavailableError: the disk cannot be read.
    """

    def __init__(self, path: Path, size_bytes: int, sha256: str) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.sha256 = sha256.lower()
        self._digest = hashlib.sha256()

    def __enter__(self) -> Self:
        try:
            self._file = self.path.open("rb", buffering=0)
        except FileNotFoundError:
            raise SourceNotFoundError(str(self.path)) from None
        except OSError as error:
            raise SourceChangedError(str(self.path), f"it cannot be opened: {error.strerror}") from error
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
        """Of the open file, for the system's own calls."""
        return self._file.fileno()

    def read(self, size: int) -> bytes:
        """The next piece: of this size, except for the last."""
        with folder_errors(self.path):
            chunk = self._file.read(size) or b""
            while len(chunk) < size and (more := self._file.read(size - len(chunk))):
                chunk += more
        self._digest.update(chunk)
        return chunk

    def read_all(self) -> bytes:
        """Everything, checked."""
        data = self.read(self.size_bytes)
        self.finish()
        return data

    def finish(self) -> None:
        """Check what was read."""
        if self._digest.hexdigest() != self.sha256:
            raise SourceChangedError(str(self.path), "its content is not what its checksum announced")


class FileFingerprint(NamedTuple):
    """Which file it is, and when it was last written to. A link to the file has the same seal, a copy has not."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """The seal of a file as it is now."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
