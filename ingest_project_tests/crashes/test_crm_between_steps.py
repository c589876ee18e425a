"""`kill -9` after each step on the way of a CRM message: run again in the ordinary way, everything is there once."""

from __future__ import annotations

import os
import signal
from datetime import UTC, datetime
from pathlib import Path

import pytest
from dagster import DagsterInstance
from dagster._serdes import serialize_value

from ingest_project.core.settings import load_settings
from ingest_project.streams.crm.tables import opportunities, projects
from ingest_project.streams.range_record import RangeState
from ingest_project_tests.crashes.deadly_process import DeadlyProcess, KillPoint, SavedCursors, bury_the_dead
from ingest_project_tests.services.kafka import Server
from ingest_project_tests.streams.crm.messages import opportunity, project
from ingest_project_tests.streams.crm.system import CrmSystem, crm_environment

WAY = "ingest_project_tests.streams.crm.system:CrmSystem.drive"
LEDGER = "ingest_project.streams.ranges:StreamRangeLedger"
RECORDS = 25

# In the order in which they come.
KILL_POINTS = [
    KillPoint("ranges planned", f"{LEDGER}.plan"),
    KillPoint("ranges requested", f"{LEDGER}.claim"),
    KillPoint("cursor saved", "ingest_project_tests.crashes.deadly_process:SavedCursors.__setitem__"),
    KillPoint("ranges started", f"{LEDGER}.begin"),
    KillPoint("opportunities upserted, before the commit", "ingest_project.streams.crm.upsert:upsert"),
    KillPoint("unidentified messages kept, before the commit", "ingest_project.streams.crm.upsert:keep"),
    KillPoint("first range committed", "ingest_project.streams.crm.assets:store"),
    KillPoint("first range finished", f"{LEDGER}.finish"),
    KillPoint("second range committed", "ingest_project.streams.crm.assets:store", 2),
    KillPoint("materialisations about to be shown", "ingest_project.streams.crm.assets:_metadata"),
    KillPoint("ranges marked as reported", f"{LEDGER}.mark_reported"),
]


@pytest.mark.parametrize("point", KILL_POINTS, ids=lambda point: point.step)
def test_killed_after_a_step_and_run_again_everything_is_there_exactly_once(  # noqa: PLR0913, PLR0917 - fixtures
    point: KillPoint,
    deadly_process: DeadlyProcess,
    kafka_server: Server,
    postgres_url: str,
    instance: DagsterInstance,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    environ = crm_environment(kafka_server.bootstrap_servers, postgres_url, tmp_path) | {
        "DAGSTER_POSTGRES_URL": os.environ["DAGSTER_POSTGRES_URL"],
        "INGEST_CRM_BATCH_MESSAGES": "30",
    }
    kafka_server.create_topic(environ["KAFKA_TOPIC_SALES_EVENTS"], 1)
    system = CrmSystem(load_settings(environ, tmp_path).settings, instance, folder)
    system.put(
        *(opportunity(f"opp_{number}") for number in range(RECORDS)),
        b"not JSON",
        *(project(f"proj_{number}") for number in range(RECORDS)),
        b"nor this",
    )
    exit_code = deadly_process.drive(point, folder, serialize_value(instance.get_ref()), environ, WAY)
    assert exit_code == -signal.SIGKILL, "it did not come to the place where it should have died"
    bury_the_dead(instance)

    system.cursors = SavedCursors(tmp_path)
    system.drive()
    assert len(system.rows(opportunities)) == len(system.rows(projects)) == RECORDS
    assert [message.payload for message in system.unidentified] == [b"not JSON", b"nor this"]
    ledger = system.services.stream_ranges
    assert {record.state for record in ledger.list(system.topic)} == {RangeState.DONE}
    assert sum(len(record.offsets) for record in ledger.list(system.topic)) == 2 * RECORDS + 2
    assert system.services.stream_intervals.seams(system.topic) == ()
    assert ledger.leases(system.topic, datetime.now(UTC)) == ()
    for name in ("no_gap_in_offsets", "no_duplicate_offsets"):
        assert system.check(name).passed
    system.close()
