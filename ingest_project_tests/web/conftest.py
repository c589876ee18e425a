"""A client that may contact this machine, and a downloader with limits small enough to be reached."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from ingest_project.web.client import ContactLimits, WebClient
from ingest_project.web.download import Downloader, DownloadLimits
from ingest_project.web.hosts import HostRules
from ingest_project.web.limits import HostLimits, LoadLimits

if TYPE_CHECKING:
    from collections.abc import Iterator

QUICK = ContactLimits(connect_timeout=timedelta(seconds=1), read_timeout=timedelta(seconds=0.5))
PATIENT = LoadLimits(failures_to_pause=100)
SMALL = DownloadLimits(
    max_bytes=20_000_000,
    total_time=timedelta(seconds=5),
    min_bytes_per_second=1_000,
    pace_window=timedelta(seconds=0.5),
)


@pytest.fixture
def client() -> Iterator[WebClient]:
    """Contacts 127.0.0.1, and no other internal address."""
    with WebClient(HostRules(internal=["127.0.0.1"]), contact=QUICK, host_limits=HostLimits(PATIENT)) as client:
        yield client


@pytest.fixture
def downloader(client: WebClient) -> Downloader:
    """Downloads from 127.0.0.1."""
    return Downloader(client, SMALL)
