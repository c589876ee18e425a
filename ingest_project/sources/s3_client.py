"""S3 clients of sources: their account, what they connect to and read, and their errors.

botocore resolves names by urllib3, unchecked, each time it connects, and follows every redirect.
It reads every answer but a file's into memory, however long it is and however slowly it comes. Here its pools make
connections that keep to the deadline in force and, given a connector, go to the address that was checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Any

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
from urllib3 import HTTPResponse
from urllib3.exceptions import HTTPError

from ingest_project.core.errors import (
    AddressRejectedError,
    IngestError,
    PermanentError,
    SourceAccessDeniedError,
    SourceChangedError,
    SourceNotFoundError,
    SourceUnreachableError,
    UnreadableListingError,
)
from ingest_project.platform.http import WebAddress, parse_url
from ingest_project.platform.http.host_policy import HostLists, HostRules
from ingest_project.platform.http.pinned_transport import Connector, DeadlineSSLSocket, PinnedHTTPConnection
from ingest_project.platform.http.response import REDIRECTS
from ingest_project.platform.object_store.s3 import S3Client, s3_client
from ingest_project.platform.object_store.store import S3Options

# A thousand keys of a thousand bytes, each of them percent-encoded, are under 4 MiB.
MAX_ANSWER_BYTES = 8 * 1024**2
_PIECE_BYTES = 64 * 1024
_ROOT = b"ListBucketResult"
_ROOT_WITHIN = 1_024
_ERRORS = 300
_REGION = "x-amz-bucket-region"


def bound(client: S3Client, connector: Connector | None) -> S3Client:
    """Bound the answers of a client, and have its connections made by the connector where there is one.

    Args:
        client: not used yet; without a proxy where there is a connector.
        connector: None for an endpoint of the settings.
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
    """Send a request instead of botocore, and read the answer up to its limit."""
    is_file, request.stream_output = request.stream_output, True
    location = str(request.url).partition("?")[0]
    try:
        response: Any = session.send(request)
    except HTTPClientError as error:
        # botocore would retry a refused host.
        rejected = error.kwargs.get("error")
        if isinstance(rejected, AddressRejectedError):
            raise rejected from None
        raise
    if event_name.endswith("HeadBucket") and response.status_code in REDIRECTS and _REGION not in response.headers:
        response.raw.close()
        # botocore finds a bucket's region by this request, and would follow redirects without limit.
        raise SourceAccessDeniedError(location, "it redirects to another server without naming its region")
    if is_file and response.status_code < _ERRORS:
        return response
    body = _body(response.raw, location)
    if event_name.endswith("ListObjectsV2") and response.status_code < _ERRORS and _ROOT not in body[:_ROOT_WITHIN]:
        raise UnreadableListingError(location, "it answers with something that is no listing of a bucket")
    # botocore keeps its body here, and does not read it again.
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
# Regions come from messages and a client takes megabytes, so their number is bounded.
KEPT_CLIENTS = 32
_RETRIED = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})
_THROTTLED = frozenset({"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded"})
_NOT_FOUND = frozenset({"404", "NoSuchKey", "NotFound", "NoSuchBucket", "NoSuchVersion"})
_OTHER_REGION = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"})
_LONGEST_CAUSE = 200


@dataclass(frozen=True)
class S3Account(S3Options):
    """An endpoint of S3 and our keys. A value of None comes from boto3's own configuration.

    Args:
        unsigned: send requests anonymously.
        from_job: the endpoint comes from a job, and the client may connect to nothing else; False: from the settings.
        internal_allowed: a setting names this host, so that it may have an internal address.
    """

    unsigned: bool = False
    from_job: bool = False
    internal_allowed: bool = False

    @property
    def endpoint(self) -> WebAddress | None:
        """The address of the server; None for Amazon's."""
        return parse_url(self.endpoint_url) if self.endpoint_url else None

    def rules(self, lists: HostLists) -> HostRules | None:
        """Return the rules that its client connects by; None for an endpoint of the settings."""
        endpoint = self.endpoint
        if not self.from_job or endpoint is None:
            return None
        return lists.rules_for((endpoint.host, endpoint.port), internal_allowed=self.internal_allowed)


@lru_cache(maxsize=KEPT_CLIENTS)
def account_client(account: S3Account, timeout_seconds: float, lists: HostLists) -> S3Client:
    """Return the client of an account, whose connections equal accounts share.

    Args:
        account: where, and with which keys.
        timeout_seconds: how long a server may be silent.
        lists: hosts that are not contacted, and internal ones that may be.
    """
    rules = account.rules(lists)
    client = s3_client(
        account,
        timeout_seconds,
        unsigned=account.unsigned,
        # A proxy would resolve the name itself. An endpoint of the settings is reached as they say.
        proxied=rules is None,
    )
    return bound(client, Connector(rules) if rules else None)


@contextmanager
def s3_errors(location: str) -> Iterator[None]:
    """Map a failure inside the block to a source's error.

    Args:
        location: of the bucket or object, for messages.

    Raises:
        SourceNotFoundError: no such bucket or object.
        SourceAccessDeniedError: no or wrong credentials, a missing right, an archived object, another region.
        SourceChangedError: the object is not the version that was requested.
        SourceUnreachableError: no response, a cut one, or a transient error.
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
