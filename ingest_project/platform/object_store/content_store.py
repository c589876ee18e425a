"""The landing store: the bytes of every file, unchanged, under the SHA-256 of their content.

The same bytes a second time are the same object: nothing is written, nothing is lost, and nobody ever sees half a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from ingest_project.core.errors import SourceChangedError

CHUNK_BYTES = 1024**2


class Landed(NamedTuple):
    """A file's bytes in the landing store.

    Args:
        path: where they are, for people: a file's path or s3:// address.
        landed_before: they were found there, and not copied there now.
    """

    sha256: str
    size_bytes: int
    path: str
    landed_before: bool = False


class LandingStore(Protocol):
    """Keeps bytes by content. Memory use does not grow with the file."""

    def land(
        self,
        stream: BinaryIO | Iterator[bytes],
        *,
        expected_size: int | None = None,
        expected_md5: str | None = None,
        location: str = "The file",
    ) -> Landed:
        """Copy a stream to its end. Landing the same bytes again changes nothing.

        Args:
            stream: a binary file, or pieces of any size.
            expected_size: bytes the file had when it was announced; None when that is not known.
            expected_md5: hex digest the source gave; None when it gives none.
            location: of the file, for the error.

        Raises:
            SourceChangedError: not of the announced size or digest; nothing is kept.
            StoreUnavailableError: the store cannot be written.
        """

    def find(self, sha256: str) -> Landed | None:
        """What was landed before under this name; None when there is nothing.

        Raises:
            StoreUnavailableError: the store cannot be asked.
        """

    def open(self, sha256: str) -> BinaryIO:
        """The bytes, to be read in order; the caller closes it.

        Raises:
            SourceNotFoundError: no such content was landed.
            StoreUnavailableError: the store cannot be read.
        """

    def remove(self, sha256: str) -> None:
        """Let go of a content; what is not there is removed already.

        Raises:
            StoreUnavailableError: the store refuses.
        """

    def local_path(self, sha256: str) -> AbstractContextManager[Path]:
        """A local file with the bytes, for readers that need one; not to be written to, gone afterwards if remote.

        Raises:
            SourceNotFoundError, StoreUnavailableError: as `open`.
        """


def object_name(sha256: str) -> str:
    """`ab/abcd...`: a million files are some 4,000 to a folder, and 256 folders are soon made.

    A second level would make a new folder for nearly every file of a young store, which takes longer than the file.
    """
    return f"{sha256[:2]}/{sha256}"


def chunks_of(stream: BinaryIO | Iterator[bytes], size: int = CHUNK_BYTES) -> Iterator[bytes]:
    """The stream in pieces of at most that size, none of them empty."""
    if hasattr(stream, "read"):
        while chunk := stream.read(size):
            yield chunk
        return
    for chunk in stream:
        for start in range(0, len(chunk), size):
            yield chunk[start : start + size]


class Digest:
    """What is learnt of a stream while it is copied: its length, its name, and whether it is what was announced."""

    def __init__(self, expected_size: int | None, expected_md5: str | None, location: str) -> None:
        self.size_bytes = 0
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False) if expected_md5 else None
        self._expected_size = expected_size
        self._expected_md5 = expected_md5
        self._location = location

    def add(self, chunk: bytes) -> None:
        """Count and hash one more piece.

        Raises:
            SourceChangedError: longer than announced already; an endless stream is not read to its end.
        """
        self.size_bytes += len(chunk)
        if self._expected_size is not None and self.size_bytes > self._expected_size:
            raise SourceChangedError(self._location, f"it has more than the announced {self._expected_size} bytes")
        self._sha256.update(chunk)
        if self._md5 is not None:
            self._md5.update(chunk)

    def finish(self) -> str:
        """The SHA-256 of everything, in hex.

        Raises:
            SourceChangedError: not what was announced.
        """
        if self._expected_size is not None and self.size_bytes != self._expected_size:
            raise SourceChangedError(
                self._location, f"it has {self.size_bytes} bytes, not the announced {self._expected_size}"
            )
        if self._md5 is not None and self._md5.hexdigest() != str(self._expected_md5).lower():
            raise SourceChangedError(self._location, "its content is not what its checksum announced")
        return self._sha256.hexdigest()
