"""Objects in S3, `source_type` s3: at Amazon or another server with the same protocol.

A job's `source_config`: `path` (`s3://bucket/prefix`, or a prefix together with `bucket`), `credentials`,
`endpoint_url`, `region`, `requester_pays`. S3 has no folders: a prefix without any key is an empty listing.

A job is an untrusted message: its endpoint and bucket must be listed in settings, and a credential is sent only to the
endpoints that it lists. An endpoint without its own credential is contacted anonymously.

botocore resolves names with urllib3, unchecked, each time it connects, and follows every redirect. It reads every
answer except a file's into memory, without bounds of size and time. Here its pools open connections that enforce the
current deadline and, given a connector, go to the address that was checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache, partial
from http import HTTPStatus
from typing import Any, BinaryIO
from urllib.parse import quote

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
    AWSPreparedRequest,
)
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)
from botocore.response import StreamingBody
from urllib3 import HTTPResponse
from urllib3.exceptions import HTTPError

from ingest_project.core.errors import (
    AddressRejectedError,
    ForbiddenPathError,
    IngestError,
    PermanentError,
    SourceAccessDeniedError,
    SourceChangedError,
    SourceNotFoundError,
    SourceUnreachableError,
    UnreadableListingError,
)
from ingest_project.core.items import as_utc
from ingest_project.core.settings import Credential
from ingest_project.platform.http import DEFAULT_PORTS, MalformedAddressError, WebAddress, parse_url, split_server
from ingest_project.platform.http.host_policy import HostLists, HostRules
from ingest_project.platform.http.pinned_transport import (
    Connector,
    Deadline,
    DeadlineSSLSocket,
    PinnedHTTPConnection,
    deadline_in_force,
)
from ingest_project.platform.http.response import REDIRECTS
from ingest_project.platform.object_store.s3 import MAX_KEY_BYTES, ListedObject, ListingPage, S3Client, s3_client
from ingest_project.platform.object_store.store import S3Options
from ingest_project.sources import Pattern, Skipped, SourceFile, refusal
from ingest_project.sources.reading import ListingBudget, SourceLimits, pace_of, resumed_reading, skip_bytes
from ingest_project.sources.registry import SourceContext, patterns_for, require_for_host

READ_BYTES = 64 * 1024
_SCHEME = "s3://"
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{1,254}")
_REGION = re.compile(r"[a-z0-9-]{1,40}")
_SAFE_IN_KEY = "/!*'()=,;:@&+$"
_ARCHIVED = frozenset({"GLACIER", "DEEP_ARCHIVE"})


def open_s3(source_config: Mapping[str, Any], context: SourceContext) -> S3Source:
    """Create the source for the objects of one bucket whose keys start with a prefix.

    Raises:
        UnknownCredentialsError: the credentials are not stored.
        PermanentError: the config names no bucket, or two.
        ForbiddenPathError, AddressRejectedError: jobs may not name this bucket or endpoint.
    """
    credential = context.credential(source_config)
    account = _account_of(source_config, credential, context)
    _require_allowed_bucket(source_config, credential, context)
    return S3Source(
        str(source_config.get("path") or ""),
        Bucket(account, _bucket_of(source_config)),
        context.host_lists,
        context.limits,
        requester_pays=source_config.get("requester_pays") in (True, "true"),
    )


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket at an account's endpoint.

    Args:
        account: endpoint and keys.
        name: name of the bucket or access point.
    """

    account: S3Account
    name: str

    @property
    def location(self) -> str:
        """`s3://bucket` at Amazon, `s3+http://host:port/bucket` at any other server."""
        if self.account.endpoint_url is None:
            return f"{_SCHEME}{self.name}"
        return f"s3+{self.account.endpoint_url.rstrip('/')}/{self.name}"

    def key(self, path: str) -> str:
        """Return the key of a path, which is `s3://bucket/key` or only the key.

        Raises:
            ForbiddenPathError: the path names another bucket, or the key is impossible.
        """
        key = path
        if path.startswith(_SCHEME):
            bucket, _, key = path.removeprefix(_SCHEME).partition("/")
            if bucket != self.name:
                raise ForbiddenPathError(path, f"it is not in the bucket {self.name} that its source names.")
        if "\x00" in key or len(key.encode("utf-8", "replace")) > MAX_KEY_BYTES:
            raise ForbiddenPathError(path[:200], f"a key has at most {MAX_KEY_BYTES} bytes, none of them NUL.")
        return key

    def path(self, key: str) -> str:
        """Return the path of a key for messages."""
        return f"{_SCHEME}{self.name}/{key}"


@dataclass(frozen=True)
class S3Source:
    """One prefix of a bucket.

    Args:
        prefix: prefix from the job.
        bucket: the bucket.
        lists: denied hosts, and allowed internal hosts.
        limits: limits of time and entries.
        requester_pays: accept the costs of requests and transfer, which the bucket's owner does not pay.
    """

    prefix: str
    bucket: Bucket
    lists: HostLists
    limits: SourceLimits
    requester_pays: bool = False

    @property
    def location(self) -> str:
        """`s3://bucket/prefix`, preceded by the address of a server other than AWS."""
        return self.canonical_location(self.prefix)

    def canonical_location(self, path: str) -> str:
        """Return the bucket's address and the key, percent-encoded."""
        try:
            key = self.bucket.key(path)
        except ForbiddenPathError:
            # Even an impossible path needs a stable name in reports.
            key = path
        return f"{self.bucket.location}/{quote(key, safe=_SAFE_IN_KEY, errors='replace')}"

    def require_allowed(self, path: str) -> None:
        """Refuse another bucket than the source's, and an impossible key."""
        self.bucket.key(path)

    def list_files(self, pattern: str) -> Iterator[SourceFile | Skipped]:
        """List pages of 1,000 keys: all keys with the prefix if the pattern has `**`, otherwise level by level."""
        parsed = Pattern.parse(pattern)
        prefix = self.bucket.key(self.prefix).rstrip("/")
        root = f"{prefix}/" if prefix else ""
        waiting, budget = [root + parsed.fixed_beginning], ListingBudget(self.limits, self.bucket.location)
        while waiting:
            for page in self._pages(waiting.pop(), parsed, budget):
                contents, folders = page.get("Contents", []), page.get("CommonPrefixes", [])
                budget.count(len(contents) + len(folders))
                for found in contents:
                    with s3_errors(self.bucket.location):
                        entry = self._entry(found, len(root), parsed)
                    if entry is not None:
                        yield entry
                for folder in folders:
                    below = str(folder.get("Prefix", ""))
                    if parsed.may_match_below(below[len(root) : -1]):
                        waiting.append(below)

    def stat(self, path: str) -> SourceFile:
        """Return S3's current description of the object."""
        key = self.bucket.key(path)
        with s3_errors(self.canonical_location(path)), deadline_in_force(Deadline(self.limits.attempts_time)):
            found = self._client.head_object(Bucket=self.bucket.name, Key=key, **self._payer)
            return SourceFile(
                path=self.bucket.path(key),
                name=key.rpartition("/")[2],
                size_bytes=found["ContentLength"],
                modified_at=found["LastModified"],
                etag=_etag(found),
            )

    def open(self, path: str) -> AbstractContextManager[BinaryIO]:
        """Open one version of an object; reading resumes on a new connection if the connection breaks."""
        key, location = self.bucket.key(path), self.canonical_location(path)
        reader = _ObjectReader(self._client, self.bucket.name, key, location, self._payer, self.limits)
        return resumed_reading(reader.opened, location, self.limits)

    @cached_property
    def _client(self) -> S3Client:
        with s3_errors(self.bucket.location):
            return account_client(self.bucket.account, self.limits.timeout_seconds, self.lists)

    @property
    def _payer(self) -> dict[str, Any]:
        return {"RequestPayer": "requester"} if self.requester_pays else {}

    def _pages(self, prefix: str, pattern: Pattern, budget: ListingBudget) -> Iterator[ListingPage]:
        delimiter: dict[str, Any] = {} if pattern.recursive else {"Delimiter": "/"}
        location = f"{self.bucket.location}/{quote(prefix, safe=_SAFE_IN_KEY)}"
        with s3_errors(location):
            pages = self._client.get_paginator("list_objects_v2")
            found = iter(pages.paginate(Bucket=self.bucket.name, Prefix=prefix, **delimiter, **self._payer))
            for page in budget.counted_in_time(found):
                if page.get("IsTruncated") and not page.get("NextContinuationToken"):
                    raise UnreadableListingError(location, "S3 reports further pages without a continuation token")
                yield page

    def _entry(self, found: ListedObject, root_length: int, pattern: Pattern) -> SourceFile | Skipped | None:
        key = found["Key"]
        relative = key[root_length:]
        # Some tools represent a folder by an empty object with a key that ends with a slash.
        if not relative or key.endswith("/") or not pattern.matches(relative):
            return None
        path, (*folders, name) = self.bucket.path(key), relative.split("/")
        if any(folder.startswith(".") for folder in folders):
            return Skipped(path, "A file in a hidden folder.", visible=False)
        if found.get("StorageClass") in _ARCHIVED:
            return Skipped(path, "It is archived (Glacier); restored, it is taken.")
        return refusal(path, name, found["Size"]) or SourceFile(
            path=path,
            name=name,
            size_bytes=found["Size"],
            modified_at=as_utc(found["LastModified"]),
            etag=_etag(found),
            location=self.canonical_location(path),
        )


@dataclass
class _ObjectReader:
    """Opens one object, and reopens the same version after a broken connection."""

    client: S3Client
    bucket: str
    key: str
    location: str
    payer: dict[str, Any]
    limits: SourceLimits
    version: str | datetime | None = field(default=None, init=False)
    size_bytes: int = field(default=0, init=False)

    def opened(self, offset: int) -> _OpenedObject:
        """Open the object at this position.

        Raises:
            SourceChangedError: the object now has another version. Also raises the other errors of a source.
        """
        wanted: dict[str, Any] = {"IfMatch": self.version} if isinstance(self.version, str) else {}
        if offset:
            wanted["Range"] = f"bytes={offset}-"
        # This time includes the SDK's own retries.
        with s3_errors(self.location), deadline_in_force(Deadline(self.limits.attempts_time)):
            answer = self.client.get_object(Bucket=self.bucket, Key=self.key, **wanted, **self.payer)
            found = answer.get("ETag") or answer["LastModified"]
            if self.version is None:
                self.version, self.size_bytes = found, answer["ContentLength"]
            file = _OpenedObject(answer["Body"], self.location, self.size_bytes, answer["LastModified"], self.limits)
        # Not every server knows conditions and ranges.
        is_part = "ContentRange" in answer
        if found != self.version or (is_part and not answer["ContentRange"].startswith(f"bytes {offset}-")):
            file.close()
            raise SourceChangedError(self.location, "it answers with another version or part than was requested")
        skip_bytes(file, 0 if is_part else offset, pace_of(self.limits, self.location))
        return file


@dataclass
class _OpenedObject:
    """A response of S3 during reading."""

    body: StreamingBody
    location: str
    size_bytes: int | None
    modified_at: datetime | None
    limits: SourceLimits

    def read(self, size: int) -> bytes:
        """Read some of the next bytes; empty at the end."""
        # A read waits for the whole size: at the minimum speed, this size arrives in time.
        with s3_errors(self.location), deadline_in_force(Deadline(self.limits.answer_time)):
            return self.body.read(min(size, READ_BYTES))

    def close(self) -> None:
        """Stop reading."""
        self.body.close()


def _etag(found: Mapping[str, Any]) -> str | None:
    """Return the ETag of an answer or of a listed object; None from a server without them."""
    return found.get("ETag", "").strip('"') or None


def _named_bucket(source_config: Mapping[str, Any], account: S3Account) -> tuple[str, str]:
    """Return the endpoint's origin and the bucket in a `source_config`.

    Args:
        source_config: config of an s3 source.
        account: account for jobs without an endpoint.

    Raises:
        PermanentError: the config names no bucket or two, or its endpoint is invalid.
    """
    endpoint = _named_endpoint(source_config) or account.endpoint or AMAZON
    return endpoint.origin, _bucket_of(source_config)


def _default_account(context: SourceContext) -> S3Account:
    """Return the account of jobs that name neither credentials nor an endpoint."""
    storage = context.settings.storage
    return S3Account(storage.s3_endpoint_url, storage.s3_region, storage.s3_access_key_id, storage.s3_secret_access_key)


@lru_cache(maxsize=4)
def _configured_buckets(context: SourceContext) -> frozenset[tuple[str, str]]:
    """Return the buckets of configured sources, which jobs may name as well."""
    named = set()
    for source in context.settings.sources.values():
        # A source without a bucket fails when it is listed, and must not affect the others.
        with suppress(PermanentError):
            if source.source_config["source_type"] == "s3":
                named.add(_named_bucket(source.source_config, _default_account(context)))
    return frozenset(named)


def _require_allowed_bucket(
    source_config: Mapping[str, Any], credential: Credential | None, context: SourceContext
) -> None:
    """Refuse a bucket that no setting names."""
    bucket = _bucket_of(source_config)
    own = credential.buckets if credential is not None else []
    if own and not _matches(bucket, own):
        raise ForbiddenPathError(
            f"{_SCHEME}{bucket}",
            "the credentials that the job names are not for this bucket; list it in their 'buckets'.",
        )
    if _matches(bucket, [*own, *context.polling.allowed_buckets]):
        return
    if _named_bucket(source_config, _default_account(context)) not in _configured_buckets(context):
        raise ForbiddenPathError(
            f"{_SCHEME}{bucket}",
            "no setting names this bucket. List it in INGEST_ALLOWED_BUCKETS, or in the 'buckets' of credentials that "
            "the job names.",
        )


def _matches(bucket: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(bucket, pattern) for pattern in patterns)


def _bucket_of(source_config: Mapping[str, Any]) -> str:
    path = str(source_config.get("path") or "")
    named = {str(source_config["bucket"])} if source_config.get("bucket") else set()
    if path.startswith(_SCHEME):
        named.add(path.removeprefix(_SCHEME).partition("/")[0])
    if len(named) != 1:
        raise PermanentError("source_config of an s3 source needs one 'bucket', or a path s3://bucket/prefix.")
    bucket = named.pop()
    if not _BUCKET.fullmatch(bucket):
        raise PermanentError(f"{bucket[:100]!r} is no name of a bucket.")
    return bucket


def _account_of(source_config: Mapping[str, Any], credential: Credential | None, context: SourceContext) -> S3Account:
    default = _default_account(context)
    region = source_config.get("region")
    if region is not None and not _REGION.fullmatch(str(region)):
        raise PermanentError(f"region {str(region)[:40]!r} is no name of a region.")
    account = replace(default, region=str(region)) if region else default
    endpoint = _named_endpoint(source_config) or default.endpoint
    if endpoint is not None and endpoint != default.endpoint:
        account = _account_at(endpoint, account.region, credential, context)
    if credential is None:
        return account
    if not credential.access_key_id or credential.secret_access_key is None:
        raise PermanentError("The credentials that the job names have no access_key_id and secret_access_key.")
    if credential.hosts:
        server = endpoint or AMAZON
        require_for_host(credential, server.host, server.port, server.origin)
    secret = credential.secret_access_key
    return replace(account, access_key_id=credential.access_key_id, secret_access_key=secret, unsigned=False)


def _named_endpoint(source_config: Mapping[str, Any]) -> WebAddress | None:
    text = str(source_config.get("endpoint_url") or "")
    if not text:
        return None
    try:
        return parse_url(split_server(text, tuple(DEFAULT_PORTS)).origin)
    except MalformedAddressError as error:
        shown = text.rpartition("@")[2][:100]
        raise PermanentError(f"endpoint_url must be http(s)://host:port, not {shown!r}: {error.reason}.") from None


def _account_at(
    endpoint: WebAddress, region: str | None, credential: Credential | None, context: SourceContext
) -> S3Account:
    """Return the anonymous account for a job's endpoint; refuse an endpoint that no setting names."""
    listed = list(context.polling.allowed_source_hosts)
    if credential is not None:
        require_for_host(credential, endpoint.host, endpoint.port, endpoint.origin)
        listed += credential.hosts
    patterns = patterns_for(listed, endpoint.host, endpoint.port)
    if not patterns:
        raise ForbiddenPathError(
            endpoint.origin,
            "its host is not allowed. List it in INGEST_ALLOWED_SOURCE_HOSTS, or in the 'hosts' of credentials that "
            "the job names.",
        )
    internal_allowed = any(pattern.is_specific for pattern in patterns)
    account = S3Account(endpoint.origin, region, unsigned=True, from_job=True, internal_allowed=internal_allowed)
    # Check an endpoint with an IP address immediately, so that a forbidden one is refused when the message arrives.
    context.host_lists.rules_for((endpoint.host, endpoint.port), internal_allowed=internal_allowed).check(endpoint.url)
    return account


# A thousand keys of a thousand bytes each, percent-encoded, take less than 4 MiB.
MAX_ANSWER_BYTES = 8 * 1024**2
_PIECE_BYTES = 64 * 1024
_ROOT = b"ListBucketResult"
_ROOT_WITHIN = 1_024
_ERRORS = 300
_REGION_HEADER = "x-amz-bucket-region"


def bound(client: S3Client, connector: Connector | None) -> S3Client:
    """Bound the answers of a client, and let the connector, if given, open its connections.

    Args:
        client: unused client; without a proxy if there is a connector.
        connector: opens the connections; None for an endpoint of the settings.
    """
    session = client._endpoint.http_session  # type: ignore[attr-defined] # noqa: SLF001 - no public access exists
    manager = session._manager  # noqa: SLF001 - see above
    manager.pool_classes_by_scheme = {
        "http": _pools(AWSHTTPConnectionPool, _Connection, connector),
        "https": _pools(AWSHTTPSConnectionPool, _TlsConnection, connector),
    }
    context = manager.connection_pool_kw.get("ssl_context")
    if context is not None:
        context.sslsocket_class = DeadlineSSLSocket
    events: Any = client.meta.events
    events.register("before-send.s3", partial(_send, session), unique_id="ingest-bounded-answers")
    return client


class _Connection(PinnedHTTPConnection, AWSHTTPConnection):  # type: ignore[misc]  # botocore's signatures are looser
    pass


class _TlsConnection(PinnedHTTPConnection, AWSHTTPSConnection):  # type: ignore[misc]  # as above
    pass


def _pools(pool_class: type, connection_class: type, connector: Connector | None) -> Callable[..., Any]:
    def new_pool(host: str, port: int, **context: Any) -> Any:  # noqa: ANN401 - urllib3's own
        pool = pool_class(host, port, **context)
        pool.ConnectionCls = connection_class
        pool.conn_kw["connector"] = connector
        return pool

    return new_pool


def _send(session: Any, request: AWSPreparedRequest, event_name: str = "", **_: object) -> Any:  # noqa: ANN401 - botocore's
    """Send a request in place of botocore, and read the answer up to its limit."""
    is_file, request.stream_output = request.stream_output, True
    location = str(request.url).partition("?")[0]
    try:
        response: Any = session.send(request)
    except HTTPClientError as error:
        # Otherwise botocore would retry a refused host.
        rejected = error.kwargs.get("error")
        if isinstance(rejected, AddressRejectedError):
            raise rejected from None
        raise
    leads_on = response.status_code in REDIRECTS and _REGION_HEADER not in response.headers
    if leads_on and event_name.endswith("HeadBucket"):
        response.raw.close()
        # botocore determines a bucket's region by this request, and would follow redirects without limit.
        raise SourceAccessDeniedError(location, "it redirects to another server without naming its region")
    if is_file and response.status_code < _ERRORS:
        return response
    body = _body(response.raw, location)
    if event_name.endswith("ListObjectsV2") and response.status_code < _ERRORS and _ROOT not in body[:_ROOT_WITHIN]:
        raise UnreadableListingError(location, "it answers with something that is no listing of a bucket")
    # botocore caches the body here, and does not read it again.
    response._content = body  # noqa: SLF001
    return response


def _body(raw: HTTPResponse, location: str) -> bytes:
    body = bytearray()
    try:
        for piece in raw.stream(_PIECE_BYTES):
            body += piece
            if len(body) > MAX_ANSWER_BYTES:
                raw.close()
                raise PermanentError(f"{location} answers with more than {MAX_ANSWER_BYTES} bytes.")
    except (HTTPError, OSError) as error:
        raw.close()
        raise HTTPClientError(error=error) from error
    return bytes(body)


AMAZON = parse_url("https://s3.amazonaws.com")
# Messages name regions, and each client takes megabytes, so the number of clients is bounded.
KEPT_CLIENTS = 32
_RETRIED = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})
_THROTTLED = frozenset({"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded"})
_NOT_FOUND = frozenset({"404", "NoSuchKey", "NotFound", "NoSuchBucket", "NoSuchVersion"})
_OTHER_REGION = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"})
_LONGEST_CAUSE = 200


@dataclass(frozen=True)
class S3Account(S3Options):
    """An S3 endpoint and our keys. boto3's own configuration replaces a None.

    Args:
        unsigned: send requests anonymously.
        from_job: True if the endpoint comes from a job, so that the client may connect to no other host.
        internal_allowed: True if a setting names this host, so that it may have an internal address.
    """

    unsigned: bool = False
    from_job: bool = False
    internal_allowed: bool = False

    @property
    def endpoint(self) -> WebAddress | None:
        """Return the address of the server; None for Amazon's."""
        return parse_url(self.endpoint_url) if self.endpoint_url else None

    def rules(self, lists: HostLists) -> HostRules | None:
        """Return the rules for its client's connections; None for an endpoint of the settings."""
        endpoint = self.endpoint
        if not self.from_job or endpoint is None:
            return None
        return lists.rules_for((endpoint.host, endpoint.port), internal_allowed=self.internal_allowed)


@lru_cache(maxsize=KEPT_CLIENTS)
def account_client(account: S3Account, timeout_seconds: float, lists: HostLists) -> S3Client:
    """Return the client for an account; equal accounts share its connections.

    Args:
        account: endpoint and keys.
        timeout_seconds: longest silence of a server.
        lists: denied hosts, and allowed internal hosts.
    """
    rules = account.rules(lists)
    client = s3_client(
        account,
        timeout_seconds,
        unsigned=account.unsigned,
        # A proxy would resolve the name itself, so use one only for an endpoint of the settings.
        proxied=rules is None,
    )
    return bound(client, Connector(rules) if rules else None)


@contextmanager
def s3_errors(location: str) -> Iterator[None]:
    """Map a failure inside the block to an error of a source.

    Args:
        location: location of the bucket or object for messages.

    Raises:
        SourceNotFoundError: the bucket or object does not exist.
        SourceAccessDeniedError: no or wrong credentials, a missing permission, an archived object, another region.
        SourceChangedError: the object does not have the requested version.
        SourceUnreachableError: no response, an incomplete one, or a transient error.
        UnreadableListingError: a response with an impossible number or time.
    """
    try:
        yield
    except ClientError as error:
        raise map_error(error, location) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise SourceAccessDeniedError(
            location, "no S3 credentials are configured; set INGEST_S3_ACCESS_KEY_ID, or name stored ones in the job"
        ) from error
    except ParamValidationError as error:
        raise SourceNotFoundError(location) from error
    except (BotoCoreError, OSError) as error:
        raise SourceUnreachableError(location, _sentence(error)) from error
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        # The SDK does not handle malformed numbers and times.
        raise UnreadableListingError(location, f"S3 answered with an impossible value ({_sentence(error)})") from error


def map_error(error: ClientError, location: str) -> IngestError:
    """Map an error response of S3."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    answer = f"S3 answered {status} {code}".rstrip()
    if code in _NOT_FOUND:
        return SourceNotFoundError(location)
    if code in _THROTTLED or status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _RETRIED:
        return SourceUnreachableError(location, answer)
    if status == HTTPStatus.PRECONDITION_FAILED:
        return SourceChangedError(location, "it is no longer the version that was requested")
    if code in _OTHER_REGION or status == HTTPStatus.MOVED_PERMANENTLY:
        return SourceAccessDeniedError(location, f"{answer}; say 'region' in source_config or set INGEST_S3_REGION")
    if code == "InvalidObjectState":
        return SourceAccessDeniedError(location, "it is archived (Glacier); restore it first")
    return SourceAccessDeniedError(location, f"{answer}; check the credentials and their rights on this bucket")


def _sentence(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:_LONGEST_CAUSE]
