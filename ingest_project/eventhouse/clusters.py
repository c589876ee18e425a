"""Which clusters are trusted: a query carries a token, and only these hosts may see one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from ingest_project.errors import SettingsError

if TYPE_CHECKING:
    from pydantic import SecretStr

TRUSTED_HOSTS = (
    "*.kusto.windows.net",
    "*.kusto.data.microsoft.com",
    "*.kusto.fabric.microsoft.com",
    "*.kusto.azuresynapse.net",
    "*.kusto.usgovcloudapi.net",
    "*.kusto.chinacloudapi.cn",
    "*.kusto.azuresynapse.azure.cn",
)

_HOST = re.compile(r"[a-z0-9](?:[a-z0-9.\-]*[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class ClusterAccess:
    """How to reach a cluster, and as whom.

    Args:
        address: query URI of the cluster, e.g. `https://name.z1.kusto.fabric.microsoft.com`.
        authentication: `default` is azure-identity's default credential, `application` an application's id and secret,
            `none` sends no token and is for local servers over plain HTTP.
        tenant_id: of the application.
        client_id: of the application.
        client_secret: of the application.
        trusted_hosts: further host names, or patterns like `*.example.com`, that may get a token. Plain HTTP is spoken
            only with hosts named here.
        timeout_seconds: how long the server may work on one query, in whole seconds.
        max_page_bytes: of one answer; a page that is larger is asked for in smaller parts.
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
    """The cluster's address, as it is used from here on.

    Raises:
        SettingsError: it is not the address of a trusted cluster; says what would make it one.
    """
    try:
        parts = urlsplit(access.address.strip())
        host, port = (parts.hostname or "").removesuffix("."), parts.port
    except ValueError:
        parts, host, port = urlsplit(""), "", None
    if parts.scheme not in ("https", "http") or not _HOST.fullmatch(host):
        raise SettingsError(f"{_shown(access.address)} is not the https address of an Eventhouse cluster.")
    if parts.username or parts.password or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise SettingsError(f"The Eventhouse address {_shown(access.address)} must be a host and nothing else.")
    named = _matches(host, access.trusted_hosts)
    if not named and not _matches(host, TRUSTED_HOSTS):
        raise SettingsError(
            f"Eventhouse at {host} is not trusted, so it gets no query and no token. "
            "Check the address, or add the host to INGEST_EVENTHOUSE_TRUSTED_HOSTS."
        )
    if parts.scheme == "http" and not named:
        raise SettingsError(
            f"Eventhouse at {host} must be asked over https; plain http needs the host in "
            "INGEST_EVENTHOUSE_TRUSTED_HOSTS."
        )
    return f"{parts.scheme}://{host}" + (f":{port}" if port else "")


def _matches(host: str, patterns: tuple[str, ...]) -> bool:
    for pattern in patterns:
        name = pattern.strip().lower()
        if host == name or (name.startswith("*.") and host.endswith(name[1:]) and len(host) > len(name) - 1):
            return True
    return False


def _shown(address: str) -> str:
    """The address without what may be a password before an @ or a key behind a question mark."""
    return repr(re.sub(r"//[^/@]*@", "//…@", address).partition("?")[0][:200])
