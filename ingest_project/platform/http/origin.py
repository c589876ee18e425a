"""Where a request to one of our own servers comes from: this machine, our own pages, or a page of another site."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers

USUAL_PORTS = (80, 443)


def is_loopback(host: str) -> bool:
    """Tell whether a name or address always means this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_same_origin(headers: Headers) -> bool:
    """Tell whether a request comes from a page of this site, or from no page at all."""
    if site := headers.get("sec-fetch-site"):
        return site in {"same-origin", "none"}
    origin = headers.get("origin") or headers.get("referer")
    if not origin:
        return True
    # Browsers do not let a page of another site forge these headers.
    ours = [headers.get(name) for name in ("host", "x-forwarded-host")]
    return host_of(origin.partition("://")[2]) in [host_of(name) for name in ours if name]


def host_of(authority: str) -> tuple[str, int | None]:
    """Return host and port of the beginning of an address; no port where it is the usual one."""
    try:
        parts = urlsplit(f"//{authority}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "", None
    return host, None if port in USUAL_PORTS else port
