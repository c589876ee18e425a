"""Resolve the file server that a job names, and pool connections to it.

Messages name hosts, but a message alone never makes this system connect to one: the stored credential or a setting must
list the host, and a credential is sent only to the hosts that it lists.

With pooled connections, a batch of a thousand files needs only a few logins. Each process has one pool per set of
limits, shared by its threads. A connection has one user at a time. The next lease closes connections whose idle time
has expired, and the end of the process closes all.
"""

from __future__ import annotations

import atexit
import os
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, Protocol, Self, TypeVar
from urllib.parse import quote

from pydantic import SecretStr

from ingest_project.core.errors import (
    AddressRejectedError,
    ForbiddenPathError,
    PermanentError,
    SourceAccessDeniedError,
    SourceUnreachableError,
)
from ingest_project.core.secrets import renewed, text_of
from ingest_project.core.settings import Credential
from ingest_project.platform.http import MAX_PORT, MalformedAddressError, host_and_port, parse_server
from ingest_project.platform.http.host_policy import INTERNAL_HOSTS, HostLists
from ingest_project.platform.http.pinned_transport import Connector
from ingest_project.sources.registry import SourceContext, patterns_for

_SOURCE_HOSTS = "INGEST_ALLOWED_SOURCE_HOSTS"
_MAX_USERNAME_LENGTH = 255
# Characters that a user name keeps unencoded in an address.
_SAFE_IN_USERNAME = "@!$&'()*+,;="


@dataclass(frozen=True)
class Server:
    """One account on one server.

    Args:
        scheme: `ftp` or `sftp`; part of the address, also with TLS.
        host: canonical name or address.
        username: user name; empty for anonymous access.
        refusal: why the server may not be contacted; empty if it may.
        internal_allowed: True if a setting names this host, so that it may have an internal address.
        lists: denied hosts, and allowed internal hosts.
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
        """Connect to this host, at an allowed address.

        Raises:
            ForbiddenPathError: one of its addresses is denied, or internal although no setting names the host.
            SourceUnreachableError: its name cannot be resolved, or it does not answer.
        """
        rules = self.lists.rules_for((self.host, self.port), internal_allowed=self.internal_allowed)
        try:
            connection = Connector(rules).connect(self.host, self.port, timeout_seconds)
        except AddressRejectedError as error:
            remedy = f" Name the host in {_SOURCE_HOSTS}, or it or its network in {INTERNAL_HOSTS}."
            raise ForbiddenPathError(self.location, f"{error.rule}.{remedy if error.setting else ''}") from error
        except OSError as error:
            reason = f"its name cannot be resolved ({error})" if isinstance(error, socket.gaierror) else error
            raise SourceUnreachableError(self.location, reason) from error
        # The control connection is silent during a long transfer, and firewalls drop silent connections.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return connection


def server_of(
    scheme: str, source_config: Mapping[str, Any], default_port: int, context: SourceContext
) -> tuple[Server, Credential | None]:
    """Parse the server in a job's `source_config`: `host`, `port`, `credentials`, and `username` or the credential's.

    Raises:
        UnknownCredentialsError: the credentials are not stored.
        PermanentError: a part is missing or malformed, or the job's user differs from the credential's.
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
    # Python refuses to convert an integer of many thousand digits to text.
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


# Do not probe a connection that was idle for less: a probe costs as much as most commands.
TRUSTED_IDLE_SECONDS = 5.0


class PooledConnection(Protocol):
    """The interface of connections that the pool needs."""

    usable: bool

    def answers(self) -> bool:
        """Return True if the server still answers."""

    def close(self) -> None:
        """Close the connection; never raises."""


C = TypeVar("C", bound=PooledConnection)
C_co = TypeVar("C_co", bound=PooledConnection, covariant=True)
T = TypeVar("T")


class Login(Protocol[C_co]):
    """An account on a server, which can connect; equal logins share their connections."""

    def __hash__(self) -> int: ...

    @property
    def location(self) -> str:
        """Server and user, for messages."""

    def connect(self) -> C_co:
        """Open a new connection and log in.

        Raises:
            SourceUnreachableError: the server does not answer. Also raises the permanent errors of a source.
        """


def logged_in(connect: Callable[[], T], password: SecretStr | None) -> T:
    """Log in; retry once if the server refused a password that has changed since."""
    used = text_of(password or "")
    try:
        return connect()
    except SourceAccessDeniedError:
        if not renewed(password, used):
            raise
    return connect()


@dataclass(frozen=True)
class PoolLimits:
    """Limits of one pool.

    Args:
        total: maximum number of open connections in this process.
        per_server: maximum number of open connections to one server as one user.
        idle_seconds: time after which an unused connection is closed.
        wait_seconds: longest wait for a free connection.
    """

    total: int
    per_server: int
    idle_seconds: float
    wait_seconds: float


class Lease(Generic[C]):
    """A connection in use; `release`, or the end of the `with` block, returns it to the pool or closes a broken one."""

    def __init__(self, pool: ConnectionPool, login: Login[C], connection: C, *, reused: bool) -> None:
        self._pool = pool
        self._login = login
        self._released = False
        self.connection = connection
        self.reused = reused

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.release()

    def release(self) -> None:
        """Return the connection to the pool. Idempotent."""
        if not self._released:
            self._released = True
            self._pool._return(self._login, self.connection)  # noqa: SLF001 - the two are one


@dataclass
class _Idle:
    connection: PooledConnection
    since: float


class ConnectionPool:
    """A pool of this process's connections.

    Args:
        limits: limits of this pool.
    """

    def __init__(self, limits: PoolLimits) -> None:
        self._limits = limits
        self._reset()

    def lease(self, login: Login[C]) -> Lease[C]:
        """Lease an idle connection that answers, or a new one.

        Raises:
            SourceUnreachableError: no connection became free in time, or a new one cannot be opened.
        """
        while (idle := self._take_idle(login)) is not None:
            if time.monotonic() - idle.since < TRUSTED_IDLE_SECONDS or idle.connection.answers():
                # Connections stored under a login were opened by an equal login.
                return Lease(self, login, idle.connection, reused=True)  # type: ignore[arg-type]
            idle.connection.usable = False
            self._return(login, idle.connection)
        try:
            return Lease(self, login, login.connect(), reused=False)
        except BaseException:
            self._return(login, None)
            raise

    def begin(self, login: Login[C], operation: Callable[[C], T]) -> tuple[Lease[C], T]:
        """Run an operation and keep its connection leased for further operations.

        If a pooled connection turns out to be dead, run the operation again on a new one.
        """
        while True:
            lease = self.lease(login)
            try:
                return lease, operation(lease.connection)
            except SourceUnreachableError:
                lease.release()
                if not lease.reused or lease.connection.usable:
                    raise
                self.close_idle(login)
            except BaseException:
                lease.release()
                raise

    def call(self, login: Login[C], operation: Callable[[C], T]) -> T:
        """Run an operation like `begin`, and return the connection to the pool."""
        lease, result = self.begin(login, operation)
        lease.release()
        return result

    def close_idle(self, login: Login[PooledConnection] | None = None) -> None:
        """Close unused connections, of one login or of all."""
        with self._changed:
            logins = list(self._idle) if login is None else [login]
            closing = [self._drop_oldest(one) for one in logins for _ in range(len(self._idle.get(one, ())))]
        _close(closing)

    def _take_idle(self, login: Login[PooledConnection]) -> _Idle | None:
        """Return an idle connection; None permits the caller to open one."""
        closing: list[PooledConnection] = []
        until = time.monotonic() + self._limits.wait_seconds
        try:
            with self._changed:
                closing += self._drop_expired()
                while True:
                    if self._idle.get(login):
                        return self._idle[login].pop()
                    closing += self._evict_for(login)
                    if self._open[login] < self._limits.per_server and self._open.total() < self._limits.total:
                        self._open[login] += 1
                        return None
                    if not self._changed.wait(until - time.monotonic()):
                        raise SourceUnreachableError(
                            login.location, f"all {self._open[login]} connections to it are in use"
                        )
        finally:
            _close(closing)

    def _return(self, login: Login[PooledConnection], connection: PooledConnection | None) -> None:
        keep = connection is not None and connection.usable
        with self._changed:
            if connection is not None and keep:
                self._idle.setdefault(login, deque()).append(_Idle(connection, time.monotonic()))
            else:
                self._open[login] -= 1
            self._changed.notify_all()
        if connection is not None and not keep:
            connection.close()

    def _evict_for(self, wanted: Login[PooledConnection]) -> list[PooledConnection]:
        """Evict the connection that was idle longest if the process has reached its limit."""
        idle = [login for login, connections in self._idle.items() if connections]
        full = self._open.total() >= self._limits.total
        if not full or not idle or self._open[wanted] >= self._limits.per_server:
            return []
        return [self._drop_oldest(min(idle, key=lambda login: self._idle[login][0].since))]

    def _drop_expired(self) -> list[PooledConnection]:
        before = time.monotonic() - self._limits.idle_seconds
        return [
            self._drop_oldest(login)
            for login, idle in self._idle.items()
            for _ in range(sum(connection.since < before for connection in idle))
        ]

    def _drop_oldest(self, login: Login[PooledConnection]) -> PooledConnection:
        """Remove the connection that was idle longest from the pool; the caller closes it."""
        self._open[login] -= 1
        return self._idle[login].popleft().connection

    def _reset(self) -> None:
        self._idle: dict[Login[PooledConnection], deque[_Idle]] = {}
        self._open: Counter[Login[PooledConnection]] = Counter()
        self._changed = threading.Condition()


@cache
def pool_of(limits: PoolLimits) -> ConnectionPool:
    """Return the pool of this process with these limits."""
    pool = ConnectionPool(limits)
    atexit.register(pool.close_idle)
    # Two processes that share one socket would read each other's responses.
    os.register_at_fork(after_in_child=pool._reset)  # noqa: SLF001 - the two are one
    return pool


def _close(connections: list[PooledConnection]) -> None:
    for connection in connections:
        connection.close()
