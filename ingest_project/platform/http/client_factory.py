"""The web client and its rules, made from the settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

from ingest_project.core.errors import SettingsError
from ingest_project.core.settings import (
    Credential,
    DownloadSettings,
    Settings,
)
from ingest_project.platform.http.client import ContactLimits, WebClient
from ingest_project.platform.http.credentials import HostCredential
from ingest_project.platform.http.download import DownloadLimits
from ingest_project.platform.http.host_policy import HostLists, HostRules
from ingest_project.platform.http.limits import HostLimits, LoadLimits

if TYPE_CHECKING:
    pass


def web_client(settings: Settings, total: int | None = None, per_host: int | None = None) -> WebClient:
    """Contacts web hosts within the rules.

    Args:
        settings: the rules.
        total: conversations at a time; those of downloads by default.
        per_host: of those, with one host.

    Raises:
        SettingsError: a host pattern or credential is malformed.
    """
    downloads = settings.downloads
    load = LoadLimits(
        total=total or downloads.concurrency,
        per_host=per_host or downloads.concurrency_per_host,
        failures_to_pause=downloads.failures_to_pause,
        pause=timedelta(seconds=downloads.pause_seconds),
    )
    return WebClient(
        HostRules(downloads.allowed_hosts, downloads.denied_hosts, downloads.allowed_internal_hosts),
        credentials=host_credentials(settings.credentials),
        host_limits=HostLimits(load),
        contact=ContactLimits(
            connect_timeout=timedelta(seconds=downloads.connect_timeout_seconds),
            read_timeout=timedelta(seconds=downloads.read_timeout_seconds),
            max_redirects=downloads.max_redirects,
        ),
        ca_file=downloads.ca_file,
        connections_per_host=load.per_host,
    )


def download_limits(downloads: DownloadSettings) -> DownloadLimits:
    """What one download may take."""
    return DownloadLimits(
        max_bytes=downloads.max_bytes,
        max_expansion=downloads.max_expansion,
        total_time=timedelta(seconds=downloads.max_seconds),
        min_bytes_per_second=downloads.min_bytes_per_second,
    )


def host_credentials(credentials: Mapping[str, Credential]) -> Iterator[HostCredential]:
    """Of the stored credentials, those that are for web hosts.

    Raises:
        SettingsError: one of them is not complete.
    """
    for name, stored in credentials.items():
        if stored.kind is None:
            continue
        secret = stored.password if stored.kind == "basic" else stored.secret
        if secret is None or not stored.hosts:
            raise SettingsError(f"The credential {name!r} needs hosts and a {stored.kind} secret.")
        try:
            yield HostCredential(
                name=name,
                hosts=tuple(stored.hosts),
                kind=stored.kind,
                username=stored.username or "",
                header=stored.header or "",
                secret=secret,
                plain_http=stored.plain_http,
            )
        except ValueError as error:
            problems = "; ".join(problem["msg"] for problem in getattr(error, "errors", list)())
            raise SettingsError(f"The credential {name!r} cannot be used: {problems}.") from None


def host_lists(settings: Settings) -> HostLists:
    """The lists of hosts that hold for every client."""
    downloads = settings.downloads
    return HostLists(tuple(downloads.denied_hosts), tuple(downloads.allowed_internal_hosts))
