"""`kill -9` after each step on the way of an event: run again in the ordinary way, each offset is there once."""

from __future__ import annotations

import os
import signal
from datetime import UTC, datetime
from pathlib import Path

import pytest
from dagster import DagsterInstance
from dagster._serdes import serialize_value

from ingest_project.core.settings import load_settings
from ingest_project.streams.range_record import RangeState
from ingest_project_tests.crashes.deadly_process import DeadlyProcess, KillPoint, SavedCursors, bury_the_dead
from ingest_project_tests.services.kafka import Server
from ingest_project_tests.streams.user_activity import foreign
from ingest_project_tests.streams.user_activity.events import event
from ingest_project_tests.streams.user_activity.system import ActivitySystem, activity_environment

WAY = "ingest_project_tests.streams.user_activity.system:ActivitySystem.drive"
LEDGER = "ingest_project.streams.ranges:StreamRangeLedger"
HOURS = "ingest_project.streams.user_activity.changed_hours:ActivityHours"
STORING = "ingest_project.streams.user_activity.load"
EVENTS = 25

# In the order in which they come.
KILL_POINTS = [
    KillPoint("ranges planned", f"{LEDGER}.plan"),
    KillPoint("ranges requested", f"{LEDGER}.claim"),
    KillPoint("cursor saved", "ingest_project_tests.crashes.deadly_process:SavedCursors.__setitem__"),
    KillPoint("ranges started", f"{LEDGER}.begin"),
    KillPoint("dead letters published, before the commit", f"{STORING}:dead_letter_message"),
    KillPoint("first commit made", "ingest_project.platform.delta.table:DeltaStore.append"),
    KillPoint("hours marked", f"{HOURS}.mark_changed"),
    KillPoint("first range finished", f"{LEDGER}.finish"),
    KillPoint("second commit made", "ingest_project.platform.delta.table:DeltaStore.append", 2),
    KillPoint("ranges marked as reported", f"{LEDGER}.mark_reported"),
    KillPoint("statistics made", "ingest_project.streams.user_activity.assets:statistics_of_hour"),
    KillPoint("statistics stored", "ingest_project.streams.user_activity.assets:replace_hours"),
]


@pytest.mark.parametrize("point", KILL_POINTS, ids=lambda point: point.step)
def test_killed_after_a_step_and_run_again_each_offset_is_there_exactly_once(  # noqa: PLR0913, PLR0917 - fixtures
    point: KillPoint,
    deadly_process: DeadlyProcess,
    kafka_server: Server,
    postgres_url: str,
    instance: DagsterInstance,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    environ = activity_environment(kafka_server.bootstrap_servers, postgres_url, tmp_path) | {
        "DAGSTER_POSTGRES_URL": os.environ["DAGSTER_POSTGRES_URL"],
        "INGEST_USER_ACTIVITY_RANGE_MESSAGES": "30",
    }
    kafka_server.create_topic(environ["KAFKA_TOPIC_USER_ACTIVITY_EVENTS"], 1)
    system = ActivitySystem(load_settings(environ, tmp_path).settings, instance, folder)
    messages = [event(f"e{number}") for number in range(2 * EVENTS)]
    system.put(*messages[:EVENTS], b"not JSON", *messages[EVENTS:], b"nor this")
    exit_code = deadly_process.drive(point, folder, serialize_value(instance.get_ref()), environ, WAY)
    assert exit_code == -signal.SIGKILL, "it did not come to the place where it should have died"
    bury_the_dead(instance)

    system.cursors = SavedCursors(tmp_path)
    system.drive()
    rows = system.rows("event_id, kafka_topic_id, kafka_partition, kafka_offset")
    assert [row["event_id"] for row in rows] == [f"e{number}" for number in range(2 * EVENTS)]
    assert [letter.value for letter in system.dead_letters] == [b"not JSON", b"nor this"]
    assert system.statistics("2026-01-15-10:00")["page_view"].events == 2 * EVENTS
    ledger = system.services.stream_ranges
    assert {record.state for record in ledger.list(system.topic)} == {RangeState.DONE}
    assert system.services.stream_intervals.seams(system.topic) == ()
    assert ledger.leases(system.topic, datetime.now(UTC)) == ()
    for name in ("no_gap_in_offsets", "no_duplicate_offsets"):
        assert system.check(name).passed
    system.close()


RECOVERING = "ingest_project.streams.user_activity.recovery"
RECOVERY_POINTS = [
    KillPoint("dead letters published again", f"{RECOVERING}:dead_letter_message"),
    KillPoint("missing rows appended", f"{RECOVERING}:append_bisecting"),
    pytest.param(KillPoint("position moved", f"{RECOVERING}:_finish"), marks=pytest.mark.long),
]


@pytest.mark.parametrize("point", RECOVERY_POINTS, ids=lambda point: point.step)
def test_killed_while_rows_are_recovered_and_run_again_each_offset_is_there_exactly_once(  # noqa: PLR0913, PLR0917 - fixtures
    point: KillPoint,
    deadly_process: DeadlyProcess,
    kafka_server: Server,
    postgres_url: str,
    instance: DagsterInstance,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    environ = activity_environment(kafka_server.bootstrap_servers, postgres_url, tmp_path) | {
        "DAGSTER_POSTGRES_URL": os.environ["DAGSTER_POSTGRES_URL"]
    }
    kafka_server.create_topic(environ["KAFKA_TOPIC_USER_ACTIVITY_EVENTS"], 1)
    system = ActivitySystem(load_settings(environ, tmp_path).settings, instance, folder)
    system.cursors = SavedCursors(tmp_path)
    system.put(event("e0"))
    system.drive()
    before = foreign.table_of(system.services).version()
    system.put(*(event(f"e{number}") for number in range(1, EVENTS)), b"not JSON")
    system.drive()
    foreign.restore(system.services, before)
    system.put(event("last"))
    exit_code = deadly_process.drive(point, folder, serialize_value(instance.get_ref()), environ, WAY)
    assert exit_code == -signal.SIGKILL, "it did not come to the place where it should have died"
    bury_the_dead(instance)
    system.drive()
    assert [row["event_id"] for row in system.rows()] == [*(f"e{number}" for number in range(EVENTS)), "last"]
    assert [letter.value for letter in system.dead_letters] == [b"not JSON"]
    assert system.statistics("2026-01-15-10:00")["page_view"].events == EVENTS + 1
    assert [system.check(name).passed for name in ("no_gap_in_offsets", "no_duplicate_offsets")] == [True, True]
    system.close()
