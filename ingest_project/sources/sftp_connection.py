"""One logged-in SFTP connection: folders, files, positions, over paramiko.

Names are bytes here, as they are in the protocol; paramiko's own listing insists on UTF-8. A file is read in windows of
requests, so that memory stays bounded however slowly the bytes are used: paramiko's prefetch would take all of it.
"""

from __future__ import annotations

import contextlib
import errno
import stat
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import paramiko
from paramiko.sftp import CMD_CLOSE, CMD_HANDLE, CMD_NAME, CMD_OPEN, CMD_OPENDIR, CMD_READDIR, SFTP_FLAG_READ

from ingest_project.errors import ForbiddenPath, IngestError, SourceForbidden, SourceMissing, SourceUnreachable
from ingest_project.sources.server_connection import Entry

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from ingest_project.sources.server_connection import Kind

REQUEST_BYTES = 32 * 1024
WINDOW_BYTES = 2 * 1024**2
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SPECIAL_NAMES = (b".", b"..")


class SftpConnection:
    """A connection after its login.

    Args:
        transport: the SSH connection.
        location: of the server, for messages.
        timeout_seconds: of every single answer.
    """

    def __init__(self, transport: paramiko.Transport, location: str, timeout_seconds: float) -> None:
        self.usable = True
        self._transport = transport
        self._location = location
        with self.failures(b""):
            self._client = _SftpClient.begun(transport)
            self._client.settimeout(timeout_seconds)

    def answers(self) -> bool:
        """Whether the connection is open; keepalive finds out when the other side has gone."""
        return self._transport.is_active()

    def entries(self, folder: bytes) -> Generator[Entry]:
        """Everything in a folder, a page of the server's size at a time."""
        with self.failures(folder):
            handle = self._client.opened_folder(folder)
        return self._pages(handle, folder)

    def described(self, path: bytes) -> Entry:
        """What is there, links followed."""
        with self.failures(path):
            return _entry(path, self._client.stat(path))

    def opened(self, path: bytes, offset: int) -> SftpFile:
        """A file from a position."""
        with self.failures(path):
            file = self._client.opened_file(path)
            found = _entry(path, file.stat())
            if found.kind != "file":
                file.close()
                raise ForbiddenPath(self._at(path), "it is not a regular file.")
        return SftpFile(self, path, file, found, offset)

    def close(self) -> None:
        """Hang up."""
        self.usable = False
        self._transport.close()

    @contextlib.contextmanager
    def failures(self, path: bytes) -> Iterator[None]:
        """What paramiko raises becomes a source's error; only a refusal leaves the connection usable."""
        try:
            yield
        except IngestError:
            raise
        except (OSError, paramiko.SSHException, EOFError, UnicodeDecodeError) as error:
            failure = _failure(error, self._at(path))
            if isinstance(failure, SourceUnreachable):
                self.usable = False
            raise failure from error

    def _pages(self, handle: bytes, folder: bytes) -> Generator[Entry]:
        with contextlib.ExitStack() as stack:
            stack.callback(self._close_folder, handle)
            while True:
                with self.failures(folder):
                    page = self._client.next_page(handle)
                if page is None:
                    return
                for name, attributes in page:
                    if name not in SPECIAL_NAMES:
                        yield _entry(name, attributes)

    def _close_folder(self, handle: bytes) -> None:
        # The listing is read; a connection that fails now is thrown away, and nothing else is lost.
        if self.usable:
            with contextlib.suppress(IngestError), self.failures(b""):
                self._client.close_handle(handle)

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
    """paramiko's client, with listings whose names are bytes."""

    @classmethod
    def begun(cls, transport: paramiko.Transport) -> _SftpClient:
        client = cls.from_transport(transport)
        if not isinstance(client, cls):
            raise paramiko.SSHException("no SFTP session")
        return client

    def settimeout(self, seconds: float) -> None:
        self.sock.settimeout(seconds)

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

    def next_page(self, handle: bytes) -> list[tuple[bytes, paramiko.SFTPAttributes]] | None:
        """The next names; None after the last."""
        try:
            kind, message = self._request(CMD_READDIR, handle)  # type: ignore[attr-defined]
        except EOFError:
            return None
        if kind != CMD_NAME:
            raise paramiko.SSHException("no names from a folder")
        page = []
        for _ in range(message.get_int()):
            name, _long_name = message.get_string(), message.get_string()
            # The only reader of attributes that there is.
            attributes = paramiko.SFTPAttributes._from_msg(message)  # type: ignore[attr-defined]  # noqa: SLF001
            page.append((name, attributes))
        return page

    def close_handle(self, handle: bytes) -> None:
        self._request(CMD_CLOSE, handle)  # type: ignore[attr-defined]


class _File(paramiko.SFTPFile):
    """paramiko's file, whose thread of requests ends in silence: whoever waits for the answers is told why."""

    def _prefetch_thread(self, chunks: list[tuple[int, int]], max_concurrent_requests: int | None) -> None:
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            super()._prefetch_thread(chunks, max_concurrent_requests)  # type: ignore[misc]


def _entry(name: bytes, attributes: paramiko.SFTPAttributes) -> Entry:
    kind = _kind(attributes.st_mode)
    modified_at = None if attributes.st_mtime is None else EPOCH + timedelta(seconds=attributes.st_mtime)
    # What is said of a link is said of the link itself.
    return Entry(name, kind, attributes.st_size, modified_at, exact=kind == "file")


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
        return SourceMissing(location)
    if isinstance(error, OSError) and error.errno == errno.EACCES:
        return SourceForbidden(location, "the server does not allow it (permission denied)")
    return SourceUnreachable(location, str(error)[:200] or type(error).__name__)
