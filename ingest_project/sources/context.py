"""The settings and shared clients that sources are opened with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ingest_project.core.errors import ForbiddenPathError, UnknownCredentialsError
from ingest_project.core.settings import Credential, PollingSettings, Settings
from ingest_project.platform.http.client import WebClient, web_client
from ingest_project.platform.http.host_policy import HostLists, HostPattern, host_lists
from ingest_project.sources.reading import SourceLimits


@dataclass(frozen=True, eq=False)
class SourceContext:
    """Opens sources of one process. Its clients are made when a source first needs them.

    Args:
        settings: of this process.
    """

    settings: Settings

    @property
    def polling(self) -> PollingSettings:
        """Limits and allowed locations of sources."""
        return self.settings.polling

    @property
    def credentials(self) -> Mapping[str, Credential]:
        """The stored credentials by name."""
        return self.settings.credentials

    @property
    def limits(self) -> SourceLimits:
        """Limits of time and entries of one source."""
        return SourceLimits.of(self.polling)

    @cached_property
    def host_lists(self) -> HostLists:
        """Hosts that no client contacts, and internal ones that each may contact."""
        return host_lists(self.settings)

    @cached_property
    def web(self) -> WebClient:
        """The client of web hosts, shared by all listings.

        Raises:
            SettingsError: a host pattern or credential is malformed.
        """
        polling = self.polling
        return web_client(self.settings, polling.source_connections, polling.source_connections_per_host)

    def credential(self, source_config: Mapping[str, Any]) -> Credential | None:
        """Return the stored credential that a job names; None when it names none.

        Raises:
            UnknownCredentialsError: there is none of that name.
        """
        name = source_config.get("credentials")
        if name is None:
            return None
        if not isinstance(name, str) or name not in self.credentials:
            raise UnknownCredentialsError(str(name)[:100])
        return self.credentials[name]


def patterns_for(hosts: Iterable[str], host: str, port: int) -> list[HostPattern]:
    """Return the patterns among these that match a host.

    Raises:
        SettingsError: an entry is not a host pattern.
    """
    return [pattern for pattern in map(HostPattern.parse, hosts) if pattern.matches_name(host, port)]


def require_for_host(credential: Credential, host: str, port: int, location: str) -> None:
    """Refuse to send a credential to a host that it does not list.

    Raises:
        ForbiddenPathError: the host is not one of its `hosts`.
        SettingsError: an entry of its `hosts` is not a host pattern.
    """
    if not patterns_for(credential.hosts, host, port):
        raise ForbiddenPathError(
            location, "the credentials that the job names are not for this host; list it in their 'hosts'."
        )
