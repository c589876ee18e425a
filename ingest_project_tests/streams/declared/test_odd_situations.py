"""Changes of topics, registries, tables and declarations never lose, double or guess a message."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from ingest_project.platform.database import reading, writing
from ingest_project.platform.kafka.offsets import committed_positions
from ingest_project.streams.capability import Streams
from ingest_project_tests.services.http_exchange import Answer
from ingest_project_tests.services.schema_registry import SchemaRegistry
from ingest_project_tests.streams.declared import messages
from ingest_project_tests.streams.declared.conftest import Declare
from ingest_project_tests.streams.declared.system import DELTA, KEYED, NAME, DeclaredSystem, order
from ingest_project_tests.streams.declared.test_journey import AVRO, CHECKS, RECORD, checks
from ingest_project_tests.streams.system import StreamNames

SINKS = pytest.mark.parametrize("sink", [DELTA, KEYED], ids=["delta", "sql"])


def ids(system: DeclaredSystem) -> list[str]:
    """The ids of the rows, in whichever sink."""
    found = system.rows() if system.declaration.is_delta else [*system.table().values()]
    return sorted(row["order_id"] for row in found)


def fail_once(system: DeclaredSystem) -> str:
    """Do the run that is requested, which must fail, and return why."""
    (request,) = system.requests(system.names.sensor)
    assert not system.execute(system.names.job, request).success
    return system.reasons


def test_a_table_that_was_dropped_or_gets_another_name_is_stored_again(declared: Declare) -> None:
    system = declared(KEYED)
    system.put(*map(order, range(4)), b"no order", keys=[b"a", b"b", b"c", b"d", b"a"])
    system.drive()
    with writing(system.services.engine) as connection:
        connection.execute(sa.text(f"DROP TABLE {NAME}"))
    system.put(order(4))
    system.drive()
    assert ids(system) == [f"o{number}" for number in range(5)]
    assert system.outcome == {"rows": 5, "rows_changed": 5, "dead_letters": 1}
    assert len(system.dead_letters) == 1
    assert checks(system, *CHECKS[:2]) == [True, True]
    moved = declared({**KEYED, "sink": {"key": ["order_id"], "table": "orders_2"}})
    moved.put(order(5))
    moved.drive()
    with moved.services.engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM orders_2")).scalar() == 6
    assert ids(moved) == [f"o{number}" for number in range(5)], "the former table stays as it was"


def test_a_dropped_table_reports_the_messages_that_the_topic_no_longer_has(
    declared: Declare,
    kafka_server: Any,  # noqa: ANN401 - either broker
) -> None:
    system = declared(KEYED)
    system.put(*map(order, range(4)))
    system.drive()
    (partition,) = system.partitions_with_messages
    kafka_server.delete_records(system.topic, partition, 3)
    with writing(system.services.engine) as connection:
        connection.execute(sa.text(f"DROP TABLE {NAME}"))
    system.put(order(4))
    system.drive()
    assert ids(system) == ["o3", "o4"]
    assert [(one.offsets.first, one.offsets.end) for one in system.positions.lost()] == [(0, 3)]
    assert system.outcome["lost"] == 3
    work = Streams().read_work(system.services, detailed=True)
    assert work.facts["Lost"] == {system.topic: {"messages": 3}}
    assert not system.check(CHECKS[0]).passed


def test_a_column_that_was_changed_by_hand_is_named_and_nothing_is_lost(declared: Declare) -> None:
    system = declared(KEYED)
    system.put(order(1))
    system.drive()
    alter = f"ALTER TABLE {NAME} ALTER COLUMN amount TYPE"
    with writing(system.services.engine) as connection:
        connection.execute(sa.text(f"{alter} text"))
    system.put(order(2))
    assert "Column 'amount'" in fail_once(system)
    with writing(system.services.engine) as connection:
        connection.execute(sa.text(f"{alter} numeric(12,2) USING amount::numeric"))
    system.drive()
    assert ids(system) == ["o1", "o2"]


def test_other_partitions_of_a_delta_table_are_refused_and_nothing_is_lost(declared: Declare) -> None:
    system = declared({**DELTA, "sink": {"partition_by": "day"}})
    system.put(order(1))
    system.drive()
    system = declared({**DELTA, "sink": {"partition_by": "hour"}})
    system.put(order(2))
    reason = fail_once(system)
    assert "partitioned by event_day, and partition_by asks for event_day, event_hour; put partition_by back" in reason
    assert (ids(system), system.dead_letters) == (["o1"], [])
    elsewhere = declared({**DELTA, "sink": {"partition_by": "hour", "delta": "by_hour"}})
    elsewhere.drive()
    assert ids(elsewhere) == ["o1", "o2"]


def test_a_renamed_stream_does_not_double_the_rows_of_its_delta_table(declared: Declare) -> None:
    system = declared({**DELTA, "sink": {"delta": "shared"}})
    system.put(order(1), order(2))
    system.drive()
    renamed = declared({**DELTA, "name": "purchases", "sink": {"delta": "shared"}})
    renamed.names = StreamNames("purchases_sensor", "purchases_batch", "store_purchases")
    assert "under its former name" in fail_once(renamed)
    assert ids(renamed) == ["o1", "o2"]
    back = declared({**DELTA, "sink": {"delta": "shared"}})
    back.put(order(3))
    back.drive()
    assert ids(back) == ["o1", "o2", "o3"]


@pytest.mark.long
def test_a_renamed_stream_of_a_table_by_key_ends_with_the_same_rows(declared: Declare) -> None:
    system = declared(KEYED)
    system.put(order(1), order(2), None, keys=[b"o1", b"o2", b"o1"])
    system.drive()
    renamed = declared({**KEYED, "name": "purchases", "sink": {"key": ["order_id"], "table": NAME}})
    renamed.names = StreamNames("purchases_sensor", "purchases_batch", "purchases")
    renamed.drive()
    assert ids(renamed) == ["o2"]


@SINKS
def test_partitions_that_are_added_are_read_from_their_first_message(
    declared: Declare,
    sink: dict[str, Any],
    kafka_server: Any,  # noqa: ANN401 - either broker
) -> None:
    system = declared(sink)
    system.put(order(0))
    system.drive()
    kafka_server.add_partitions(system.topic, 8)
    system.restart()
    system.put(*map(order, range(1, 12)), keys=[f"k{number}".encode() for number in range(1, 12)])
    system.drive()
    assert ids(system) == sorted(f"o{number}" for number in range(12))
    assert len(system.positions.current()) == 8


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(500, {}, b"oops"), "500"),
        (Answer(200, {"Content-Type": "text/html"}, b"<h1>Sign in</h1>"), "schema registry"),
        (Answer(200, {"Content-Type": "application/json"}, b"{}"), "schema registry"),
        (Answer(302, {"Location": "http://127.0.0.1:1/"}, b""), "schema registry"),
    ],
    ids=["500", "html", "empty", "redirect"],
)
def test_a_registry_that_answers_nonsense_blames_no_message(
    declared: Declare, registry: SchemaRegistry, answer: Answer, reason: str
) -> None:
    system = declared({**DELTA, "decoder": "avro"})
    system.put(messages.avro(registry.url, json.dumps(AVRO), RECORD))
    registry.answer = answer
    assert reason in fail_once(system)
    assert system.dead_letters == []
    registry.answer = None
    system.drive()
    assert ids(system) == ["o1"]


def test_a_schema_deleted_from_the_registry_makes_dead_letters_that_can_be_redriven(
    declared: Declare, registry: SchemaRegistry
) -> None:
    system = declared({**DELTA, "decoder": "avro", "max_rejected_share": 1})
    good = messages.avro(registry.url, json.dumps(AVRO), RECORD)
    registry.answer = Answer(404, {}, b'{"error_code": 40403, "message": "Schema not found"}')
    system.put(good)
    system.drive()
    (letter,) = system.dead_letters
    assert letter.value == good
    assert b"The schema registry has no schema" in (letter.header("dlq.reason") or b"")


def declare_again(system: DeclaredSystem, name: str = "again") -> Path:
    """Declare a second stream of the same topic, with dead letters of its own."""
    folder = system.folder / "defs"
    (folder / name).mkdir()
    text = (folder / NAME / "defs.yaml").read_text()
    again = folder / name / "defs.yaml"
    again.write_text(text.replace("attributes:", "attributes:\n  dead_letter_topic: again.dlq"))
    system.restart()
    return again


def test_the_group_of_two_streams_of_a_topic_stands_where_the_later_one_is(declared: Declare) -> None:
    system = declared(DELTA)
    declare_again(system, "second")
    _, second = system.services.declared_streams.usable
    system.put(order(1))
    backlog = system.services.range_reader.backlog(system.topic, None, 0)
    assert backlog is not None
    system.services.positions_of(second).begin(backlog, datetime.now(UTC))
    system.drive()
    system.requests(system.names.sensor)
    ends = system.services.reader.end_offsets(system.topic)
    committed = committed_positions(system.settings.kafka, system.topic, ends)
    assert committed is not None
    assert set(committed.next_offsets.values()) == {0}
    assert system.next_offsets == ends


def test_a_stream_no_longer_declared_is_not_reported_as_failing(declared: Declare) -> None:
    system = declared(DELTA)
    again = declare_again(system)
    declaration = next(one for one in system.services.declared_streams.usable if one.name == "again")
    positions, now = system.services.positions_of(declaration), datetime.now(UTC)
    backlog = system.services.range_reader.backlog(system.topic, None, 0)
    assert backlog is not None
    known = list(positions.begin(backlog, now).values())
    positions.lease(known, "run")
    positions.fail([(one, "it cannot") for one in known], "run", system.settings.retries, now)

    def failures() -> list[str | None]:
        with reading(system.services.engine) as connection:
            return [one.reason for one in Streams().failures(system.services, connection, 10)]

    assert failures() == ["it cannot"] * len(known)
    again.unlink()
    system.restart()
    assert (failures(), {one.reason for one in positions.all()}) == ([], {"it cannot"})


def test_two_streams_of_one_topic_both_say_why_they_fail(declared: Declare) -> None:
    system = declared(DELTA)
    declare_again(system)
    assert [one.name for one in system.services.declared_streams.usable] == ["again", NAME]
    system.put(order(1))
    for one in system.services.streams[-2:]:
        backlog = system.services.range_reader.backlog(system.topic, None, 0)
        assert backlog is not None
        known = list(one.positions.begin(backlog, datetime.now(UTC)).values())
        for _ in range(3):
            one.positions.lease(known, "run")
            failed = [(position, f"{one.source} cannot") for position in known]
            one.positions.fail(failed, "run", system.settings.retries, datetime.now(UTC))
    problems = " ".join(Streams().read_work(system.services, detailed=False).problems)
    assert "again cannot" in problems
    assert f"{NAME} cannot" in problems


def test_a_row_that_a_trigger_drops_becomes_a_dead_letter_and_the_others_are_stored(declared: Declare) -> None:
    system = declared(KEYED)
    system.put(order(0))
    system.drive()
    with writing(system.services.engine) as connection:
        connection.exec_driver_sql(f"""
            CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN IF NEW.amount > 3 THEN RETURN NULL; END IF; RETURN NEW; END $$;
            CREATE TRIGGER forgetting BEFORE INSERT ON {NAME} FOR EACH ROW EXECUTE FUNCTION forget()""")
    system.put(order(1), order(2, 4), order(3), order(1, 2))
    system.drive()
    assert ids(system) == ["o0", "o1", "o3"]
    (letter,) = system.dead_letters
    assert letter.value == order(2, 4)
    assert b"a trigger of orders let 0 of 1 rows through" in (letter.header("dlq.reason") or b"")
