"""A client that may contact this machine, and a downloader with limits small enough to be reached."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ingest_project.core.settings import DownloadSettings
from ingest_project.platform.http.client import WebClient
from ingest_project.platform.http.download import Downloader

# Servers here answer at once, but on a busy machine that can take seconds.
LOCAL = DownloadSettings(
    allowed_internal_hosts=["127.0.0.1"],
    connect_timeout_seconds=20,
    read_timeout_seconds=20,
    failures_to_pause=100,
    max_bytes=20_000_000,
)


def local(**changed: object) -> DownloadSettings:
    """`LOCAL` with some other settings."""
    return LOCAL.model_copy(update=changed)


@pytest.fixture
def client() -> Iterator[WebClient]:
    """Contacts 127.0.0.1, and no other internal address."""
    with WebClient(LOCAL) as client:
        yield client


@pytest.fixture
def downloader(client: WebClient) -> Downloader:
    """Downloads from 127.0.0.1."""
    return Downloader(client, LOCAL)
