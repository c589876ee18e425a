"""The promises of every kind of source, each tested against a real server."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest_project.testing.sources import SourceContract
from ingest_project_tests.services.ftp_server import FtpServer
from ingest_project_tests.services.ftps_server import FtpsServer, made_certificates
from ingest_project_tests.services.listing_server import ListingServer
from ingest_project_tests.services.sftp_server import SftpServer
from ingest_project_tests.sources.backends import (
    Backend,
    FileServerBackend,
    LocalBackend,
    OneLakeBackend,
    S3Backend,
    WebBackend,
)

KINDS = ("local", "s3", "onelake", "ftp", "ftps", "sftp", "nginx", "apache", "json", "lines")
# More than a page of any of them.
MANY = 5_500
SLOW_WHEN_MANY = ("s3", "nginx", "apache", "lines")
# Each reads its listing as another one does; `test_http_listing.py` has the listings of all servers.
LIKE_ANOTHER = ("apache", "lines")


@pytest.fixture(params=[pytest.param(kind, marks=pytest.mark.long if kind in LIKE_ANOTHER else ()) for kind in KINDS])
def any_backend(
    request: pytest.FixtureRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backend]:
    match request.param:
        case "local":
            yield LocalBackend(tmp_path)
        case "s3":
            yield S3Backend(request.getfixturevalue("s3_options"), f"test-{uuid.uuid4().hex}")
        case "onelake":
            yield OneLakeBackend(request.getfixturevalue("dfs"), request.getfixturevalue("dfs_url"))
        case "ftp" | "sftp" as protocol:
            with FtpServer(tmp_path) if protocol == "ftp" else SftpServer(tmp_path) as file_server:
                served = FileServerBackend(tmp_path, file_server)
                yield served
                served.close()
        case "ftps":
            certificates = made_certificates(tmp_path_factory.mktemp("certificates"))
            with FtpsServer(tmp_path, certificates.server) as tls_server:
                served = FileServerBackend(tmp_path, tls_server, certificates.authority)
                yield served
                served.close()
        case style:
            with ListingServer(tmp_path, style) as server:
                yield WebBackend(tmp_path, server)


class TestEverySource(SourceContract):
    """Files of each kind of source."""

    @pytest.fixture
    def backend(self, any_backend: Backend) -> Backend:
        """An empty location of each kind."""
        return any_backend


# A page without sizes leads to a question for each file; the tests' S3 server goes through all keys for each page.
@pytest.mark.parametrize(
    "any_backend",
    [pytest.param(kind, marks=[pytest.mark.long] if kind in SLOW_WHEN_MANY else []) for kind in KINDS],
    indirect=True,
)
def test_thousands_of_entries_are_each_listed_once(any_backend: Backend) -> None:
    names = [f"sub/{number:05}.csv" for number in range(MANY)]
    any_backend.put_many(names)
    listed = [entry.path for entry in any_backend.open().list_files("sub/*.csv")]
    assert len(listed) == MANY
    assert set(listed) == {any_backend.path(name) for name in names}
