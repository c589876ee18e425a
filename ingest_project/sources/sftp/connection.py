"""One logged-in SFTP connection: folders, files, positions, over paramiko.

Names are bytes here, as they are in the protocol; paramiko's own listing insists on UTF-8. A file is read in windows of
requests, so that memory stays bounded however slowly the bytes are used: paramiko's prefetch would take all of it.
"""

from __future__ import annotations

import contextlib
import errno
import stat
import struct
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import cast

import paramiko
from paramiko.sftp import (
    CMD_ATTRS,
    CMD_CLOSE,
    CMD_DATA,
    CMD_FSTAT,
    CMD_HANDLE,
    CMD_NAME,
    CMD_OPEN,
    CMD_OPENDIR,
    CMD_READDIR,
    CMD_STAT,
    SFTP_FLAG_READ,
    SFTPError,
)

from ingest_project.core.errors import (
    ForbiddenPathError,
    IngestError,
    SourceAccessDeniedError,
    SourceNotFoundError,
    SourceUnreachableError,
)
from ingest_project.platform.http.deadlines import Deadline
from ingest_project.sources.http.page import MAX_SIZE_BYTES
from ingest_project.sources.limits import SourceLimits
from ingest_project.sources.server_connection import Entry, Kind

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


REQUEST_BYTES = 32 * 1024
WINDOW_BYTES = 2 * 1024**2
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAX_PACKET_BYTES = 4 * 1024**2
MOST_EMPTY_PAGES = 100
# How long the thread that sends requests may lag behind the answers to them.
LAG_SECONDS = 2.0


class SftpConnection:
    """A connection after its login.

    Args:
        transport: the SSH connection.
        location: of the server, for messages.
        limits: what it may take.
    """

    def __init__(self, transport: paramiko.Transport, location: str, limits: SourceLimits) -> None:
        self.usable = True
        self._transport = transport
        self._location = location
        self._client: _SftpClient | None = None
        with self.failures(b""):
            self._client = _SftpClient.begun(transport, limits)

    def answers(self) -> bool:
        """Whether the connection is open; keepalive finds out when the other side has gone."""
        return self._transport.is_active()

    def entries(self, folder: bytes) -> Generator[Entry]:
        """Everything in a folder, a page of the server's size at a time."""
        with self.failures(folder):
            handle = self._sftp.opened_folder(folder)
        return self._pages(handle, folder)

    def described(self, path: bytes) -> Entry:
        """What is there, links followed."""
        with self.failures(path):
            return _entry(path, self._sftp.attributes(CMD_STAT, path))

    def opened(self, path: bytes, offset: int) -> SftpFile:
        """A file from a position."""
        with self.failures(path):
            file = self._sftp.opened_file(path)
            found = _entry(path, self._sftp.attributes(CMD_FSTAT, cast("bytes", file.handle)))
            if found.kind != "file":
                file.close()
                raise ForbiddenPathError(self._at(path), "it is not a regular file.")
        return SftpFile(self, path, file, found, offset)

    def close(self) -> None:
        """Hang up."""
        self.usable = False
        self._transport.close()

    @contextlib.contextmanager
    def failures(self, path: bytes) -> Iterator[None]:
        """What paramiko raises becomes a source's error; only a refusal leaves the connection usable."""
        if self._client is not None:
            self._client.begin_operation()
        try:
            yield
        except IngestError:
            raise
        except (OSError, paramiko.SSHException, SFTPError, EOFError, ValueError, struct.error) as error:
            failure = _failure(error, self._at(path))
            if isinstance(failure, SourceUnreachableError):
                self.usable = False
            raise failure from error

    @property
    def _sftp(self) -> _SftpClient:
        assert self._client is not None  # noqa: S101 - from the beginning on
        return self._client

    def _pages(self, handle: bytes, folder: bytes) -> Generator[Entry]:
        with contextlib.ExitStack() as stack:
            stack.callback(self._close_folder, handle)
            empty = 0
            while empty < MOST_EMPTY_PAGES:
                with self.failures(folder):
                    page = self._sftp.next_page(handle)
                if page is None:
                    return
                empty = 0 if page else empty + 1
                for name, attributes in page:
                    yield _entry(name, attributes)
            self.usable = False
            raise SourceUnreachableError(self._at(folder), "its listing goes on without any names")

    def _close_folder(self, handle: bytes) -> None:
        # The listing is read; a connection that fails now is thrown away, and nothing else is lost.
        if self.usable:
            with contextlib.suppress(IngestError), self.failures(b""):
                self._sftp.close_handle(handle)

    def _at(self, path: bytes) -> str:
        return self._location + path.decode("utf-8", "replace")


class SftpFile:
    """An opened file, read to the size that it had when it was opened.

    Args:
        connection: whose file it is.
        path: for messages.
        file: closed with `close`.
        found: the file as it was when it was opened.
        offset: where to begin.
    """

    def __init__(
        self, connection: SftpConnection, path: bytes, file: paramiko.SFTPFile, found: Entry, offset: int
    ) -> None:
        self.size_bytes = found.size_bytes
        self.modified_at = found.modified_at
        self._connection = connection
        self._path = path
        self._file = file
        self._blocks = self._read_from(offset)
        self._rest = b""

    def read(self, size: int) -> bytes:
        """The next bytes; empty at the end."""
        if not self._rest:
            with self._connection.failures(self._path):
                self._rest = next(self._blocks, b"")
        block, self._rest = self._rest[:size], self._rest[size:]
        return block

    def close(self) -> None:
        """Stop reading."""
        if not self._connection.usable:
            return  # closing would wait for an answer that does not come
        with contextlib.suppress(IngestError), self._connection.failures(self._path):
            self._file.close()

    def _read_from(self, offset: int) -> Iterator[bytes]:
        end = self.size_bytes or 0
        while offset < end:
            until = min(offset + WINDOW_BYTES, end)
            requests = [(start, min(REQUEST_BYTES, until - start)) for start in range(offset, until, REQUEST_BYTES)]
            for (_, wanted), block in zip(requests, self._file.readv(requests), strict=False):
                yield block
                if len(block) < wanted:
                    return  # it has become shorter; whoever reads it knows its size
            offset = until


class _SftpClient(paramiko.SFTPClient):
    """paramiko's client: an operation has a total time, a packet a size, and a listing names of bytes."""

    def __init__(self, channel: paramiko.Channel, limits: SourceLimits) -> None:
        self._limits = limits
        self.begin_operation()
        super().__init__(channel)

    @classmethod
    def begun(cls, transport: paramiko.Transport, limits: SourceLimits) -> _SftpClient:
        channel = transport.open_session(timeout=limits.timeout_seconds)
        channel.settimeout(limits.timeout_seconds)
        channel.invoke_subsystem("sftp")
        return cls(channel, limits)

    def begin_operation(self) -> None:
        """Everything that is received from here on belongs to one operation."""
        self._deadline = Deadline(self._limits.answer_time)

    def opened_file(self, path: bytes) -> _File:
        kind, message = self._request(CMD_OPEN, path, SFTP_FLAG_READ, paramiko.SFTPAttributes())  # type: ignore[attr-defined]
        if kind != CMD_HANDLE:
            raise paramiko.SSHException("no handle for a file")
        return _File(self, message.get_string())

    def opened_folder(self, folder: bytes) -> bytes:
        kind, message = self._request(CMD_OPENDIR, folder)  # type: ignore[attr-defined]
        if kind != CMD_HANDLE:
            raise paramiko.SSHException("no handle for a folder")
        return bytes(message.get_string())

    def attributes(self, command: int, subject: bytes) -> Attributes:
        """What STAT says of a path, or FSTAT of a handle."""
        kind, message = self._request(command, subject)  # type: ignore[attr-defined]
        if kind != CMD_ATTRS:
            raise paramiko.SSHException("no attributes of a file")
        return attributes_of(message.get_remainder())

    def next_page(self, handle: bytes) -> list[tuple[bytes, Attributes]] | None:
        """The next names; None after the last."""
        try:
            kind, message = self._request(CMD_READDIR, handle)  # type: ignore[attr-defined]
        except EOFError:
            return None
        if kind != CMD_NAME:
            raise paramiko.SSHException("no names from a folder")
        return names_of(message.get_remainder())

    def close_handle(self, handle: bytes) -> None:
        self._request(CMD_CLOSE, handle)  # type: ignore[attr-defined]

    def _read_packet(self) -> tuple[int, bytes]:
        size = int.from_bytes(self._read_all(4), "big")
        if not 0 < size <= MAX_PACKET_BYTES:
            raise paramiko.SSHException(f"a packet of {size} bytes; at most {MAX_PACKET_BYTES} are read")
        packet = self._read_all(size)
        return packet[0], packet[1:]

    def _read_all(self, size: int) -> bytes:
        received = bytearray()
        while len(received) < size:
            self.sock.settimeout(min(self._limits.timeout_seconds, self._deadline.seconds_left()))
            piece = self.sock.recv(size - len(received))
            if not piece:
                raise EOFError
            received += piece
        return bytes(received)


class _File(paramiko.SFTPFile):
    """paramiko's file, whose thread of requests ends in silence: whoever waits for the answers is told why."""

    def _prefetch_thread(self, chunks: list[tuple[int, int]], max_concurrent_requests: int | None) -> None:
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            super()._prefetch_thread(chunks, max_concurrent_requests)  # type: ignore[misc]

    def _async_response(self, kind: int, message: paramiko.Message, number: int) -> None:
        # paramiko waits for ever for its thread to note a request that was not sent.
        until = time.monotonic() + LAG_SECONDS
        while kind == CMD_DATA and number not in self._prefetch_extents:  # type: ignore[attr-defined]
            if time.monotonic() > until:
                raise paramiko.SSHException("an answer to something that was not asked")
            time.sleep(0)
        super()._async_response(kind, message, number)  # type: ignore[misc]


def _entry(name: bytes, attributes: Attributes) -> Entry:
    if attributes.size_bytes is not None and attributes.size_bytes > MAX_SIZE_BYTES:
        return Entry(name, "unknown")
    kind = _kind(attributes.mode)
    modified_at = None if attributes.modified_at is None else EPOCH + timedelta(seconds=attributes.modified_at)
    # What is said of a link is said of the link itself.
    return Entry(name, kind, attributes.size_bytes, modified_at, exact=kind == "file")


def _kind(mode: int | None) -> Kind:
    if mode is None:
        return "link"  # not told; asked for again before it is taken
    if stat.S_ISDIR(mode):
        return "folder"
    if stat.S_ISLNK(mode):
        return "link"
    return "file" if stat.S_ISREG(mode) else "other"


def _failure(error: Exception, location: str) -> IngestError:
    if isinstance(error, OSError) and error.errno == errno.ENOENT:
        return SourceNotFoundError(location)
    if isinstance(error, OSError) and error.errno == errno.EACCES:
        return SourceAccessDeniedError(location, "the server does not allow it (permission denied)")
    return SourceUnreachableError(location, str(error)[:200] or type(error).__name__)
