"""The two stores of files' bytes in any `ObjectStore`: landing by content, quarantine by file key.

The landing store keeps the unchanged bytes of every file under their SHA-256: storing the same bytes again writes
nothing. The quarantine store keeps the bytes of each rejected file, and next to them a JSON file with the reason. The
JSON is written last and removed first: a file is in quarantine if its JSON exists.
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

# Larger files are spooled to disk, because their name is known only after their last byte.
MEMORY_BYTES = PIECE_BYTES
# File systems accept 255 bytes; the rest leaves room for `.json` and the name of a description.
MAX_NAME_LENGTH = 180


class Landed(NamedTuple):
    """A file's bytes in the landing store.

    Args:
        path: location of the bytes for people: a file's path or an address.
        landed_before: True if the bytes had been landed earlier and were not copied now.
    """

    sha256: str
    size_bytes: int
    path: str
    landed_before: bool = False


class LandingStore:
    """Stores bytes by their content. Memory use does not grow with the file.

    Raises:
        StoreUnavailableError: from every method, if the store cannot be used.
    """

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    def land(
        self, stream: BinaryIO | Iterator[bytes], *, expected_size: int | None = None, location: str = "The file"
    ) -> Landed:
        """Copy a whole stream. Idempotent.

        Args:
            stream: binary file, or pieces of any size.
            expected_size: announced size in bytes; None if unknown.
            location: location of the file, for the error.

        Raises:
            SourceChangedError: the stream does not have the announced size; nothing is kept.
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
        """Return the content with this digest; None if it has not been landed."""
        present = self._objects.stat(object_name(sha256))
        return Landed(sha256, present.size_bytes, present.location, landed_before=True) if present else None

    def remove(self, sha256: str) -> None:
        """Remove a content. Idempotent."""
        self._objects.remove(object_name(sha256))

    def local_path(self, sha256: str) -> AbstractContextManager[Path]:
        """Open a local file with the bytes, read-only; a copy of a remote one is removed afterwards.

        Raises:
            SourceNotFoundError: the content has not been landed.
        """
        return self._objects.local_path(object_name(sha256))

    def _keep(self, sha256: str, size_bytes: int, content: LocalFile | bytes) -> Landed:
        name = object_name(sha256)
        present = self._objects.stat(name)
        # A power cut may leave an object with another size, which is written again.
        if present is None or present.size_bytes != size_bytes:
            present = self._objects.put(name, content)
        return Landed(sha256, size_bytes, present.location)


def object_name(sha256: str) -> str:
    """Return `ab/abcd...`: a million files make 4,000 per folder, and 256 folders are quickly created.

    With a second level, nearly every file of a new store would need a new folder, which takes longer than the file.
    """
    return f"{sha256[:2]}/{sha256}"


class QuarantinedFile(msgspec.Struct, frozen=True):
    """A rejected file.

    Args:
        reason: rule, detail, source path, sha256, time, run id and Kafka position of the rejection.
        location: location of its bytes, for people.
    """

    file_key: str
    reason: dict[str, Any]
    location: str


class QuarantineStore:
    """Stores rejected files by file key, which may be any text.

    Raises:
        StoreUnavailableError: from every method, if the store cannot be used.
    """

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    def put(self, file_key: str, content: LocalFile | bytes, reason: Mapping[str, Any]) -> QuarantinedFile:
        """Store the bytes and the reason, which must be serialisable as JSON; replaces earlier ones."""
        name = safe_name(file_key)
        stored = self._objects.put(name, content)
        note = msgspec.json.encode({"file_key": file_key, **reason})
        self._objects.put(f"{name}.json", msgspec.json.format(note, indent=2))
        return QuarantinedFile(file_key, dict(reason), stored.location)

    def get(self, file_key: str) -> QuarantinedFile | None:
        """Return a file with its reason; None if it is not in quarantine."""
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
        """Remove a file that was accepted later. Idempotent."""
        name = safe_name(file_key)
        self._objects.remove(f"{name}.json")
        self._objects.remove(name)


def safe_name(file_key: str) -> str:
    """Return a name that every store accepts, readable for ordinary keys, different for different keys."""
    name = quote(file_key, safe="~")
    name = re.sub(r"^\.", "%2E", name)
    if len(name) > MAX_NAME_LENGTH:
        # Do not cut inside a percent escape.
        name = re.sub(r"%.?$", "", name[:MAX_NAME_LENGTH]) + f"~{digest_of(file_key)}"
    # The name of a file's bytes must not look like another file's JSON.
    return re.sub(r"\.json$", "%2Ejson", name)


class _Digest:
    """Computes length and SHA-256 of a stream during the copy, and compares them with the announced size."""

    def __init__(self, expected_size: int | None, location: str) -> None:
        self.size_bytes = 0
        self._sha256 = hashlib.sha256()
        self._expected_size = expected_size
        self._location = location

    def counted(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the pieces, counted and hashed.

        Raises:
            SourceChangedError: the stream is already longer than announced, so that an endless one is not read on.
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
            SourceChangedError: the stream is shorter than announced.
        """
        if self._expected_size is not None and self.size_bytes != self._expected_size:
            raise SourceChangedError(
                self._location, f"it has {self.size_bytes} bytes, not the announced {self._expected_size}"
            )
        return self._sha256.hexdigest()


def _pieces_of(stream: BinaryIO | Iterator[bytes]) -> Iterator[bytes]:
    """Yield the stream in non-empty pieces of bounded size."""
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
            # Map only errors of the store's disk: a failure to read the source is the source's.
            for piece in itertools.chain([bytes(head)], rest):
                with folder_errors(folder):
                    write_all(descriptor, piece)
        yield path
    finally:
        path.unlink(missing_ok=True)
