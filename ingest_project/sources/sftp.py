"""Files on SFTP servers, `source_type` sftp.

A job's `source_config`: `host`, `port`, `path`, `credentials`, `username` where the credentials name none, `encoding`
of file names (utf-8). Only the credentials are used to log in: no agent, and no keys of the user of this process.

paramiko speaks SSH. The few SFTP requests that a source needs are made here, over one of its channels: names are bytes,
as in the protocol, a packet has a maximum size, an operation a total time, and a file is read by a bounded number of
requests in flight.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import re
import socket
import stat
import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from pydantic import SecretStr

from ingest_project.core.errors import (
    ForbiddenPathError,
    IngestError,
    PermanentError,
    SettingsError,
    SourceAccessDeniedError,
    SourceNotFoundError,
    SourceUnreachableError,
)
from ingest_project.platform.http.pinned_transport import Deadline, DeadlineSocket
from ingest_project.sources.context import SourceContext
from ingest_project.sources.file_server import Entry, FileServerSource, Kind, Server, file_server_source, server_of
from ingest_project.sources.protocol import MAX_SIZE_BYTES
from ingest_project.sources.reading import SourceLimits

DEFAULT_PORT = 22
KEEPALIVE_SECONDS = 30
MAX_BANNER_BYTES = 64 * 1024
# The protocol demands 35,000 bytes; channels here take 32 KiB at a time.
MAX_SSH_PACKET_BYTES = 1024**2
MAX_PACKET_BYTES = 4 * 1024**2
REQUEST_BYTES = 32 * 1024
REQUESTS_IN_FLIGHT = 64
MAX_EMPTY_PAGES = 100
_KNOWN_HOSTS_FILE = "INGEST_SFTP_KNOWN_HOSTS"
_FINGERPRINT = "SHA256:"
# One kind of key signs in several ways.
_RSA_SIGNATURES = ("rsa-sha2-512", "rsa-sha2-256")
_KEY_KINDS: tuple[tuple[type, type[paramiko.PKey]], ...] = (
    (Ed25519PrivateKey, paramiko.Ed25519Key),
    (EllipticCurvePrivateKey, paramiko.ECDSAKey),
    (RSAPrivateKey, paramiko.RSAKey),
)
_OPENSSH_HEADER = b"-----BEGIN OPENSSH PRIVATE KEY-----"
_VERSION_LINE = re.compile(rb"(?:\A|\n)SSH-[^\n]*\n")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# Version 3 of the protocol: draft-ietf-secsh-filexfer-02.
_INIT, _OPEN, _CLOSE, _READ, _FSTAT, _OPENDIR, _READDIR, _STAT = 1, 3, 4, 5, 8, 11, 12, 17
_VERSION, _STATUS, _HANDLE, _DATA, _NAME, _ATTRS = 2, 101, 102, 103, 104, 105
_PROTOCOL_VERSION, _FLAG_READ, _NO_ATTRIBUTES = 3, 1, 0
_OK, _EOF, _NO_SUCH_FILE, _PERMISSION_DENIED = 0, 1, 2, 3
_SIZE, _OWNER, _PERMISSIONS, _TIMES, _EXTENDED = 0x1, 0x2, 0x4, 0x8, 0x80000000
# Two empty strings and no attributes; two empty strings.
_SMALLEST_NAME, _SMALLEST_EXTENSION = 12, 8


def open_sftp(source_config: Mapping[str, Any], context: SourceContext) -> FileServerSource:
    """Make the source of one folder of an SFTP server.

    Raises:
        UnknownCredentialsError, PermanentError: the config names no such credentials, or makes no sense.
    """
    server, credential = server_of("sftp", source_config, DEFAULT_PORT, context)
    if credential is None or not server.username:
        raise PermanentError(f"{server.location}: an sftp source needs stored 'credentials' and a username.")
    if credential.password is None and credential.private_key_file is None:
        raise PermanentError(f"{server.location}: its credentials have neither password nor private_key_file.")
    login = SftpLogin(
        server=server,
        password=credential.password,
        private_key_file=credential.private_key_file,
        private_key_passphrase=credential.private_key_passphrase,
        host_keys=HostKeys.of(credential.host_key_fingerprints, context.polling.known_hosts_file),
        limits=context.limits,
    )
    return file_server_source(source_config, server, login, context)


@dataclass(frozen=True)
class HostKeys:
    """The keys that one server may have.

    Args:
        pinned: fingerprints as OpenSSH prints them; where there are any, only these count.
        known_hosts_file: in OpenSSH's format; None for no such file.
    """

    pinned: frozenset[str]
    known_hosts_file: Path | None

    @classmethod
    def of(cls, fingerprints: list[str], known_hosts_file: Path | None) -> HostKeys:
        """Read the fingerprints of a credential.

        Raises:
            SettingsError: one of them is not a fingerprint.
        """
        for fingerprint in fingerprints:
            if not fingerprint.startswith(_FINGERPRINT):
                raise SettingsError(
                    f"host_key_fingerprints holds {fingerprint[:60]!r}; fingerprints begin with {_FINGERPRINT} "
                    "(ssh-keygen -lf prints them)."
                )
        return cls(frozenset(fingerprint.rstrip("=") for fingerprint in fingerprints), known_hosts_file)

    def key_types(self, server: Server) -> tuple[str, ...]:
        """Return the kinds of keys to request, so that the server shows the one that is known; empty for any."""
        known = () if self.pinned else self._known(server)
        kinds = dict.fromkeys(key.get_name() for key in known)
        return tuple(name for kind in kinds for name in (_RSA_SIGNATURES if kind == "ssh-rsa" else (kind,)))

    def require_known(self, server: Server, key: paramiko.PKey) -> None:
        """Refuse the key of a server that is not known, with how to store it.

        Raises:
            SourceAccessDeniedError: it is not known, or has changed.
        """
        shown = fingerprint_of(key)
        if self.pinned:
            if shown not in self.pinned:
                raise SourceAccessDeniedError(server.location, _changed(key, shown, "host_key_fingerprints"))
            return
        known = self._known(server)
        if any(key == stored for stored in known):
            return
        raise SourceAccessDeniedError(
            server.location, _changed(key, shown, _KNOWN_HOSTS_FILE) if known else _unknown(server, key, shown)
        )

    def _known(self, server: Server) -> list[paramiko.PKey]:
        if self.known_hosts_file is None:
            return []
        try:
            hosts = _known_hosts(self.known_hosts_file, self.known_hosts_file.stat().st_mtime_ns)
        except (OSError, UnicodeDecodeError, paramiko.SSHException) as error:
            raise SettingsError(f"{_KNOWN_HOSTS_FILE} names {self.known_hosts_file}, which cannot be read.") from error
        found = hosts.lookup(_name_in_file(server))
        return [] if found is None else [found[kind] for kind in found]


@dataclass(frozen=True)
class SftpLogin:
    """How one account is reached; equal logins share their connections.

    Args:
        password: also sent after the key to servers that want both.
        private_key_file: in any format of OpenSSH's.
        limits: of time and entries.
    """

    server: Server
    password: SecretStr | None
    private_key_file: Path | None
    private_key_passphrase: SecretStr | None
    host_keys: HostKeys
    limits: SourceLimits

    @property
    def location(self) -> str:
        """Server and user, for messages."""
        return self.server.location

    def connect(self) -> SftpConnection:
        """Open a new connection, logged in; nothing of ours is sent before the server's key is known.

        Raises:
            SourceUnreachableError: no answer, or not now.
            SourceAccessDeniedError: the host key is not known, or the login is refused.
            SettingsError: the private key cannot be used.
        """
        connection = self.server.connect(self.limits.timeout_seconds)
        transport: paramiko.Transport | None = None
        try:
            transport = paramiko.Transport(_BoundedSocket(connection))
            with _closed_after(transport, self.limits.page_time):
                self._start(transport)
                self.host_keys.require_known(self.server, transport.get_remote_server_key())
                self._log_in(transport)
                transport.set_keepalive(KEEPALIVE_SECONDS)
                return SftpConnection(transport, self)
        except BaseException as error:
            (transport or connection).close()
            if isinstance(error, paramiko.AuthenticationException):
                said = str(error)[:200] or type(error).__name__
                raise SourceAccessDeniedError(
                    self.location, f"the server refuses the key or the password ({said})"
                ) from error
            if isinstance(error, paramiko.SSHException | OSError | EOFError):
                raise SourceUnreachableError(self.location, error) from error
            raise

    def _start(self, transport: paramiko.Transport) -> None:
        timeout = self.limits.timeout_seconds
        transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = timeout
        if key_types := self.host_keys.key_types(self.server):
            transport.get_security_options().key_types = key_types
        transport.start_client(timeout=timeout)

    def _log_in(self, transport: paramiko.Transport) -> None:
        wanted: list[str] = []
        if self.private_key_file is not None:
            key = private_key(self.private_key_file, self.private_key_passphrase)
            wanted = transport.auth_publickey(self.server.username, key)
        if self.password is not None and not transport.is_authenticated():
            wanted = transport.auth_password(self.server.username, self.password.get_secret_value())
        if not transport.is_authenticated():
            raise paramiko.AuthenticationException(f"the server also wants {', '.join(wanted)}")


class SftpConnection:
    """A connection after its login.

    Args:
        transport: the SSH connection.
        login: location and limits.
    """

    def __init__(self, transport: paramiko.Transport, login: SftpLogin) -> None:
        self.usable = True
        self._transport = transport
        self._location = login.location
        self._client = SftpClient(transport, login.limits)

    def answers(self) -> bool:
        """Return whether the connection is open; keepalive notices that the other side has gone."""
        return self._transport.is_active()

    def entries(self, folder: bytes) -> Generator[Entry]:
        """List a folder, a page of the server's size at a time."""
        with self.errors(folder):
            handle = self._client.handle(_OPENDIR, _string(folder))
        return self._pages(handle, folder)

    def described(self, path: bytes) -> Entry:
        """Describe what is at a path, links followed."""
        with self.errors(path):
            return _entry(path, self._client.attributes(_STAT, path))

    def opened(self, path: bytes, offset: int) -> SftpFile:
        """Open a file at a position."""
        with self.errors(path):
            flags = _FLAG_READ.to_bytes(4, "big") + _NO_ATTRIBUTES.to_bytes(4, "big")
            handle = self._client.handle(_OPEN, _string(path) + flags)
            found = _entry(path, self._client.attributes(_FSTAT, handle))
            if found.kind != "file":
                self._client.close_handle(handle)
                raise ForbiddenPathError(self._at(path), "it is not a regular file.")
        return SftpFile(self, self._client, path, handle, found, offset)

    def close(self) -> None:
        """Hang up."""
        self.usable = False
        self._transport.close()

    def close_handle(self, handle: bytes) -> None:
        """Close a file or folder; a failure costs the connection and nothing else."""
        # On a broken connection, closing would wait for an answer that does not come.
        if self.usable:
            with contextlib.suppress(IngestError), self.errors(b""):
                self._client.close_handle(handle)

    @contextmanager
    def errors(self, path: bytes) -> Iterator[None]:
        """Begin an operation and map its errors; only a refusal leaves the connection usable."""
        self._client.begin_operation()
        try:
            yield
        except SftpStatusError as error:
            mapped = map_error(error, self._at(path))
            self.usable = self.usable and isinstance(mapped, PermanentError)
            raise mapped from error
        except (OSError, paramiko.SSHException, EOFError) as error:
            self.usable = False
            raise SourceUnreachableError(self._at(path), str(error)[:200] or type(error).__name__) from error

    def _pages(self, handle: bytes, folder: bytes) -> Generator[Entry]:
        try:
            empty = 0
            while empty < MAX_EMPTY_PAGES:
                with self.errors(folder):
                    page = self._client.next_page(handle)
                if page is None:
                    return
                empty = 0 if page else empty + 1
                for name, attributes in page:
                    yield _entry(name, attributes)
            self.usable = False
            raise SourceUnreachableError(self._at(folder), "its listing goes on without any names")
        finally:
            self.close_handle(handle)

    def _at(self, path: bytes) -> str:
        return self._location + path.decode("utf-8", "replace")


class SftpFile:
    """An opened file, read to the size that it had when it was opened.

    Args:
        connection: whose file it is.
        client: of that connection.
        path: for messages.
        handle: of the file.
        found: the file as it was when it was opened.
        offset: first position.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - called once
        self, connection: SftpConnection, client: SftpClient, path: bytes, handle: bytes, found: Entry, offset: int
    ) -> None:
        self.size_bytes = found.size_bytes
        self.modified_at = found.modified_at
        self._connection = connection
        self._path = path
        self._handle = handle
        self._blocks = client.blocks(handle, offset, found.size_bytes or 0)
        self._rest = b""

    def read(self, size: int) -> bytes:
        """Read the next bytes; empty at the end."""
        if not self._rest:
            with self._connection.errors(self._path):
                self._rest = next(self._blocks, b"")
        block, self._rest = self._rest[:size], self._rest[size:]
        return block

    def close(self) -> None:
        """Stop reading."""
        self._blocks.close()
        self._connection.close_handle(self._handle)


class SftpStatusError(Exception):
    """The server refused a request.

    Args:
        code: of the protocol.
        said: the server's words.
    """

    def __init__(self, code: int, said: str) -> None:
        self.code = code
        super().__init__(f"{said or 'no reason given'} (SFTP status {code})")


def map_error(error: SftpStatusError, location: str) -> IngestError:
    """Map a refusal to a source's error."""
    if error.code == _NO_SUCH_FILE:
        return SourceNotFoundError(location)
    if error.code == _PERMISSION_DENIED:
        return SourceAccessDeniedError(location, "the server does not allow it (permission denied)")
    return SourceUnreachableError(location, str(error)[:200])


@dataclass(frozen=True, slots=True)
class Attributes:
    """Attributes of a file; None where the server does not state one.

    Args:
        modified_at: seconds since 1970, UTC.
    """

    size_bytes: int | None
    mode: int | None
    modified_at: int | None


class SftpClient:
    """The requests of a source, over one channel.

    Args:
        transport: logged in.
        limits: of time.
    """

    def __init__(self, transport: paramiko.Transport, limits: SourceLimits) -> None:
        self._limits = limits
        self._last_id = 0
        # Requests whose answers nobody waits for any more.
        self._abandoned: set[int] = set()
        self.begin_operation()
        self._channel = transport.open_session(timeout=limits.timeout_seconds)
        self._channel.settimeout(limits.timeout_seconds)
        self._channel.invoke_subsystem("sftp")
        self._channel.sendall(_string(bytes([_INIT]) + _PROTOCOL_VERSION.to_bytes(4, "big")))
        if self._packet()[0] != _VERSION:
            raise paramiko.SSHException("no SFTP server answers")

    def begin_operation(self) -> None:
        """Bound the time of everything that is received from now on."""
        self._deadline = Deadline(self._limits.answer_time)

    def handle(self, kind: int, fields: bytes) -> bytes:
        """Open a file or folder."""
        return self._request(kind, fields, _HANDLE).string()

    def close_handle(self, handle: bytes) -> None:
        """Close a file or folder."""
        self._request(_CLOSE, _string(handle), _STATUS)

    def attributes(self, kind: int, subject: bytes) -> Attributes:
        """Return the attributes of a path (STAT) or of a handle (FSTAT)."""
        return parse_attributes(self._request(kind, _string(subject), _ATTRS))

    def next_page(self, handle: bytes) -> list[tuple[bytes, Attributes]] | None:
        """Return the next names of a folder; None after the last."""
        try:
            return parse_names(self._request(_READDIR, _string(handle), _NAME))
        except SftpStatusError as error:
            if error.code == _EOF:
                return None
            raise

    def blocks(self, handle: bytes, offset: int, end: int) -> Generator[bytes]:
        """Yield a file from a position to its size, with several requests in flight; ends early if it was cut."""
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
        packet: all of it.
        position: of the next byte.

    Raises:
        paramiko.SSHException: by every method, where the packet ends before that.
    """

    def __init__(self, packet: bytes, position: int = 0) -> None:
        self._packet = packet
        self._position = position

    def number(self, length: int) -> int:
        """Read so many bytes as one number."""
        return int.from_bytes(self._take(length), "big")

    def string(self) -> bytes:
        """Read a length and so many bytes."""
        return self._take(self.number(4))

    def count(self, smallest: int) -> int:
        """Read the number of items that follow, none of which is shorter than this."""
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


class _BoundedSocket(DeadlineSocket):
    """The socket of an SSH connection: paramiko would read a banner without end and a packet of any size."""

    def __init__(self, connection: socket.socket) -> None:
        timeout = connection.gettimeout()
        super().__init__(fileno=connection.detach())
        self.settimeout(timeout)
        self._banner: bytes | None = b""

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receive, as far as a packet may have so many bytes."""
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


@contextmanager
def _closed_after(transport: paramiko.Transport, time: timedelta) -> Iterator[None]:
    """Hang up on a server that lets a login take longer: some waits of paramiko have no time-out."""
    timer = threading.Timer(time.total_seconds(), transport.close)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def fingerprint_of(key: paramiko.PKey) -> str:
    """Return a key's fingerprint as `ssh-keygen -lf` prints it."""
    digest = hashlib.sha256(key.asbytes()).digest()
    return _FINGERPRINT + base64.b64encode(digest).decode().rstrip("=")


def private_key(file: Path, passphrase: SecretStr | None) -> paramiko.PKey:
    """Read a key as OpenSSH or OpenSSL writes it.

    cryptography reads it and paramiko gets it in a plain form: its own reader rejects some files that OpenSSH accepts,
    by the values of their last bytes.

    Raises:
        SettingsError: not there, not a key of a known kind, or not with this passphrase.
    """
    secret = None if passphrase is None else passphrase.get_secret_value().encode()
    try:
        data = file.read_bytes()
        load = load_ssh_private_key if data.lstrip().startswith(_OPENSSH_HEADER) else load_pem_private_key
        key = load(data, secret)
        plain = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
        for kind, kind_of_paramiko in _KEY_KINDS:
            if isinstance(key, kind):
                return kind_of_paramiko.from_private_key(io.StringIO(plain))
    except (OSError, paramiko.SSHException, UnsupportedAlgorithm, ValueError, TypeError) as error:
        raise SettingsError(
            f"The private key {file} cannot be used ({type(error).__name__}). Check the file and "
            "private_key_passphrase of its credentials."
        ) from error
    raise SettingsError(f"The private key {file} is of a kind that is not used; Ed25519, ECDSA and RSA are.")


def _entry(name: bytes, attributes: Attributes) -> Entry:
    if attributes.size_bytes is not None and attributes.size_bytes > MAX_SIZE_BYTES:
        return Entry(name, "unknown")
    kind = _kind(attributes.mode)
    modified_at = None if attributes.modified_at is None else _EPOCH + timedelta(seconds=attributes.modified_at)
    # The attributes of a link are those of the link itself.
    return Entry(name, kind, attributes.size_bytes, modified_at, exact=kind == "file")


def _kind(mode: int | None) -> Kind:
    if mode is None or stat.S_ISLNK(mode):
        return "link"  # without a mode, `described` says what it is
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "other"


def _status(body: PacketReader) -> SftpStatusError:
    code = body.number(4)
    with contextlib.suppress(paramiko.SSHException):
        return SftpStatusError(code, body.string().decode("utf-8", "replace"))
    return SftpStatusError(code, "")


def _string(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value


@lru_cache(maxsize=4)
def _known_hosts(file: Path, _changed_at: int) -> paramiko.HostKeys:
    return paramiko.HostKeys(str(file))


def _name_in_file(server: Server) -> str:
    return server.host if server.port == DEFAULT_PORT else f"[{server.host}]:{server.port}"


def _unknown(server: Server, key: paramiko.PKey, shown: str) -> str:
    return (
        f"its host key is not known. It shows {key.get_name()} {shown}. If its owner confirms that, add the "
        f"fingerprint to 'host_key_fingerprints' of its credentials, or this line to the file of {_KNOWN_HOSTS_FILE}: "
        f"{_name_in_file(server)} {key.get_name()} {key.get_base64()}"
    )


def _changed(key: paramiko.PKey, shown: str, stored_in: str) -> str:
    return (
        f"its host key is not the one in {stored_in}: it shows {key.get_name()} {shown}. Either the server has a new "
        "key, or another computer answers instead. Nothing was sent; ask its owner before the new key is stored"
    )
