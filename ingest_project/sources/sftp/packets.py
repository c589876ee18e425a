"""What SFTP answers hold, read strictly: a number that claims more than the packet has is a fault of the packet.

paramiko's own reader fills up with zeros what is not there, and goes through as many names as four bytes claim.
"""

from __future__ import annotations

from dataclasses import dataclass

import paramiko

_SIZE, _OWNER, _PERMISSIONS, _TIMES, _EXTENDED = 0x1, 0x2, 0x4, 0x8, 0x80000000
_KNOWN = _SIZE | _OWNER | _PERMISSIONS | _TIMES | _EXTENDED
# Two empty strings and no attributes; two empty strings.
SMALLEST_NAME, SMALLEST_EXTENSION = 12, 8


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a server says about a file; None where it does not say.

    Args:
        modified_at: seconds since 1970, UTC.
    """

    size_bytes: int | None
    mode: int | None
    modified_at: int | None


def names_of(packet: bytes) -> list[tuple[bytes, Attributes]]:
    """The names of an answer to READDIR.

    Raises:
        paramiko.SSHException: the packet is not one.
    """
    reader = _Reader(packet)
    return [_named(reader) for _ in range(reader.count(SMALLEST_NAME))]


def attributes_of(packet: bytes) -> Attributes:
    """The attributes of an answer to STAT.

    Raises:
        paramiko.SSHException: the packet is not one.
    """
    return _attributes(_Reader(packet))


def _named(reader: _Reader) -> tuple[bytes, Attributes]:
    name, _long_name = reader.string(), reader.string()
    return name, _attributes(reader)


def _attributes(reader: _Reader) -> Attributes:
    flags = reader.number(4)
    if flags & ~_KNOWN:
        raise paramiko.SSHException(f"attributes with the unknown flags {flags:#x}")
    size = reader.number(8) if flags & _SIZE else None
    if flags & _OWNER:
        reader.number(8)
    mode = reader.number(4) if flags & _PERMISSIONS else None
    modified_at = reader.number(8) & 0xFFFFFFFF if flags & _TIMES else None
    if flags & _EXTENDED:
        for _ in range(2 * reader.count(SMALLEST_EXTENSION)):
            reader.string()
    return Attributes(size, mode, modified_at)


class _Reader:
    """The rest of a packet."""

    def __init__(self, packet: bytes) -> None:
        self._packet = packet
        self._position = 0

    def number(self, length: int) -> int:
        """So many bytes as one number."""
        return int.from_bytes(self._taken(length), "big")

    def string(self) -> bytes:
        """A length and so many bytes."""
        return self._taken(self.number(4))

    def count(self, smallest: int) -> int:
        """How many of something follow, none of which is shorter than this."""
        count = self.number(4)
        if count * smallest > len(self._packet) - self._position:
            raise paramiko.SSHException(f"a packet of {len(self._packet)} bytes claims to hold {count} entries")
        return count

    def _taken(self, length: int) -> bytes:
        begin = self._position
        self._position += length
        if self._position > len(self._packet):
            raise paramiko.SSHException("a packet that ends in the middle")
        return self._packet[begin : self._position]
