"""From a polling job to stored rows, over each kind of source that is not a folder of this host."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest_project.core.settings import Settings
from ingest_project_tests.journeys.system import System, readings
from ingest_project_tests.services.listing_server import ListingServer
from ingest_project_tests.sources.backends import Backend, OneLakeBackend, S3Backend, WebBackend


@pytest.fixture(params=["s3", "onelake", "http"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    match request.param:
        case "s3":
            yield S3Backend(request.getfixturevalue("s3_options"), f"test-{uuid.uuid4().hex}")
        case "onelake":
            yield OneLakeBackend(request.getfixturevalue("dfs"), request.getfixturevalue("dfs_url"))
        case _:
            folder = tmp_path / "served"
            folder.mkdir()
            with ListingServer(folder) as server:
                yield WebBackend(folder, server)


def test_files_of_a_remote_source_are_ingested_and_a_new_version_is_ingested_anew(
    system: System, backend: Backend
) -> None:
    remote = Settings.model_validate(backend.settings)
    sections = {name: getattr(remote, name) for name in backend.settings}
    system.settings = system.settings.model_copy(update=sections)
    system.restart()
    backend.put("a.csv", readings(3).encode())
    backend.put("sub/b c.csv", readings(4, "device-2").encode())
    system.send_job("", source_config=backend.config)
    system.drive()
    assert system.states() == {"a.csv": "ingested", "b c.csv": "ingested"}
    backend.put("a.csv", readings(5).encode())
    system.send_job("", source_config=backend.config)
    system.drive()
    assert (len(system.services.files.list()), system.file("a.csv").rows_accepted) == (3, 5)
    jobs = system.services.polling_jobs.list()
    assert {job.job.source_type for job in jobs} == {backend.config["source_type"]}
    assert sum(job.files_published or 0 for job in jobs) == 3
