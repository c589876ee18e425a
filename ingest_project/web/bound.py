"""Sessions for addresses that a setting names: they connect to these servers and to no other.

Whoever wrote the setting may name a server inside the network, and a proxy of the environment is theirs as well. What a
server answers, a redirect above all, leads nowhere else.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from requests import Session
from requests.adapters import HTTPAdapter

from ingest_project.errors import AddressRefused
from ingest_project.web.hosts import NO_LISTS, HostLists
from ingest_project.web.pinned import Connector, PinnedAdapter
from ingest_project.web.urls import parse_url, printable_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from requests import PreparedRequest, Response

    from ingest_project.web.urls import WebAddress


class BoundSession(Session):
    """A session whose every request goes to one of its servers.

    Args:
        servers: what may be asked; the environment's proxy and certificates are those for the first.
        pool_connections: idle connections kept for each.
        lists: hosts that nobody contacts.
    """

    def __init__(self, servers: Sequence[WebAddress], pool_connections: int = 1, lists: HostLists = NO_LISTS) -> None:
        super().__init__()
        self._origins = frozenset(server.origin for server in servers)
        # Found once: requests looks for them in the whole environment at every request, which takes a quarter of the
        # time of a small one, and would let ~/.netrc replace our credential.
        found = self.merge_environment_settings(servers[0].origin, {}, False, True, None)
        self.trust_env = False
        self.proxies.update(found["proxies"])
        self.verify = found["verify"]
        adapter: HTTPAdapter
        if self.proxies:
            adapter = HTTPAdapter(pool_connections=len(servers), pool_maxsize=pool_connections)
        else:
            own = [(server.host, server.port) for server in servers]
            rules = lists.rules_for(*own, internal_allowed=True)
            authorities = Path(self.verify) if isinstance(self.verify, str) else None
            adapter = PinnedAdapter(Connector(rules), len(servers), pool_connections, authorities)
        self.mount("http://", adapter)
        self.mount("https://", adapter)

    def send(self, request: PreparedRequest, **kwargs: Any) -> Response:  # noqa: ANN401 - handed through
        """Send a request, also one that follows a redirect.

        Raises:
            AddressRefused: it is for another server; nothing was sent.
        """
        require_origin(str(request.url), self._origins)
        return super().send(request, **kwargs)


def require_origin(url: str, origins: frozenset[str]) -> None:
    """Refuse to send a request to any server but these; the last check before credentials leave.

    Args:
        url: as it is about to be requested.
        origins: `WebAddress.origin` of the servers.

    Raises:
        AddressRefused: another server, or an address that is not read alike by everybody.
    """
    if parse_url(url).origin not in origins:
        raise AddressRefused(printable_url(url), "its server is not the one that this client is for")
