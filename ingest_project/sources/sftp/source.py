"""Files on SFTP servers, `source_type` sftp.

A job's `source_config`: `host`, `port`, `path`, `credentials`, `username` where the credentials name none, `encoding`
of file names (utf-8). Only what the credentials say is used to log in: no agent, and no keys of the user who runs this.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import paramiko
from paramiko.packet import Packetizer
from pydantic import SecretStr

from ingest_project.core.errors import PermanentError, SettingsError, SourceAccessDeniedError, SourceUnreachableError
from ingest_project.sources.context import SourceContext
from ingest_project.sources.limits import SourceLimits
from ingest_project.sources.server_config import Server, ServerSettings, server_for
from ingest_project.sources.server_source import ServerSource, server_source
from ingest_project.sources.sftp.connection import SftpConnection
from ingest_project.sources.sftp.keys import DEFAULT_PORT, FINGERPRINT, HostKeys, private_key

KEEPALIVE_SECONDS = 30
MAX_BANNER_BYTES = 64 * 1024
# The protocol asks for 35,000 bytes; channels here take 32 KiB at a time.
MAX_SSH_PACKET_BYTES = 1024**2


@dataclass(frozen=True)
class SftpLogin:
    """How one account is reached; connections of equal logins are the same.

    Args:
        password: also asked for after the key by servers that want both.
        private_key_file: in any format of OpenSSH's.
        limits: what it may take.
    """

    server: Server
    password: SecretStr | None
    private_key_file: Path | None
    private_key_passphrase: SecretStr | None
    host_keys: HostKeys
    limits: SourceLimits

    def connect(self) -> SftpConnection:
        """A new connection, logged in; the server is known before anything of ours is sent.

        Raises:
            SourceUnreachableError: no answer, or not now.
            SourceAccessDeniedError: the host key is not known, or the login is refused.
            SettingsError: the private key cannot be used.
        """
        transport = self._begun()
        try:
            with _closed_after(transport, self.limits.page_time):
                self.host_keys.require_known(self.server, transport.get_remote_server_key())
                self._log_in(transport)
                transport.set_keepalive(KEEPALIVE_SECONDS)
                return SftpConnection(transport, self.server.location, self.limits)
        except paramiko.AuthenticationException as error:
            transport.close()
            raise SourceAccessDeniedError(self.server.location, _refused(error)) from error
        except (paramiko.SSHException, OSError, EOFError) as error:
            transport.close()
            raise SourceUnreachableError(self.server.location, error) from error
        except BaseException:
            transport.close()
            raise

    def _begun(self) -> paramiko.Transport:
        connection = self.server.connect(self.limits.timeout_seconds)
        transport = paramiko.Transport(connection, packetizer_class=BoundedPackets)
        timeout = self.limits.timeout_seconds
        try:
            transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = timeout
            if key_types := self.host_keys.key_types(self.server):
                transport.get_security_options().key_types = key_types
            transport.start_client(timeout=timeout)
        except (paramiko.SSHException, OSError, EOFError) as error:
            transport.close()
            raise SourceUnreachableError(self.server.location, error) from error
        except BaseException:
            transport.close()
            raise
        return transport

    def _log_in(self, transport: paramiko.Transport) -> None:
        wanted: list[str] = []
        if self.private_key_file is not None:
            wanted = transport.auth_publickey(
                self.server.username, private_key(self.private_key_file, self.private_key_passphrase)
            )
        if self.password is not None and not transport.is_authenticated():
            wanted = transport.auth_password(self.server.username, self.password.get_secret_value())
        if not transport.is_authenticated():
            raise paramiko.AuthenticationException(f"the server also wants {', '.join(wanted)}")


class BoundedPackets(Packetizer):
    """paramiko's reader of packets, which would read a banner without end and a packet of any size."""

    _banner_bytes = 0

    def read_all(self, n: int, check_rekey: bool = False) -> bytes:  # noqa: FBT001, FBT002 - as paramiko has it
        """So many bytes, as far as a packet may have them."""
        if n > MAX_SSH_PACKET_BYTES:
            raise paramiko.SSHException(f"a packet of {n} bytes; at most {MAX_SSH_PACKET_BYTES} are read")
        return super().read_all(n, check_rekey)

    def _read_timeout(self, timeout: float) -> bytes:
        piece: bytes = super()._read_timeout(timeout)  # type: ignore[misc]
        self._banner_bytes += len(piece)
        if self._banner_bytes > MAX_BANNER_BYTES:
            raise paramiko.SSHException(f"a banner of more than {MAX_BANNER_BYTES} bytes")
        return piece


@contextmanager
def _closed_after(transport: paramiko.Transport, time: timedelta) -> Iterator[None]:
    """Hang up on a server that lets a login take longer: some of what paramiko waits for has no time-out."""
    timer = threading.Timer(time.total_seconds(), transport.close)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def open_sftp(
    source_config: Mapping[str, Any],
    access: SourceContext,
    servers: ServerSettings | None = None,
) -> ServerSource:
    """One folder of an SFTP server.

    Raises:
        UnknownCredentialsError, PermanentError: the config names no such credentials, or makes no sense.
    """
    servers = servers or ServerSettings.of(access.settings, access.clients.lists)
    server, guard, credential = server_for("sftp", source_config, access.credentials, DEFAULT_PORT, servers)
    if credential is None or not server.username:
        raise PermanentError(f"{server.location}: an sftp source needs stored 'credentials' and a username.")
    if credential.password is None and credential.private_key_file is None:
        raise PermanentError(f"{server.location}: its credentials have neither password nor private_key_file.")
    login = SftpLogin(
        server=server,
        password=credential.password,
        private_key_file=credential.private_key_file,
        private_key_passphrase=credential.private_key_passphrase,
        host_keys=HostKeys(_pinned(credential.host_key_fingerprints), servers.known_hosts_file),
        limits=servers.limits,
    )
    return server_source(source_config, login, guard, servers)


def _pinned(fingerprints: list[str]) -> frozenset[str]:
    for fingerprint in fingerprints:
        if not fingerprint.startswith(FINGERPRINT):
            raise SettingsError(
                f"host_key_fingerprints holds {fingerprint[:60]!r}; fingerprints begin with {FINGERPRINT} "
                "(ssh-keygen -lf prints them)."
            )
    return frozenset(fingerprint.rstrip("=") for fingerprint in fingerprints)


def _refused(error: Exception) -> str:
    return f"the server refuses the key or the password ({str(error)[:200] or type(error).__name__})"
