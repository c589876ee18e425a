"""Another program writes to the Delta table between our commits: nothing of ours is lost or doubled."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pytest
from deltalake import Field, write_deltalake
from deltalake.schema import PrimitiveType

from ingest_project.operations import SystemResources
from ingest_project_tests.streams.user_activity import foreign
from ingest_project_tests.streams.user_activity.events import event
from ingest_project_tests.streams.user_activity.system import BATCH, SENSOR, ActivitySystem


def add_column(services: SystemResources) -> None:
    foreign.table_of(services).alter.add_columns([Field("colour", PrimitiveType("string"))])


def rewrite_with(services: SystemResources, rows: pa.Table) -> None:
    """Overwrite the whole table and its schema, as a program does that owns it."""
    write_deltalake(foreign.table_of(services), rows, mode="overwrite", schema_mode="overwrite")


def update(services: SystemResources) -> None:
    foreign.table_of(services).update({"page_url": "'other'"})


def all_rows(services: SystemResources) -> pa.Table:
    return pa.table(foreign.table_of(services).to_pyarrow_table())


HARMLESS: dict[str, Callable[[SystemResources], None]] = {
    "appends": lambda services: foreign.append_rows(services, event_id=["foreign"], event_day=["2026-01-15"]),
    "appends columns of its own": lambda services: foreign.append_rows(services, event_id=["foreign"], colour=["red"]),
    "compacts": foreign.compact,
    "adds a column": add_column,
    "deletes": lambda services: foreign.delete(services, "kafka_offset = 1"),
    "updates": update,
    "overwrites with nothing": foreign.empty,
    "drops a column": lambda services: rewrite_with(services, all_rows(services).drop_columns(["_rescued"])),
    "drops the columns of positions": lambda services: rewrite_with(
        services, pa.table({"event_id": ["foreign"], "event_day": ["2026-01-15"]})
    ),
}
LONG = {"appends columns of its own", "updates", "overwrites with nothing", "drops a column", "adds a column"}


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=pytest.mark.long if what in LONG else ()) for what in HARMLESS]
)
def test_writes_of_another_program_do_not_lose_or_double_an_offset(activity: ActivitySystem, what: str) -> None:
    for number in range(3):
        activity.put(event(f"e{number}"))
        activity.drive()
    HARMLESS[what](activity.services)
    activity.put(event("e3"), event("e4"))
    assert all(run.success for run in activity.drive())
    ours = [row["event_id"] for row in activity.rows() if row["kafka_topic"]]
    assert ours == [f"e{number}" for number in range(5)]
    assert len(activity.rows()) - len(ours) == (1 if "foreign" in str(activity.rows()) else 0)
    assert activity.passed("no_gap_in_offsets", "no_duplicate_offsets") == [True, True]


def test_a_column_of_another_type_is_said_by_name_and_nothing_is_lost(activity: ActivitySystem) -> None:
    activity.put(event("e0"))
    activity.drive()
    rows = all_rows(activity.services)
    spoilt = rows.set_column(rows.schema.get_field_index("user_id"), "user_id", pa.array([7], pa.int64()))
    before = foreign.table_of(activity.services).version()
    rewrite_with(activity.services, spoilt)
    activity.put(event("e1"))
    (request,) = activity.requests(SENSOR)
    run = activity.execute(BATCH, request)
    assert not run.success
    assert sorted(activity.next_offsets.values()) == [0, 1]
    assert "Column 'user_id' does not fit" in activity.reasons
    assert "the table holds integer, the new rows text" in activity.reasons
    assert activity.dead_letters == []
    foreign.restore(activity.services, before)
    activity.drive()
    assert [row["event_id"] for row in activity.rows()] == ["e0", "e1"]


def test_a_table_with_an_unsupported_writer_feature_is_reported_and_nothing_is_lost(activity: ActivitySystem) -> None:
    activity.put(event("e0"))
    activity.drive()
    before = foreign.table_of(activity.services).version()
    required = pa.schema([("event_day", pa.string()), pa.field("tenant", pa.string(), nullable=False)])
    rewrite_with(activity.services, pa.table({"event_day": ["2026-01-15"], "tenant": ["y"]}, schema=required))
    activity.put(event("e1"))
    (request,) = activity.requests(SENSOR)
    assert not activity.execute(BATCH, request).success
    assert "tenant" in activity.reasons
    assert activity.dead_letters == []
    foreign.restore(activity.services, before)
    activity.drive()
    assert [row["event_id"] for row in activity.rows()] == ["e0", "e1"]
