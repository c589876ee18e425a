"""A web address from a stranger, taken apart once, so that what is checked and what is connected to cannot differ."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, cast

from requests.utils import requote_uri

from ingest_project.core.errors import AddressRejectedError
from ingest_project.platform.http.host_grammar import (
    MAX_ADDRESS_LENGTH,
    Address,
    MalformedAddressError,
    host_and_port,
    parse_host,
    split_address,
)

DEFAULT_PORTS = {"http": 80, "https": 443}
PRINTED_LENGTH = 300

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
        return host_and_port(self.host, None if self.port == DEFAULT_PORTS[self.scheme] else self.port)

    @cached_property
    def printable(self) -> str:
        """The address without its query, which may be a signature."""
        return printable_url(self.url)


def parse_url(url: str) -> WebAddress:
    """Take an address apart; a fragment, which no server is ever told, is dropped.

    Raises:
        AddressRejectedError: not http or https, with a user or password, or of a form that parsers disagree about.
    """
    try:
        parts = split_address(url, tuple(DEFAULT_PORTS))
    except MalformedAddressError as error:
        reason = error.reason
    else:
        return _web_address(parts)
    raise AddressRejectedError(printable_url(url), reason)


def _web_address(parts: Address) -> WebAddress:
    target = requote_uri((parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
    return WebAddress(cast("Scheme", parts.scheme), parts.host, parts.port or DEFAULT_PORTS[parts.scheme], target)


def canonical_host(host: str) -> str | None:
    """The one spelling of a host name or address, IPv6 with or without brackets; None for what is neither."""
    try:
        return parse_host(f"[{host}]" if ":" in host and not host.startswith("[") else host)
    except MalformedAddressError:
        return None


def printable_url(url: str) -> str:
    """An address for logs and messages: no user, query or fragment, which may be secrets; no control characters."""
    text = url[:MAX_ADDRESS_LENGTH]
    query = "?…" if "?" in text else ""
    text = re.split(r"[?#]", text, maxsplit=1)[0]
    before, slashes, after = text.partition("//")
    authority, slash, path = after.partition("/")
    text = f"{before}{slashes}{authority.rpartition('@')[2]}{slash}{path}" if slashes else text.rpartition("@")[2]
    if not text.isprintable():
        text = "".join(char if char.isprintable() else "\ufffd" for char in text)
    return (text if len(text) <= PRINTED_LENGTH else f"{text[:PRINTED_LENGTH]}…") + query
