"""SFTP requests and packets over one SSH channel, bounded in size, time and number in flight.

Names are bytes, as in the protocol: version 3, draft-ietf-secsh-filexfer-02.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass

import paramiko

from ingest_project.platform.http.pinned_transport import Deadline, DeadlineSocket
from ingest_project.sources.reading import SourceLimits

MAX_BANNER_BYTES = 64 * 1024
# The protocol requires support for 35,000 bytes; the channels here transfer 32 KiB at a time.
MAX_SSH_PACKET_BYTES = 1024**2
MAX_PACKET_BYTES = 4 * 1024**2
REQUEST_BYTES = 32 * 1024
REQUESTS_IN_FLIGHT = 64
_VERSION_LINE = re.compile(rb"(?:\A|\n)SSH-[^\n]*\n")

_INIT, _OPEN, _CLOSE, _READ, _FSTAT, _OPENDIR, _READDIR, _STAT = 1, 3, 4, 5, 8, 11, 12, 17
_VERSION, _STATUS, _HANDLE, _DATA, _NAME, _ATTRS = 2, 101, 102, 103, 104, 105
_PROTOCOL_VERSION, _FLAG_READ, _NO_ATTRIBUTES = 3, 1, 0
_OK, _EOF, NO_SUCH_FILE, PERMISSION_DENIED = 0, 1, 2, 3
_SIZE, _OWNER, _PERMISSIONS, _TIMES, _EXTENDED = 0x1, 0x2, 0x4, 0x8, 0x80000000
# Smallest size of an entry: two empty strings and no attributes; of an extended attribute: two empty strings.
_SMALLEST_NAME, _SMALLEST_EXTENSION = 12, 8


class SftpStatusError(Exception):
    """The server refused a request.

    Args:
        code: status code of the protocol.
        message: the server's message.
    """

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        super().__init__(f"{message or 'no reason given'} (SFTP status {code})")


@dataclass(frozen=True, slots=True)
class Attributes:
    """Attributes of a file; None for those that the server does not report.

    Args:
        modified_at: seconds since 1970, UTC.
    """

    size_bytes: int | None
    mode: int | None
    modified_at: int | None


class SftpClient:
    """The requests of a source, over one channel.

    Args:
        transport: logged-in connection.
        limits: limits of time.
    """

    def __init__(self, transport: paramiko.Transport, limits: SourceLimits) -> None:
        self._limits = limits
        self._last_id = 0
        # Ids of requests whose responses are ignored.
        self._abandoned: set[int] = set()
        self.begin_operation()
        self._channel = transport.open_session(timeout=limits.timeout_seconds)
        self._channel.settimeout(limits.timeout_seconds)
        self._channel.invoke_subsystem("sftp")
        self._channel.sendall(_string(bytes([_INIT]) + _PROTOCOL_VERSION.to_bytes(4, "big")))
        if self._packet()[0] != _VERSION:
            raise paramiko.SSHException("no SFTP server answers")

    def begin_operation(self) -> None:
        """Start a new deadline for all further responses."""
        self._deadline = Deadline(self._limits.answer_time)

    def open_folder(self, path: bytes) -> bytes:
        """Open a folder for `next_page` and return its handle."""
        return self._request(_OPENDIR, _string(path), _HANDLE).string()

    def open_file(self, path: bytes) -> bytes:
        """Open a file for `blocks` and return its handle."""
        flags = _FLAG_READ.to_bytes(4, "big") + _NO_ATTRIBUTES.to_bytes(4, "big")
        return self._request(_OPEN, _string(path) + flags, _HANDLE).string()

    def close_handle(self, handle: bytes) -> None:
        """Close a file or folder."""
        self._request(_CLOSE, _string(handle), _STATUS)

    def stat(self, path: bytes) -> Attributes:
        """Return the attributes of a path, following links."""
        return parse_attributes(self._request(_STAT, _string(path), _ATTRS))

    def stat_handle(self, handle: bytes) -> Attributes:
        """Return the attributes of an open file."""
        return parse_attributes(self._request(_FSTAT, _string(handle), _ATTRS))

    def next_page(self, handle: bytes) -> list[tuple[bytes, Attributes]] | None:
        """Return the next page of names of a folder; None after the last."""
        try:
            return parse_names(self._request(_READDIR, _string(handle), _NAME))
        except SftpStatusError as error:
            if error.code == _EOF:
                return None
            raise

    def blocks(self, handle: bytes, offset: int, end: int) -> Generator[bytes]:
        """Yield a file from a position to its size, with several requests in flight; end early if it was truncated."""
        waiting: deque[tuple[int, int]] = deque()
        answers: dict[int, bytes] = {}
        try:
            while offset < end or waiting:
                while offset < end and len(waiting) < REQUESTS_IN_FLIGHT:
                    size = min(REQUEST_BYTES, end - offset)
                    fields = _string(handle) + offset.to_bytes(8, "big") + size.to_bytes(4, "big")
                    waiting.append((self._send(_READ, fields), size))
                    offset += size
                request, size = waiting[0]
                while request not in answers:
                    self._receive({number for number, _ in waiting}, answers)
                waiting.popleft()
                block = answers.pop(request)
                yield block
                if len(block) < size:
                    return
        finally:
            self._abandoned.update(number for number, _ in waiting if number not in answers)

    def _receive(self, wanted: set[int], answers: dict[int, bytes]) -> None:
        kind, number, body = self._answer(wanted)
        if kind == _DATA:
            answers[number] = body.string()
        elif kind == _STATUS and (status := _status(body)).code == _EOF:
            answers[number] = b""
        else:
            raise status if kind == _STATUS else paramiko.SSHException("no data of a file")

    def _request(self, kind: int, fields: bytes, expected: int) -> PacketReader:
        found, _, body = self._answer({self._send(kind, fields)})
        if found == _STATUS and ((status := _status(body)).code != _OK or expected != _STATUS):
            raise status
        if found != expected:
            raise paramiko.SSHException(f"an answer of the kind {found} where {expected} was expected")
        return body

    def _send(self, kind: int, fields: bytes) -> int:
        self._last_id = (self._last_id + 1) % 2**32
        self._channel.sendall(_string(bytes([kind]) + self._last_id.to_bytes(4, "big") + fields))
        return self._last_id

    def _answer(self, wanted: set[int]) -> tuple[int, int, PacketReader]:
        """Receive the next answer to one of these requests."""
        while True:
            kind, body = self._packet()
            number = body.number(4)
            if number in wanted:
                return kind, number, body
            if number not in self._abandoned:
                raise paramiko.SSHException("an answer to a request that was not made")
            self._abandoned.remove(number)

    def _packet(self) -> tuple[int, PacketReader]:
        size = int.from_bytes(self._bytes(4), "big")
        if not 0 < size <= MAX_PACKET_BYTES:
            raise paramiko.SSHException(f"a packet of {size} bytes; at most {MAX_PACKET_BYTES} are read")
        packet = self._bytes(size)
        return packet[0], PacketReader(packet, 1)

    def _bytes(self, size: int) -> bytes:
        received = bytearray()
        while len(received) < size:
            self._channel.settimeout(min(self._limits.timeout_seconds, self._deadline.seconds_left()))
            piece = self._channel.recv(size - len(received))
            if not piece:
                raise EOFError("the server ended the connection")
            received += piece
        return bytes(received)


class PacketReader:
    """The rest of a packet.

    Args:
        packet: the whole packet.
        position: position of the next byte.

    Raises:
        paramiko.SSHException: from every method, if the packet ends too early.
    """

    def __init__(self, packet: bytes, position: int = 0) -> None:
        self._packet = packet
        self._position = position

    def number(self, length: int) -> int:
        """Read `length` bytes as one number."""
        return int.from_bytes(self._take(length), "big")

    def string(self) -> bytes:
        """Read a length and that number of bytes."""
        return self._take(self.number(4))

    def count(self, smallest: int) -> int:
        """Read the number of following items, each of at least `smallest` bytes."""
        count = self.number(4)
        if count * smallest > len(self._packet) - self._position:
            raise paramiko.SSHException(f"a packet of {len(self._packet)} bytes claims to hold {count} entries")
        return count

    def _take(self, length: int) -> bytes:
        begin = self._position
        self._position += length
        if self._position > len(self._packet):
            raise paramiko.SSHException("a packet that ends in the middle")
        return self._packet[begin : self._position]


def parse_names(packet: PacketReader) -> list[tuple[bytes, Attributes]]:
    """Parse the names of an answer to READDIR."""
    names = []
    for _ in range(packet.count(_SMALLEST_NAME)):
        name, _long_name = packet.string(), packet.string()
        names.append((name, parse_attributes(packet)))
    return names


def parse_attributes(packet: PacketReader) -> Attributes:
    """Parse the attributes of a file."""
    flags = packet.number(4)
    if flags & ~(_SIZE | _OWNER | _PERMISSIONS | _TIMES | _EXTENDED):
        raise paramiko.SSHException(f"attributes with the unknown flags {flags:#x}")
    size = packet.number(8) if flags & _SIZE else None
    if flags & _OWNER:
        packet.number(8)
    mode = packet.number(4) if flags & _PERMISSIONS else None
    modified_at = packet.number(8) & 0xFFFFFFFF if flags & _TIMES else None
    if flags & _EXTENDED:
        for _ in range(2 * packet.count(_SMALLEST_EXTENSION)):
            packet.string()
    return Attributes(size, mode, modified_at)


class BoundedSocket(DeadlineSocket):
    """The socket of an SSH connection with bounded reads: paramiko itself bounds neither a banner nor a packet."""

    def __init__(self, connection: socket.socket) -> None:
        timeout = connection.gettimeout()
        super().__init__(fileno=connection.detach())
        self.settimeout(timeout)
        self._banner: bytes | None = b""

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receive, within the maximum size of a packet."""
        if size > MAX_SSH_PACKET_BYTES:
            raise paramiko.SSHException(f"a packet of {size} bytes; at most {MAX_SSH_PACKET_BYTES} are read")
        data = super().recv(size, flags)
        if self._banner is not None:
            self._banner += data
            if len(self._banner) > MAX_BANNER_BYTES:
                raise paramiko.SSHException(f"a banner of more than {MAX_BANNER_BYTES} bytes")
            if _VERSION_LINE.search(self._banner):
                self._banner = None
        return data


def _status(body: PacketReader) -> SftpStatusError:
    code = body.number(4)
    with contextlib.suppress(paramiko.SSHException):
        return SftpStatusError(code, body.string().decode("utf-8", "replace"))
    return SftpStatusError(code, "")


def _string(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value
