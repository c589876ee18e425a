"""Which file server a job means, who we are there, and whether it may be contacted at all.

Hosts come from messages, so a message alone never makes this system connect anywhere: a host must be listed, by the
stored credential that is used or in the settings, and a credential goes to the hosts that it lists and to no other.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ingest_project.core.errors import AddressRejectedError, ForbiddenPathError, PermanentError, SourceUnreachableError
from ingest_project.core.settings import Credential, PollingSettings
from ingest_project.platform.http.host_policy import INTERNAL_HOSTS, NO_LISTS, HostLists, HostPattern
from ingest_project.platform.http.pinned_transport import Connector
from ingest_project.platform.http.urls import MAX_PORT, MalformedAddressError, host_and_port, parse_server
from ingest_project.sources.context import named_credential
from ingest_project.sources.limits import SourceLimits

ALLOWED_SOURCE_HOSTS = "INGEST_ALLOWED_SOURCE_HOSTS"
MAX_USERNAME_LENGTH = 255
# A host name's characters, and no control characters, which would end an FTP command and begin another.
SAFE_IN_USERNAME = "@!$&'()*+,;="


@dataclass(frozen=True)
class ServerSettings:
    """What holds for every file server.

    Args:
        allowed_hosts: host patterns that may be contacted beside the hosts of stored credentials.
        lists: what holds for every client.
        known_hosts_file: SFTP host keys that are accepted, in OpenSSH's format.
        ca_file: PEM file with certificate authorities that are trusted beside the system's.
        timeout_seconds: of connecting and of every single answer.
        max_connections: open at a time in this process, all servers together.
        max_connections_per_host: open at a time in this process to one server as one user.
        idle_seconds: how long an unused connection is kept.
        max_listing_entries: of one look at a server.
        max_listing_seconds: of one look at a server.
    """

    allowed_hosts: tuple[str, ...] = ()
    lists: HostLists = NO_LISTS
    known_hosts_file: Path | None = None
    ca_file: Path | None = None
    timeout_seconds: float = 30.0
    max_connections: int = 16
    max_connections_per_host: int = 4
    idle_seconds: float = 60.0
    max_listing_entries: int = 1_000_000
    max_listing_seconds: float = 3_600.0

    @property
    def limits(self) -> SourceLimits:
        """What one of them may take."""
        return SourceLimits(self.timeout_seconds, self.max_listing_entries, self.max_listing_seconds)

    @classmethod
    def of(cls, settings: PollingSettings, lists: HostLists) -> ServerSettings:
        """As the settings have it."""
        return cls(
            allowed_hosts=tuple(settings.allowed_source_hosts),
            lists=lists,
            known_hosts_file=settings.known_hosts_file,
            ca_file=settings.source_ca_file,
            timeout_seconds=settings.source_timeout_seconds,
            max_connections=settings.source_connections,
            max_connections_per_host=settings.source_connections_per_host,
            idle_seconds=settings.source_idle_seconds,
            max_listing_entries=settings.max_listing_entries,
            max_listing_seconds=settings.max_listing_seconds,
        )


@dataclass(frozen=True)
class Server:
    """One account on one server.

    Args:
        scheme: `ftp` or `sftp`; part of the address, whatever protects the connection.
        host: canonical name or address.
        username: empty for anonymous access.
        internal_allowed: whether a setting names this very host, so that it may have an internal address.
        lists: what holds for every client.
    """

    scheme: str
    host: str
    port: int
    username: str
    internal_allowed: bool = True
    lists: HostLists = NO_LISTS

    @property
    def location(self) -> str:
        """`sftp://user@host:port`, the same however a job spells it."""
        user = f"{quote(self.username, safe=SAFE_IN_USERNAME)}@" if self.username else ""
        return f"{self.scheme}://{user}{host_and_port(self.host, self.port)}"

    def connect(self, timeout_seconds: float) -> socket.socket:
        """A connection to this host, at an address that it may have.

        Raises:
            ForbiddenPathError: one of its addresses is denied, or internal and no setting names the host.
            SourceUnreachableError: its name is not known, or nothing answers.
        """
        rules = self.lists.rules_for((self.host, self.port), internal_allowed=self.internal_allowed)
        try:
            connection = Connector(rules).connect(self.host, self.port, timeout_seconds)
        except AddressRejectedError as error:
            raise ForbiddenPathError(self.location, _refusal(error)) from error
        except socket.gaierror as error:
            raise SourceUnreachableError(self.location, f"its name cannot be resolved ({error})") from error
        except OSError as error:
            raise SourceUnreachableError(self.location, error) from error
        # A transfer of hours leaves the control connection silent; firewalls forget silent connections.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return connection


def server_of(
    scheme: str, source_config: Mapping[str, Any], credential: Credential | None, default_port: int
) -> Server:
    """The server that a job's `source_config` names by `host`, `port` and `username`, or the credential's username.

    Raises:
        PermanentError: one of them is missing or malformed, or the job names another user than the credential.
    """
    host = _host(str(source_config.get("host", "")).strip(), scheme)
    username = str(source_config.get("username") or "")
    if credential is not None and credential.username:
        if username not in ("", credential.username):
            raise PermanentError(f"source_config has the username {username[:100]!r}, its credentials have another.")
        username = credential.username
    if len(username) > MAX_USERNAME_LENGTH or not username.isprintable():
        raise PermanentError(f"username must have at most {MAX_USERNAME_LENGTH} printable characters.")
    return Server(scheme, host, _port(source_config.get("port", default_port)), username)


def server_for(
    scheme: str,
    source_config: Mapping[str, Any],
    credentials: Mapping[str, Credential],
    default_port: int,
    servers: ServerSettings,
) -> tuple[Server, HostGuard, Credential | None]:
    """What a job's `source_config` means: the server, whether it may be contacted, and who we are there.

    Raises:
        UnknownCredentialsError, PermanentError: as `named_credential` and `server_of` say.
        SettingsError: an entry of a list of hosts is not a host pattern.
    """
    credential = named_credential(source_config, credentials)
    server = server_of(scheme, source_config, credential, default_port)
    guard = HostGuard.of(servers.allowed_hosts, credentials, credential)
    return replace(server, internal_allowed=guard.allows_internal(server), lists=servers.lists), guard, credential


@dataclass(frozen=True)
class HostGuard:
    """Which servers may be contacted.

    Args:
        allowed: patterns of the setting.
        listed: patterns of all stored credentials.
        credential: patterns of the credential that would be sent; None without one.
    """

    allowed: tuple[HostPattern, ...]
    listed: tuple[HostPattern, ...]
    credential: tuple[HostPattern, ...] | None

    @classmethod
    def of(
        cls, allowed: Iterable[str], credentials: Mapping[str, Credential], credential: Credential | None
    ) -> HostGuard:
        """Read the lists.

        Raises:
            SettingsError: an entry is not a host pattern.
        """
        listed = [host for stored in credentials.values() for host in stored.hosts]
        own = None if credential is None else _patterns(credential.hosts)
        return cls(_patterns(allowed), _patterns(listed), own)

    def require_allowed(self, server: Server) -> None:
        """Judge a server by its name and port.

        Raises:
            ForbiddenPathError: it is not listed, or the credential is not for it.
        """
        if self.credential is not None and not _matches(self.credential, server):
            raise ForbiddenPathError(
                server.location, "the credentials that the job names are not for this host; list it in their 'hosts'."
            )
        if not _matches((*self.allowed, *self.listed), server):
            raise ForbiddenPathError(
                server.location,
                f"its host is not allowed. List it in {ALLOWED_SOURCE_HOSTS}, or in the 'hosts' of stored credentials.",
            )

    def allows_internal(self, server: Server) -> bool:
        """Whether somebody named this very host, so that it may be an internal one."""
        named = [pattern for pattern in (*self.allowed, *self.listed) if pattern.is_one_place]
        return _matches(named, server)


def _patterns(texts: Iterable[str]) -> tuple[HostPattern, ...]:
    return tuple(map(HostPattern.parse, texts))


def _matches(patterns: Iterable[HostPattern], server: Server) -> bool:
    return any(pattern.matches_name(server.host, server.port) for pattern in patterns)


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


def _refusal(error: AddressRejectedError) -> str:
    remedy = f" Name the host in {ALLOWED_SOURCE_HOSTS}, or it or its network in {INTERNAL_HOSTS}."
    return f"{error.rule}.{remedy if error.setting else ''}"


def _port(value: object) -> int:
    # Python refuses to write out an integer of many thousand digits.
    text = "" if isinstance(value, int) and value > MAX_PORT else str(value)
    if not (text.isascii() and text.isdigit() and 0 < int(text[:6]) <= MAX_PORT and len(text) <= len(str(MAX_PORT))):
        raise PermanentError(f"port must be a number from 1 to {MAX_PORT}, not {text[:20]!r}.")
    return int(text)
