"""What S3 may answer: botocore reads every answer but a file's into memory, however long it is and however slowly."""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, Any

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
    AWSPreparedRequest,
)
from botocore.exceptions import HTTPClientError
from urllib3 import HTTPResponse
from urllib3.exceptions import HTTPError

from ingest_project.core.errors import PermanentError, SourceAccessDeniedError, UnreadableListingError
from ingest_project.platform.http.deadlines import DeadlineSSLSocket
from ingest_project.platform.http.errors import REDIRECTS
from ingest_project.sources.limits import keeping_deadline

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# A thousand keys of a thousand bytes, each of them percent-encoded, are under 4 MiB.
MAX_ANSWER_BYTES = 8 * 1024**2
PIECE_BYTES = 64 * 1024
ROOT = b"ListBucketResult"
ROOT_WITHIN = 1_024
REFUSALS = 300
REGION = "x-amz-bucket-region"


def bound(client: S3Client) -> S3Client:
    """The same client, whose answers are bounded and whose connections keep to the deadline in force."""
    endpoint = client._endpoint  # type: ignore[attr-defined] # noqa: SLF001 - there is no public way to its session
    session = getattr(endpoint.http_session, "_session", endpoint.http_session)
    manager = session._manager  # noqa: SLF001 - see above
    if manager.pool_classes_by_scheme.get("http") is AWSHTTPConnectionPool:
        manager.pool_classes_by_scheme = {"http": _TimedPool, "https": _TimedTlsPool}
    context = manager.connection_pool_kw.get("ssl_context")
    if context is not None:
        context.sslsocket_class = DeadlineSSLSocket
    events: Any = client.meta.events
    events.register("before-send.s3", partial(_send, endpoint.http_session), unique_id="ingest-bounded-answers")
    return client


class _TimedConnection(AWSHTTPConnection):
    def _new_conn(self) -> socket.socket:
        return keeping_deadline(super()._new_conn())


class _TimedTlsConnection(AWSHTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return keeping_deadline(super()._new_conn())


class _TimedPool(AWSHTTPConnectionPool):
    ConnectionCls = _TimedConnection


class _TimedTlsPool(AWSHTTPSConnectionPool):
    ConnectionCls = _TimedTlsConnection


def _send(session: Any, request: AWSPreparedRequest, event_name: str = "", **_: object) -> Any:  # noqa: ANN401 - botocore's
    """Send a request in botocore's place, and read the answer as far as it may go."""
    is_file, request.stream_output = request.stream_output, True
    response: Any = session.send(request)
    if event_name.endswith("HeadBucket") and response.status_code in REDIRECTS and REGION not in response.headers:
        response.raw.close()
        # botocore asks this to find the region of a bucket, and for each redirect once more, without an end.
        raise SourceAccessDeniedError(
            _place(request), "it redirects to another server, and does not say which region it is in"
        )
    if is_file and response.status_code < REFUSALS:
        return response
    body = _body(response.raw, _place(request))
    if event_name.endswith("ListObjectsV2") and response.status_code < REFUSALS and ROOT not in body[:ROOT_WITHIN]:
        raise UnreadableListingError(_place(request), "it answers with something that is no listing of a bucket")
    # Where botocore keeps what it has read; it reads nothing twice.
    response._content = body  # noqa: SLF001
    return response


def _body(raw: HTTPResponse, place: str) -> bytes:
    body = bytearray()
    try:
        for piece in raw.stream(PIECE_BYTES):
            body += piece
            if len(body) > MAX_ANSWER_BYTES:
                raw.close()
                raise PermanentError(f"{place} answers with more than {MAX_ANSWER_BYTES} bytes.")
    except (HTTPError, OSError) as error:
        raw.close()
        raise HTTPClientError(error=error) from error
    return bytes(body)


def _place(request: AWSPreparedRequest) -> str:
    return str(request.url).partition("?")[0]
