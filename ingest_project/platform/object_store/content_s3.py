"""The landing store in an S3 bucket: small files in one request, large ones in parts under a temporary key."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from ingest_project.core.errors import SourceNotFoundError
from ingest_project.platform.object_store.content_store import Digest, Landed, chunks_of, object_name
from ingest_project.platform.object_store.locations import Bucket, bucket_errors, is_missing

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

# S3 takes at most 10,000 parts of at least 5 MiB: files of up to 80 GB.
PART_BYTES = 8 * 1024**2


class S3Landing:
    """See `landing.LandingStore`."""

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
        """Copy a stream to its end; see `landing.LandingStore.land`."""
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
        """What was landed before; see `landing.LandingStore.find`."""
        with bucket_errors(self._bucket):
            size_bytes = self._size_of(sha256)
        return None if size_bytes is None else Landed(sha256, size_bytes, self._address(sha256), landed_before=True)

    def open(self, sha256: str) -> BinaryIO:
        """The bytes; see `landing.LandingStore.open`."""
        with bucket_errors(self._bucket):
            try:
                answer = self._client.get_object(Bucket=self._bucket.name, Key=self._key(sha256))
            except self._client.exceptions.ClientError as error:
                if is_missing(error):
                    raise SourceNotFoundError(f"{self._bucket.url}{object_name(sha256)}") from error
                raise
        return cast("BinaryIO", answer["Body"])

    def remove(self, sha256: str) -> None:
        """Let go of a content; see `landing.LandingStore.remove`."""
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
