"""Backfills over many partitions, some of which fail: status, counts, checks, tables and work queue agree."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from examples.demo.run import run_jobs
from ingest_project.attachments.tables import AttachmentState
from ingest_project.cli.send import deliver
from ingest_project.contracts import encode
from ingest_project.contracts.files import PollingJob
from ingest_project.file_ingest.tables import FileState
from ingest_project.operations import SystemResources
from ingest_project_tests.after_a_demo.backfills import EndedBackfill, launch, partitions_of, wait_for
from ingest_project_tests.after_a_demo.dead_attachments import queue_states_of, ten_dead
from ingest_project_tests.after_a_demo.finished_demo import Demo, settle
from ingest_project_tests.after_a_demo.test_repeated_partitions import FILE_ASSETS
from ingest_project_tests.journeys.system import readings
from ingest_project_tests.services.http_server import HttpServer

pytestmark = pytest.mark.timeout(900)

GOOD, REFUSED, TWINS = 590, 5, 5


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
    assert not run_jobs(demo.site, ["file_checks"], 120, lambda: None)


@pytest.mark.long
def test_only_the_dead_attachments_of_a_selection_are_replayed(
    demo: Demo, services: SystemResources, http_server: HttpServer
) -> None:
    dead = ten_dead(services, http_server, "partly")
    arrived = [key for key in partitions_of(demo.site, "onelake_attachments") if key in dead]
    left_alone, scattered, adjacent = arrived[0:6:2], arrived[1:6:2], arrived[6:]
    ids = [launch(demo.site, ["onelake_attachments"], keys) for keys in (scattered, adjacent)]

    ends = [wait_for(demo.site, one) for one in ids]
    assert ends == [
        EndedBackfill("COMPLETED_SUCCESS", {"onelake_attachments": (len(keys), len(keys), 0)})
        for keys in (scattered, adjacent)
    ]
    assert queue_states_of(services, scattered + adjacent) == {(AttachmentState.STORED, 1)}
    assert queue_states_of(services, left_alone) == {(AttachmentState.FAILED, 0)}
