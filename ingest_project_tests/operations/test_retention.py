"""Expired records are purged; what failed, is in quarantine or is leased stays."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from dagster._core.execution.backfill import BulkActionStatus

from ingest_project.file_ingest.catalog import FILES
from ingest_project.file_ingest.definitions import with_services
from ingest_project.operations.definitions import plan_purge
from ingest_project.platform.capability import PurgeStep
from ingest_project.platform.dagster.control import launch_backfill
from ingest_project_tests.journeys.system import RAW, System, readings

LATER = timedelta(days=1_000)


def in_a_thousand_days(system: System) -> dict[str, PurgeStep]:
    found = plan_purge(system.services, system.instance, datetime.now(UTC) + LATER)
    return {removal.what: removal for removal in found}


def test_partitions_and_bytes_of_ingested_files_go_and_those_of_refused_and_waiting_ones_stay(system: System) -> None:
    system.send_files(system.write("good.csv", readings()), system.write("bad.csv", "nothing,of,this\n1,2,3\n"))
    system.drive()
    system.send_files(system.write("waits.csv", readings(4)))
    (request,) = system.requests()
    good, bad, waits = (system.file(name).file_key for name in ("good.csv", "bad.csv", "waits.csv"))

    found = in_a_thousand_days(system)
    assert found["partitions of files"].examples == [good]
    assert found["landed contents"].number == 1
    for removal in found.values():
        removal.remove()

    assert set(system.instance.get_dynamic_partitions(FILES)) == {bad, waits}
    sha256 = system.file("good.csv").sha256
    assert sha256 is not None
    assert system.services.landing.find(sha256) is None
    again = in_a_thousand_days(system)
    assert again["partitions of files"].number == again["landed contents"].number == 0
    assert system.execute("file_batch", request).success
    assert system.states() == {"good.csv": "ingested", "bad.csv": "quarantined", "waits.csv": "ingested"}


def test_partitions_stay_while_a_backfill_is_unfinished_and_go_after_it(system: System) -> None:
    system.send_files(system.write("good.csv", readings()))
    system.drive()
    key, wanted = system.file("good.csv").file_key, with_services(system.services)
    launch_backfill(system.instance, "0123abcd", wanted, {RAW: [key]}, title="Again", description="because", tags={})
    assert in_a_thousand_days(system)["partitions of files"].number == 0

    (backfill,) = system.instance.get_backfills()
    system.instance.update_backfill(backfill.with_status(BulkActionStatus.CANCELED))  # type: ignore[no-untyped-call]
    assert in_a_thousand_days(system)["partitions of files"].examples == [key]


def test_a_run_stays_as_long_as_something_it_worked_on_is_not_long_done(system: System) -> None:
    system.send_files(system.write("bad.csv", "nothing,of,this\n1,2,3\n"))
    system.drive()
    assert in_a_thousand_days(system)["finished runs"].number == 0
    system.send_files(system.write("good.csv", readings()))
    system.drive()
    assert system.times_materialized(RAW) == 2
    runs = in_a_thousand_days(system)["finished runs"]
    assert list(runs.examples) == [system.file("good.csv").run_id]
    runs.remove()
    assert system.times_materialized(RAW) == 1


def test_nothing_is_purged_before_its_time(system: System) -> None:
    system.send_files(system.write("good.csv", readings()))
    system.drive()
    assert [removal.number for removal in plan_purge(system.services, system.instance, datetime.now(UTC))] == [0] * 8


def test_published_ids_are_forgotten_after_their_time(system: System) -> None:
    system.write("a.csv", readings())
    system.send_job(system.folder)
    system.drive()
    published = in_a_thousand_days(system)["ids of published messages"]
    assert published.number >= 1
    published.remove()
    assert in_a_thousand_days(system)["ids of published messages"].number == 0
