"""What is ours in the SDK's request pipeline: its connections and its patience. Imports the SDK: load it lazily."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from azure.core.exceptions import ServiceRequestError, ServiceResponseError
from azure.core.pipeline.transport import HttpTransport, RequestsTransport
from azure.storage.filedatalake import ExponentialRetry

from ingest_project.platform.azure.errors import retry_after_seconds
from ingest_project.platform.azure.identity import OneLakeOptions
from ingest_project.platform.http.pinned_transport import BoundSession
from ingest_project.platform.http.urls import parse_url

if TYPE_CHECKING:
    from azure.core.pipeline import PipelineRequest, PipelineResponse

RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
FIRST_WAIT_SECONDS = 0.25
CALLERS_PER_APPEND = 4


def pooled_transport(servers: Sequence[str], options: OneLakeOptions) -> RequestsTransport:
    """The last step before the wire: it sends to these servers and to no other, wherever the service redirects to.

    Its pool keeps enough connections: with requests' default of 10 the rest are made again.

    Args:
        servers: addresses of the account's endpoints; the proxy and the certificates are those for the first.
        options: how patient.
    """
    # Room for callers beside the appends. A pool that blocks would bound them, but a refused download that the SDK
    # does not read to its end keeps its connection, and with it a place.
    session = BoundSession([parse_url(server) for server in servers], CALLERS_PER_APPEND * options.concurrency)
    return RequestsTransport(
        session=session,
        use_env_settings=False,
        connection_verify=session.verify,
        connection_timeout=options.connect_timeout_seconds,
        read_timeout=options.read_timeout_seconds,
    )


class PatientRetry(ExponentialRetry):
    """A few attempts with short pauses, as long as the service asks for, and never for minutes.

    The SDK's own waits 15 s and more before its second attempt, does not read `Retry-After`, and gives up on a 429.
    """

    def __init__(self, options: OneLakeOptions) -> None:
        super().__init__(retry_total=options.retries)
        self._retries = options.retries
        self._longest = options.longest_wait_seconds

    def send(self, request: PipelineRequest[Any]) -> PipelineResponse[Any, Any]:
        """Send one request until it is answered, or until the attempts are used up."""
        # It also takes the storage client's own options out of what reaches the transport.
        settings = self.configure_retries(request)
        for attempt in range(self._retries + 1):
            wait = self._wait(attempt, None)
            try:
                response: PipelineResponse[Any, Any] = self.next.send(request)
            except (ServiceRequestError, ServiceResponseError):
                if wait is None:
                    raise
            else:
                answer = response.http_response
                if answer.status_code in RETRIED_STATUSES:
                    wait = self._wait(attempt, retry_after_seconds(answer.headers))
                else:
                    wait = None
                if wait is None:
                    answer.location_mode = settings["mode"]
                    return response
            cast("HttpTransport[Any, Any]", request.context.transport).sleep(wait)
        raise AssertionError("unreachable: the last attempt returns or raises")  # pragma: no cover

    def _wait(self, attempt: int, asked_seconds: float | None) -> float | None:
        """Seconds until the next attempt; None when there is none."""
        if attempt >= self._retries or (asked_seconds or 0.0) > self._longest:
            return None
        return min(max(asked_seconds or 0.0, FIRST_WAIT_SECONDS * 4.0**attempt), self._longest)
