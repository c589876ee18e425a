"""One poison message among 99 good ones, at each step: the 99 are stored at their first attempt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from ingest_project.core.settings import load_settings
from ingest_project.platform.database import reading, writing
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.streams.crm.records import opportunities, unidentified_messages
from ingest_project.streams.crm.sink import retry
from ingest_project.streams.resources import StreamResources
from ingest_project_tests.streams.crm.messages import encoded, opportunity
from ingest_project_tests.streams.crm.system import SENSOR, CrmSystem, store_messages

OVERFLOWING = "0001-01-01T00:00:00+14:00"
FINE = b"0." + b"1" * 20_000


def with_number(text: str, name: str = "amount") -> bytes:
    return encoded(opportunity("opp_p"), **{name: text})


def with_text(text: bytes) -> bytes:
    return encoded(opportunity("opp_p", name="@")).replace(b'"@"', text)


def nested(depth: int) -> bytes:
    return json.dumps(opportunity("opp_p")).encode()[:-1] + b', "x": ' + b"[" * depth + b"]" * depth + b"}"


POISON = {
    "overflowing offset": (encoded(opportunity("opp_p", OVERFLOWING)), "last_modified must be a time"),
    "overflowing at the end": (encoded(opportunity("opp_p", "9999-12-31T23:59:59-14:00")), "must be a time"),
    "year 0": (
        encoded(opportunity("opp_p", expected_close_date="0000-01-01")),
        "$.expected_close_date must be a date like 2026-01-15",
    ),
    "year 10000": (encoded(opportunity("opp_p", expected_close_date="10000-01-01")), "must be a date like 2026-01-15"),
    "1e400": (with_number("1e400"), "amount has more than 30 digits"),
    "40 digits": (with_number("1" * 40), "amount has more than 30 digits"),
    "5,000 digits": (with_number("1" * 5_000), "amount has more than 30 digits"),
    "too fine": (with_number("1e-25"), "20 after the point"),
    "NaN": (with_number("NaN"), "Not JSON"),
    "probability": (with_number(str(10**30), "probability"), "probability has more than 30 digits"),
    "lone surrogate": (with_text(b'"\\ud800"'), "half of a surrogate pair"),
    "raw NUL": (with_text(b'"a\0b"'), "Not JSON"),
    "bad UTF-8": (with_text(b'"\xff"'), "Not UTF-8"),
    "nested": (nested(100_000), "nested too deeply"),
    "long id": (encoded(opportunity("opp_" + "x" * 10_000)), "event_id has 10004 characters"),
    "null id": (encoded(opportunity("opp_p") | {"event_id": None}), "event_id must be a text"),
    # What the rules let through, and PostgreSQL has no room for.
    "refused by the database": (
        encoded(opportunity("opp_p", custom=0)).replace(b'"custom": 0', b'"custom": ' + FINE),
        "The database refuses it",
    ),
}


@pytest.fixture
def services(postgres_url: str, tmp_path: Path) -> Iterator[StreamResources]:
    opened = StreamResources(load_settings({"DATABASE_URL": postgres_url}, tmp_path).settings)
    yield opened
    opened.engine.dispose()


@pytest.mark.parametrize("name", POISON)
def test_the_99_good_messages_are_stored_at_once_and_the_poison_is_kept_with_its_reason(
    services: StreamResources, name: str
) -> None:
    raw, reason = POISON[name]
    payloads = [encoded(opportunity(f"opp_{number}")) for number in range(99)]
    payloads.insert(50, raw)
    found = [ConsumerRecord("sales_events", 0, offset, None, None, raw, ()) for offset, raw in enumerate(payloads)]
    outcome = store_messages(services, found)
    assert (outcome["opportunity_messages"], outcome["unidentified"]) == (99, 1)
    with reading(services.engine) as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(opportunities)).scalar() == 99
        (kept,) = connection.execute(sa.select(unidentified_messages)).mappings()
    assert reason in kept["reason"]
    assert (kept["kafka_offset"], kept["payload"]) == (50, raw)


def test_a_message_that_breaks_a_tables_rule_is_kept_at_the_first_attempt(crm: CrmSystem) -> None:
    # A rule that somebody else gave the table: nothing of ours foresees it.
    if crm.services.engine.dialect.name != "postgresql":
        pytest.skip("SQLite adds no rule to a table that is there")
    with writing(crm.services.engine) as connection:
        connection.execute(sa.text("ALTER TABLE opportunities ADD CHECK (stage <> 'Poison')"))
    crm.put(*(opportunity(f"opp_{number}") for number in range(50)), opportunity("opp_p", stage="Poison"))
    crm.put(*(opportunity(f"opp_{number}") for number in range(50, 99)))
    (run,) = crm.drive()
    assert run.success
    assert len(crm.rows(opportunities)) == 99
    (kept,) = crm.unidentified
    assert "violates check constraint" in kept.reason
    assert crm.outcome == {"opportunity_messages": 99, "opportunity_rows_changed": 99, "unidentified": 1}
    # Tried again it is refused again, and holds up no other.
    with writing(crm.services.engine) as connection:
        connection.execute(
            sa.update(unidentified_messages).values(payload=encoded(opportunity("opp_p", stage="Poison")))
        )
    crm.put(b"?")
    crm.drive()
    with writing(crm.services.engine) as connection:
        spoilt = unidentified_messages.c.message_id != kept.message_id
        connection.execute(sa.update(unidentified_messages).where(spoilt).values(payload=encoded(opportunity("opp_q"))))
    done = retry(crm.services.engine)
    assert (len(done.identified), done.unidentified) == (1, (kept.message_id,))
    assert "opp_q" in crm.rows(opportunities)


def test_odd_headers_and_keys_do_not_keep_a_message_from_being_kept(crm: CrmSystem) -> None:
    headers = (("a\ufffd", None), ("trace-id", b"\xff\x00"), ("traceparent", b"x" * 10_000), ("trace-id", b""))
    crm.services.writer.send_all(crm.topic, [ProducerRecord(b"?", b"\x00\xff", headers)])
    crm.put(opportunity())
    assert all(run.success for run in crm.drive())
    assert (len(crm.unidentified), len(crm.rows(opportunities))) == (1, 1)
    assert crm.unidentified[0].trace_id is None


def test_a_defect_of_the_tables_leaves_the_position_and_says_the_real_reason(crm: CrmSystem) -> None:
    with writing(crm.services.engine) as connection:
        connection.execute(sa.text("ALTER TABLE opportunities RENAME COLUMN stage TO phase"))
    crm.put(opportunity())
    (request,) = crm.requests(SENSOR)
    assert not crm.execute("crm_batch", request).success
    assert set(crm.next_offsets.values()) == {0}
    assert "stage" in crm.reasons
    with writing(crm.services.engine) as connection:
        connection.execute(sa.text("ALTER TABLE opportunities RENAME COLUMN phase TO stage"))
    crm.drive()
    assert set(crm.rows(opportunities)) == {"opp_1"}
    assert crm.unidentified == []


def test_a_message_names_its_trace_in_its_row(crm: CrmSystem) -> None:
    trace = (("trace-id", b"t-77"),)
    messages = (encoded(opportunity()), b"?")
    crm.services.writer.send_all(crm.topic, [ProducerRecord(value, b"one", trace) for value in messages])
    crm.drive()
    assert crm.rows(opportunities)["opp_1"]["trace_id"] == crm.unidentified[0].trace_id == "t-77"
