"""Dead letters keep the original message."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.platform.kafka.dead_letters import dead_letter, shown_text
from ingest_project.platform.kafka.producer import ProducerRecord, TopicWriter
from ingest_project.platform.kafka.reader import TopicReader
from ingest_project_tests.services.kafka import Server

FAILED_AT = datetime(2026, 1, 15, 10, 30, 45, tzinfo=UTC)
GARBAGE = ProducerRecord(
    b"\x00\xff not JSON", b"\xfekey", (("trace", b"\xfd"), ("none", None), ("message-id", b"theirs"))
)


def read_one(reader: TopicReader, topic: str) -> ConsumerRecord:
    (message,) = reader.read(topic, None, max_messages=10, max_bytes=10_000_000, wait_seconds=5).messages
    return message


def letter_for(message: ConsumerRecord, reason: str = "Not JSON") -> tuple[str, ProducerRecord]:
    return dead_letter(
        message,
        error_class="UnreadableMessageError",
        reason=reason,
        trace_id="trace-1",
        first_failed_at=FAILED_AT,
        last_failed_at=FAILED_AT,
        topic_id="life-1",
    )


def test_a_dead_letter_carries_the_exact_bytes_and_every_header(
    broker: Server, reader: TopicReader, writer: TopicWriter, topic: str
) -> None:
    for name in (topic, topic + ".dlq"):
        broker.create_topic(name)
    writer.send_all(topic, [GARBAGE])
    message = read_one(reader, topic)
    _, letter = letter_for(message)
    writer.send_all(topic + ".dlq", [letter])

    arrived = read_one(reader, topic + ".dlq")

    assert (arrived.value, arrived.key) == (GARBAGE.value, GARBAGE.key)
    assert arrived.headers[: len(GARBAGE.headers)] == GARBAGE.headers
    assert dict(arrived.headers[len(GARBAGE.headers) :]) == {
        "dlq.original-topic": topic.encode(),
        "dlq.original-partition": b"0",
        "dlq.original-offset": b"0",
        "dlq.original-timestamp": (message.timestamp or FAILED_AT).isoformat(timespec="milliseconds").encode(),
        "dlq.error-class": b"UnreadableMessageError",
        "dlq.reason": b"Not JSON",
        "dlq.attempt": b"1",
        "dlq.trace-id": b"trace-1",
        "dlq.first-failed-at": b"2026-01-15T10:30:45.000+00:00",
        "dlq.last-failed-at": b"2026-01-15T10:30:45.000+00:00",
    }


def message_at(offset: int) -> ConsumerRecord:
    return ConsumerRecord("events", 3, offset, None, None, None, ())


def test_the_id_of_a_dead_letter_is_the_position_of_its_original() -> None:
    assert letter_for(message_at(7))[0] == letter_for(message_at(7), "another reason")[0]
    assert letter_for(message_at(7))[0] != letter_for(message_at(8))[0]


def test_a_long_reason_is_cut_between_characters() -> None:
    _, letter = letter_for(message_at(7), "é" * 5_000 + "\ud800")
    reason = dict(letter.headers)["dlq.reason"] or b""

    assert 2_000 < len(reason) <= 2_048
    assert set(reason.decode()) == {"é"}


def test_the_dead_letter_of_a_tombstone_is_a_tombstone() -> None:
    assert letter_for(message_at(7))[1].value is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b'{"url": "https://me:pw@h/a.pdf?sig=abc&b=1#c"}', '{"url": "https://h/a.pdf?…"}'),
        (b'{"url":"https:\\/\\/h\\/a?sig=abc"}', '{"url":"https://h/a?…"}'),
        (b'{"a": "' + b"x" * 40 + b" sftp://me:" + b"p" * 300 + b'@h/in"}', '{"a": "' + "x" * 40 + " sftp://h/in"),
        (b'{"Password" : "a\\"b", "x": 1}', '{"Password" : "…", "x": 1}'),
        (b"\xff no JSON", "\\xff no JSON"),
        (None, None),
    ],
)
def test_a_shown_dead_letter_contains_no_secret(value: bytes | None, shown: str | None) -> None:
    assert shown_text(value, 59) == (shown and shown[:59])


def test_a_timestamp_in_seconds_instead_of_milliseconds_is_ignored() -> None:
    times = [1_700_000_000, 1_700_000_000_000, 1_700_000_000_000_000, 0, -1, None]
    records = [ConsumerRecord("t", 0, 1, time, None, None, ()) for time in times]
    stated = [record.timestamp for record in records]
    assert stated == [None, datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC), None, None, None, None]
