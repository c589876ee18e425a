"""Which host may be contacted: its name is judged before anything is sent, its address before it is connected to.

Every client of this project keeps to these rules, whatever protocol it speaks: a host that a message names must be
public, or one that a setting names, and a host that is denied is contacted by nobody.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from ingest_project.core.errors import AddressRejectedError, SettingsError
from ingest_project.platform.http.host_grammar import MAX_PORT, host_and_port
from ingest_project.platform.http.ip_rules import Address, Network, embedded_ipv4, parse_address, why_internal
from ingest_project.platform.http.urls import DEFAULT_PORTS, WebAddress, canonical_host, parse_url

ALLOWED_HOSTS = "INGEST_ALLOWED_HOSTS"
DENIED_HOSTS = "INGEST_DENIED_HOSTS"
INTERNAL_HOSTS = "INGEST_ALLOWED_INTERNAL_HOSTS"

ANY_HOST = "*"


@dataclass(frozen=True)
class HostPattern:
    """One entry of a list of hosts.

    `example.com` is that host, `*.example.com` every host below it, `*` every host, `10.1.0.0/16` or `fd00::/8` every
    address in that network. With a port (`example.com:8443`, `[fd00::/8]:443`) it is that port only.

    Args:
        name: host name in lower case; starts with `*.` for what is below, is `*` for any; empty for a network.
        network: the network; None for a name.
        port: None for every port.
    """

    name: str
    network: Network | None
    port: int | None

    @classmethod
    def parse(cls, text: str) -> HostPattern:
        """Read one entry.

        Raises:
            SettingsError: it is none of the forms above.
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
    def is_one_place(self) -> bool:
        """Whether whoever wrote it knew where it leads: one host or a network, not every host below a domain.

        The names below a domain may be anybody's, and lead anywhere.
        """
        if self.network is not None:
            return self.network.prefixlen > 0
        return not self.name.startswith(ANY_HOST)

    def matches_name(self, host: str, port: int) -> bool:
        """Whether this host, as it is named in an address, is meant."""
        if self.port not in (None, port):
            return False
        if self.network is not None:
            address = parse_address(host)
            return address is not None and address in self.network
        return self.name in (ANY_HOST, host) or (self.name.startswith("*.") and host.endswith(self.name[1:]))

    def matches_address(self, address: Address, port: int) -> bool:
        """Whether this IP address, or the one it leads to, is in the network that is meant."""
        if self.network is None or self.port not in (None, port):
            return False
        return any(candidate in self.network for candidate in (address, *embedded_ipv4(address)))

    def names_origin(self, address: WebAddress) -> bool:
        """Whether this origin is meant, where a pattern without port means the default port only."""
        port = self.port or DEFAULT_PORTS[address.scheme]
        return port == address.port and self.matches_name(address.host, address.port)


class HostRules:
    """What may be contacted.

    Args:
        allowed: patterns; where there are any, only these hosts.
        denied: patterns; never these, whatever else allows them.
        internal: patterns of hosts that may have an internal address; no other host may.
        allowed_setting: the setting that would allow a further host; None when none does.

    Raises:
        SettingsError: one of them is not a host pattern.
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
        # Then a name can only be judged once its addresses are known.
        self._allows_networks = any(pattern.network is not None for pattern in self._allowed)

    def check(self, url: str) -> WebAddress:
        """Take an address apart and judge what can be judged before its name is resolved.

        Raises:
            AddressRejectedError: with the rule, and the setting that would allow it.
        """
        address = parse_url(url)
        self.check_name(address.host, address.port, address.printable)
        literal = parse_address(address.host)
        if literal is not None:
            self.check_address(address.host, literal, address.port, address.printable)
        return address

    def check_name(self, host: str, port: int, printable: str) -> None:
        """Judge a host by its name.

        Raises:
            AddressRejectedError: it is denied, or not among those that are allowed.
        """
        if any(pattern.matches_name(host, port) for pattern in self._denied):
            raise AddressRejectedError(printable, f"{host} is on the list of denied hosts ({DENIED_HOSTS})")
        if not self._allows_networks and not self._allows_name(host, port):
            raise AddressRejectedError(printable, f"{host} is not on the list of allowed hosts", self._allowed_setting)

    def check_address(self, host: str, address: Address, port: int, printable: str) -> None:
        """Judge one address that a host has. What passes may be connected to; nothing else may.

        Raises:
            AddressRejectedError: it is denied, not among those that are allowed, or internal.
        """
        if any(pattern.matches_address(address, port) for pattern in self._denied):
            raise AddressRejectedError(printable, f"{address} is in a denied network ({DENIED_HOSTS})")
        if not self._allows_name(host, port) and not _match_address(self._allowed, address, port):
            raise AddressRejectedError(
                printable, f"{host} ({address}) is not on the list of allowed hosts", self._allowed_setting
            )
        kind = why_internal(address)
        if kind is None or _match_address(self._internal, address, port):
            return
        if not any(pattern.matches_name(host, port) for pattern in self._internal):
            known_as = f"{host} is" if host == str(address) else f"{host} has the address {address}, which is"
            raise AddressRejectedError(printable, f"{known_as} internal ({kind})", INTERNAL_HOSTS)

    def _allows_name(self, host: str, port: int) -> bool:
        return not self._allowed or any(pattern.matches_name(host, port) for pattern in self._allowed)


@dataclass(frozen=True)
class HostLists:
    """The lists that hold for every client, whatever protocol it speaks.

    Args:
        denied: patterns of hosts that nobody contacts (INGEST_DENIED_HOSTS).
        internal: patterns of hosts that may have an internal address (INGEST_ALLOWED_INTERNAL_HOSTS).
    """

    denied: tuple[str, ...] = ()
    internal: tuple[str, ...] = ()

    def rules_for(self, *servers: tuple[str, int], internal_allowed: bool) -> HostRules:
        """Rules under which these servers are contacted and no other.

        Args:
            servers: canonical host and port of each.
            internal_allowed: whether a setting names them, so that they may have an internal address.
        """
        own = [host_and_port(host, port) for host, port in servers]
        internal = [*self.internal, *own] if internal_allowed else self.internal
        return HostRules(own, self.denied, internal, allowed_setting=None)


NO_LISTS = HostLists()


def _match_address(patterns: tuple[HostPattern, ...], address: Address, port: int) -> bool:
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
