"""Sources on file servers, common to FTP and SFTP: which server a job means, its file names, and walking its folders.

Hosts come from messages, so a message alone never makes this system connect anywhere: the stored credential that is
used or a setting must list the host, and a credential goes only to the hosts that it lists.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO, Literal, Protocol
from urllib.parse import quote, quote_from_bytes, unquote_to_bytes

from ingest_project.core.errors import (
    AddressRejectedError,
    ForbiddenPathError,
    PermanentError,
    SourceAccessDeniedError,
    SourceNotFoundError,
    SourceUnreachableError,
    UnreadableListingError,
)
from ingest_project.core.settings import Credential
from ingest_project.platform.http.host_policy import INTERNAL_HOSTS, HostLists
from ingest_project.platform.http.pinned_transport import Connector
from ingest_project.platform.http.urls import MAX_PORT, MalformedAddressError, host_and_port, parse_server
from ingest_project.sources.connection_pool import ConnectionPool, Lease, Login, PooledConnection, PoolLimits, pool_of
from ingest_project.sources.protocol import MAX_DEPTH, Pattern, Skipped, SourceFile, printable, refusal
from ingest_project.sources.reading import ListingBudget, OpenedFile, SourceLimits, resumed_reading
from ingest_project.sources.registry import SourceContext, patterns_for

Kind = Literal["file", "folder", "link", "other", "unknown"]

ENCODINGS = (
    *("utf-8", "latin-1", "iso8859-15", "cp1250", "cp1251", "cp1252", "cp437", "cp850", "koi8-r"),
    *("shift_jis", "euc_jp", "euc_kr", "gb18030", "big5"),
)
MAX_FOLDERS = 100_000
_SOURCE_HOSTS = "INGEST_ALLOWED_SOURCE_HOSTS"
_MAX_USERNAME_LENGTH = 255
# Characters of host names, and no control characters, which would end an FTP command and begin another.
_SAFE_IN_USERNAME = "@!$&'()*+,;="
_BY_BYTES = "bytes:"
_CONTROLS = frozenset((*range(0x20), 0x7F))
_NOT_A_FILE: Mapping[Kind, str] = {
    "folder": "A symbolic link to a folder; links are not followed.",
    "link": "A symbolic link; its server does not say where it leads.",
    "other": "It is not a regular file.",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a folder, as its server lists it.

    Args:
        name: the bytes that the server sent; for `unknown` the whole line, which is not understood.
        kind: `link` is a symbolic link to something not yet known.
        modified_at: UTC; None where the server does not say.
        identity: unique for each folder of the server, by whatever path it is reached; None if not stated.
        exact: False where size or time need `ServerConnection.described`.
    """

    name: bytes
    kind: Kind
    size_bytes: int | None = None
    modified_at: datetime | None = None
    identity: str | None = None
    exact: bool = True


class ServerConnection(PooledConnection, Protocol):
    """One logged-in connection, for one user at a time.

    Every method raises SourceNotFoundError, SourceAccessDeniedError, ForbiddenPathError or SourceUnreachableError;
    after the last one `usable` says whether the connection can be used again.
    """

    def entries(self, folder: bytes) -> Generator[Entry]:
        """Request a folder's entries before this returns, and yield them as they are read."""
        ...

    def described(self, path: bytes) -> Entry:
        """Describe what is at a path now; symbolic links are followed."""
        ...

    def opened(self, path: bytes, offset: int) -> OpenedFile:
        """Open a regular file at this position."""
        ...


@dataclass(frozen=True)
class Server:
    """One account on one server.

    Args:
        scheme: `ftp` or `sftp`; part of the address, whatever protects the connection.
        host: canonical name or address.
        username: empty for anonymous access.
        refusal: why it may not be contacted; empty if it may.
        internal_allowed: a setting names this host, so that it may have an internal address.
        lists: hosts that no client contacts, and internal ones that each may contact.
    """

    scheme: str
    host: str
    port: int
    username: str
    refusal: str
    internal_allowed: bool
    lists: HostLists

    @property
    def location(self) -> str:
        """`sftp://user@host:port`, the same however a job spells it."""
        user = f"{quote(self.username, safe=_SAFE_IN_USERNAME)}@" if self.username else ""
        return f"{self.scheme}://{user}{host_and_port(self.host, self.port)}"

    def connect(self, timeout_seconds: float) -> socket.socket:
        """Connect to this host, at an address that it may have.

        Raises:
            ForbiddenPathError: one of its addresses is denied, or internal and no setting names the host.
            SourceUnreachableError: its name cannot be resolved, or it does not answer.
        """
        rules = self.lists.rules_for((self.host, self.port), internal_allowed=self.internal_allowed)
        try:
            connection = Connector(rules).connect(self.host, self.port, timeout_seconds)
        except AddressRejectedError as error:
            remedy = f" Name the host in {_SOURCE_HOSTS}, or it or its network in {INTERNAL_HOSTS}."
            raise ForbiddenPathError(self.location, f"{error.rule}.{remedy if error.setting else ''}") from error
        except socket.gaierror as error:
            raise SourceUnreachableError(self.location, f"its name cannot be resolved ({error})") from error
        except OSError as error:
            raise SourceUnreachableError(self.location, error) from error
        # A transfer of hours leaves the control connection silent; firewalls forget silent connections.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return connection


def server_of(
    scheme: str, source_config: Mapping[str, Any], default_port: int, context: SourceContext
) -> tuple[Server, Credential | None]:
    """Read the server of a job's `source_config`: `host`, `port`, `credentials`, and `username` or the credential's.

    Raises:
        UnknownCredentialsError: it names credentials that are not stored.
        PermanentError: a part is missing or malformed, or the job names another user than the credential.
        SettingsError: an entry of a list of hosts is not a host pattern.
    """
    credential = context.credential(source_config)
    host = _host(str(source_config.get("host", "")).strip(), scheme)
    port = _port(source_config.get("port", default_port))
    username = _username(str(source_config.get("username") or ""), credential)
    listed = [host for stored in context.credentials.values() for host in stored.hosts]
    patterns = patterns_for([*context.polling.allowed_source_hosts, *listed], host, port)
    refusal = ""
    if credential is not None and not patterns_for(credential.hosts, host, port):
        refusal = "the credentials that the job names are not for this host; list it in their 'hosts'."
    elif not patterns:
        refusal = f"its host is not allowed. List it in {_SOURCE_HOSTS}, or in the 'hosts' of stored credentials."
    internal_allowed = any(pattern.is_specific for pattern in patterns)
    return Server(scheme, host, port, username, refusal, internal_allowed, context.host_lists), credential


@dataclass(frozen=True)
class NameCoding:
    """Encoding of file names on one server.

    Args:
        encoding: one of `ENCODINGS`.
    """

    encoding: str = "utf-8"

    @classmethod
    def of(cls, source_config: Mapping[str, Any]) -> NameCoding:
        """Read the `encoding` of a job's source_config.

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
        """Return an absolute path as messages carry it; `raw_path` gives the same bytes back."""
        return self._exact(raw) or _BY_BYTES + quote_from_bytes(raw)

    def raw_path(self, path: str) -> bytes:
        """Return the bytes of a path as its server knows it: absolute, without `.`, `..` and double slashes.

        Paths start at the server's root whether they are written with a slash or not: where a server starts others
        differs by user and changes, and one file must have one name.

        Raises:
            ForbiddenPathError: no server can have such a path, or it cannot be requested.
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
        path: as the job names it; absolute, with or without the first slash.
        server: the account.
        login: opens connections.
        names: how the server writes names.
        pool: keeps connections.
        limits: of time and entries.
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
            # A path that no file can have still needs a stable name in reports.
            return f"{self.server.location}/{quote_from_bytes(path.encode('utf-8', 'surrogatepass'))}"

    def require_allowed(self, path: str) -> None:
        """Refuse a host that is not listed, and a path that no server can have."""
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
        """Open a file, buffered; a cut connection is replaced and the reading resumes."""
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
    """Make the source of a job's `source_config`, read by this login.

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
    """An opened file that returns its connection to the pool when it is closed."""

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
    """One listing of a folder of a server and what is below it.

    Args:
        source: the source.
        pattern: of the files that are taken.
    """

    def __init__(self, source: FileServerSource, pattern: Pattern) -> None:
        self._source = source
        self._names = source.names
        self._pattern = pattern
        self._budget = ListingBudget(source.limits, source.server.location)
        self._waiting: list[_Folder] = []

    def below(self, root: bytes) -> Iterator[SourceFile | Skipped]:
        """Yield the files of a folder and of those below it that the pattern reaches.

        Raises:
            SourceNotFoundError: the folder does not exist. Also raises the other errors of a source; a failure is
                never left out.
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
            yield from self._list(self._waiting.pop())

    def _list(self, folder: _Folder) -> Iterator[SourceFile | Skipped]:
        source = self._source
        try:
            lease, entries = source.pool.begin(source.login, lambda connection: connection.entries(folder.raw))
        except (SourceNotFoundError, SourceAccessDeniedError) as error:
            if folder.parent is None:
                raise
            forbidden = isinstance(error, SourceAccessDeniedError)
            reason = "A folder that its server does not let us into." if forbidden else "A folder that was removed."
            yield Skipped(self._names.path(folder.raw), reason, visible=forbidden)
            return
        understood: Counter[bool] = Counter()
        # Closed in this order: a listing that ends early still sends a request to its server.
        with lease, closing(entries):
            for entry in self._budget.counted(entries):
                understood[entry.kind != "unknown"] += 1
                yield from self._entry(entry, folder, lease.connection)
        if understood[False] and not understood[True]:
            if folder.parent is None:
                location = f"{source.server.location}{self._names.path(folder.raw)}"
                raise UnreadableListingError(
                    location, f"none of the {understood[False]} lines of its listing is understood"
                )
            yield Skipped(self._names.path(folder.raw), "A folder whose listing is not understood.")

    def _entry(self, entry: Entry, folder: _Folder, connection: ServerConnection) -> Iterator[SourceFile | Skipped]:
        name = self._names.name(entry.name)
        relative = folder.relative + name
        if entry.kind == "unknown":
            yield Skipped(printable(name), "A line of the listing that is not understood, or has an impossible value.")
        elif not is_requestable(entry.name):
            if name not in ("", ".", ".."):
                yield Skipped(printable(relative), "Its name has characters that cannot be requested.")
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
        except SourceNotFoundError:
            return Skipped(path, "It was removed while the folder was read, or is a link that leads nowhere.")
        except (SourceAccessDeniedError, ForbiddenPathError) as error:
            return Skipped(path, f"No access: {error.reason.rstrip('.')}.")
        except PermanentError:
            return Skipped(path, "Its server does not describe it.")
        return _source_file(path, name, found) if found.kind == "file" else Skipped(path, _NOT_A_FILE[found.kind])


def _source_file(path: str, name: str, entry: Entry) -> SourceFile:
    return SourceFile(path=path, name=name, size_bytes=entry.size_bytes, modified_at=entry.modified_at)


def _joined(folder: bytes, name: bytes) -> bytes:
    return folder.rstrip(b"/") + b"/" + name


def _host(text: str, scheme: str) -> str:
    bracketed = f"[{text}]" if ":" in text and not text.startswith("[") else text
    try:
        host, port = parse_server(bracketed)
    except MalformedAddressError as error:
        raise PermanentError(
            f"source_config of an {scheme} source needs a 'host', a name or an address: {error.reason}."
        ) from None
    if port is not None:
        raise PermanentError(f"source_config of an {scheme} source names its port by 'port', not in 'host'.")
    return host


def _port(value: object) -> int:
    # Python refuses to write out an integer of many thousand digits.
    text = "" if isinstance(value, int) and value > MAX_PORT else str(value)
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_PORT)) and 0 < int(text) <= MAX_PORT):
        raise PermanentError(f"port must be a number from 1 to {MAX_PORT}, not {text[:20]!r}.")
    return int(text)


def _username(stated: str, credential: Credential | None) -> str:
    username = stated
    if credential is not None and credential.username:
        if stated not in ("", credential.username):
            raise PermanentError(f"source_config has the username {stated[:100]!r}, its credentials have another.")
        username = credential.username
    if len(username) > _MAX_USERNAME_LENGTH or not username.isprintable():
        raise PermanentError(f"username must have at most {_MAX_USERNAME_LENGTH} printable characters.")
    return username
