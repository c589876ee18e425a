"""Files on SFTP servers, `source_type` sftp.

A job's `source_config`: `host`, `port`, `path`, `credentials`, `username` if the credentials have none, `encoding` of
file names (utf-8). Only the credentials are used to log in: no agent, and no keys of this process's user.

paramiko implements SSH; `sftp_protocol` sends the few SFTP requests that a source needs over one of its channels.
"""

from __future__ import annotations

import contextlib
import io
import stat
import threading
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
from ingest_project.sources import MAX_SIZE_BYTES
from ingest_project.sources.file_server import Entry, FileServerSource, Kind, file_server_source
from ingest_project.sources.reading import SourceLimits
from ingest_project.sources.registry import SourceContext
from ingest_project.sources.servers import Server, logged_in, server_of
from ingest_project.sources.sftp_protocol import (
    NO_SUCH_FILE,
    PERMISSION_DENIED,
    Attributes,
    BoundedSocket,
    SftpClient,
    SftpStatusError,
)

DEFAULT_PORT = 22
KEEPALIVE_SECONDS = 30
MAX_EMPTY_PAGES = 100
_KNOWN_HOSTS_FILE = "INGEST_SFTP_KNOWN_HOSTS"
_FINGERPRINT = "SHA256:"
# An RSA key can sign with either of these algorithms.
_RSA_SIGNATURES = ("rsa-sha2-512", "rsa-sha2-256")
_KEY_KINDS: tuple[tuple[type, type[paramiko.PKey]], ...] = (
    (Ed25519PrivateKey, paramiko.Ed25519Key),
    (EllipticCurvePrivateKey, paramiko.ECDSAKey),
    (RSAPrivateKey, paramiko.RSAKey),
)
_OPENSSH_HEADER = b"-----BEGIN OPENSSH PRIVATE KEY-----"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def open_sftp(source_config: Mapping[str, Any], context: SourceContext) -> FileServerSource:
    """Create the source for one folder of an SFTP server.

    Raises:
        UnknownCredentialsError, PermanentError: the credentials do not exist, or the config is invalid.
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
    """Trusted host keys of one server.

    Args:
        pinned: fingerprints in OpenSSH's format; if any are set, only these are trusted.
        known_hosts_file: file in OpenSSH's format; None without such a file.
    """

    pinned: frozenset[str]
    known_hosts_file: Path | None

    @classmethod
    def of(cls, fingerprints: list[str], known_hosts_file: Path | None) -> HostKeys:
        """Create the host keys from a credential's fingerprints.

        Raises:
            SettingsError: an entry is not a fingerprint.
        """
        for fingerprint in fingerprints:
            if not fingerprint.startswith(_FINGERPRINT):
                raise SettingsError(
                    f"host_key_fingerprints holds {fingerprint[:60]!r}; fingerprints begin with {_FINGERPRINT} "
                    "(ssh-keygen -lf prints them)."
                )
        return cls(frozenset(fingerprint.rstrip("=") for fingerprint in fingerprints), known_hosts_file)

    def key_types(self, server: Server) -> tuple[str, ...]:
        """Return the key types to request, so that the server presents the known one; empty for any."""
        known = () if self.pinned else self._host_keys(server)
        kinds = dict.fromkeys(key.get_name() for key in known)
        return tuple(name for kind in kinds for name in (_RSA_SIGNATURES if kind == "ssh-rsa" else (kind,)))

    def require_known(self, server: Server, key: paramiko.PKey) -> None:
        """Refuse an unknown host key; the error explains how to store it.

        Raises:
            SourceAccessDeniedError: the key is not known, or has changed.
        """
        shown = key.fingerprint
        if self.pinned:
            if shown not in self.pinned:
                raise SourceAccessDeniedError(server.location, _changed(key, shown, "host_key_fingerprints"))
            return
        known = self._host_keys(server)
        if any(key == stored for stored in known):
            return
        raise SourceAccessDeniedError(
            server.location, _changed(key, shown, _KNOWN_HOSTS_FILE) if known else _unknown(server, key, shown)
        )

    def _host_keys(self, server: Server) -> list[paramiko.PKey]:
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
    """Account of an SFTP server; equal logins share their connections.

    Args:
        password: password; also sent after the key to servers that require both.
        private_key_file: private key in any of OpenSSH's formats.
        limits: limits of time and entries.
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
        """Open a new connection and log in; no credential is sent before the host key is verified.

        Raises:
            SourceUnreachableError: the server does not answer.
            SourceAccessDeniedError: the host key is unknown, or the login is refused.
            SettingsError: the private key cannot be used.
        """
        return logged_in(self._connect, self.password)

    def _connect(self) -> SftpConnection:
        connection = self.server.connect(self.limits.timeout_seconds)
        transport: paramiko.Transport | None = None
        try:
            transport = paramiko.Transport(BoundedSocket(connection))
            with _closed_after(transport, self.limits.page_time):
                self._start_client(transport)
                self.host_keys.require_known(self.server, transport.get_remote_server_key())
                self._log_in(transport)
                transport.set_keepalive(KEEPALIVE_SECONDS)
                return SftpConnection(transport, self)
        except BaseException as error:
            (transport or connection).close()
            if isinstance(error, paramiko.AuthenticationException):
                reason = str(error)[:200] or type(error).__name__
                raise SourceAccessDeniedError(
                    self.location, f"the server refuses the key or the password ({reason})"
                ) from error
            if isinstance(error, paramiko.SSHException | OSError | EOFError):
                raise SourceUnreachableError(self.location, error) from error
            raise

    def _start_client(self, transport: paramiko.Transport) -> None:
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
        login: login with location and limits.
    """

    def __init__(self, transport: paramiko.Transport, login: SftpLogin) -> None:
        self.usable = True
        self._doubtful = False
        self._transport = transport
        self._location = login.location
        self._client = SftpClient(transport, login.limits)

    def answers(self) -> bool:
        """Return True while the connection is open and has not failed; keepalive detects a vanished server."""
        return self._transport.is_active() and not self._doubtful

    def entries(self, folder: bytes) -> Generator[Entry]:
        """List a folder, in pages of the server's size."""
        with self.errors(folder):
            handle = self._client.open_folder(folder)
        return self._pages(handle, folder)

    def described(self, path: bytes) -> Entry:
        """Describe the file or folder at a path, following links."""
        with self.errors(path):
            return _entry(path, self._client.stat(path))

    def opened(self, path: bytes, offset: int) -> SftpFile:
        """Open a file at a position."""
        with self.errors(path):
            handle = self._client.open_file(path)
            found = _entry(path, self._client.stat_handle(handle))
            if found.kind != "file":
                self._client.close_handle(handle)
                raise ForbiddenPathError(self._at(path), "it is not a regular file.")
        return SftpFile(self, self._client, path, handle, found, offset)

    def close(self) -> None:
        """Close the connection."""
        self.usable = False
        self._transport.close()

    def close_handle(self, handle: bytes) -> None:
        """Close a file or folder; a failure only ends the connection."""
        # On a broken connection, closing would wait for a response that never arrives.
        if self.usable:
            with contextlib.suppress(IngestError), self.errors(b""):
                self._client.close_handle(handle)

    @contextmanager
    def errors(self, path: bytes) -> Iterator[None]:
        """Begin an operation and map its errors; the connection stays usable if the server answered with a status."""
        self._client.begin_operation()
        try:
            yield
        except SftpStatusError as error:
            mapped = map_error(error, self._at(path))
            # This may be the session's failure instead of the file's.
            self._doubtful |= not isinstance(mapped, PermanentError)
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
    """An open file, read up to its size at the time of opening.

    Args:
        connection: connection of the file.
        client: client of that connection.
        path: path for messages.
        handle: handle of the file.
        found: description of the file when it was opened.
        offset: first position to read.
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


def map_error(error: SftpStatusError, location: str) -> IngestError:
    """Map a refusal to an error of a source."""
    if error.code == NO_SUCH_FILE:
        return SourceNotFoundError(location)
    if error.code == PERMISSION_DENIED:
        return SourceAccessDeniedError(location, "the server does not allow it (permission denied)")
    return SourceUnreachableError(location, str(error)[:200])


@contextmanager
def _closed_after(transport: paramiko.Transport, time: timedelta) -> Iterator[None]:
    """Close the connection if the login takes longer: some of paramiko's waits have no timeout."""
    timer = threading.Timer(time.total_seconds(), transport.close)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def private_key(file: Path, passphrase: SecretStr | None) -> paramiko.PKey:
    """Read a key in a format of OpenSSH or OpenSSL.

    cryptography parses the file and passes it to paramiko in a plain form: paramiko's own parser rejects some files
    that OpenSSH accepts, depending on their last bytes.

    Raises:
        SettingsError: the file is missing, not a key of a supported kind, or needs another passphrase.
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
    raise SettingsError(f"The private key {file} is of an unsupported kind; Ed25519, ECDSA and RSA are supported.")


def _entry(name: bytes, attributes: Attributes) -> Entry:
    if attributes.size_bytes is not None and attributes.size_bytes > MAX_SIZE_BYTES:
        return Entry(name, "unknown")
    kind = _kind(attributes.mode)
    modified_at = None if attributes.modified_at is None else _EPOCH + timedelta(seconds=attributes.modified_at)
    # A listing has the attributes of a link itself, not of its target.
    return Entry(name, kind, attributes.size_bytes, modified_at, exact=kind == "file")


def _kind(mode: int | None) -> Kind:
    if mode is None or stat.S_ISLNK(mode):
        return "link"  # without a mode, `described` determines the kind
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "other"


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
