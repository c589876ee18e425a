"""A source on a file server, whichever protocol its connections speak."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol
from urllib.parse import quote_from_bytes

from ingest_project.core.errors import ForbiddenPathError
from ingest_project.sources.connection_pool import Account, ConnectionPool, Lease, PoolLimits, pool_of
from ingest_project.sources.directory_walk import Walk, source_file
from ingest_project.sources.limits import SourceLimits
from ingest_project.sources.protocol import Skipped, SourceFile
from ingest_project.sources.resumed_reading import resumed_reading
from ingest_project.sources.selection import Pattern
from ingest_project.sources.server_config import HostGuard, Server, ServerSettings
from ingest_project.sources.server_connection import Entry, NameCoding, OpenedFile, ServerConnection


@dataclass(frozen=True)
class ServerSource:
    """One folder of a file server.

    Args:
        path: as the job names it; absolute, with or without the first slash.
        server: the account it is reached by.
        guard: says whether the server may be contacted.
        names: how the server writes names.
        account: makes connections.
        pool: keeps them.
        limits: what it may take.
    """

    path: str
    server: Server
    guard: HostGuard
    names: NameCoding
    account: Account[ServerConnection]
    pool: ConnectionPool
    limits: SourceLimits

    @property
    def location(self) -> str:
        """`sftp://user@host:port/folder`."""
        return self.canonical_location(self.path)

    def canonical_location(self, path: str) -> str:
        """`ftp://` or `sftp://`, user, host, port and absolute path, its bytes percent-encoded."""
        try:
            return self.server.location + quote_from_bytes(self.names.raw_path(path))
        except ForbiddenPathError:
            # A path that no file can have still needs a stable name in reports.
            return f"{self.server.location}/{quote_from_bytes(path.encode('utf-8', 'surrogatepass'))}"

    def require_allowed(self, path: str) -> None:
        """Refuse a host that is not listed, and a path that no server can have."""
        self.guard.require_allowed(self.server)
        self.names.raw_path(path)

    def list_files(self, pattern: str) -> Iterator[SourceFile | Skipped]:
        """Walk the folder, one open folder at a time. Symbolic links to folders are not followed."""
        parsed = Pattern.parse(pattern)
        self.require_allowed(self.path)
        yield from Walk(self.account, self.pool, self.names, parsed, self.limits).below(self.names.raw_path(self.path))

    def stat(self, path: str) -> SourceFile:
        """Size and time of change as the server says now."""
        raw = self._allowed(path)
        found = self.pool.call(self.account, lambda connection: connection.described(raw))
        self._require_file(found, path)
        return source_file(self.names.path(raw), self.names.name(raw.rpartition(b"/")[2]), found)

    def open(self, path: str) -> AbstractContextManager[BinaryIO]:
        """The file's bytes, buffered; a cut connection is replaced and the reading goes on."""
        raw = self._allowed(path)

        def open_at(offset: int) -> tuple[Lease[ServerConnection], OpenedFile]:
            return self.pool.begin(self.account, lambda connection: connection.opened(raw, offset))

        return resumed_reading(open_at, self.canonical_location(path), self.limits)

    def _allowed(self, path: str) -> bytes:
        self.require_allowed(path)
        return self.names.raw_path(path)

    def _require_file(self, found: Entry, path: str) -> None:
        if found.kind != "file":
            raise ForbiddenPathError(path, "it is not a regular file.")


class ServerLogin(Protocol):
    """How one account of a server is reached, whichever the protocol; connections of equal logins are the same."""

    def __hash__(self) -> int: ...

    @property
    def server(self) -> Server:
        """Where, and as whom."""
        ...

    def connect(self) -> ServerConnection:
        """A new connection, logged in."""
        ...


def server_source(
    source_config: Mapping[str, Any], login: ServerLogin, guard: HostGuard, servers: ServerSettings
) -> ServerSource:
    """The folder of a job's `source_config`, read by this login.

    Raises:
        PermanentError: the config names an unknown encoding.
    """
    account: Account[ServerConnection] = Account(login.server.location, login, login.connect)
    names = NameCoding.of(source_config.get("encoding", "utf-8"))
    path = str(source_config.get("path", ""))
    return ServerSource(path, login.server, guard, names, account, connection_pool(servers), servers.limits)


def connection_pool(settings: ServerSettings) -> ConnectionPool:
    """The pool that all sources with these settings share."""
    return pool_of(
        PoolLimits(
            total=settings.max_connections,
            per_server=settings.max_connections_per_host,
            idle_seconds=settings.idle_seconds,
            wait_seconds=settings.timeout_seconds,
        )
    )
