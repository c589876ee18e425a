"""A web address from a stranger, taken apart once, so that what is checked and what is connected to cannot differ."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, cast
from urllib.parse import SplitResult, urlsplit

import idna
from requests.utils import requote_uri

from ingest_project.errors import AddressRefused

DEFAULT_PORTS = {"http": 80, "https": 443}
MAX_URL_LENGTH = 8_192
MAX_HOST_LENGTH = 253
PRINTED_LENGTH = 300

# Parsers disagree about these; a browser and a library may then go to different hosts.
_AMBIGUOUS = re.compile(r"[\x00-\x20\x7f\\]")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_BYTE_PRINTED_AS_IS = 0x7F
# Thousands of addresses lead to a few hosts.
_REMEMBERED_HOSTS = 1_024

Scheme = Literal["http", "https"]


@dataclass(frozen=True)
class WebAddress:
    """One address, canonical.

    Args:
        scheme: of the two that are contacted.
        host: lower case, ASCII (IDNA), no trailing dot; an IP address in its usual spelling, IPv6 without brackets.
        port: given or default.
        target: path and query, percent-encoded; starts with a slash.
    """

    scheme: Scheme
    host: str
    port: int
    target: str

    @property
    def url(self) -> str:
        """The address as it is requested. It may carry secrets: never print it."""
        return f"{self.origin}{self.target}"

    @property
    def origin(self) -> str:
        """Scheme, host and port: what a credential belongs to."""
        return f"{self.scheme}://{self.host_and_port}"

    @property
    def host_and_port(self) -> str:
        """For people and for limits; the default port is left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @cached_property
    def printable(self) -> str:
        """The address without its query, which may be a signature."""
        return printable_url(self.url)


def parse_url(url: str) -> WebAddress:
    """Take an address apart.

    Raises:
        AddressRefused: not http or https, with a user or password, or of a form that parsers disagree about.
    """
    if len(url) > MAX_URL_LENGTH:
        raise AddressRefused(printable_url(url), f"it is longer than {MAX_URL_LENGTH} characters")
    url = url.strip()
    parts = _split(url)
    scheme = parts.scheme.lower()
    if scheme not in DEFAULT_PORTS:
        raise AddressRefused(
            printable_url(url), f"only http and https are contacted, not {scheme[:20] or 'no scheme'!r}"
        )
    if "@" in parts.netloc:
        raise AddressRefused(printable_url(url), "it carries a user name; credentials are configured per host instead")
    host = canonical_host(parts.hostname or "")
    if host is None:
        raise AddressRefused(printable_url(url), "its host is not a name or an address")
    target = requote_uri((parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
    return WebAddress(cast("Scheme", scheme), host, parts.port or DEFAULT_PORTS[scheme], target)


def _split(url: str) -> SplitResult:
    # A space in a path is a common slip and harmless; anywhere before the path it is not.
    authority, slash, path = url.partition("//")
    host, *rest = re.split(r"(?=[/?#])", path, maxsplit=1)
    if _AMBIGUOUS.search(authority + host) or re.search(r"[\x00-\x1f\x7f]", url) or not slash:
        raise AddressRefused(
            printable_url(url), "it is not a full address, or has characters that addresses do not have"
        )
    try:
        parts = urlsplit(f"{authority}//{host}{''.join(rest)}")
        _ = parts.port
    except ValueError:
        raise AddressRefused(printable_url(url), "its host or port is malformed") from None
    if parts.port == 0:
        raise AddressRefused(printable_url(url), "its host or port is malformed")
    return parts


@lru_cache(maxsize=_REMEMBERED_HOSTS)
def canonical_host(host: str) -> str | None:
    """The one spelling of a host name or address; None for what is neither.

    Decimal, octal, hexadecimal and shortened IPv4 addresses (`2130706433`, `0x7f.1`) become the usual four numbers, as
    the system's resolver would read them.
    """
    with contextlib.suppress(ValueError):
        return None if "%" in host else str(ipaddress.ip_address(host))
    try:
        name = host if host.isascii() else idna.encode(host, uts46=True).decode()
    except (idna.IDNAError, UnicodeError):
        return None
    name = name.lower().removesuffix(".")
    with contextlib.suppress(OSError):
        return socket.inet_ntoa(socket.inet_aton(name))
    return name if len(name) <= MAX_HOST_LENGTH and _HOST_NAME.fullmatch(name) else None


def printable_url(url: str) -> str:
    """An address for logs and messages: no user, query or fragment, which may be secrets; no control characters."""
    text = url[:MAX_URL_LENGTH]
    query = "?…" if "?" in text else ""
    text = re.split(r"[?#]", text, maxsplit=1)[0]
    before, slashes, after = text.partition("//")
    authority, slash, path = after.partition("/")
    text = f"{before}{slashes}{authority.rpartition('@')[2]}{slash}{path}"
    if not text.isprintable():
        text = "".join(char if char.isprintable() else "\ufffd" for char in text)
    return (text if len(text) <= PRINTED_LENGTH else f"{text[:PRINTED_LENGTH]}…") + query
