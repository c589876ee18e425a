"""The two stores of files' bytes, over any `ObjectStore`: landing by content, quarantine by file key.

The landing store keeps the bytes of every file, unchanged, under the SHA-256 of their content: storing the same bytes
again writes nothing. The quarantine store keeps the bytes of each rejected file, and next to them a JSON that gives the
reason. The JSON is written last and removed first: a file is in quarantine when its JSON is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote

import msgspec

from ingest_project.core.errors import SourceChangedError, SourceNotFoundError
from ingest_project.core.items import digest_of
from ingest_project.core.local_files import PIECE_BYTES, FileFingerprint, LocalFile, folder_errors, write_all
from ingest_project.platform.object_store.store import ObjectStore

# Larger files go to the disk first, because their name is known only after their last byte.
MEMORY_BYTES = PIECE_BYTES
# File systems accept 255 bytes; the rest is for `.json` and a description's name.
MAX_NAME_LENGTH = 180


class Landed(NamedTuple):
    """A file's bytes in the landing store.

    Args:
        path: where they are, for people: a file's path or an address.
        landed_before: they were found there, and not copied there now.
    """

    sha256: str
    size_bytes: int
    path: str
    landed_before: bool = False


class LandingStore:
    """Keeps bytes by content. Memory use does not grow with the file.

    Raises:
        StoreUnavailableError: from every method, when the store cannot be used.
    """

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    def land(
        self, stream: BinaryIO | Iterator[bytes], *, expected_size: int | None = None, location: str = "The file"
    ) -> Landed:
        """Copy a stream to its end. Landing the same bytes again changes nothing.

        Args:
            stream: a binary file, or pieces of any size.
            expected_size: bytes the file had when it was announced; None when that is not known.
            location: of the file, for the error.

        Raises:
            SourceChangedError: not of the announced size; nothing is kept.
        """
        digest = _Digest(expected_size, location)
        pieces = digest.counted(_pieces_of(stream))
        head = bytearray()
        for piece in pieces:
            head += piece
            if len(head) > MEMORY_BYTES:
                with _spooled(self._objects.scratch, head, pieces) as path:
                    sha256 = digest.finish()
                    file = LocalFile(path, digest.size_bytes, sha256, FileFingerprint.of(path.stat()))
                    return self._keep(sha256, digest.size_bytes, file)
        return self._keep(digest.finish(), digest.size_bytes, bytes(head))

    def find(self, sha256: str) -> Landed | None:
        """Return the content that was landed earlier under this digest; None without one."""
        present = self._objects.stat(object_name(sha256))
        return Landed(sha256, present.size_bytes, present.location, landed_before=True) if present else None

    def remove(self, sha256: str) -> None:
        """Remove a content; a missing one is removed already."""
        self._objects.remove(object_name(sha256))

    def local_path(self, sha256: str) -> AbstractContextManager[Path]:
        """Open a local file with the bytes: not to be written to, and removed afterwards if the store is remote.

        Raises:
            SourceNotFoundError: no such content was landed.
        """
        return self._objects.local_path(object_name(sha256))

    def _keep(self, sha256: str, size_bytes: int, content: LocalFile | bytes) -> Landed:
        name = object_name(sha256)
        present = self._objects.stat(name)
        # One of another size was left by a power cut, and is written again.
        if present is None or present.size_bytes != size_bytes:
            present = self._objects.put(name, content)
        return Landed(sha256, size_bytes, present.location)


def object_name(sha256: str) -> str:
    """Return `ab/abcd...`: a million files are some 4,000 to a folder, and 256 folders are soon made.

    A second level would make a new folder for nearly every file of a new store, which takes longer than the file.
    """
    return f"{sha256[:2]}/{sha256}"


class QuarantinedFile(msgspec.Struct, frozen=True):
    """A rejected file.

    Args:
        reason: why, by whom and from where: rule, detail, source path, sha256, when, run id, Kafka position.
        location: of its bytes, for people.
    """

    file_key: str
    reason: dict[str, Any]
    location: str


class QuarantineStore:
    """Keeps rejected files by file key, which may be any text.

    Raises:
        StoreUnavailableError: from every method, when the store cannot be used.
    """

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    def put(self, file_key: str, content: LocalFile | bytes, reason: Mapping[str, Any]) -> QuarantinedFile:
        """Keep the bytes and the reason, which is anything that JSON can hold; replaces both."""
        name = safe_name(file_key)
        stored = self._objects.put(name, content)
        note = msgspec.json.encode({"file_key": file_key, **reason})
        self._objects.put(f"{name}.json", msgspec.json.format(note, indent=2))
        return QuarantinedFile(file_key, dict(reason), stored.location)

    def get(self, file_key: str) -> QuarantinedFile | None:
        """Return why this file is in quarantine; None when it is not."""
        name = safe_name(file_key)
        try:
            with self._objects.local_path(f"{name}.json") as path:
                reason: dict[str, Any] = msgspec.json.decode(path.read_bytes())
        except SourceNotFoundError:
            return None
        return QuarantinedFile(str(reason.pop("file_key")), reason, self._objects.location(name))

    def local_path(self, file_key: str) -> AbstractContextManager[Path]:
        """Open a local file with the bytes; see `LandingStore.local_path`."""
        return self._objects.local_path(safe_name(file_key))

    def remove(self, file_key: str) -> None:
        """Remove an accepted file; a missing one is removed already."""
        name = safe_name(file_key)
        self._objects.remove(f"{name}.json")
        self._objects.remove(name)


def safe_name(file_key: str) -> str:
    """Return a name that every store accepts, readable for ordinary keys, different for different keys."""
    name = quote(file_key, safe="~")
    name = re.sub(r"^\.", "%2E", name)
    if len(name) > MAX_NAME_LENGTH:
        # Cut between percent escapes, not inside one.
        name = re.sub(r"%.?$", "", name[:MAX_NAME_LENGTH]) + f"~{digest_of(file_key)}"
    # No name of bytes may look like another file's JSON.
    return re.sub(r"\.json$", "%2Ejson", name)


class _Digest:
    """Length and SHA-256 of a stream while it is copied, held to what was announced."""

    def __init__(self, expected_size: int | None, location: str) -> None:
        self.size_bytes = 0
        self._sha256 = hashlib.sha256()
        self._expected_size = expected_size
        self._location = location

    def counted(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the pieces, counted and hashed.

        Raises:
            SourceChangedError: longer than announced already; an endless stream is not read to its end.
        """
        for piece in pieces:
            self.size_bytes += len(piece)
            if self._expected_size is not None and self.size_bytes > self._expected_size:
                raise SourceChangedError(self._location, f"it has more than the announced {self._expected_size} bytes")
            self._sha256.update(piece)
            yield piece

    def finish(self) -> str:
        """Return the SHA-256 of everything, in hex.

        Raises:
            SourceChangedError: shorter than announced.
        """
        if self._expected_size is not None and self.size_bytes != self._expected_size:
            raise SourceChangedError(
                self._location, f"it has {self.size_bytes} bytes, not the announced {self._expected_size}"
            )
        return self._sha256.hexdigest()


def _pieces_of(stream: BinaryIO | Iterator[bytes]) -> Iterator[bytes]:
    """Yield the stream in pieces of bounded size, none of them empty."""
    if hasattr(stream, "read"):
        while chunk := stream.read(PIECE_BYTES):
            yield chunk
        return
    for chunk in stream:
        for start in range(0, len(chunk), PIECE_BYTES):
            yield chunk[start : start + PIECE_BYTES]


@contextmanager
def _spooled(folder: Path, head: bytearray, rest: Iterator[bytes]) -> Iterator[Path]:
    """Write a stream to a temporary file, and remove it after use."""
    path = folder / f"landing-{uuid.uuid4().hex}"
    with folder_errors(folder):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
    try:
        with contextlib.closing(os.fdopen(descriptor, "wb", buffering=0)):
            # A failure while the source is read is the source's, not the store's.
            for piece in itertools.chain([bytes(head)], rest):
                with folder_errors(folder):
                    write_all(descriptor, piece)
        yield path
    finally:
        path.unlink(missing_ok=True)
