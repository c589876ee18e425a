"""Bound what an S3 client connects to and reads.

botocore resolves names by urllib3, each time it connects, after nobody's check, and goes where a server redirects it.
It reads every answer but a file's into memory, however long it is and however slowly it comes. Here its pools make
connections that keep to the deadline in force and, given a connector, go to the address that was checked.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
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

from ingest_project.core.errors import (
    AddressRejectedError,
    PermanentError,
    SourceAccessDeniedError,
    UnreadableListingError,
)
from ingest_project.platform.http.pinned_transport import Connector, DeadlineSSLSocket, new_connection
from ingest_project.platform.http.response import REDIRECTS
from ingest_project.sources.reading import with_deadline

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

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
    session = client._endpoint.http_session  # type: ignore[attr-defined] # noqa: SLF001 - there is no public way
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


class _Connection(AWSHTTPConnection):
    def __init__(self, *args: Any, connector: Connector | None, **kwargs: Any) -> None:  # noqa: ANN401 - urllib3's own
        super().__init__(*args, **kwargs)
        self._connector = connector

    def _new_conn(self) -> socket.socket:
        return new_connection(self, self._connector) if self._connector else with_deadline(super()._new_conn())


class _TlsConnection(AWSHTTPSConnection):
    def __init__(self, *args: Any, connector: Connector | None, **kwargs: Any) -> None:  # noqa: ANN401 - urllib3's own
        super().__init__(*args, **kwargs)
        self._connector = connector

    def _new_conn(self) -> socket.socket:
        return new_connection(self, self._connector) if self._connector else with_deadline(super()._new_conn())


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
        # botocore would try a refused host again.
        rejected = error.kwargs.get("error")
        if isinstance(rejected, AddressRejectedError):
            raise rejected from None
        raise
    if event_name.endswith("HeadBucket") and response.status_code in REDIRECTS and _REGION not in response.headers:
        response.raw.close()
        # botocore finds the region of a bucket by this request, and repeats it for each redirect without an end.
        raise SourceAccessDeniedError(
            location, "it redirects to another server, and does not say which region it is in"
        )
    if is_file and response.status_code < _ERRORS:
        return response
    body = _body(response.raw, location)
    if event_name.endswith("ListObjectsV2") and response.status_code < _ERRORS and _ROOT not in body[:_ROOT_WITHIN]:
        raise UnreadableListingError(location, "it answers with something that is no listing of a bucket")
    # botocore keeps what it has read here, and reads nothing twice.
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
