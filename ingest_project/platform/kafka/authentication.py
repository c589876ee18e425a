"""Tokens of Microsoft Entra for brokers that take OAUTHBEARER, such as Event Hubs' Kafka endpoint."""

from __future__ import annotations

import logging

from azure.core.credentials import AccessToken

from ingest_project.core.errors import BrokerUnavailableError, SettingsError
from ingest_project.platform.azure.identity import default_credential
from ingest_project.platform.http.host_grammar import MalformedAddressError, host_and_port, parse_server

REMEDY = (
    "Sign this host in (managed identity, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET, or `az login`) and give it the role "
    "Azure Event Hubs Data Receiver."
)
MAX_REASON_LENGTH = 300

_logger = logging.getLogger(__name__)


class TokenSource:
    """Gives tokens to one Kafka client: one to begin with, and a new one some time before that ends.

    A token is good for the broker's host alone: no other host could use it, and no other host is shown it.

    Args:
        bootstrap_servers: of the broker, all on one host, which names what the token is for.

    Raises:
        SettingsError: they are on several hosts, or one of them is none.
    """

    def __init__(self, bootstrap_servers: str) -> None:
        self._servers = bootstrap_servers
        hosts = {_host(server.strip()) for server in bootstrap_servers.split(",") if server.strip()}
        if len(hosts) != 1:
            raise SettingsError(f"A token is for one host: {bootstrap_servers} must be on one with OAUTHBEARER.")
        self.scope = f"https://{host_and_port(hosts.pop(), None)}/.default"

    def check(self) -> None:
        """Get a token, which the next call gives again.

        Raises:
            BrokerUnavailableError: there is none; says why and what to do.
        """
        self._get()

    def __call__(self, _config: str | None) -> tuple[str, float]:
        """A token and when it ends, in seconds since 1970: what the library's `oauth_cb` returns."""
        try:
            token = self._get()
        except BrokerUnavailableError as error:
            # The library asks again every ten seconds, and what it then says of the connection has no reason in it.
            _logger.warning("%s", error)
            raise
        return token.token, float(token.expires_on)

    def _get(self) -> AccessToken:
        from azure.core.exceptions import AzureError  # noqa: PLC0415 - half a second, for these brokers alone

        try:
            return default_credential().get_token(self.scope)
        except AzureError as error:
            reason = (" ".join(str(error).split()) or type(error).__name__)[:MAX_REASON_LENGTH].rstrip(". ")
            raise BrokerUnavailableError(self._servers, f"no token for {self.scope}: {reason}", REMEDY) from error


def _host(server: str) -> str:
    try:
        return parse_server(server)[0]
    except MalformedAddressError as error:
        raise SettingsError(f"KAFKA_BOOTSTRAP_SERVERS: {server[:100]!r} is no host:port: {error.reason}.") from None
