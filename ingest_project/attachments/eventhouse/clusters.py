"""Trusted clusters: a query carries a token, and only these hosts may receive one."""

from __future__ import annotations

from collections.abc import Iterable

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


def check_address(settings: EventhouseSettings) -> str:
    """Return the cluster's address in its canonical form.

    Raises:
        SettingsError: none is set, or it is not the address of a trusted cluster; names the remedy.
    """
    if not settings.address:
        raise SettingsError("EVENT_SOURCE=eventhouse needs INGEST_EVENTHOUSE_ADDRESS and INGEST_EVENTHOUSE_QUERIES.")
    shown = _shown(settings.address)
    try:
        parts = split_address(settings.address, ("https", "http"))
    except MalformedAddressError as error:
        raise SettingsError(f"{shown} is not the https address of an Eventhouse cluster: {error.reason}.") from None
    if not parts.is_server:
        raise SettingsError(f"The Eventhouse address {shown} must be a host and nothing else.")
    host, port = parts.host, parts.port or DEFAULT_PORTS[parts.scheme]
    named = _matches(host, port, settings.trusted_hosts)
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


def check_login(authority: str, settings: EventhouseSettings) -> str:
    """Return the address at which clients of the cluster sign in: an application sends its secret there.

    Raises:
        SettingsError: it is neither Microsoft's nor a trusted host; nothing is sent there.
    """
    try:
        parts = split_address(authority, ("https",))
    except MalformedAddressError as error:
        raise SettingsError(f"Eventhouse names {_shown(authority)} to sign in at: {error.reason}.") from None
    port = parts.port or DEFAULT_PORTS["https"]
    if parts.host not in LOGIN_HOSTS and not _matches(parts.host, port, settings.trusted_hosts):
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
