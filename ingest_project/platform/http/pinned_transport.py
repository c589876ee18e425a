"""Connect only to the IP address that was checked, and enforce a deadline on every read.

Checking a name and then letting a library connect to it resolves the name twice, and its owner may answer differently
the second time. Here the name is resolved once, every resulting address is checked, and the socket connects to one of
them. The Host header, TLS's SNI and the certificate check still use the name. A pooled connection was made in the same
way for the same host and port.

Proxies are not used, even if the environment configures one: a proxy would resolve the name again.

A timeout for each read does not stop a server that sends one byte at a time, least of all in the headers, which
libraries read. So every socket of this package checks its thread's deadline at every read.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from functools import lru_cache
from http import HTTPStatus
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import certifi
from requests import PreparedRequest, Response, Session
from requests.adapters import HTTPAdapter
from typing_extensions import Buffer
from urllib3 import PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from ingest_project.core.errors import AddressRejectedError
from ingest_project.platform.http import WebAddress, parse_url, redacted_url, split_address
from ingest_project.platform.http.host_policy import HostLists, HostRules, IpAddress, parse_address

_CURRENT: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


class Deadline:
    """A deadline on the monotonic clock.

    Args:
        total: time from now until the deadline.
    """

    def __init__(self, total: timedelta) -> None:
        self.total = total
        self._at = time.monotonic() + total.total_seconds()

    def seconds_left(self) -> float:
        """Return the seconds left, more than zero.

        Raises:
            TimeoutError: the deadline has passed.
        """
        left = self._at - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"not finished within {self.total.total_seconds():g} s")
        return left

    def within(self, limit: timedelta) -> Deadline:
        """Return the earlier of this deadline and one `limit` from now."""
        sooner = Deadline(limit)
        return sooner if sooner._at < self._at else self

    def postpone(self, seconds: float) -> None:
        """Extend the deadline by time that the server did not cause, such as waiting for a free slot."""
        self._at += seconds


@contextmanager
def deadline_in_force(deadline: Deadline) -> Iterator[None]:
    """Apply a deadline to all reads of this package's sockets in this thread."""
    token = _CURRENT.set(deadline)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def shortened(timeout: float | None) -> float | None:
    """Return this timeout in seconds, or the time until the deadline if that is shorter.

    Raises:
        TimeoutError: the deadline has passed.
    """
    deadline = _CURRENT.get()
    if deadline is None:
        return timeout
    left = deadline.seconds_left()
    return left if timeout is None else min(timeout, left)


class DeadlineSocket(socket.socket):
    """A socket that enforces its thread's deadline."""

    def recv_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> int:
        """Receive, within the deadline."""
        _shorten(self)
        return super().recv_into(buffer, nbytes, flags)


class DeadlineSSLSocket(ssl.SSLSocket):
    """A TLS socket that enforces its thread's deadline."""

    def recv_into(self, buffer: Buffer, nbytes: int | None = None, flags: int = 0) -> int:
        """Receive, within the deadline."""
        _shorten(self)
        return super().recv_into(buffer, nbytes, flags)


def _shorten(connected: socket.socket) -> None:
    before = connected.gettimeout()
    now = shortened(before)
    # Setting the timeout costs a system call.
    if now != before:
        connected.settimeout(now)


def with_deadline(connection: socket.socket) -> socket.socket:
    """Return the same connection as a socket that enforces its thread's deadline."""
    if isinstance(connection, DeadlineSocket):
        return connection
    timeout = connection.gettimeout()
    bounded = DeadlineSocket(fileno=connection.detach())
    bounded.settimeout(timeout)
    return bounded


def system_addresses(host: str, port: int) -> list[str]:
    """Resolve a host with the system's resolver; return its distinct addresses, best first.

    Raises:
        socket.gaierror: the name has no address.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Connector:
    """Connects to hosts that the rules allow.

    Args:
        rules: rules for the hosts that may be contacted.
    """

    def __init__(self, rules: HostRules) -> None:
        self._rules = rules

    def checked_addresses(self, host: str, port: int) -> list[IpAddress]:
        """Resolve a host once and check every address; refuse the host if one of them is refused.

        Raises:
            AddressRejectedError: the name or one of its addresses may not be contacted.
            socket.gaierror: the name has no address.
        """
        self._rules.check_name(host, port, host)
        addresses = []
        for text in system_addresses(host, port):
            address = parse_address(text)
            if address is None:
                raise AddressRejectedError(host, "its name resolves to something that is not an IP address")
            self._rules.check_address(host, address, port, host)
            addresses.append(address)
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "the name has no address")
        return addresses

    def connect(self, host: str, port: int, timeout: float | None) -> socket.socket:
        """Return a socket connected to the first of the host's addresses that accepts.

        Raises:
            AddressRejectedError: see `checked_addresses`.
            OSError: no address accepts; the error of the last one.
        """
        failure = OSError("the name has no address")
        for address in self.checked_addresses(host, port):
            try:
                return _connected(address, port, shortened(timeout))
            except OSError as error:
                failure = error
        raise failure


def _connected(address: IpAddress, port: int, timeout: float | None) -> socket.socket:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6  # noqa: PLR2004 - the version's name
    connection = DeadlineSocket(family, socket.SOCK_STREAM)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(timeout)
        connection.connect((str(address), port))
    except BaseException:
        connection.close()
        raise
    return connection


def new_connection(connection: HTTPConnection, connector: Connector) -> socket.socket:
    """Connect, and raise failures as urllib3's exceptions."""
    timeout = connection.timeout if isinstance(connection.timeout, (int, float)) else None
    try:
        return connector.connect(connection.host, connection.port, timeout)
    except socket.gaierror as error:
        raise NameResolutionError(connection.host, connection, error) from error
    except TimeoutError as error:
        raise ConnectTimeoutError(connection, f"no connection to {connection.host} in time") from error
    except OSError as error:
        raise NewConnectionError(connection, f"no connection to {connection.host}: {error}") from error


class _FinalResponse(HTTPResponse):
    """A response after the interim ones, such as 103 Early Hints: http.client skips only 100."""

    def begin(self) -> None:
        super().begin()
        while HTTPStatus.PROCESSING <= self.status < HTTPStatus.OK:
            self.headers = None  # type: ignore[assignment]  # http.client reads the next response only without headers
            super().begin()


class PinnedHTTPConnection(HTTPConnection):
    """A urllib3 connection to an address that a connector has checked.

    Args:
        args: arguments of urllib3.
        connector: opens the socket; None for a server that may have any address.
        kwargs: arguments of urllib3.
    """

    response_class = _FinalResponse

    def __init__(self, *args: Any, connector: Connector | None, **kwargs: Any) -> None:  # noqa: ANN401 - urllib3's own
        super().__init__(*args, **kwargs)
        self._connector = connector

    def _new_conn(self) -> socket.socket:
        return new_connection(self, self._connector) if self._connector else with_deadline(super()._new_conn())


class PinnedHTTPSConnection(PinnedHTTPConnection, HTTPSConnection):
    """A connection over TLS to a checked address; the certificate is checked against the name."""


class _PinnedPools(PoolManager):
    def __init__(self, connector: Connector, **kwargs: Any) -> None:  # noqa: ANN401 - urllib3's own
        super().__init__(**kwargs)
        self._connector = connector

    def _new_pool(
        self, scheme: str, host: str, port: int, request_context: dict[str, Any] | None = None
    ) -> HTTPConnectionPool:
        pool = super()._new_pool(scheme, host, port, request_context)
        pool.ConnectionCls = PinnedHTTPSConnection if scheme == "https" else PinnedHTTPConnection
        pool.conn_kw["connector"] = self._connector
        return pool


class PinnedAdapter(HTTPAdapter):
    """A transport adapter for requests; see the module's docstring.

    Args:
        connector: opens the connections.
        pool_hosts: number of hosts whose idle connections are kept.
        pool_connections: number of idle connections kept per host.
        ca_file: certificate authorities to trust in addition to the public ones; a file, or a folder of them.
    """

    def __init__(
        self, connector: Connector, pool_hosts: int, pool_connections: int, ca_file: Path | None = None
    ) -> None:
        self._connector = connector
        self._tls = tls_context(ca_file, certifi.where())
        super().__init__(pool_hosts, pool_connections)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any) -> None:  # noqa: ANN401, FBT001, FBT002 - as requests has it
        """Create pools of pinned connections."""
        self.poolmanager = _PinnedPools(
            self._connector, num_pools=connections, maxsize=maxsize, block=block, ssl_context=self._tls, **pool_kwargs
        )

    def get_connection_with_tls_context(
        self,
        request: PreparedRequest,
        verify: Any,  # noqa: ANN401 - as requests has it
        proxies: Any = None,  # noqa: ANN401
        cert: Any = None,  # noqa: ANN401
    ) -> HTTPConnectionPool:
        """Return the pool of the address's host, without the settings of a request that requests would look up."""
        parts = split_address(str(request.url), ("http", "https"))
        pool: HTTPConnectionPool = self.poolmanager.connection_from_host(parts.host, parts.port, parts.scheme)
        return pool

    def request_url(self, request: PreparedRequest, proxies: Any) -> str:  # noqa: ANN401 - as requests has it
        """Return path and query: only a proxy would need the whole address."""
        return request.path_url

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:  # noqa: ANN401 - as requests has it
        """Keep the pool's certificate checks, whose authorities were loaded once instead of for each connection."""
        conn.cert_reqs = "CERT_REQUIRED"

    def proxy_manager_for(self, proxy: str, **proxy_kwargs: Any) -> Any:  # noqa: ANN401 - as requests has it
        """Refuse: a proxy would resolve the name again."""
        raise AddressRejectedError(proxy, "proxies are not used, they would resolve names again")


def tls_context(ca_file: Path | None, public: str | None = None) -> ssl.SSLContext:
    """Return the TLS context for all connections of this process: reading authorities takes 20 ms.

    Args:
        ca_file: additional certificate authorities to trust; a file, or a folder of them. A changed one is read again.
        public: file with the public authorities; the system's by default.
    """
    return _tls_context(ca_file, public, ca_file.stat().st_mtime_ns if ca_file else 0)


@lru_cache(maxsize=8)
def _tls_context(ca_file: Path | None, public: str | None, _changed_at: int) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=public)
    if ca_file:
        context.load_verify_locations(**{"capath" if ca_file.is_dir() else "cafile": str(ca_file)})
    context.sslsocket_class = DeadlineSSLSocket
    return context


class BoundSession(Session):
    """A session that sends requests only to its servers.

    Args:
        servers: origins that may be contacted; the first one determines the environment's proxy and certificates.
        pool_connections: number of idle connections kept for each.
    """

    def __init__(self, servers: Sequence[WebAddress], pool_connections: int = 1) -> None:
        super().__init__()
        self._origins = frozenset(server.origin for server in servers)
        # Read the environment once: requests searches it at every request, which takes a quarter of the time of a
        # small one, and would let ~/.netrc replace our credential.
        found = self.merge_environment_settings(servers[0].origin, {}, False, True, None)
        self.trust_env = False
        self.proxies.update(found["proxies"])
        self.verify = found["verify"]
        adapter: HTTPAdapter
        if self.proxies:
            adapter = HTTPAdapter(pool_connections=len(servers), pool_maxsize=pool_connections)
        else:
            own = [(server.host, server.port) for server in servers]
            rules = HostLists().rules_for(*own, internal_allowed=True)
            authorities = Path(self.verify) if isinstance(self.verify, str) else None
            adapter = PinnedAdapter(Connector(rules), len(servers), pool_connections, authorities)
        self.mount("http://", adapter)
        self.mount("https://", adapter)

    def send(self, request: PreparedRequest, **kwargs: Any) -> Response:  # noqa: ANN401 - passed on
        """Send a request, including one that follows a redirect.

        Raises:
            AddressRejectedError: the request is for another server; nothing was sent.
        """
        require_origin(str(request.url), self._origins)
        return super().send(request, **kwargs)


def require_origin(url: str, origins: frozenset[str]) -> None:
    """Refuse to send a request to any server but these; the last check before credentials leave.

    Args:
        url: address that is about to be requested.
        origins: `WebAddress.origin` of each server.

    Raises:
        AddressRejectedError: the address is of another server, or ambiguous.
    """
    if parse_url(url).origin not in origins:
        raise AddressRejectedError(redacted_url(url), "its server is not the one that this client is for")
