"""Messages to rows: typed, with a bounded number of days, and independent of other messages."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest_project.contracts.enriched_event import EnrichedEvent, decode_enriched_event
from ingest_project.core.errors import UnreadableMessageError
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.streams.delta.rows import MAX_DAYS_PER_COMMIT, hours_in, of_hour, with_few_days
from ingest_project.streams.hours import FIRST_HOUR
from ingest_project.streams.user_activity.event_table import SCHEMA, event_rows
from ingest_project_tests.fuzz import examples
from ingest_project_tests.streams import hostile
from ingest_project_tests.streams.user_activity.events import encoded, event, received

DATA = Path(__file__).parents[3] / ".." / "shared" / "data" / "json"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

MOMENTS = st.sampled_from(
    [
        "2026-01-15T10:30:45Z",
        "2026-01-15 10:30:45.123456Z",
        "2026-01-15T10:30:45.1234567Z",
        "2026-01-15T10:30:45",
        "2026-01-15T10:30:45+05:30",
        "2026-01-15T10:30:60Z",
        "2026-02-30T10:30:45Z",
        "2026-01-15",
        "2026-01-15T10Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "soon",
        "",
    ]
)
MESSAGES = st.one_of(
    st.builds(lambda moment: encoded(event(timestamp=moment)), MOMENTS),
    st.builds(lambda moment: encoded(event(processing_info={"received_at": moment})), MOMENTS),
    st.sampled_from([b"", b"{}", b"\xff", encoded(event(event_data=[1])), encoded(event(event_data={}))]),
    st.just(encoded(event()).replace(b"submit", b"\xff")),
    st.just(encoded(event(colour="red"))),
    st.just(encoded(event(user_id=None, session_id=None, client_info=None, service_info={}))),
)


def rows_of(messages: list[ConsumerRecord]) -> tuple[list[dict[str, Any]], dict[int, str]]:
    found = event_rows(messages, "g")
    assert found.table.schema == SCHEMA
    return found.table.to_pylist(), {message.offset: str(error) for message, error in found.refused}


@settings(deadline=None, max_examples=examples(50))
@given(st.lists(MESSAGES, max_size=12))
def test_each_message_is_a_row_or_refused_whatever_is_around_it(payloads: list[bytes]) -> None:
    messages = received(*payloads)
    rows, reasons = rows_of(messages)
    alone = [rows_of([message]) for message in messages]
    assert rows == [row for found, _ in alone for row in found]
    assert reasons == {offset: reason for _, refused in alone for offset, reason in refused.items()}
    assert len(rows) + len(reasons) == len(messages)


def alone(raw: bytes | None) -> tuple[EnrichedEvent | None, bytes | None, str]:
    try:
        return *decode_enriched_event(raw), ""
    except UnreadableMessageError as error:
        return None, None, str(error)


def is_no_json(raw: bytes) -> bool:
    try:
        json.loads(raw.decode())
    except (ValueError, RecursionError):
        return True
    return False


GOOD = [event(), event("e2", event_data=None, client_info=None), event("e3", request_id=None, processing_info={})]


@settings(deadline=None, max_examples=examples(150))
@given(st.lists(hostile.messages(GOOD), min_size=1, max_size=6))
def test_many_messages_are_decoded_as_each_is_on_its_own(payloads: list[bytes]) -> None:
    rows, reasons = rows_of(received(*payloads))
    by_offset = {row["kafka_offset"]: row for row in rows}
    for offset, raw in enumerate(payloads):
        found, unknown, reason = alone(raw)
        if found is None:
            assert reasons[offset] == reason
            continue
        row = by_offset.get(offset)
        if row is None:
            # What is looked at in columns: times, and the text of the data.
            in_columns = re.search(r"timestamp|received_at|processed_at|event_data|occurs", reasons[offset])
            assert in_columns or is_no_json(raw), reasons[offset]
            continue
        texts = ("event_id", "event_type", "request_id", "user_id", "session_id", "page_url")
        sent = (getattr(found, name) for name in texts)
        assert [row[name] for name in texts] == [None if value is msgspec.UNSET else value for value in sent]
        assert (row["event_data"] or "null") == (bytes(found.event_data) or b"null").decode()
        client = msgspec.to_builtins(found.client_info) if found.client_info else None
        assert row["client_info"] == (None if client is None else dict.fromkeys(row["client_info"]) | client)
        assert row["_rescued"] == (unknown and unknown.decode())


@pytest.mark.parametrize("number", [1, 300])
def test_an_event_with_a_name_that_occurs_twice_is_refused_alone(number: int) -> None:
    good = [
        encoded(event("g")),
        encoded({"event_id": "g", "event_type": "x", "timestamp": "2026-01-15T10:30:45Z"}),
        encoded(event("g", event_data={"event_id": 1, "in": {"language": ' "x" :'}}, user_id=None, page_url=' "a" : ')),
        encoded(event("g", event_data={"a": {"a": 1}, "b": [{"a": '"a\\":'}, {"a": " \u0020:"}]}, user_id=None)),
        encoded(event("g", event_data={})).replace(b'"event_data": {}', b'"event_data": {"a": 1e400, "b": "\\u0022:"}'),
        encoded(event("g", colour={"user_id": 1}, client_info={"language": "en", "user_id": {"language": 1}})),
        encoded(event("g", client_info=None, service_info={}, processing_info={"received_at": None})),
    ]
    whole, unknown = encoded(event("b")), encoded(event("b", colour=1))
    bad = {
        "user_id occurs 2 times": whole.replace(b'"user_id"', b'"user_id": null, "user_id"'),
        "event_id occurs 3 times": whole.replace(b"{", b'{"event_id" : "a", "event_\\u0069d": "c", ', 1),
        "client_info.language occurs 2 times": whole.replace(b'"language"', b'"language": "de", "language"'),
        "event_data occurs 2 times": whole.replace(b'"event_data"', b'"event_data": {"a": 1}, "event_data"'),
        "event_data.a occurs 2 times": whole.replace(b'"event_data": {', b'"event_data": {"a": 1, "a": 2, '),
        "event_data.in.a occurs 2 times": whole.replace(
            b'"event_data": {', b'"event_data": {"in": [{"a": 1, "a": 2}], '
        ),
        "processing_info occurs 2 times": whole.replace(
            b'"processing_info"', b'"processing_info": {}, "processing_info"'
        ),
        "colour occurs 2 times": unknown.replace(b'"colour"', b'"colour": 2, "colour"'),
        "user_id occurs 4 times": whole.replace(
            b'"user_id"', b'" \\u0020:": 1, "user_id": 1, "user_id": 2, "user_id": 3, "user_id"'
        ),
        "client_info.device occurs 2 times": whole.replace(b'"language"', b'"device": 1, "device": 2, "language"'),
    }
    assert all(raw not in (whole, unknown) for raw in bad.values())
    rows, reasons = rows_of(received(*good * number, *bad.values()))
    assert (len(rows), {row["event_id"] for row in rows}) == (len(good) * number, {"g"}), reasons
    assert list(reasons.values()) == [f"Not an EnrichedEvent: {reason}." for reason in bad]


def test_times_without_zone_are_utc_and_others_are_brought_to_it() -> None:
    texts = ["2026-01-15T10:30:45", "2026-01-15T12:30:45+02:00", "2026-01-15T10:30:45.000Z"]
    rows, _ = rows_of(received(*(encoded(event(timestamp=text)) for text in texts)))
    assert {row["timestamp"] for row in rows} == {datetime(2026, 1, 15, 10, 30, 45, tzinfo=UTC)}


@pytest.mark.parametrize("data", [None, "null"])
def test_missing_data_is_null_and_an_object_keeps_its_text(data: str | None) -> None:
    raw = encoded(event(event_data=None))
    if data is not None:
        raw = raw[:-1] + b', "event_data": null}'
    written = encoded(event(event_data=None))[:-1] + b', "event_data": {"big": 12345678901234567890123, "a": 1.50}}'
    rows, _ = rows_of(received(raw, written))
    assert [row["event_data"] for row in rows] == [None, '{"big": 12345678901234567890123, "a": 1.50}']


def test_an_event_with_an_impossible_time_has_no_day() -> None:
    sent = datetime.fromtimestamp(1_768_473_045, UTC)
    moments = [datetime(1970, 1, 1, tzinfo=UTC), sent, sent + timedelta(hours=23), sent + timedelta(hours=25)]
    rows, _ = rows_of(received(*(encoded(event(timestamp=moment.isoformat())) for moment in moments)))
    assert [row["event_day"] is None for row in rows] == [True, False, False, True]


def test_the_days_of_one_commit_are_bounded() -> None:
    days = [datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=number) for number in range(100)]
    payloads = [encoded(event(timestamp=day.isoformat())) for day in days]
    payloads += [encoded(event(timestamp=days[50].isoformat()))] * 3
    table = with_few_days(event_rows(received(*payloads), "g").table)
    assert table.num_rows == 103
    named = [day for day in table["event_day"].to_pylist() if day]
    assert len(set(named)) == MAX_DAYS_PER_COMMIT
    assert named.count(days[50].date().isoformat()) == 4


def test_hours_are_those_that_have_a_partition_now_or_soon() -> None:
    now = datetime.now(UTC)
    moments = ["1969-12-31T23:00:00Z", "2026-01-15T10:59:59.999999Z", "2026-01-15T11:00:00Z"]
    moments += [(now + timedelta(days=3)).isoformat()]
    table = event_rows(received(*(encoded(event(timestamp=moment)) for moment in moments)), "g").table
    ten = datetime(2026, 1, 15, 10, tzinfo=UTC)
    assert hours_in(table, "timestamp", FIRST_HOUR) == {ten: 1, ten + timedelta(hours=1): 1}
    assert of_hour(table, ten, "timestamp").num_rows == 1
    assert hours_in(table.slice(0, 0), "timestamp", FIRST_HOUR) == {}


def test_a_broker_time_outside_the_calendar_is_null() -> None:
    messages = [
        ConsumerRecord("t", 0, offset, moment, None, encoded(event()), ())
        for offset, moment in enumerate([-1, 2**62, None, 0])
    ]
    rows, _ = rows_of(messages)
    assert [row["kafka_timestamp"] for row in rows] == [None, None, None, datetime(1970, 1, 1, tzinfo=UTC)]


def entries(*kinds: str) -> list[dict[str, Any]]:
    if not (DATA / "manifest.jsonl").exists():
        pytest.skip("the shared JSON data is not next to this repository")
    lines = (DATA / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if not kinds or entry["kind"] in kinds]


def test_no_real_input_is_an_event_and_each_is_refused_to_the_byte() -> None:
    payloads = [(DATA / entry["file"]).read_bytes() for entry in entries()]
    lines = [line for payload in payloads for line in payload.splitlines()]
    inputs = received(*payloads, *dict.fromkeys(lines))
    found = event_rows(inputs, "g")
    assert [message.value for message, _ in found.refused] == [message.value for message in inputs]


def test_a_json_text_inside_an_event_is_taken_or_refused_as_the_manifest_says() -> None:
    cases = [case for case in entries("json_syntax", "json_file") if not case["file"].endswith(".ndjson")]
    for place in ("custom", "event_data"):
        payloads = []
        for case in cases:
            text = (DATA / case["file"]).read_bytes().removeprefix(BYTE_ORDER_MARK)
            value = text if place == "custom" else b'{"inside": ' + text + b"}"
            payloads.append(encoded(event(**{place: "<here>"})).replace(b'"<here>"', value))
        rows, refused = rows_of(received(*payloads))
        assert len(rows) + len(refused) == len(cases)
        for number, case in enumerate(cases):
            if case["expect"] == "accept":
                assert number not in refused, (case["file"], refused[number])
            elif case["expect"] == "reject":
                assert number in refused, case["file"]


def test_every_naughty_string_comes_back_as_it_was_sent() -> None:
    (entry,) = entries("naughty_strings")
    lines = (DATA / entry["file"]).read_text(encoding="utf-8").split("\n")
    naughty = [line for line in lines if line and not line.startswith("#")]
    payloads = [encoded(event(user_id=text, event_data={"text": text}, custom=text)) for text in naughty]
    rows, refused = rows_of(received(*payloads))
    assert refused == {}
    assert [row["user_id"] for row in rows] == naughty
    assert [json.loads(row["event_data"])["text"] for row in rows] == naughty
    assert [json.loads(row["_rescued"])["custom"] for row in rows] == naughty
