"""One poison message among 99 good ones, at each step: the 99 are stored at their first attempt, and Kafka moves on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest_project.platform.database import writing
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.streams.delta.queries import rows_by_hour
from ingest_project.streams.positions import OffsetRange, sink_positions
from ingest_project.streams.user_activity.event_table import SCHEMA, event_rows
from ingest_project_tests.streams.user_activity import foreign
from ingest_project_tests.streams.user_activity.events import encoded, event, received
from ingest_project_tests.streams.user_activity.system import BATCH, HOURLY_BATCH, SENSOR, ActivitySystem

HOUR = "2026-01-15-10:00"


def written(field: str, text: bytes) -> bytes:
    """An event with a field written in these very bytes."""
    return encoded(event("p", **{field: "@"})).replace(b'"@"', text)


def nested(depth: int) -> bytes:
    return written("event_data", b'{"a": ' + b"[" * depth + b"]" * depth + b"}")


REFUSED = {
    "overflowing offset": (encoded(event("p", timestamp="0001-01-01T00:00:00+14:00")), "timestamp must be a time"),
    "overflowing at the end": (encoded(event("p", timestamp="9999-12-31T23:59:59-14:00")), "timestamp must be a time"),
    "overflowing inside": (
        encoded(event("p", processing_info={"received_at": "0001-01-01T00:00:00+14:00"})),
        "processing_info.received_at must be a time",
    ),
    "year 0": (encoded(event("p", timestamp="0000-01-01T00:00:00Z")), "timestamp must be a time"),
    "year 10000": (encoded(event("p", timestamp="10000-01-01T00:00:00Z")), "timestamp must be a time"),
    "1e400": (written("processing_info", b'{"processing_ms": 1e400}'), "too large to be read"),
    "400 digits": (written("processing_info", b'{"processing_ms": ' + b"9" * 400 + b"}"), "too large to be read"),
    "1e-400": (written("processing_info", b'{"processing_ms": 1e-400}'), "1e-400 is too close to zero"),
    "lone surrogate": (written("user_id", b'"\\ud800"'), "half of a surrogate pair"),
    "bad UTF-8": (written("user_id", b'"\xff"'), "Not UTF-8"),
    "bad UTF-8 inside": (written("event_data", b'{"a": "\xff"}'), "Not UTF-8"),
    "raw NUL": (written("user_id", b'"\x00"'), "Not JSON"),
    "NUL in the type": (encoded(event("p", event_type="a\0")), "event_type must be 1 to 200 printable"),
    "long type": (encoded(event("p", event_type="x" * 10_000)), "event_type must be 1 to 200 printable"),
    "null type": (written("event_type", b"null"), "event_type"),
    "long id": (encoded(event("p" * 10_000)), "event_id must have 1 to 512"),
    "nested": (nested(100_000), "nested too deeply"),
    "list as data": (encoded(event("p", event_data=[1])), "event_data must be an object"),
}
TAKEN = {
    "year 1": encoded(event("p", timestamp="0001-01-01T00:00:00Z")),
    "year 9999": encoded(event("p", timestamp="9999-12-31T23:59:59.999999Z")),
    "NUL": encoded(event("p", user_id="a\0b", session_id="\0")),
    "long user": encoded(event("p", user_id="u" * 500_000)),
    "big number": written("processing_info", b'{"processing_ms": ' + str(10**30).encode() + b"}"),
    "zero, and a small one in the data": written("event_data", b'{"a": -0.0e-400, "b": 1e-300}'),
    "nested a little": nested(500),
    "explicit nulls": encoded(
        {"event_id": "p", "event_type": "t", "timestamp": "2026-01-15T10:00:00Z", "colour": None}
        | dict.fromkeys(["request_id", "user_id", "session_id", "page_url", "event_data"])
        | dict.fromkeys(["client_info", "service_info"])
        | {"processing_info": {"received_at": None, "processing_ms": None}}
    ),
    "other surrogates": written("user_id", b'"\\ud83d\\ude00"'),
}


def among_good_ones(poison: bytes | None) -> list[bytes | None]:
    messages: list[bytes | None] = [encoded(event(f"e{number}")) for number in range(99)]
    messages.insert(50, poison)
    return messages


@pytest.mark.parametrize("name", REFUSED)
def test_a_message_that_cannot_be_taken_is_refused_alone_with_its_reason(name: str) -> None:
    raw, reason = REFUSED[name]
    rows = event_rows(received(*among_good_ones(raw)), "g")
    assert rows.table.num_rows == 99
    ((message, error),) = rows.refused
    assert (message.offset, message.value) == (50, raw)
    assert reason in str(error)


@pytest.mark.parametrize("odd", [{"offset": 2**80}, {"headers": ((None, b"x"),)}, {"partition": "no number"}])
def test_an_unexpected_error_of_a_message_is_found_by_halving_and_refuses_it_alone(odd: dict[str, Any]) -> None:
    messages = received(*among_good_ones(encoded(event("p"))))
    messages[50] = msgspec.structs.replace(messages[50], **odd)
    rows = event_rows(messages, "g")
    assert rows.table["event_id"].to_pylist() == [f"e{number}" for number in range(99)]
    ((message, error),) = rows.refused
    assert message is messages[50]
    assert "Reading the message failed unexpectedly" in str(error)


def test_events_with_extreme_values_are_stored_counted_and_found_again(activity: ActivitySystem) -> None:
    messages = [encoded(event(f"e{number}")) for number in range(99 - len(TAKEN))]
    activity.put(*messages[:50], *TAKEN.values(), *messages[50:], b"\xff", None)
    (request,) = activity.requests(SENSOR)
    assert activity.execute(BATCH, request).success
    activity.drive()
    assert len(activity.rows()) == 99
    views = activity.statistics(HOUR)["page_view"]
    assert views.deliveries == 99 - 3, "one is of another type, and two of another hour"
    # What a run finds stored it must be able to count as well, whatever its neighbours' times are.
    (row, *_) = activity.rows()
    stored = OffsetRange(activity.topic, row["kafka_topic_id"], row["kafka_partition"], 0, 200)
    assert sum(rows_by_hour(activity.services.user_activity.store, stored).values()) == 99
    with writing(activity.services.engine) as connection:
        connection.execute(sa.update(sink_positions).values(next_offset=0, outcome={}))
    assert activity.run(BATCH).success
    assert activity.outcome == {"found_stored": 99}
    assert activity.passed("no_gap_in_offsets", "no_duplicate_offsets") == [True, True]
    assert activity.check("event_time_plausible").metadata["implausible"].value == 2


def test_a_row_that_the_table_refuses_becomes_a_dead_letter_and_the_99_are_stored_at_once(
    activity: ActivitySystem,
) -> None:
    activity.put(event("first"))
    activity.drive()
    # A rule that somebody else gave the table: nothing of ours foresees it.
    foreign.table_of(activity.services).alter.add_constraint({"no_poison": "user_id <> 'poison'"})
    activity.put(*(event(f"e{number}") for number in range(40)), event("p", user_id="poison"), b"no event")
    activity.put(*(event(f"e{number}") for number in range(40, 98)), event("q", user_id="poison"))
    (request,) = activity.requests(SENSOR)
    assert activity.execute(BATCH, request).success
    assert [row["event_id"] for row in activity.rows()] == ["first", *(f"e{number}" for number in range(98))]
    letters = activity.dead_letters
    assert [json.loads(letter.value or b"")["event_id"] for letter in (letters[0], letters[2])] == ["p", "q"]
    assert b"The table refuses it" in (letters[0].header("dlq.reason") or b"")
    assert activity.outcome == {"events": 99, "dead_letters": 3}
    assert activity.reasons.strip() == ""
    activity.put(event("last"))
    activity.drive()
    assert activity.rows()[-1]["event_id"] == "last"
    assert len(activity.dead_letters) == 3
    assert activity.passed("no_gap_in_offsets", "no_duplicate_offsets") == [True, True]


@pytest.mark.long
def test_a_store_that_is_away_blames_no_message(activity: ActivitySystem) -> None:
    activity.put(event("e1"))
    activity.drive()
    activity.put(event("e2"), event("e3"))
    (request,) = activity.requests(SENSOR)
    log = foreign.log_of(activity.services)
    log.rename(log.with_name("_away"))
    log.write_text("a file where the folder should be")
    assert not activity.execute(BATCH, request).success
    log.unlink()
    log.with_name("_away").rename(log)
    activity.drive()
    assert [row["event_id"] for row in activity.rows()] == ["e1", "e2", "e3"]
    assert activity.dead_letters == []


def test_odd_and_large_headers_keep_neither_the_dead_letter_nor_the_99_from_being_stored(
    activity: ActivitySystem,
) -> None:
    headers = tuple((f"h{number}", b"x" * 60_000) for number in range(10))
    activity.put(*(event(f"e{number}") for number in range(99)))
    activity.services.writer.send_all(
        activity.topic, [ProducerRecord(b"no event", b"one", (("trace-id", b"t\xff"), *headers))]
    )
    (request,) = activity.requests(SENSOR)
    assert activity.execute(BATCH, request).success
    assert len(activity.rows()) == 99
    assert len(activity.dead_letters) == 1


def test_an_hour_that_cannot_be_counted_does_not_keep_the_others_from_being_counted(
    activity: ActivitySystem, tmp_path: Path
) -> None:
    activity.put(event("e1"), event("e2", timestamp="2026-01-16T10:00:00Z"))
    (request,) = activity.requests(SENSOR)
    assert activity.execute(BATCH, request).success
    folder = next(foreign.log_of(activity.services).parent.glob("event_day=2026-01-15"))
    for file in folder.iterdir():
        file.rename(tmp_path / file.name)
    hours = {"hours": [HOUR, "2026-01-16-10:00"]}
    config = {"ops": {"count_hours": {"config": hours}}}
    assert not activity.run(HOURLY_BATCH, config).success
    assert activity.statistics("2026-01-16-10:00")["page_view"].events == 1
    for file in tmp_path.glob("*.parquet"):
        file.rename(folder / file.name)
    activity.drive()
    assert activity.statistics(HOUR)["page_view"].events == 1


TEXTS = st.one_of(st.none(), st.text(max_size=20), st.sampled_from(["\0", "😀", " ", "x" * 600]))
TIMES = st.one_of(TEXTS, st.datetimes().map(str), st.datetimes().map(lambda at: f"{at.isoformat()}+14:00"))
ANYTHING = st.recursive(
    st.one_of(TEXTS, st.integers(), st.floats()), lambda inner: st.lists(inner, max_size=2), max_leaves=4
)
EVENTS = st.fixed_dictionaries(
    {"event_id": TEXTS, "event_type": TEXTS, "timestamp": TIMES},
    optional={
        "user_id": TEXTS,
        "request_id": TEXTS,
        "event_data": st.one_of(ANYTHING, st.dictionaries(TEXTS.map(str), ANYTHING, max_size=2)),
        "processing_info": st.one_of(
            ANYTHING, st.fixed_dictionaries({"received_at": TIMES, "processing_ms": ANYTHING})
        ),
        "client_info": st.one_of(ANYTHING, st.fixed_dictionaries({"language": ANYTHING})),
        "colour": ANYTHING,
    },
)
PAYLOADS = st.one_of(EVENTS.map(encoded), st.binary(max_size=30), st.none())


@settings(deadline=None)
@given(payloads=st.lists(PAYLOADS, max_size=6))
def test_every_message_is_a_row_or_refused_and_which_depends_on_itself_alone(payloads: list[bytes | None]) -> None:
    messages = received(*payloads)
    together = event_rows(messages, "g")
    assert together.table.schema.equals(SCHEMA)
    rows = together.table["kafka_offset"].to_pylist()
    assert sorted([*rows, *(message.offset for message, _ in together.refused)]) == list(range(len(messages)))
    assert rows == sorted(rows)
    assert all("unexpectedly" not in str(error) for _, error in together.refused)
    alone = [event_rows([message], "g") for message in messages]
    assert [one.table.num_rows for one in alone] == [int(message.offset in rows) for message in messages]
