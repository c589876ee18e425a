"""The landing store: the bytes of every file, unchanged, under the SHA-256 of their content.

Storing the same bytes again writes nothing and loses nothing, and no reader ever sees half a file: the folder writes
under a temporary name and renames once, S3 takes small files in one request and large ones in parts under a temporary
key.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol, cast

from ingest_project.core.errors import SourceChangedError, SourceNotFoundError
from ingest_project.platform.object_store.files import write_all
from ingest_project.platform.object_store.locations import (
    Bucket,
    S3Options,
    bucket_errors,
    folder_errors,
    is_missing,
    location_of,
    s3_client,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef


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

    A second level would make a new folder for nearly every file of a new store, which takes longer than the file.
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


# Left by a process that was killed while it copied; nobody copies for a day.
STALE_SECONDS = 24 * 3600
# Quarantined files are further names of the same bytes: nobody must change them in place.
READ_ONLY = 0o400


class FolderLanding:
    """See `LandingStore`.

    A power cut may lose the last seconds; a file lost that way is noticed by its size and landed again when it is
    ingested again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._incoming = self._folder / "incoming"
        self._numbers = itertools.count()
        with folder_errors(self._folder):
            self._incoming.mkdir(parents=True, exist_ok=True)
            self._remove_stale()

    def land(
        self,
        stream: BinaryIO | Iterator[bytes],
        *,
        expected_size: int | None = None,
        expected_md5: str | None = None,
        location: str = "The file",
    ) -> Landed:
        """Copy a stream to its end; see `LandingStore.land`."""
        digest = Digest(expected_size, expected_md5, location)
        temporary = f"{self._incoming}/{os.getpid()}-{next(self._numbers)}-{time.time_ns()}"
        try:
            self._copy(chunks_of(stream), temporary, digest)
            sha256 = digest.finish()
            path = self._keep(temporary, sha256, digest.size_bytes)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108 - strings: a thousand small files a batch pass here
            raise
        return Landed(sha256, digest.size_bytes, path)

    def find(self, sha256: str) -> Landed | None:
        """Find what was landed before; see `LandingStore.find`."""
        path = self._folder / object_name(sha256)
        with folder_errors(self._folder):
            try:
                return Landed(sha256, path.stat().st_size, str(path), landed_before=True)
            except FileNotFoundError:
                return None

    def open(self, sha256: str) -> BinaryIO:
        """Open the bytes; see `LandingStore.open`."""
        path = self._folder / object_name(sha256)
        try:
            with folder_errors(self._folder):
                return path.open("rb")
        except Exception as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise SourceNotFoundError(str(path)) from error
            raise

    def remove(self, sha256: str) -> None:
        """Remove a content; see `LandingStore.remove`."""
        with folder_errors(self._folder):
            (self._folder / object_name(sha256)).unlink(missing_ok=True)

    @contextmanager
    def local_path(self, sha256: str) -> Iterator[Path]:
        """The file itself."""
        path = self._folder / object_name(sha256)
        if not path.exists():
            raise SourceNotFoundError(str(path))
        yield path

    def _copy(self, chunks: Iterator[bytes], temporary: str, digest: Digest) -> None:
        with folder_errors(self._folder):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, READ_ONLY)
        try:
            # What goes wrong while the source is read is the source's failure, not the store's.
            for chunk in chunks:
                digest.add(chunk)
                with folder_errors(self._folder):
                    write_all(descriptor, chunk)
        finally:
            os.close(descriptor)

    def _keep(self, temporary: str, sha256: str, size_bytes: int) -> str:
        path = f"{self._folder}/{object_name(sha256)}"
        with folder_errors(self._folder):
            try:
                # Of another size: a power cut left it, and it is written again.
                if os.stat(path).st_size == size_bytes:  # noqa: PTH116 - see above
                    os.unlink(temporary)  # noqa: PTH108
                    return path
            except FileNotFoundError:
                os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
            os.replace(temporary, path)  # noqa: PTH105
        return path

    def _remove_stale(self) -> None:
        oldest = time.time() - STALE_SECONDS
        for entry in os.scandir(self._incoming):
            with contextlib.suppress(FileNotFoundError):
                if entry.stat().st_mtime < oldest:
                    os.unlink(entry.path)  # noqa: PTH108


# S3 takes at most 10,000 parts of at least 5 MiB: files of up to 80 GB.
PART_BYTES = 8 * 1024**2


class S3Landing:
    """See `LandingStore`."""

    def __init__(self, client: S3Client, bucket: Bucket) -> None:
        self._client = client
        self._bucket = bucket

    def land(
        self,
        stream: BinaryIO | Iterator[bytes],
        *,
        expected_size: int | None = None,
        expected_md5: str | None = None,
        location: str = "The file",
    ) -> Landed:
        """Copy a stream to its end; see `LandingStore.land`."""
        digest = Digest(expected_size, expected_md5, location)
        parts = _parts(chunks_of(stream), digest)
        first = next(parts, b"")
        second = next(parts, None)
        if second is None:
            sha256 = digest.finish()
            with bucket_errors(self._bucket):
                if self._size_of(sha256) is None:
                    self._client.put_object(Bucket=self._bucket.name, Key=self._key(sha256), Body=first)
        else:
            sha256 = self._land_large(first, second, parts, digest)
        return Landed(sha256, digest.size_bytes, self._address(sha256))

    def find(self, sha256: str) -> Landed | None:
        """Find what was landed before; see `LandingStore.find`."""
        with bucket_errors(self._bucket):
            size_bytes = self._size_of(sha256)
        return None if size_bytes is None else Landed(sha256, size_bytes, self._address(sha256), landed_before=True)

    def open(self, sha256: str) -> BinaryIO:
        """Open the bytes; see `LandingStore.open`."""
        with bucket_errors(self._bucket):
            try:
                answer = self._client.get_object(Bucket=self._bucket.name, Key=self._key(sha256))
            except self._client.exceptions.ClientError as error:
                if is_missing(error):
                    raise SourceNotFoundError(f"{self._bucket.url}{object_name(sha256)}") from error
                raise
        return cast("BinaryIO", answer["Body"])

    def remove(self, sha256: str) -> None:
        """Remove a content; see `LandingStore.remove`."""
        with bucket_errors(self._bucket):
            self._client.delete_object(Bucket=self._bucket.name, Key=self._key(sha256))

    @contextmanager
    def local_path(self, sha256: str) -> Iterator[Path]:
        """A temporary copy."""
        with tempfile.TemporaryDirectory(prefix="ingest-") as folder:
            path = Path(folder) / sha256
            with bucket_errors(self._bucket):
                try:
                    self._client.download_file(self._bucket.name, self._key(sha256), str(path))
                except self._client.exceptions.ClientError as error:
                    if is_missing(error):
                        raise SourceNotFoundError(f"{self._bucket.url}{object_name(sha256)}") from error
                    raise
            yield path

    def _land_large(self, first: bytes, second: bytes, rest: Iterator[bytes], digest: Digest) -> str:
        # The name is known only when all has been read.
        temporary = f"{self._bucket.prefix}incoming/{uuid.uuid4().hex}"
        bucket = self._bucket.name
        with bucket_errors(self._bucket):
            upload_id = self._client.create_multipart_upload(Bucket=bucket, Key=temporary)["UploadId"]
        done: list[CompletedPartTypeDef] = []
        try:
            for number, part in enumerate(_after(first, second, rest), start=1):
                with bucket_errors(self._bucket):
                    answer = self._client.upload_part(
                        Bucket=bucket, Key=temporary, UploadId=upload_id, PartNumber=number, Body=part
                    )
                done.append({"PartNumber": number, "ETag": answer["ETag"]})
            sha256 = digest.finish()
        except BaseException:
            with bucket_errors(self._bucket):
                self._client.abort_multipart_upload(Bucket=bucket, Key=temporary, UploadId=upload_id)
            raise
        with bucket_errors(self._bucket):
            self._client.complete_multipart_upload(
                Bucket=bucket, Key=temporary, UploadId=upload_id, MultipartUpload={"Parts": done}
            )
            if self._size_of(sha256) is None:
                self._client.copy({"Bucket": bucket, "Key": temporary}, bucket, self._key(sha256))
            self._client.delete_object(Bucket=bucket, Key=temporary)
        return sha256

    def _size_of(self, sha256: str) -> int | None:
        """Bytes of an object; None when there is no such object."""
        try:
            return self._client.head_object(Bucket=self._bucket.name, Key=self._key(sha256))["ContentLength"]
        except self._client.exceptions.ClientError as error:
            if is_missing(error):
                return None
            raise

    def _address(self, sha256: str) -> str:
        return f"s3://{self._bucket.name}/{self._key(sha256)}"

    def _key(self, sha256: str) -> str:
        return self._bucket.prefix + object_name(sha256)


def _parts(chunks: Iterator[bytes], digest: Digest) -> Iterator[bytes]:
    """Parts of equal size, the last one shorter, counted and hashed on their way."""
    part = bytearray()
    for chunk in chunks:
        digest.add(chunk)
        part += chunk
        if len(part) >= PART_BYTES:
            yield bytes(part[:PART_BYTES])
            del part[:PART_BYTES]
    if part:
        yield bytes(part)


def _after(first: bytes, second: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield second
    yield from rest


def open_landing(url: str, s3: S3Options | None = None) -> LandingStore:
    """The landing store at a folder or `s3://bucket/prefix`.

    Args:
        url: the setting `storage.landing_url`.
        s3: how to reach S3.

    Raises:
        SettingsError: the URL is neither of the two.
    """
    place = location_of(url)
    if isinstance(place, Bucket):
        return S3Landing(s3_client(s3 or S3Options()), place)

    return FolderLanding(place)
