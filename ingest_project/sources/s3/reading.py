"""An object's bytes from any position on, of one version."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from botocore.response import StreamingBody

from ingest_project.platform.http.deadlines import Deadline, deadline_in_force
from ingest_project.sources.limits import SourceLimits
from ingest_project.sources.resumed_reading import NO_LEASE, Releasable
from ingest_project.sources.s3.errors import s3_errors

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

READ_BYTES = 64 * 1024


@dataclass
class ObjectReader:
    """Opens one object, and opens it again where a connection broke: only ever the version it opened first.

    Args:
        client: of its account.
        location: for messages.
        payer: further arguments of each request.
        limits: of its source.
    """

    client: S3Client
    bucket: str
    key: str
    location: str
    payer: dict[str, Any]
    limits: SourceLimits
    etag: str | None = field(default=None, init=False)
    size_bytes: int = field(default=0, init=False)

    def opened(self, offset: int) -> tuple[Releasable, OpenedObject]:
        """The object from this position to its end.

        Raises:
            SourceChangedError: by now it is another version. And what else a source raises.
        """
        wanted: dict[str, Any] = {"IfMatch": self.etag} if self.etag else {}
        if offset:
            wanted["Range"] = f"bytes={offset}-"
        # The SDK's own attempts are within this time.
        with s3_errors(self.location), deadline_in_force(Deadline(self.limits.attempts_time)):
            answer = self.client.get_object(Bucket=self.bucket, Key=self.key, **wanted, **self.payer)
            body, modified_at = answer["Body"], answer["LastModified"]
            if self.etag is None:
                self.etag, self.size_bytes = answer["ETag"], answer["ContentLength"]
        return NO_LEASE, OpenedObject(body, self.location, self.size_bytes, modified_at, self.limits)


class OpenedObject:
    """One answer of S3 that is being read."""

    def __init__(
        self, body: StreamingBody, location: str, size_bytes: int, modified_at: datetime, limits: SourceLimits
    ) -> None:
        self._limits = limits
        self._body = body
        self._location = location
        self.size_bytes: int | None = size_bytes
        self.modified_at: datetime | None = modified_at

    def read(self, size: int) -> bytes:
        """Some of the next bytes; empty at the end."""
        # The body is read until all that was asked for is there: so much comes in time at the least speed.
        with s3_errors(self._location), deadline_in_force(Deadline(self._limits.answer_time)):
            return self._body.read(min(size, READ_BYTES))

    def close(self) -> None:
        """Stop reading."""
        self._body.close()
