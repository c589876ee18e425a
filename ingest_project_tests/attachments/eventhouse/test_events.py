"""A row becomes the AttachmentEvent that readers of `events.raw` expect, for any content of its columns."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from ingest_project.attachments.eventhouse.queries import MAX_EVENT_BYTES, PolledEvent, RefusedRow, event_of
from ingest_project.contracts.attachments import decode_attachment_event
from ingest_project_tests.attachments.eventhouse.samples import claims, row

KEYED = {"_ingest_at": "2026-03-01T11:00:00.7654321Z", "_ingest_key": "0f" * 16}


def event(query_changes: dict[str, Any] | None = None, **changes: object) -> dict[str, Any]:
    """The event that a row becomes, as JSON."""
    polled = event_of(claims(**(query_changes or {})), row(1) | KEYED | changes)
    assert isinstance(polled, PolledEvent)
    assert decode_attachment_event(polled.value)
    decoded: dict[str, Any] = json.loads(polled.value)
    return decoded


def test_a_row_with_the_usual_columns_is_the_event_of_the_contract() -> None:
    assert event() == {
        "trace_id": "trace-00001",
        "event_type": "claim.documents.received",
        "domain": "claims",
        "occurred_at": "2026-03-01T10:00:00.123456Z",
        "attachments": ["https://files.example.com/1.pdf"],
        "payload": {"EventId": "event-00001", "number": 1},
    }


def test_other_columns_can_hold_the_fields() -> None:
    columns = {"trace_id": "ClaimId", "occurred_at": "When", "attachments": "Files", "payload": "Body"}
    mapped = event(
        {"columns": columns}, ClaimId="C-7", When="2026-02-03T04:05:06Z", Files=[{"url": "https://x/1"}], Body={"a": 1}
    )

    assert mapped["trace_id"] == "C-7"
    assert mapped["occurred_at"] == "2026-02-03T04:05:06Z"
    assert mapped["attachments"] == [{"url": "https://x/1"}]
    assert mapped["payload"]["a"] == 1
    assert mapped["payload"]["trace_id"] == "trace-00001"


@pytest.mark.parametrize(
    ("stored", "attachments"),
    [
        (None, []),
        ("", []),
        ([], []),
        ("https://x/1.pdf", ["https://x/1.pdf"]),
        ('["https://x/1", {"url": "https://x/2"}]', ["https://x/1", {"url": "https://x/2"}]),
        ('{"url": "https://x/1"}', [{"url": "https://x/1"}]),
        ({"url": "https://x/1"}, [{"url": "https://x/1"}]),
        ("[not json", ["[not json"]),
    ],
)
def test_attachments_are_understood_as_dynamic_as_text_and_alone(stored: object, attachments: list[object]) -> None:
    assert event(attachments=stored)["attachments"] == attachments


@pytest.mark.parametrize(
    ("stored", "payload"), [(None, {}), ({"a": 1}, {"a": 1}), ('{"a": 1}', {"a": 1}), ([1], {"payload": [1]})]
)
def test_a_payload_is_an_object_whatever_the_column_holds(stored: object, payload: dict[str, object]) -> None:
    assert event(payload=stored)["payload"] == {"EventId": "event-00001"} | payload


def test_missing_fields_of_a_row_get_their_defaults() -> None:
    bare = event(trace_id=None, event_type="", occurred_at=None)

    assert bare["trace_id"] == KEYED["_ingest_key"]
    assert bare["event_type"] == "claims.event"
    assert bare["occurred_at"] == "2026-03-01T11:00:00.765432Z"


def test_times_keep_their_moment_in_utc() -> None:
    assert event(occurred_at="2026-03-01T12:00:00+02:00")["occurred_at"] == "2026-03-01T10:00:00Z"
    assert event(occurred_at="2026-03-01")["occurred_at"] == "2026-03-01T00:00:00Z"
    polled = event_of(claims(), row(1) | KEYED)
    assert isinstance(polled, PolledEvent)
    assert decode_attachment_event(polled.value).occurred_at == datetime(2026, 3, 1, 10, 0, 0, 123456, tzinfo=UTC)


def test_a_payload_too_large_for_a_message_is_left_out_and_the_attachments_stay() -> None:
    large = event(payload={"text": "x" * MAX_EVENT_BYTES})

    assert large["attachments"] == ["https://files.example.com/1.pdf"]
    assert "more than the 1000000 of a message" in large["payload"]["payload_omitted"]


def test_a_row_too_large_without_its_payload_is_refused_and_names_the_limit() -> None:
    refused = event_of(claims(), row(1) | KEYED | {"attachments": ["https://x/" + "y" * MAX_EVENT_BYTES]})

    assert isinstance(refused, RefusedRow)
    assert str(MAX_EVENT_BYTES) in refused.reason


def test_a_row_that_cannot_be_written_is_refused_with_its_content_and_reason() -> None:
    odd = row(1) | KEYED | {"payload": {"note": "\ud800"}}
    refused = event_of(claims(), odd)
    assert isinstance(refused, RefusedRow)
    assert (refused.event_id, refused.error_class) == (
        f"eventhouse:claims:{KEYED['_ingest_key']}",
        "UnicodeEncodeError",
    )
    assert json.loads(refused.value) == odd


def test_a_time_that_leaves_the_calendar_in_utc_stays_the_text_that_it_is() -> None:
    polled = event_of(claims(), row(1) | KEYED | {"occurred_at": "0001-01-01T00:00:00+14:00"})
    assert isinstance(polled, PolledEvent)
    assert json.loads(polled.value)["occurred_at"] == "0001-01-01T00:00:00+14:00"
