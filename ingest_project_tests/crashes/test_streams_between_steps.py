"""`kill -9` after each step of a stream, then run again in the ordinary way: each offset is there once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from dagster import DagsterInstance
from dagster._serdes import serialize_value

from ingest_project.core.settings import load_settings
from ingest_project.streams.crm.records import opportunities, projects
from ingest_project_tests.crashes.deadly_process import DeadlyProcess, KillPoint, SavedCursors, bury_the_dead
from ingest_project_tests.services.kafka import Server
from ingest_project_tests.streams.crm.messages import opportunity, project
from ingest_project_tests.streams.crm.system import CrmSystem, crm_environment
from ingest_project_tests.streams.declared.system import (
    DELTA,
    KEYED,
    DeclaredSystem,
    declare,
    declared_environment,
    order,
)
from ingest_project_tests.streams.system import StreamSystem
from ingest_project_tests.streams.user_activity import foreign
from ingest_project_tests.streams.user_activity.events import event
from ingest_project_tests.streams.user_activity.system import ActivitySystem, activity_environment

RECORDS = 25
CHECKS = ("no_gap_in_offsets", "no_duplicate_offsets")
POSITIONS = "ingest_project.streams.positions:StreamPositions"
CURSOR_SAVED = "ingest_project_tests.crashes.deadly_process:SavedCursors.__setitem__"
DELTA_SINK = "ingest_project.streams.delta.sink"
ACTIVITY_ASSETS = "ingest_project.streams.user_activity.definitions"
DELTA_STREAM = "ingest_project.streams.delta"
DELTA_PARTS = "ingest_project.streams.delta.definitions"
RECOVERY = "ingest_project.streams.delta.recovery"
CRM_SINK = "ingest_project.streams.crm.sink"
SQL_SINK = "ingest_project.streams.sql.sink"
DECLARED_TABLE = "ingest_project.streams.sql.declared"


class Stream(NamedTuple):
    """One stream: how to set it up, what to send, and what must be there in the end."""

    system: type[StreamSystem]
    environment: Callable[[str, str, Path], dict[str, str]]
    topic_setting: str
    batch_setting: str
    send: Callable[[StreamSystem], None]
    require_all: Callable[[StreamSystem], None]

    @property
    def name(self) -> str:
        """Return what test ids call it."""
        if self.system is not DeclaredSystem:
            return self.system.__name__
        return "declared Delta" if self.require_all is require_orders else "declared SQL"

    @property
    def way(self) -> str:
        """Return how a process drives it."""
        return f"{self.system.__module__}:{self.system.__name__}.drive"

    def open(
        self, kafka_server: Server, database_url: str, instance: DagsterInstance, tmp_path: Path
    ) -> tuple[StreamSystem, dict[str, str]]:
        """Return the system on a topic of its own, two batches long, and its environment."""
        folder = tmp_path / "in"
        folder.mkdir()
        environ = self.environment(kafka_server.bootstrap_servers, database_url, tmp_path) | {
            "DAGSTER_POSTGRES_URL": os.environ["DAGSTER_POSTGRES_URL"],
            self.batch_setting: "30",
        }
        kafka_server.create_topic(environ[self.topic_setting], 1)
        return self.system(load_settings(environ, tmp_path).settings, instance, folder), environ


def send_events(system: StreamSystem) -> None:
    assert isinstance(system, ActivitySystem)
    messages = [event(f"e{number}") for number in range(2 * RECORDS)]
    system.put(*messages[:RECORDS], b"not JSON", *messages[RECORDS:], b"nor this")


def require_events(system: StreamSystem) -> None:
    assert isinstance(system, ActivitySystem)
    rows = system.rows("event_id, kafka_topic_id, kafka_partition, kafka_offset")
    assert [row["event_id"] for row in rows] == [f"e{number}" for number in range(2 * RECORDS)]
    assert [letter.value for letter in system.dead_letters] == [b"not JSON", b"nor this"]
    assert system.statistics("2026-01-15-10:00")["page_view"].events == 2 * RECORDS


def send_crm(system: StreamSystem) -> None:
    assert isinstance(system, CrmSystem)
    system.put(
        *(opportunity(f"opp_{number}") for number in range(RECORDS)),
        b"not JSON",
        *(project(f"proj_{number}") for number in range(RECORDS)),
        b"nor this",
    )


def require_crm(system: StreamSystem) -> None:
    assert isinstance(system, CrmSystem)
    assert len(system.rows(opportunities)) == len(system.rows(projects)) == RECORDS
    assert [message.payload for message in system.unidentified] == [b"not JSON", b"nor this"]
    counted = {name: number for name, number in system.outcome.items() if not name.endswith("rows_changed")}
    assert counted == {"opportunity_messages": RECORDS, "project_messages": RECORDS, "unidentified": 2}


ACTIVITY = Stream(
    ActivitySystem,
    activity_environment,
    "KAFKA_TOPIC_USER_ACTIVITY_EVENTS",
    "INGEST_USER_ACTIVITY_RANGE_MESSAGES",
    send_events,
    require_events,
)
CRM = Stream(CrmSystem, crm_environment, "KAFKA_TOPIC_SALES_EVENTS", "INGEST_CRM_BATCH_MESSAGES", send_crm, require_crm)


def declared(attributes: dict[str, Any], require_all: Callable[[StreamSystem], None]) -> Stream:
    """Return a stream that is declared."""

    def environment(bootstrap_servers: str, database_url: str, folder: Path) -> dict[str, str]:
        environ = declared_environment(bootstrap_servers, database_url, folder)
        topic = f"{environ['KAFKA_GROUP_ID']}.orders"
        declare(folder, {"topic": topic, **attributes})
        return environ | {"TEST_TOPIC": topic}

    return Stream(DeclaredSystem, environment, "TEST_TOPIC", "TEST_BATCH", send_orders, require_all)


def send_orders(system: StreamSystem) -> None:
    assert isinstance(system, DeclaredSystem)
    messages = [order(number) for number in range(2 * RECORDS)]
    system.put(*messages[:RECORDS], b"not JSON", *messages[RECORDS:], order(0, "-1"))


def require_orders(system: StreamSystem) -> None:
    assert isinstance(system, DeclaredSystem)
    assert [row["order_id"] for row in system.rows()] == [f"o{number}" for number in range(2 * RECORDS)]
    assert [letter.value for letter in system.dead_letters] == [b"not JSON", order(0, "-1")]


def require_keyed(system: StreamSystem) -> None:
    assert isinstance(system, DeclaredSystem)
    assert system.table().keys() == {f"o{number}" for number in range(2 * RECORDS)}
    assert [letter.value for letter in system.dead_letters] == [b"not JSON", order(0, "-1")]
    counted = {name: number for name, number in system.outcome.items() if not name.endswith("rows_changed")}
    assert counted == {"rows": 2 * RECORDS, "dead_letters": 2}


DECLARED_DELTA = declared({**DELTA, "sink": {"commit_messages": 30}}, require_orders)
DECLARED_SQL = declared({**KEYED, "batch_messages": 30}, require_keyed)

# In the order in which they come.
KILL_POINTS = [
    (CRM, KillPoint("partitions entered", f"{POSITIONS}.begin")),
    (CRM, KillPoint("cursor saved", CURSOR_SAVED)),
    (CRM, KillPoint("partitions leased", f"{POSITIONS}.lease")),
    (CRM, KillPoint("opportunities upserted, before the commit", f"{CRM_SINK}:upsert")),
    (CRM, KillPoint("unidentified messages kept, before the commit", f"{CRM_SINK}:keep")),
    (CRM, KillPoint("position moved, before the commit", f"{SQL_SINK}:move")),
    (CRM, KillPoint("first batch committed", f"{SQL_SINK}:SqlSink.store")),
    (CRM, KillPoint("materialisations about to be shown", "ingest_project.streams.crm.definitions:count_open")),
    (CRM, KillPoint("partitions released", f"{POSITIONS}.release")),
    (CRM, KillPoint("second batch committed", f"{SQL_SINK}:SqlSink.store", 2)),
    (ACTIVITY, KillPoint("partitions entered", f"{POSITIONS}.begin")),
    (ACTIVITY, KillPoint("cursor saved", CURSOR_SAVED)),
    (ACTIVITY, KillPoint("partitions leased", f"{POSITIONS}.lease")),
    (ACTIVITY, KillPoint("dead letters published, before the commit", f"{DELTA_STREAM}:dead_letter_message")),
    (ACTIVITY, KillPoint("first commit made", "ingest_project.platform.delta.table:DeltaStore.append")),
    (ACTIVITY, KillPoint("position moved, before the commit of the database", f"{DELTA_SINK}:move")),
    (ACTIVITY, KillPoint("first commit noted", f"{DELTA_SINK}:DeltaSink.store")),
    (ACTIVITY, KillPoint("second commit made", "ingest_project.platform.delta.table:DeltaStore.append", 2)),
    (ACTIVITY, KillPoint("hours reported", f"{DELTA_PARTS}:report")),
    (ACTIVITY, KillPoint("partitions released", f"{POSITIONS}.release")),
    (ACTIVITY, KillPoint("statistics made", f"{ACTIVITY_ASSETS}:statistics_of_hour")),
    (ACTIVITY, KillPoint("statistics stored", f"{ACTIVITY_ASSETS}:replace_hours")),
    (DECLARED_DELTA, KillPoint("dead letters published, before the commit", f"{DELTA_STREAM}:dead_letter_message")),
    (DECLARED_DELTA, KillPoint("first commit made", "ingest_project.platform.delta.table:DeltaStore.append")),
    (DECLARED_DELTA, KillPoint("position moved, before the commit of the database", f"{DELTA_SINK}:move")),
    (DECLARED_DELTA, KillPoint("first commit noted", f"{DELTA_SINK}:DeltaSink.store")),
    (DECLARED_DELTA, KillPoint("hours reported", f"{DELTA_PARTS}:report")),
    (DECLARED_DELTA, KillPoint("partitions released", f"{POSITIONS}.release")),
    (DECLARED_SQL, KillPoint("table made", f"{DECLARED_TABLE}:DeclaredTables.ensure")),
    (DECLARED_SQL, KillPoint("dead letters published, before the commit", f"{DECLARED_TABLE}:dead_letter_message")),
    (DECLARED_SQL, KillPoint("rows upserted, before the commit", f"{DECLARED_TABLE}:upsert_rows")),
    (DECLARED_SQL, KillPoint("position moved, before the commit", f"{SQL_SINK}:move")),
    (DECLARED_SQL, KillPoint("first batch committed", f"{SQL_SINK}:SqlSink.store")),
    (DECLARED_SQL, KillPoint("partitions released", f"{POSITIONS}.release")),
]


@pytest.mark.parametrize(
    ("stream", "point"), KILL_POINTS, ids=[f"{stream.name}: {point.step}" for stream, point in KILL_POINTS]
)
def test_killed_after_a_step_and_run_again_each_offset_is_there_exactly_once(  # noqa: PLR0913, PLR0917 - fixtures
    stream: Stream,
    point: KillPoint,
    deadly_process: DeadlyProcess,
    kafka_server: Server,
    postgres_url: str,
    instance: DagsterInstance,
    tmp_path: Path,
) -> None:
    system, environ = stream.open(kafka_server, postgres_url, instance, tmp_path)
    stream.send(system)
    exit_code = deadly_process.drive(point, system.folder, serialize_value(instance.get_ref()), environ, stream.way)
    assert exit_code == -signal.SIGKILL, "it did not reach the step where it should have died"
    bury_the_dead(instance)

    system.cursors = SavedCursors(tmp_path)
    system.drive()
    stream.require_all(system)
    (position,) = system.positions.all()
    assert (position.next_offset, position.run_id, position.reason) == (2 * RECORDS + 2, None, None)
    assert system.positions.lost() == ()
    assert [system.check(name).passed for name in CHECKS] == [True, True]
    system.close()


RECOVERY_POINTS = [
    KillPoint("dead letters published again", f"{DELTA_STREAM}:dead_letter_message"),
    KillPoint("missing rows appended", f"{RECOVERY}:append_bisecting"),
    pytest.param(KillPoint("position moved", f"{RECOVERY}:_finish"), marks=pytest.mark.long),
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
    system, environ = ACTIVITY.open(kafka_server, postgres_url, instance, tmp_path)
    assert isinstance(system, ActivitySystem)
    system.cursors = SavedCursors(tmp_path)
    system.put(event("e0"))
    system.drive()
    before = foreign.table_of(system.services).version()
    system.put(*(event(f"e{number}") for number in range(1, RECORDS)), b"not JSON")
    system.drive()
    foreign.restore(system.services, before)
    system.put(event("last"))
    exit_code = deadly_process.drive(point, system.folder, serialize_value(instance.get_ref()), environ, ACTIVITY.way)
    assert exit_code == -signal.SIGKILL, "it did not reach the step where it should have died"
    bury_the_dead(instance)
    system.drive()
    assert [row["event_id"] for row in system.rows()] == [*(f"e{number}" for number in range(RECORDS)), "last"]
    assert [letter.value for letter in system.dead_letters] == [b"not JSON"]
    assert system.statistics("2026-01-15-10:00")["page_view"].events == RECORDS + 1
    assert [system.check(name).passed for name in CHECKS] == [True, True]
    system.close()
