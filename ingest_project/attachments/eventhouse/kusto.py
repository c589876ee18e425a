"""A Kusto client that sends queries and secrets to trusted hosts only.

Imported when a query is about to be sent, because the library takes half a second to import.
"""

from __future__ import annotations

from typing import Any, cast

from azure.core.credentials import TokenCredential
from azure.kusto.data import KustoClient, KustoConnectionStringBuilder
from azure.kusto.data.client import HTTPAdapterWithSocketOptions
from azure.kusto.data.kusto_trusted_endpoints import MatchRule, well_known_kusto_endpoints
from azure.kusto.data.response import KustoResponseDataSet
from requests import PreparedRequest, Response, Session
from urllib3.connection import HTTPConnection

from ingest_project.attachments.eventhouse.clusters import check_login
from ingest_project.attachments.eventhouse.frames import check_frames
from ingest_project.core.settings import EventhouseSettings
from ingest_project.platform.http.pinned_transport import require_origin
from ingest_project.platform.http.urls import parse_url

QUERY_PATH = "v2/rest/query"
CONNECT_SECONDS = 10.0
# What the network may add to the time that the server may take.
NETWORK_SECONDS = 5.0


class CheckedKustoClient(KustoClient):
    """A client that raises for every answer that contains an error, in whatever part.

    The library checks the rows only, not the frame that says whether the answer is complete.
    """

    def __init__(self, connection: KustoConnectionStringBuilder, address: str, timeout_seconds: float) -> None:
        super().__init__(connection)
        read_seconds = timeout_seconds + NETWORK_SECONDS
        adapter = _ClusterAdapter(address, read_seconds, self.compose_socket_options())
        # The library's type also allows aiohttp's session; this client is the synchronous one.
        session = cast("Session", self._session)
        session.mount("https://", adapter)
        session.mount("http://", adapter)

    @staticmethod
    def _kusto_parse_by_endpoint(endpoint: str, response_json: Any) -> KustoResponseDataSet:  # noqa: ANN401 - JSON
        if endpoint.endswith(QUERY_PATH):
            check_frames(response_json)
        return KustoClient._kusto_parse_by_endpoint(endpoint, response_json)  # noqa: SLF001 - what this one overrides


class _ClusterAdapter(HTTPAdapterWithSocketOptions):
    """Sends every request to the cluster only, and with a time-out.

    The library waits without an end for a cluster's metadata, and half a minute too long for an answer.
    """

    def __init__(self, address: str, read_seconds: float, keep_alive: list[tuple[int, int, int]]) -> None:
        self._origins = frozenset({parse_url(address).origin})
        self._timeout = (CONNECT_SECONDS, read_seconds)
        options = [*HTTPConnection.default_socket_options, *keep_alive]
        super().__init__(socket_options=options)  # type: ignore[no-untyped-call]

    def send(self, request: PreparedRequest, *args: Any, **kwargs: Any) -> Response:  # noqa: ANN401 - handed through
        require_origin(str(request.url), self._origins)
        kwargs["timeout"] = self._timeout
        return super().send(request, *args, **kwargs)


def connect(settings: EventhouseSettings, address: str) -> CheckedKustoClient:
    """Return a client for an address that was checked before; nothing is sent yet."""
    if settings.authentication == "none":
        connection = KustoConnectionStringBuilder.with_no_authentication(address)
    else:
        _trust(parse_url(address).host)
        connection = KustoConnectionStringBuilder.with_azure_token_credential(
            address, credential_from_login_endpoint=lambda authority: _credential(settings, authority)
        )
    return CheckedKustoClient(connection, address, settings.timeout_seconds)


def _trust(host: str) -> None:
    """Allow the library to send a token to this checked host. Idempotent."""
    # The library leaves these two without types.
    rule = MatchRule(host, exact=True)  # type: ignore[no-untyped-call]
    well_known_kusto_endpoints.add_trusted_hosts([rule], replace=False)  # type: ignore[no-untyped-call]


def _credential(settings: EventhouseSettings, authority: str) -> TokenCredential:
    from azure.identity import ClientSecretCredential, DefaultAzureCredential  # noqa: PLC0415 - not for local servers

    authority = check_login(authority, settings)
    if settings.authentication == "application" and settings.client_secret is not None:
        secret = settings.client_secret.get_secret_value()
        return ClientSecretCredential(settings.tenant_id or "", settings.client_id or "", secret, authority=authority)
    return DefaultAzureCredential(authority=authority)
