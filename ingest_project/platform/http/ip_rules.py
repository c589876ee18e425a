"""Which IP addresses are internal: everything that the Internet does not route to one place.

The tables follow IANA's registries of special-purpose addresses. Python's own `is_global` is not used: its answers for
the same address differ between the Python versions that this project runs on.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_INTERNAL: dict[str, tuple[str, ...]] = {
    "unspecified": ("0.0.0.0/8", "::/128"),
    "loopback": ("127.0.0.0/8", "::1/128"),
    "private": ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fec0::/10", "64:ff9b:1::/48"),
    "link-local, where cloud metadata is served": ("169.254.0.0/16", "fe80::/10"),
    "carrier-grade NAT": ("100.64.0.0/10",),
    # A public address that Azure answers on inside every virtual network.
    "the platform's own service": ("168.63.129.16/32",),
    "multicast": ("224.0.0.0/4", "ff00::/8"),
    "reserved": (
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "240.0.0.0/4",
        "2001::/23",
        "2001:db8::/32",
        "3fff::/20",
    ),
}
_RULES: tuple[tuple[str, Network], ...] = tuple(
    (kind, ip_network(network)) for kind, networks in _INTERNAL.items() for network in networks
)
# Of IPv6 only this part is given out at all.
_GLOBAL_UNICAST = ip_network("2000::/3")

_LAST_32_BITS = 0xFFFFFFFF
# Prefixes of IPv6 addresses that lead to the IPv4 address in their last 32 bits.
_ENDS_IN_IPV4 = tuple(ip_network(network) for network in ("::ffff:0:0/96", "::/96", "::ffff:0:0:0/96", "64:ff9b::/96"))
_ISATAP = (0x00005EFE, 0x02005EFE)
# These have no place of their own: where they lead is decided by the IPv4 address alone.
_STANDS_FOR_IPV4 = (*_ENDS_IN_IPV4, ip_network("2002::/16"), ip_network("2001::/32"))


def why_internal(address: Address) -> str | None:
    """What kind of internal address this is, or leads to; None for an address of the Internet."""
    kinds = [_kind(embedded) for embedded in embedded_ipv4(address)]
    if not kinds or not any(address in network for network in _STANDS_FOR_IPV4):
        kinds.append(_kind(address))
    return next(filter(None, kinds), None)


def embedded_ipv4(address: Address) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses that packets to this IPv6 address end up at; empty for any other address."""
    if isinstance(address, IPv4Address) or _is_itself(address):
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


def parse_address(text: str) -> Address | None:
    """An address as a resolver spells it; None for anything else. The zone of a link-local address is dropped."""
    try:
        return ip_address(text.partition("%")[0])
    except ValueError:
        return None


def _is_itself(address: IPv6Address) -> bool:
    return address.is_loopback or address.is_unspecified


def _kind(address: Address) -> str | None:
    for kind, network in _RULES:
        if address in network:
            return kind
    return "reserved" if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST else None
