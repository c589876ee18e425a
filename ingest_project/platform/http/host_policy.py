"""Decide which hosts may be contacted: by name before any request, and by IP address before each connection.

These rules apply to every client of this project and every protocol: a host that a message names must be public, or
listed in a setting, and a denied host is never contacted.

An address is internal unless the Internet routes it to one host. The tables follow IANA's registries of
special-purpose addresses. Python's own `is_global` is not used, because its answers differ between the Python versions
that this project runs on.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from ingest_project.core.errors import AddressRejectedError, SettingsError
from ingest_project.core.settings import Settings
from ingest_project.platform.http import DEFAULT_PORTS, MAX_PORT, WebAddress, canonical_host, host_and_port, parse_url

ALLOWED_HOSTS = "INGEST_ALLOWED_HOSTS"
DENIED_HOSTS = "INGEST_DENIED_HOSTS"
INTERNAL_HOSTS = "INGEST_ALLOWED_INTERNAL_HOSTS"

ANY_HOST = "*"

IpAddress = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_INTERNAL: dict[str, tuple[str, ...]] = {
    "unspecified": ("0.0.0.0/8", "::/128"),
    "loopback": ("127.0.0.0/8", "::1/128"),
    "private": ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fec0::/10", "64:ff9b:1::/48"),
    "link-local, where cloud metadata is served": ("169.254.0.0/16", "fe80::/10"),
    "carrier-grade NAT": ("100.64.0.0/10",),
    # A public address at which Azure's own service answers inside every virtual network.
    "the platform's own service": ("168.63.129.16/32",),
    "multicast": ("224.0.0.0/4", "ff00::/8"),
    "reserved": (
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
        *("240.0.0.0/4", "2001::/23", "2001:db8::/32", "3fff::/20"),
    ),
}
_RULES: tuple[tuple[str, Network], ...] = tuple(
    (kind, ip_network(network)) for kind, networks in _INTERNAL.items() for network in networks
)
# The only block of IPv6 that is allocated for global unicast.
_GLOBAL_UNICAST = ip_network("2000::/3")

_LAST_32_BITS = 0xFFFFFFFF
# Prefixes of IPv6 addresses that are routed to the IPv4 address in their last 32 bits.
_ENDS_IN_IPV4 = tuple(ip_network(network) for network in ("::ffff:0:0/96", "::/96", "::ffff:0:0:0/96", "64:ff9b::/96"))
_ISATAP = (0x00005EFE, 0x02005EFE)
# These have no route of their own: only the embedded IPv4 address decides.
_STANDS_FOR_IPV4 = (*_ENDS_IN_IPV4, ip_network("2002::/16"), ip_network("2001::/32"))


@dataclass(frozen=True)
class HostPattern:
    """One entry of a list of hosts.

    `example.com` matches that host, `*.example.com` every host below it, `*` every host, `10.1.0.0/16` or `fd00::/8`
    every address in that network. With a port (`example.com:8443`, `[fd00::/8]:443`) it matches that port only.

    Args:
        name: host name in lower case, `*.` and a domain for all hosts below it, or `*` for any; empty for a network.
        network: the network; None for a name.
        port: the port; None for every port.
    """

    name: str
    network: Network | None
    port: int | None

    @classmethod
    def parse(cls, text: str) -> HostPattern:
        """Parse one entry.

        Raises:
            SettingsError: the entry has none of the forms above.
        """
        host, port = _host_and_port(text.strip())
        try:
            return cls("", ipaddress.ip_network(host, strict=False), port)
        except ValueError:
            below = "*." if host.startswith("*.") else ""
            name = ANY_HOST if host == ANY_HOST else canonical_host(host.removeprefix("*."))
        if name is None:
            raise SettingsError(f"{text!r} is not a host, *.domain, address or network (with :port where needed).")
        return cls(f"{below}{name}", None, port)

    @property
    def is_specific(self) -> bool:
        """Return True for one host or a network, False for every host below a domain.

        Names below a domain may belong to anybody and resolve to any address.
        """
        if self.network is not None:
            return self.network.prefixlen > 0
        return not self.name.startswith(ANY_HOST)

    def matches_name(self, host: str, port: int) -> bool:
        """Return True if the pattern matches this host by name."""
        if self.port not in (None, port):
            return False
        if self.network is not None:
            address = parse_address(host)
            return address is not None and address in self.network
        return self.name in (ANY_HOST, host) or (self.name.startswith("*.") and host.endswith(self.name[1:]))

    def matches_address(self, address: IpAddress, port: int) -> bool:
        """Return True if this IP address, or the IPv4 address embedded in it, is in the pattern's network."""
        if self.network is None or self.port not in (None, port):
            return False
        return any(candidate in self.network for candidate in (address, *embedded_ipv4(address)))

    def names_origin(self, address: WebAddress) -> bool:
        """Return True if the pattern matches this origin; here a pattern without port matches the default port only."""
        port = self.port or DEFAULT_PORTS[address.scheme]
        return port == address.port and self.matches_name(address.host, address.port)


class HostRules:
    """Rules for the hosts that may be contacted.

    Args:
        allowed: patterns of the only hosts that may be contacted; empty for any host.
        denied: patterns of hosts that are never contacted; takes precedence over `allowed`.
        internal: patterns of hosts that may have an internal address; no other host may.
        allowed_setting: name of the setting that could allow a further host; None if there is none.

    Raises:
        SettingsError: an entry is not a host pattern.
    """

    def __init__(
        self,
        allowed: Iterable[str] = (),
        denied: Iterable[str] = (),
        internal: Iterable[str] = (),
        allowed_setting: str | None = ALLOWED_HOSTS,
    ) -> None:
        self._allowed_setting = allowed_setting
        self._allowed = tuple(map(HostPattern.parse, allowed))
        self._denied = tuple(map(HostPattern.parse, denied))
        self._internal = tuple(map(HostPattern.parse, internal))
        # With networks in the list, a name can only be checked once its addresses are known.
        self._allows_networks = any(pattern.network is not None for pattern in self._allowed)

    def check(self, url: str) -> WebAddress:
        """Parse an address and apply all checks that do not need its name resolved.

        Raises:
            AddressRejectedError: a rule refuses it; names the rule, and the setting that could allow it.
        """
        address = parse_url(url)
        self.check_name(address.host, address.port, address.redacted)
        literal = parse_address(address.host)
        if literal is not None:
            self.check_address(address.host, literal, address.port, address.redacted)
        return address

    def check_name(self, host: str, port: int, redacted: str) -> None:
        """Check a host by its name.

        Raises:
            AddressRejectedError: the host is denied, or not among the allowed ones.
        """
        if any(pattern.matches_name(host, port) for pattern in self._denied):
            raise AddressRejectedError(redacted, f"{host} is on the list of denied hosts ({DENIED_HOSTS})")
        if not self._allows_networks and not self._allows_name(host, port):
            raise AddressRejectedError(redacted, f"{host} is not on the list of allowed hosts", self._allowed_setting)

    def check_address(self, host: str, address: IpAddress, port: int, redacted: str) -> None:
        """Check one address of a host. Only an address that passes may be connected to.

        Raises:
            AddressRejectedError: the address is denied, not among the allowed ones, or internal.
        """
        if any(pattern.matches_address(address, port) for pattern in self._denied):
            raise AddressRejectedError(redacted, f"{address} is in a denied network ({DENIED_HOSTS})")
        if not self._allows_name(host, port) and not _match_address(self._allowed, address, port):
            raise AddressRejectedError(
                redacted, f"{host} ({address}) is not on the list of allowed hosts", self._allowed_setting
            )
        kind = why_internal(address)
        if kind is None or _match_address(self._internal, address, port):
            return
        if not any(pattern.matches_name(host, port) for pattern in self._internal):
            known_as = f"{host} is" if host == str(address) else f"{host} has the address {address}, which is"
            raise AddressRejectedError(redacted, f"{known_as} internal ({kind})", INTERNAL_HOSTS)

    def _allows_name(self, host: str, port: int) -> bool:
        return not self._allowed or any(pattern.matches_name(host, port) for pattern in self._allowed)


@dataclass(frozen=True)
class HostLists:
    """The lists of hosts for every client and every protocol.

    Args:
        denied: patterns of hosts that are never contacted (INGEST_DENIED_HOSTS).
        internal: patterns of hosts that may have an internal address (INGEST_ALLOWED_INTERNAL_HOSTS).
    """

    denied: tuple[str, ...] = ()
    internal: tuple[str, ...] = ()

    def rules_for(self, *servers: tuple[str, int], internal_allowed: bool) -> HostRules:
        """Return rules that allow only these servers.

        Args:
            servers: canonical host and port of each.
            internal_allowed: True if a setting names the servers, so that they may have an internal address.
        """
        own = [host_and_port(host, port) for host, port in servers]
        internal = [*self.internal, *own] if internal_allowed else self.internal
        return HostRules(own, self.denied, internal, allowed_setting=None)


def host_lists(settings: Settings) -> HostLists:
    """Return the configured lists of hosts for every client."""
    downloads = settings.downloads
    return HostLists(tuple(downloads.denied_hosts), tuple(downloads.allowed_internal_hosts))


def why_internal(address: IpAddress) -> str | None:
    """Return the kind of internal address that this is or that is embedded in it; None for a public address."""
    kinds = [_kind(embedded) for embedded in embedded_ipv4(address)]
    if not kinds or not any(address in network for network in _STANDS_FOR_IPV4):
        kinds.append(_kind(address))
    return next(filter(None, kinds), None)


def embedded_ipv4(address: IpAddress) -> tuple[IPv4Address, ...]:
    """Return the IPv4 addresses to which this IPv6 address is routed; empty for any other address."""
    if isinstance(address, IPv4Address) or address.is_loopback or address.is_unspecified:
        return ()
    if any(address in network for network in _ENDS_IN_IPV4):
        return (IPv4Address(int(address) & _LAST_32_BITS),)
    if address.sixtofour:
        return (address.sixtofour,)
    if address.teredo:
        return address.teredo
    if (int(address) >> 32) & _LAST_32_BITS in _ISATAP:
        return (IPv4Address(int(address) & _LAST_32_BITS),)
    return ()


def parse_address(text: str) -> IpAddress | None:
    """Parse an IP address as resolvers return it, without a link-local address's zone; None for any other text."""
    try:
        return ip_address(text.partition("%")[0])
    except ValueError:
        return None


def _kind(address: IpAddress) -> str | None:
    for kind, network in _RULES:
        if address in network:
            return kind
    return "reserved" if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST else None


def _match_address(patterns: tuple[HostPattern, ...], address: IpAddress, port: int) -> bool:
    return any(pattern.matches_address(address, port) for pattern in patterns)


def _host_and_port(text: str) -> tuple[str, int | None]:
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        host, port = text, ""
    if not port:
        return host.lower(), None
    if not port.isascii() or not port.isdigit() or not 0 < int(port) <= MAX_PORT:
        raise SettingsError(f"{text!r} has a port that is not a number from 1 to {MAX_PORT}.")
    return host.lower(), int(port)
