"""Trusted clusters: a query carries a token, and only these hosts may receive one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pydantic import SecretStr

from ingest_project.core.errors import SettingsError
from ingest_project.core.settings import EventhouseSettings
from ingest_project.platform.http.host_policy import ANY_HOST, HostPattern
from ingest_project.platform.http.urls import DEFAULT_PORTS, MalformedAddressError, printable_url, split_address

TRUSTED_HOSTS = (
    "*.kusto.windows.net",
    "*.kusto.data.microsoft.com",
    "*.kusto.fabric.microsoft.com",
    "*.kusto.azuresynapse.net",
    "*.kusto.usgovcloudapi.net",
    "*.kusto.chinacloudapi.cn",
    "*.kusto.azuresynapse.azure.cn",
)
# Hosts at which Microsoft Entra accepts an application's secret, in each of its clouds.
LOGIN_HOSTS = (
    "login.microsoftonline.com",
    "login.windows.net",
    "login.microsoftonline.us",
    "login.chinacloudapi.cn",
    "login.partner.microsoftonline.cn",
)


@dataclass(frozen=True, kw_only=True)
class ClusterAccess:
    """Address and identity for one cluster.

    Args:
        address: query URI of the cluster, e.g. `https://name.z1.kusto.fabric.microsoft.com`.
        authentication: `default` is azure-identity's default credential, `application` an application's id and secret,
            `none` sends no token and is for local servers over plain HTTP.
        tenant_id: of the application.
        client_id: of the application.
        client_secret: of the application.
        trusted_hosts: further host names, or patterns like `*.example.com`, that may get a token. Plain HTTP is used
            only with hosts named here.
        timeout_seconds: how long the server may work on one query, in whole seconds.
        max_page_bytes: of one answer; a larger page is queried in smaller parts.
    """

    address: str
    authentication: Literal["default", "application", "none"] = "default"
    tenant_id: str = ""
    client_id: str = ""
    client_secret: SecretStr | None = None
    trusted_hosts: tuple[str, ...] = ()
    timeout_seconds: int = 20
    max_page_bytes: int = 16 * 1024**2


def check_address(access: ClusterAccess) -> str:
    """Return the cluster's address in its canonical form.

    Raises:
        SettingsError: it is not the address of a trusted cluster; names the remedy.
    """
    shown = _shown(access.address)
    try:
        parts = split_address(access.address, ("https", "http"))
    except MalformedAddressError as error:
        raise SettingsError(f"{shown} is not the https address of an Eventhouse cluster: {error.reason}.") from None
    if not parts.is_server:
        raise SettingsError(f"The Eventhouse address {shown} must be a host and nothing else.")
    host, port = parts.host, parts.port or DEFAULT_PORTS[parts.scheme]
    named = _matches(host, port, access.trusted_hosts)
    if not named and not (_matches(host, port, TRUSTED_HOSTS) and port in DEFAULT_PORTS.values()):
        raise SettingsError(
            f"Eventhouse at {host} is not trusted, so it gets no query and no token. "
            "Check the address, or add the host to INGEST_EVENTHOUSE_TRUSTED_HOSTS."
        )
    if parts.scheme == "http" and not named:
        raise SettingsError(
            f"Eventhouse at {host} must be queried over https; plain http needs the host in "
            "INGEST_EVENTHOUSE_TRUSTED_HOSTS."
        )
    return parts.origin


def check_login(authority: str, access: ClusterAccess) -> str:
    """Return the address at which the cluster wants clients to sign in: an application sends its secret there.

    Raises:
        SettingsError: it is neither Microsoft's nor a trusted host; nothing is sent there.
    """
    try:
        parts = split_address(authority, ("https",))
    except MalformedAddressError as error:
        raise SettingsError(f"Eventhouse names {_shown(authority)} to sign in at: {error.reason}.") from None
    port = parts.port or DEFAULT_PORTS["https"]
    if parts.host not in LOGIN_HOSTS and not _matches(parts.host, port, access.trusted_hosts):
        raise SettingsError(
            f"Eventhouse names {parts.host} to sign in at, which is not Microsoft's. Nothing is shown to it unless "
            "INGEST_EVENTHOUSE_TRUSTED_HOSTS names it."
        )
    return parts.origin


def _matches(host: str, port: int, patterns: Iterable[str]) -> bool:
    parsed = [HostPattern.parse(pattern) for pattern in patterns]
    # A pattern for every host does not make any of them trusted.
    return any(pattern.name != ANY_HOST and pattern.matches_name(host, port) for pattern in parsed)


def _shown(address: str) -> str:
    """Return the address without a possible password before an @ or key behind a question mark."""
    return repr(printable_url(address).partition("?")[0][:200])


def cluster_access(eventhouse: EventhouseSettings) -> ClusterAccess:
    """Return how Eventhouse is reached by the settings.

    Raises:
        SettingsError: no address is set.
    """
    if not eventhouse.address:
        raise SettingsError("EVENT_SOURCE=eventhouse needs INGEST_EVENTHOUSE_ADDRESS and INGEST_EVENTHOUSE_QUERIES.")
    return ClusterAccess(
        address=eventhouse.address,
        authentication=eventhouse.authentication,
        tenant_id=eventhouse.tenant_id or "",
        client_id=eventhouse.client_id or "",
        client_secret=eventhouse.client_secret,
        trusted_hosts=tuple(eventhouse.trusted_hosts),
        timeout_seconds=eventhouse.timeout_seconds,
        max_page_bytes=eventhouse.max_page_bytes,
    )
