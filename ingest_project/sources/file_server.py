"""The common part of FTP and SFTP sources: coding of file names, and the walk through a server's folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO, Literal, Protocol
from urllib.parse import quote_from_bytes, unquote_to_bytes

from ingest_project.core.errors import (
    ForbiddenPathError,
    IngestError,
    PermanentError,
    SourceUnreachableError,
    UnreadableListingError,
)
from ingest_project.sources import MAX_DEPTH, Pattern, Skipped, SourceFile, refusal, sanitized
from ingest_project.sources.reading import ListingBudget, OpenedFile, SourceLimits, resumed_reading
from ingest_project.sources.registry import SourceContext
from ingest_project.sources.servers import ConnectionPool, Lease, Login, PooledConnection, PoolLimits, Server, pool_of

Kind = Literal["file", "folder", "link", "other", "unknown"]

ENCODINGS = (
    *("utf-8", "latin-1", "iso8859-15", "cp1250", "cp1251", "cp1252", "cp437", "cp850", "koi8-r"),
    *("shift_jis", "euc_jp", "euc_kr", "gb18030", "big5"),
)
MAX_FOLDERS = 100_000
_BY_BYTES = "bytes:"
_CONTROLS = frozenset((*range(0x20), 0x7F))
_NOT_A_FILE: Mapping[Kind, str] = {
    "folder": "A symbolic link to a folder; links are not followed.",
    "link": "A symbolic link; its server does not say where it leads.",
    "other": "It is not a regular file.",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a folder, as listed by its server.

    Args:
        name: bytes that the server sent; for `unknown` the whole line, which could not be parsed.
        kind: kind of the entry; `link` is a symbolic link to an unknown kind.
        modified_at: time of the last change, UTC; None if the server does not report it.
        identity: unique id of a folder on the server, the same for all its paths; None if not reported.
        exact: False if exact size or time need `ServerConnection.described`.
    """

    name: bytes
    kind: Kind
    size_bytes: int | None = None
    modified_at: datetime | None = None
    identity: str | None = None
    exact: bool = True


class ServerConnection(PooledConnection, Protocol):
    """One logged-in connection, for one caller at a time.

    Every method raises SourceNotFoundError, SourceAccessDeniedError, ForbiddenPathError or SourceUnreachableError;
    after the last one, `usable` is True if the connection can be used again.
    """

    def entries(self, folder: bytes) -> Generator[Entry]:
        """Request a folder's entries immediately, and return a generator that yields them as they are read."""

    def described(self, path: bytes) -> Entry:
        """Describe the current file or folder at a path, following symbolic links."""

    def opened(self, path: bytes, offset: int) -> OpenedFile:
        """Open a regular file at this position."""


@dataclass(frozen=True)
class NameCoding:
    """Encoding of file names on one server.

    Args:
        encoding: one of `ENCODINGS`.
    """

    encoding: str = "utf-8"

    @classmethod
    def of(cls, source_config: Mapping[str, Any]) -> NameCoding:
        """Create the coding from the `encoding` of a job's source_config.

        Raises:
            PermanentError: the encoding is unknown.
        """
        encoding = source_config.get("encoding", "utf-8")
        if encoding not in ENCODINGS:
            raise PermanentError(f"encoding {str(encoding)[:40]!r} is unknown. Known are: {', '.join(ENCODINGS)}.")
        return cls(str(encoding))

    def name(self, raw: bytes) -> str:
        """Return a name for display."""
        return self._exact(raw) or raw.decode("latin-1")

    def path(self, raw: bytes) -> str:
        """Return an absolute path for messages; `raw_path` converts it back to the same bytes."""
        return self._exact(raw) or _BY_BYTES + quote_from_bytes(raw)

    def raw_path(self, path: str) -> bytes:
        """Return the bytes of a path for its server: absolute, without `.`, `..` and double slashes.

        All paths start at the server's root, with or without a leading slash: the start of relative paths differs by
        user and may change, but one file must have one name.

        Raises:
            ForbiddenPathError: the path cannot exist on a server, or cannot be requested.
        """
        raw = self._encoded(path)
        if not _CONTROLS.isdisjoint(raw):
            raise ForbiddenPathError(path, "it has control characters.")
        parts: list[bytes] = []
        for part in raw.split(b"/"):
            if part == b"..":
                del parts[-1:]
            elif part not in (b"", b"."):
                parts.append(part)
        return b"/" + b"/".join(parts)

    def _encoded(self, path: str) -> bytes:
        try:
            if path.startswith(_BY_BYTES):
                return unquote_to_bytes(path.removeprefix(_BY_BYTES))
            return path.encode(self.encoding)
        except UnicodeEncodeError:
            raise ForbiddenPathError(
                path, f"it cannot be written in {self.encoding}, this server's encoding."
            ) from None

    def _exact(self, raw: bytes) -> str | None:
        try:
            text = raw.decode(self.encoding)
            return text if text.encode(self.encoding) == raw else None
        except UnicodeError:
            return None


def is_requestable(raw_name: bytes) -> bool:
    """Return True if a name of a listing can be part of a requested path."""
    return raw_name not in (b"", b".", b"..") and b"/" not in raw_name and _CONTROLS.isdisjoint(raw_name)


@dataclass(frozen=True)
class FileServerSource:
    """One folder of a file server.

    Args:
        path: path from the job; absolute, with or without a leading slash.
        server: account on the server.
        login: opens connections.
        names: coding of file names.
        pool: pool of connections.
        limits: limits of time and entries.
    """

    path: str
    server: Server
    login: Login[ServerConnection]
    names: NameCoding
    pool: ConnectionPool
    limits: SourceLimits

    @property
    def location(self) -> str:
        """`sftp://user@host:port/folder`."""
        return self.canonical_location(self.path)

    def canonical_location(self, path: str) -> str:
        """Return `ftp://` or `sftp://`, user, host, port and absolute path, its bytes percent-encoded."""
        try:
            return self.server.location + quote_from_bytes(self.names.raw_path(path))
        except ForbiddenPathError:
            # Even an impossible path needs a stable name in reports.
            return f"{self.server.location}/{quote_from_bytes(path.encode('utf-8', 'surrogatepass'))}"

    def require_allowed(self, path: str) -> None:
        """Refuse a host that is not listed, and an impossible path."""
        self._allowed(path)

    def list_files(self, pattern: str) -> Iterator[SourceFile | Skipped]:
        """Walk the folder, one open folder at a time. Symbolic links to folders are not followed."""
        parsed = Pattern.parse(pattern)
        yield from _Walk(self, parsed).below(self._allowed(self.path))

    def stat(self, path: str) -> SourceFile:
        """Return the size and modification time that the server reports now."""
        raw = self._allowed(path)
        found = self.pool.call(self.login, lambda connection: connection.described(raw))
        if found.kind != "file":
            raise ForbiddenPathError(path, "it is not a regular file.")
        return _source_file(self.names.path(raw), self.names.name(raw.rpartition(b"/")[2]), found)

    def open(self, path: str) -> AbstractContextManager[BinaryIO]:
        """Open a buffered file; reading resumes on a new connection if the connection breaks."""
        raw = self._allowed(path)

        def open_at(offset: int) -> OpenedFile:
            return _LeasedFile(*self.pool.begin(self.login, lambda connection: connection.opened(raw, offset)))

        return resumed_reading(open_at, self.canonical_location(path), self.limits)

    def _allowed(self, path: str) -> bytes:
        if self.server.refusal:
            raise ForbiddenPathError(self.server.location, self.server.refusal)
        return self.names.raw_path(path)


def file_server_source(
    source_config: Mapping[str, Any], server: Server, login: Login[ServerConnection], context: SourceContext
) -> FileServerSource:
    """Create the source for a job's `source_config`, with this login.

    Raises:
        PermanentError: the config names an unknown encoding.
    """
    polling = context.polling
    pool = pool_of(
        PoolLimits(
            total=polling.source_connections,
            per_server=polling.source_connections_per_host,
            idle_seconds=polling.source_idle_seconds,
            wait_seconds=polling.source_timeout_seconds,
        )
    )
    path = str(source_config.get("path", ""))
    return FileServerSource(path, server, login, NameCoding.of(source_config), pool, context.limits)


class _LeasedFile:
    """An open file that returns its connection to the pool when it is closed."""

    def __init__(self, lease: Lease[ServerConnection], file: OpenedFile) -> None:
        self.size_bytes, self.modified_at = file.size_bytes, file.modified_at
        self.read, self._file, self._lease = file.read, file, lease
        self._closed = False

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._file.close()
            self._lease.release()


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder to list; `relative` is empty for the first one, and ends with a slash for all others."""

    raw: bytes
    relative: str
    depth: int = 0
    identity: str | None = None
    parent: _Folder | None = None

    def contains_itself(self, identity: str | None) -> bool:
        folder: _Folder | None = self if identity is not None else None
        while folder is not None and folder.identity != identity:
            folder = folder.parent
        return folder is not None


class _Walk:
    """One listing of a server's folder and its subfolders.

    Args:
        source: the source.
        pattern: pattern of the files.
    """

    def __init__(self, source: FileServerSource, pattern: Pattern) -> None:
        self._source = source
        self._names = source.names
        self._pattern = pattern
        self._budget = ListingBudget(source.limits, source.server.location)
        self._waiting: list[_Folder] = []

    def below(self, root: bytes) -> Iterator[SourceFile | Skipped]:
        """Yield the files of a folder and of its subfolders that the pattern reaches.

        Raises:
            SourceNotFoundError: the folder does not exist. Also raises the other errors of a source, and ignores no
                failure.
        """
        self._waiting, listed = [_Folder(root, "")], 0
        while self._waiting:
            listed += 1
            if listed > MAX_FOLDERS:
                raise PermanentError(
                    f"{self._source.server.location} has more than {MAX_FOLDERS} folders below "
                    f"{self._names.path(root)}. Name a folder further down."
                )
            self._budget.seconds_left()
            folder = self._waiting.pop()
            try:
                yield from self._list(folder)
            except IngestError as error:
                if folder.parent is None:
                    raise
                yield self._budget.skipped_folder(error, self._names.path(folder.raw))
        self._budget.end()

    def _list(self, folder: _Folder) -> Iterator[SourceFile | Skipped]:
        source = self._source
        lease, entries = source.pool.begin(source.login, lambda connection: connection.entries(folder.raw))
        understood: Counter[bool] = Counter()
        # Close in this order: a listing that ends early still sends a request to its server.
        with lease, closing(entries):
            for entry in self._budget.counted(entries):
                understood[entry.kind != "unknown"] += 1
                yield from self._entry(entry, folder, lease.connection)
        if understood[False] and not understood[True]:
            at = source.canonical_location(self._names.path(folder.raw))
            raise UnreadableListingError(at, f"none of the {understood[False]} lines of its listing is understood")

    def _entry(self, entry: Entry, folder: _Folder, connection: ServerConnection) -> Iterator[SourceFile | Skipped]:
        name = self._names.name(entry.name)
        relative = folder.relative + name
        if entry.kind == "unknown":
            yield Skipped(sanitized(name), "A line of the listing that is not understood, or has an impossible value.")
        elif not is_requestable(entry.name):
            if name not in ("", ".", ".."):
                yield Skipped(sanitized(relative), "Its name has characters that cannot be requested.")
        elif entry.kind == "folder":
            yield from self._folder(entry, folder, name)
        elif self._pattern.matches(relative):
            yield self._file(entry, folder, connection)

    def _folder(self, entry: Entry, parent: _Folder, name: str) -> Iterator[Skipped]:
        raw = _joined(parent.raw, entry.name)
        if not self._pattern.may_match_below(parent.relative + name):
            return
        if name.startswith("."):
            yield Skipped(self._names.path(raw), "A hidden folder.", visible=False)
        elif parent.contains_itself(entry.identity):
            yield Skipped(self._names.path(raw), "A folder that leads back to one above it.")
        elif parent.depth >= MAX_DEPTH:
            yield Skipped(self._names.path(raw), f"A folder more than {MAX_DEPTH} levels down.")
        else:
            below = f"{parent.relative}{name}/"
            self._waiting.append(_Folder(raw, below, parent.depth + 1, entry.identity, parent))

    def _file(self, entry: Entry, folder: _Folder, connection: ServerConnection) -> SourceFile | Skipped:
        raw = _joined(folder.raw, entry.name)
        path, name = self._names.path(raw), self._names.name(entry.name)
        if (skipped := refusal(path, name)) is not None:
            return skipped
        if entry.kind == "other":
            return Skipped(path, _NOT_A_FILE["other"])
        try:
            found = entry if entry.exact and entry.kind == "file" else connection.described(raw)
        except IngestError as error:
            if isinstance(error, SourceUnreachableError) and not connection.usable:
                raise
            return self._budget.skipped_file(error, path)
        return _source_file(path, name, found) if found.kind == "file" else Skipped(path, _NOT_A_FILE[found.kind])


def _source_file(path: str, name: str, entry: Entry) -> SourceFile:
    return SourceFile(path=path, name=name, size_bytes=entry.size_bytes, modified_at=entry.modified_at)


def _joined(folder: bytes, name: bytes) -> bytes:
    return folder.rstrip(b"/") + b"/" + name
