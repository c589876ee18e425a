"""A client that may contact this machine, and a downloader with limits small enough to be reached."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from ingest_project.platform.http.client import ContactLimits, WebClient
from ingest_project.platform.http.download import Downloader, DownloadLimits
from ingest_project.platform.http.host_policy import HostRules
from ingest_project.platform.http.limits import HostLimits, LoadLimits

# Servers here answer at once, but on a busy machine that can take seconds.
CONTACT = ContactLimits(connect_timeout=timedelta(seconds=20), read_timeout=timedelta(seconds=20))
PATIENT = LoadLimits(failures_to_pause=100)
SMALL = DownloadLimits(max_bytes=20_000_000)


@pytest.fixture
def client() -> Iterator[WebClient]:
    """Contacts 127.0.0.1, and no other internal address."""
    with WebClient(HostRules(internal=["127.0.0.1"]), contact=CONTACT, host_limits=HostLimits(PATIENT)) as client:
        yield client


@pytest.fixture
def downloader(client: WebClient) -> Downloader:
    """Downloads from 127.0.0.1."""
    return Downloader(client, SMALL)
