"""Backfills over many partitions, some of which cannot go well: status, counts, checks, tables and ledger agree."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from ingest_project.cli.send_messages import deliver
from ingest_project.cli.status import wait_for_idle
from ingest_project.contracts.decoding import encode
from ingest_project.contracts.download import DownloadTask, attachment_key
from ingest_project.contracts.polling_job import PollingJob
from ingest_project.core.settings import load_settings
from ingest_project.devstack.job_run import run_jobs
from ingest_project.operations.resources import SystemResources
from ingest_project.platform.dagster.run_records import DagsterRecords
from ingest_project.platform.work_queue.states import AttachmentState, FileState
from ingest_project_tests.after_a_demo.backfills import EndedBackfill, launch, wait_for
from ingest_project_tests.after_a_demo.finished_demo import Demo
from ingest_project_tests.after_a_demo.test_repeated_partitions import FILE_ASSETS
from ingest_project_tests.journeys.system import readings
from ingest_project_tests.services.http_server import HttpServer, content_of

pytestmark = pytest.mark.timeout(900)

IDLE_SECONDS = 240.0
GOOD, REFUSED, TWINS = 590, 5, 5


@pytest.fixture
def services(demo: Demo) -> Iterator[SystemResources]:
    """The services of the demo."""
    with mock.patch.dict(os.environ, demo.environment):
        yield SystemResources(load_settings().settings)


def settle(services: SystemResources) -> None:
    """Wait until nothing is going on."""
    seen = wait_for_idle(services, DagsterRecords(services.settings), IDLE_SECONDS)
    assert seen.idle, seen


def write_files(folder: Path) -> None:
    """Good files, files without a header, and files with the bytes of good ones."""
    folder.mkdir()
    for number in range(GOOD):
        (folder / f"good_{number}.csv").write_text(readings(3, device=f"many-{number}"))
    for number in range(REFUSED):
        (folder / f"refused_{number}.csv").write_text(f"no,such,columns\n{number},2,3\n")
    for number in range(TWINS):
        (folder / f"twin_{number}.csv").write_text(readings(3, device=f"many-{number}"))


@pytest.mark.long
def test_six_hundred_files_with_refused_ones_duplicates_and_one_that_is_gone(
    demo: Demo, services: SystemResources
) -> None:
    folder = Path(demo.environment["INGEST_DUMMY_ROOT"]) / "many"
    write_files(folder)
    job = PollingJob(job_id="many", source_config={"source_type": "local", "path": str(folder)}, trace_id="many")
    deliver(services, services.settings.topics.polling_queue, job.job_id, encode(job), "many")
    settle(services)
    records = [record for record in services.files.list(limit=10_000) if record.event.job_id == "many"]
    states = Counter(record.state for record in records)
    assert states == {FileState.INGESTED: GOOD, FileState.QUARANTINED: REFUSED, FileState.DUPLICATE: TWINS}
    totals = services.warehouse.totals()

    gone = next(record for record in records if record.event.file_name == f"good_{GOOD - 1}.csv")
    (folder / gone.event.file_name).unlink()
    landed = services.landing.find(gone.sha256 or "")
    assert landed is not None
    Path(landed.path).unlink()
    keys = [record.file_key for record in records]
    end = wait_for(demo.site, launch(demo.site, FILE_ASSETS, keys), 600)

    assert end == EndedBackfill("COMPLETED_FAILED", dict.fromkeys(FILE_ASSETS, (len(keys), len(keys) - 1, 1)))
    again = services.files.get_many(keys)
    assert Counter(record.state for record in again) == states
    assert services.warehouse.totals() == totals
    run_jobs(int(demo.site.rpartition(":")[2]), ["file_checks"], 120, lambda: None)


def test_ten_dead_attachments_are_replayed_by_one_backfill(
    demo: Demo, services: SystemResources, http_server: HttpServer
) -> None:
    addresses = [http_server.url(f"/published/dead-{number}.pdf") for number in range(10)]
    keys = [attachment_key("ten-dead", address) for address in addresses]
    for key, address in zip(keys, addresses, strict=True):
        task = DownloadTask(trace_id="ten-dead", domain="claims", attachment_url=address)
        deliver(services, services.settings.topics.downloads_pending, key, encode(task), "ten-dead")
    settle(services)
    assert {record.state for record in services.attachments.get_many(keys)} == {AttachmentState.FAILED}

    for number in range(10):
        http_server.publish(f"/published/dead-{number}.pdf", content_of(f"dead-{number}.pdf", 1_000))
    end = wait_for(demo.site, launch(demo.site, ["onelake_attachments"], keys))

    assert end == EndedBackfill("COMPLETED_SUCCESS", {"onelake_attachments": (10, 10, 0)})
    records = services.attachments.get_many(keys)
    assert {(record.state, record.replays) for record in records} == {(AttachmentState.STORED, 1)}
