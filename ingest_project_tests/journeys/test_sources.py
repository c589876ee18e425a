"""From a polling job to stored rows, over each kind of source that is not a folder of this host."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest_project.contracts import encode
from ingest_project.core.settings import Settings
from ingest_project.file_ingest.commands.files import _without_secrets
from ingest_project_tests.journeys.system import System, changed, readings
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


def test_files_of_a_remote_source_and_their_new_versions_are_ingested(system: System, backend: Backend) -> None:
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


def test_the_query_that_signs_an_address_is_shown_nowhere(system: System, tmp_path: Path) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    signature = "?sig=hunter2"
    system.settings = changed(system.settings, "downloads", allowed_internal_hosts=["127.0.0.1"])
    system.restart()
    with ListingServer(folder) as server:
        backend = WebBackend(folder, server)
        backend.put("good.csv", readings(3).encode())
        backend.put("bad.csv", b"no,sensor,data\n1,2,3\n")
        listing = f"{server.url}{signature}"

        def announced(name: str, **more: object) -> dict[str, object]:
            sent = {"source_type": "http", "source_config": {"path": listing}, **more}
            return {"file_path": f"{server.url}{name}{signature}", "file_name": name, **sent}

        # Of the second one another version is announced.
        events = [
            announced("good.csv"),
            announced("good.csv", size_bytes=5),
            announced("bad.csv"),
            announced("gone.csv"),
        ]
        system.send(system.settings.topics.file_event_queue, *events)
        system.send_job("", source_config={"source_type": "http", "path": listing})
        system.drive()
    records = system.services.files.list()
    assert {record.state for record in records} >= {"ingested", "quarantined", "failed"}
    assert all("hunter2" in record.location for record in records if "?" in record.location)
    shown = [repr([record.reason for record in records])]
    jobs = [job.job_key for job in system.services.polling_jobs.list()]
    views = map(system.item, [*jobs, *(record.file_key for record in records)])
    shown += [repr((view.name, view.reason, view.facts, view.moments, view.related)) for view in views]
    shown += [repr(note) for note in system.quarantined()]
    shown += [encode(_without_secrets(record)).decode() for record in records]
    for asset in system.instance.get_asset_keys():
        shown += [repr(one) for one in system.instance.fetch_materializations(asset, limit=100).records]
    assert [text for text in shown if "hunter2" in text] == []
