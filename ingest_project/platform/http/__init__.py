"""Parse the hosts, servers and web addresses of messages, jobs, files and settings with one grammar.

Libraries disagree about where a host ends (at a backslash, at an `@`, at a space) and about which numbers are an IP
address. This module refuses every ambiguous address, and rebuilds an accepted one from its parts before any client
sees it, so that the host that was checked is the host that is contacted.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, cast
from urllib.parse import urlsplit

import idna
from requests.utils import requote_uri

from ingest_project.core.errors import AddressRejectedError

DEFAULT_PORTS = {"http": 80, "https": 443}
PRINTED_LENGTH = 300

Scheme = Literal["http", "https"]

MAX_ADDRESS_LENGTH = 8_192
MAX_HOST_LENGTH = 253
MAX_PORT = 65_535

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,20})://([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#(.*))?", re.DOTALL)
_AUTHORITY = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]{1,5}))?")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
# Some resolvers read names that end like this as numbers: `2130706433`, `0x7f.1`, `127.1`.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
# Cache size: thousands of addresses share a few hosts.
_REMEMBERED_HOSTS = 1_024


class MalformedAddressError(ValueError):
    """The text is not an address, or clients could read it differently. Each caller maps this to its own error.

    Args:
        reason: the problem, without quoting the text; starts in lower case and ends without a full stop.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Address:
    """The parts of one address.

    Args:
        scheme: scheme in lower case.
        user: text before the `@`; empty without one.
        host: canonical host, see `parse_host`; IPv6 without brackets.
        port: port; None if the address has none.
        path: path as written; empty, or starts with a slash.
        query: query as written; None without a question mark.
        fragment: fragment as written; None without a `#`.
    """

    scheme: str
    user: str
    host: str
    port: int | None
    path: str
    query: str | None
    fragment: str | None

    @property
    def origin(self) -> str:
        """Return scheme, host and, if given, port: the rebuilt address of a server."""
        return f"{self.scheme}://{host_and_port(self.host, self.port)}"

    @property
    def is_server(self) -> bool:
        """Return True if the address has no path, query or user."""
        return not self.user and self.path in ("", "/") and self.query is None and self.fragment is None


@dataclass(frozen=True)
class WebAddress:
    """One address, canonical.

    Args:
        scheme: `http` or `https`.
        host: lower case, ASCII (IDNA), no trailing dot; an IP address in canonical form, IPv6 without brackets.
        port: given or default port.
        target: path and query, percent-encoded; starts with a slash.
    """

    scheme: Scheme
    host: str
    port: int
    target: str

    @property
    def url(self) -> str:
        """Return the address to request. It may carry secrets: never print it."""
        return f"{self.origin}{self.target}"

    @property
    def origin(self) -> str:
        """Return scheme, host and port, to which a credential belongs."""
        return f"{self.scheme}://{self.host_and_port}"

    @property
    def host_and_port(self) -> str:
        """Return host and port for people and limits, without a default port."""
        return host_and_port(self.host, None if self.port == DEFAULT_PORTS[self.scheme] else self.port)

    @cached_property
    def redacted(self) -> str:
        """Return the address without its query, which may contain a signature."""
        return redacted_url(self.url)


def split_address(text: str, schemes: Sequence[str], *, with_user: bool = False) -> Address:
    """Parse an address; spaces around it are dropped.

    Args:
        text: `scheme://host[:port][/path][?query][#fragment]`.
        schemes: accepted schemes, in lower case.
        with_user: accept `user@` before the host, as in `abfss://container@account…`.

    Raises:
        MalformedAddressError: the text has another form, or clients may disagree about its host.
    """
    if len(text) > MAX_ADDRESS_LENGTH:
        raise MalformedAddressError(f"it is longer than {MAX_ADDRESS_LENGTH} characters")
    text = text.strip()
    if _CONTROL.search(text):
        raise MalformedAddressError("it contains characters that are not allowed in addresses")
    found = _ADDRESS.fullmatch(text)
    if found is None:
        raise MalformedAddressError("it is not a full address (scheme://host/path)")
    scheme, authority, path, query, fragment = found.groups()
    scheme = scheme.lower()
    if scheme not in schemes:
        raise MalformedAddressError(f"only {' and '.join(schemes)} addresses are accepted, not {scheme!r}")
    user, at, server = authority.rpartition("@")
    if at and not with_user:
        raise MalformedAddressError("it carries a user name; credentials are configured per host instead")
    if at and not _is_plain_user(user):
        raise MalformedAddressError("what stands before its @ is malformed")
    host, port = parse_server(server)
    return Address(scheme, user, host, port, path, query, fragment)


def split_server(text: str, schemes: Sequence[str]) -> Address:
    """Parse the address of a server, see `split_address`.

    Raises:
        MalformedAddressError: the text is not an address, or has a path, query or user.
    """
    parts = split_address(text, schemes)
    if not parts.is_server:
        raise MalformedAddressError("it names more than a server")
    return parts


def parse_server(text: str) -> tuple[str, int | None]:
    """Parse host and port of `host`, `host:port`, `[IPv6]` or `[IPv6]:port`.

    Raises:
        MalformedAddressError: none of these.
    """
    found = _AUTHORITY.fullmatch(text)
    if found is None:
        raise MalformedAddressError("its host or port is malformed")
    host, port = found[1], found[2]
    if port is not None and not 0 < int(port) <= MAX_PORT:
        raise MalformedAddressError(f"its port is not a number from 1 to {MAX_PORT}")
    return parse_host(host), None if port is None else int(port)


@lru_cache(maxsize=_REMEMBERED_HOSTS)
def parse_host(text: str) -> str:
    """Return the canonical form of a host: a DNS name in lower case and ASCII, or an IP address, IPv6 unbracketed.

    Raises:
        MalformedAddressError: neither, or a form that resolvers and libraries read differently.
    """
    if text.startswith("[") and text.endswith("]"):
        return _ipv6(text[1:-1])
    if len(text) > MAX_HOST_LENGTH:
        raise MalformedAddressError(f"its host is longer than {MAX_HOST_LENGTH} characters")
    name = _ascii_name(text)
    # A single trailing dot means the DNS root, which some clients leave out.
    without_root = name.removesuffix(".")
    if not _HOST_NAME.fullmatch(without_root) or len(without_root) > MAX_HOST_LENGTH:
        raise MalformedAddressError("its host is not a name or an address")
    if not _NUMBER.fullmatch(without_root.rpartition(".")[2]):
        return without_root
    try:
        return str(ipaddress.IPv4Address(name))
    except ValueError:
        raise MalformedAddressError("its host is a number that is not written as an IP address") from None


def host_and_port(host: str, port: int | None) -> str:
    """Return a host as written in addresses, with its port if given."""
    shown = f"[{host}]" if ":" in host else host
    return shown if port is None else f"{shown}:{port}"


def parse_url(url: str) -> WebAddress:
    """Parse a web address; a fragment, which is never sent to a server, is dropped.

    Raises:
        AddressRejectedError: not http or https, with a user or password, or of a form that parsers read differently.
    """
    try:
        parts = split_address(url, tuple(DEFAULT_PORTS))
    except MalformedAddressError as error:
        reason = error.reason
    else:
        return _web_address(parts)
    raise AddressRejectedError(redacted_url(url), reason)


def _web_address(parts: Address) -> WebAddress:
    target = requote_uri((parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
    return WebAddress(cast("Scheme", parts.scheme), parts.host, parts.port or DEFAULT_PORTS[parts.scheme], target)


def canonical_host(host: str) -> str | None:
    """Return the canonical form of a host name or IP address, IPv6 with or without brackets; None for other texts."""
    try:
        return parse_host(f"[{host}]" if ":" in host and not host.startswith("[") else host)
    except MalformedAddressError:
        return None


def redacted_url(url: str) -> str:
    """Return an address for logs and messages, without user, query and fragment, which may be secrets."""
    text = url[:MAX_ADDRESS_LENGTH]
    query = "?…" if "?" in text else ""
    text = re.split(r"[?#]", text, maxsplit=1)[0]
    before, slashes, after = text.partition("//")
    authority, slash, path = after.partition("/")
    text = f"{before}{slashes}{authority.rpartition('@')[2]}{slash}{path}" if slashes else text.rpartition("@")[2]
    if not text.isprintable():
        text = "".join(char if char.isprintable() else "\ufffd" for char in text)
    return (text if len(text) <= PRINTED_LENGTH else f"{text[:PRINTED_LENGTH]}…") + query


def without_query(location: str) -> str:
    """Return a web address without its query, which may sign it; the location of any other file unchanged."""
    is_signed = location.startswith(("http://", "https://")) and "?" in location
    return f"{location.partition('?')[0]}?…" if is_signed else location


def _ipv6(text: str) -> str:
    try:
        # A zone (`%eth0`) is only valid on one machine.
        address = None if "%" in text else ipaddress.IPv6Address(text)
    except ValueError:
        address = None
    if address is None:
        raise MalformedAddressError("its host is not an IPv6 address")
    if address.ipv4_mapped is not None:
        raise MalformedAddressError("its host is an IPv4 address written as IPv6")
    return str(address)


def _ascii_name(text: str) -> str:
    """Return a name in lower case and ASCII. Letters that only look alike remain different."""
    if text.isascii():
        return text.lower()
    composed = unicodedata.normalize("NFC", text).lower()
    try:
        # Characters that this mapping changes (full-width digits, ideographic full stops, invisible characters) do not
        # mean what they look like.
        plain = idna.uts46_remap(composed, std3_rules=True) == composed
        name = idna.encode(composed).decode("ascii") if plain else ""
    except (ValueError, IndexError):
        # idna's own errors are UnicodeErrors, which are ValueErrors.
        raise MalformedAddressError("its host is not an internationalised name") from None
    if not plain:
        raise MalformedAddressError("its host has characters that stand for others")
    return name


def _is_plain_user(user: str) -> bool:
    return bool(user) and not re.search(r"[\s\\:@\[\]]", user)


USUAL_PORTS = (80, 443)


def is_loopback(host: str) -> bool:
    """Return True if a name or address always means this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_same_origin(headers: Mapping[str, str]) -> bool:
    """Return True if a request comes from a page of this site, or not from a page."""
    if site := headers.get("sec-fetch-site"):
        return site in {"same-origin", "none"}
    origin = headers.get("origin") or headers.get("referer")
    if not origin:
        return True
    # A browser does not let another site's page forge these headers.
    ours = [headers.get(name) for name in ("host", "x-forwarded-host")]
    return host_of(origin.partition("://")[2]) in [host_of(name) for name in ours if name]


def host_of(authority: str) -> tuple[str, int | None]:
    """Return host and port of a Host header; None for the default port."""
    try:
        parts = urlsplit(f"//{authority}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "", None
    return host, None if port in USUAL_PORTS else port
