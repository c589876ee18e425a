"""Objects in S3, `source_type` s3: Amazon's, or another server's that speaks its protocol.

A job's `source_config`: `path` (`s3://bucket/prefix`, or a prefix beside `bucket`), `credentials`, `endpoint_url`,
`region`, `requester_pays`. S3 has no folders: a prefix that nothing starts with is an empty listing, not a missing one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote

from botocore.exceptions import ClientError
from botocore.response import StreamingBody

from ingest_project.core.errors import (
    ForbiddenPathError,
    IngestError,
    SourceAccessDeniedError,
    SourceChangedError,
    SourceNotFoundError,
    SourceUnreachableError,
    UnreadableListingError,
)
from ingest_project.platform.http.deadlines import Deadline, deadline_in_force
from ingest_project.sources.context import Clients, SourceContext
from ingest_project.sources.limits import ListingBudget, SourceLimits, within_budget
from ingest_project.sources.protocol import Skipped, SourceFile
from ingest_project.sources.resumed_reading import NO_LEASE, Releasable, resumed_reading
from ingest_project.sources.s3.location import S3Place, bucket_location
from ingest_project.sources.selection import Pattern, refusal

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ListObjectsV2OutputTypeDef, ObjectTypeDef


SERVER_ERRORS = 500
REQUEST_TIMEOUT, TOO_MANY_REQUESTS, PRECONDITION_FAILED, REDIRECTED = 408, 429, 412, 301
CALLED_OFF = frozenset({"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded"})
NOT_THERE = frozenset({"404", "NoSuchKey", "NotFound", "NoSuchBucket", "NoSuchVersion"})
OTHER_REGION = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"})
LONGEST_CAUSE = 200


@contextmanager
def s3_errors(location: str) -> Iterator[None]:
    """Tell a failure inside the block as a source's.

    Args:
        location: of the bucket or object, for messages.

    Raises:
        SourceNotFoundError: no such bucket or object.
        SourceAccessDeniedError: no credentials, wrong ones, no right, an archived object, another region.
        SourceChangedError: the object is not the version that was asked for.
        SourceUnreachableError: no answer, a cut one, or one that may be another later.
        UnreadableListingError: an answer with a number or a time that is none.
    """
    from botocore.exceptions import (  # noqa: PLC0415 - loaded already where S3 is used
        BotoCoreError,
        ClientError,
        NoCredentialsError,
        ParamValidationError,
        PartialCredentialsError,
    )

    try:
        yield
    except ClientError as error:
        raise _failure_of_answer(error, location) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise SourceAccessDeniedError(
            location, "there are no S3 credentials; set INGEST_S3_ACCESS_KEY_ID, or name stored ones in the job"
        ) from error
    except ParamValidationError as error:
        raise SourceNotFoundError(location) from error
    except (BotoCoreError, OSError) as error:
        raise SourceUnreachableError(location, _sentence(error)) from error
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        # The SDK reads numbers and times without a guard.
        raise UnreadableListingError(location, f"S3 answered with an impossible value ({_sentence(error)})") from error


def _failure_of_answer(error: ClientError, location: str) -> IngestError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    said = f"S3 answered {status} {code}".rstrip()
    if code in NOT_THERE:
        return SourceNotFoundError(location)
    if code in CALLED_OFF or status >= SERVER_ERRORS or status in (REQUEST_TIMEOUT, TOO_MANY_REQUESTS):
        return SourceUnreachableError(location, said)
    if status == PRECONDITION_FAILED:
        return SourceChangedError(location, "it is not the version any more that was asked for")
    if code in OTHER_REGION or status == REDIRECTED:
        return SourceAccessDeniedError(location, f"{said}; say 'region' in source_config or set INGEST_S3_REGION")
    if code == "InvalidObjectState":
        return SourceAccessDeniedError(location, "it is archived (Glacier); restore it first")
    return SourceAccessDeniedError(location, f"{said}; check the credentials and their rights on this bucket")


def _sentence(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:LONGEST_CAUSE]


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


ARCHIVED = frozenset({"GLACIER", "DEEP_ARCHIVE"})
SAFE_IN_KEY = "/!*'()=,;:@&+$"


def open_s3(source_config: Mapping[str, Any], access: SourceContext) -> S3Source:
    """Objects of one bucket whose keys start with a prefix.

    Raises:
        UnknownCredentialsError, PermanentError, ForbiddenPathError: as `s3_place.bucket_location` says.
    """
    return S3Source(
        str(source_config.get("path") or ""),
        bucket_location(source_config, access),
        access.clients,
        requester_pays=source_config.get("requester_pays") in (True, "true"),
        limits=SourceLimits.of(access.settings),
    )


@dataclass(frozen=True)
class S3Source:
    """One prefix of a bucket.

    Args:
        prefix: as the job names it.
        place: the bucket, and who we are there.
        clients: makes the client.
        requester_pays: whether we pay for what the bucket's owner would not.
        limits: what it may take.
    """

    prefix: str
    place: S3Place
    clients: Clients
    requester_pays: bool = False
    limits: SourceLimits = field(default_factory=SourceLimits)

    @property
    def location(self) -> str:
        """`s3://bucket/prefix`, or with another server's address in front."""
        return self.canonical_location(self.prefix)

    def canonical_location(self, path: str) -> str:
        """The bucket's address and the key, percent-encoded."""
        try:
            key = self.place.key(path)
        except ForbiddenPathError:
            # A path that no object can have still needs a stable name in reports.
            key = path
        return f"{self.place.location}/{quote(key, safe=SAFE_IN_KEY, errors='replace')}"

    def require_allowed(self, path: str) -> None:
        """Refuse another bucket than the source's, and a key that no object can have."""
        self.place.key(path)

    def list_files(self, pattern: str) -> Iterator[SourceFile | Skipped]:
        """Page by page of 1,000 keys: all below a prefix at once where the pattern has `**`, level by level if not."""
        parsed = Pattern.parse(pattern)
        prefix = self.place.key(self.prefix).rstrip("/")
        root = f"{prefix}/" if prefix else ""
        waiting, budget = [root + parsed.fixed_beginning], ListingBudget(self.limits, self.place.location)
        while waiting:
            for page in self._pages(waiting.pop(), parsed, budget):
                contents, folders = page.get("Contents", []), page.get("CommonPrefixes", [])
                budget.count(len(contents) + len(folders))
                for found in contents:
                    with s3_errors(self.place.location):
                        entries = list(self._looked_at(found, len(root), parsed))
                    yield from entries
                for folder in folders:
                    below = str(folder.get("Prefix", ""))
                    if parsed.may_match_below(below[len(root) : -1]):
                        waiting.append(below)

    def stat(self, path: str) -> SourceFile:
        """What S3 says about the object that is there now."""
        key = self.place.key(path)
        with s3_errors(self.canonical_location(path)), deadline_in_force(Deadline(self.limits.attempts_time)):
            found = self._client.head_object(Bucket=self.place.bucket, Key=key, **self._payer)
            return SourceFile(
                path=self.place.path(key),
                name=key.rpartition("/")[2],
                size_bytes=found["ContentLength"],
                modified_at=found["LastModified"],
                etag=found["ETag"].strip('"'),
            )

    def open(self, path: str) -> AbstractContextManager[BinaryIO]:
        """The object's bytes, all of one version; a cut connection is replaced and the reading goes on."""
        key, location = self.place.key(path), self.canonical_location(path)
        reader = ObjectReader(self._client, self.place.bucket, key, location, self._payer, self.limits)
        return resumed_reading(reader.opened, location, self.limits)

    @property
    def _client(self) -> S3Client:
        from ingest_project.sources.s3.bounds import bound  # noqa: PLC0415 - imports botocore

        with s3_errors(self.place.location):
            return bound(self.clients.s3(self.place.account))

    @property
    def _payer(self) -> dict[str, Any]:
        return {"RequestPayer": "requester"} if self.requester_pays else {}

    def _pages(self, prefix: str, pattern: Pattern, budget: ListingBudget) -> Iterator[ListObjectsV2OutputTypeDef]:
        delimiter: dict[str, Any] = {} if pattern.recursive else {"Delimiter": "/"}
        location = f"{self.place.location}/{quote(prefix, safe=SAFE_IN_KEY)}"
        with s3_errors(location):
            pages = self._client.get_paginator("list_objects_v2")
            found = iter(pages.paginate(Bucket=self.place.bucket, Prefix=prefix, **delimiter, **self._payer))
            for page in within_budget(found, budget):
                if page.get("IsTruncated") and not page.get("NextContinuationToken"):
                    raise UnreadableListingError(location, "S3 says that there is more, and not how to ask for it")
                yield page

    def _looked_at(self, found: ObjectTypeDef, root_length: int, pattern: Pattern) -> Iterator[SourceFile | Skipped]:
        key = found["Key"]
        relative = key[root_length:]
        # What ends with a slash is how some tools note that a folder is there; it holds nothing.
        if not relative or key.endswith("/") or not pattern.matches(relative):
            return
        path, (*folders, name) = self.place.path(key), relative.split("/")
        if any(folder.startswith(".") for folder in folders):
            yield Skipped(path, "A file in a hidden folder.", visible=False)
        elif found.get("StorageClass") in ARCHIVED:
            yield Skipped(path, "It is archived (Glacier); restored, it is taken.")
        else:
            yield refusal(path, name) or SourceFile(
                path=path,
                name=name,
                size_bytes=found["Size"],
                modified_at=found["LastModified"],
                etag=found["ETag"].strip('"'),
                location=self.canonical_location(path),
            )
