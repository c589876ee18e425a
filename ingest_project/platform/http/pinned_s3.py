"""botocore's connections, pinned to checked addresses like all others: see `pinned_transport`.

botocore resolves names by urllib3, each time it connects, after nobody's check, and goes where a server redirects it.
Here its pools make connections whose host is judged and whose address is the one that was judged.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
    AWSPreparedRequest,
    AWSResponse,
)
from botocore.exceptions import HTTPClientError
from botocore.httpsession import URLLib3Session

from ingest_project.core.errors import AddressRejectedError
from ingest_project.platform.http.pinned_transport import Connector, new_connection

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


class _PinnedConnection(AWSHTTPConnection):
    def __init__(self, *args: Any, connector: Connector, **kwargs: Any) -> None:  # noqa: ANN401 - urllib3's own
        super().__init__(*args, **kwargs)
        self._connector = connector

    def _new_conn(self) -> socket.socket:
        return new_connection(self, self._connector)


class _PinnedTlsConnection(AWSHTTPSConnection):
    def __init__(self, *args: Any, connector: Connector, **kwargs: Any) -> None:  # noqa: ANN401 - urllib3's own
        super().__init__(*args, **kwargs)
        self._connector = connector

    def _new_conn(self) -> socket.socket:
        return new_connection(self, self._connector)


class _PinnedSession:
    """botocore's session, whose refusals are told as they are: botocore would try a refused host again."""

    def __init__(self, session: URLLib3Session) -> None:
        self._session = session

    def send(self, request: AWSPreparedRequest) -> AWSResponse:
        try:
            return self._session.send(request)
        except HTTPClientError as error:
            refused = error.kwargs.get("error")
            if isinstance(refused, AddressRejectedError):
                raise refused from None
            raise

    def close(self) -> None:
        self._session.close()


def pin(client: S3Client, connector: Connector) -> None:
    """Have every connection of a client made by the connector. The client must have been told of no proxy.

    Args:
        client: made, and not used yet.
        connector: what makes its connections.
    """
    # There is no public way to hand a client its session; a method of ours in its place is what test tools use as well.
    endpoint = client._endpoint  # type: ignore[attr-defined] # noqa: SLF001
    session = endpoint.http_session
    session._manager.pool_classes_by_scheme = {  # noqa: SLF001
        "http": _pools(AWSHTTPConnectionPool, _PinnedConnection, connector),
        "https": _pools(AWSHTTPSConnectionPool, _PinnedTlsConnection, connector),
    }
    endpoint.http_session = _PinnedSession(session)


def _pools(pool_class: type, connection_class: type, connector: Connector) -> Callable[..., Any]:
    def made(host: str, port: int, **context: Any) -> Any:  # noqa: ANN401 - urllib3's own
        pool = pool_class(host, port, **context)
        pool.ConnectionCls = connection_class
        pool.conn_kw["connector"] = connector
        return pool

    return made
