"""Addresses in events, for any payload."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given, settings

from ingest_project.attachments.extraction import AddressPaths, distinct_names, named_in, tasks_of
from ingest_project.attachments.queue import EventRecord
from ingest_project.attachments.storage import Destinations
from ingest_project.contracts.attachments import AttachmentEvent, DeclaredAttachment, decode_attachment_event
from ingest_project.core.errors import SettingsError, UnreadableMessageError
from ingest_project.platform.work_queue.queue import JobState, KafkaPosition
from ingest_project_tests.contracts.test_attachments import EVENTS, JSON

NOW = datetime(2026, 1, 15, 10, 30, tzinfo=UTC)
DESTINATIONS = Destinations("{domain}/{yyyy}/{MM}/{dd}/{trace_id}/{file_name}", {})
PATHS = AddressPaths({"claims": ["$.docs[*].href"], "*": ["$..scan", "$.list[?(@.size > 1)]"]})


def record_of(body: bytes) -> EventRecord:
    return EventRecord(
        event_key="e", hour="2026-01-15-10:00", trace_id="t", domain="d", event_type="", state=JobState.RUNNING,
        attempts=1, body=body.decode("utf-8", "replace"), kafka_position=KafkaPosition("events.raw", 0, 1, "g", NOW),
        reason=None, error_class=None, batch_id=None, run_id=None, next_attempt_at=NOW, created_at=NOW, updated_at=NOW,
        started_at=None, finished_at=None,
    )  # fmt: skip


def addresses(payload: object, domain: str = "claims", **more: object) -> list[str]:
    event = msgspec.convert({"trace_id": "t", "domain": domain, "payload": payload, **more}, AttachmentEvent)
    return [one.url for one in named_in(event, PATHS)[0]]


@settings(deadline=None)
@given(EVENTS.map(msgspec.json.encode))
def test_every_readable_event_gives_tasks(raw: bytes) -> None:
    try:
        decode_attachment_event(raw)
    except UnreadableMessageError:
        return
    for arrival in tasks_of(record_of(raw), PATHS, DESTINATIONS):
        assert arrival.task.attachment_url.strip()
        assert not arrival.task.destination_path.startswith("/")
        assert ".." not in arrival.task.destination_path.split("/")


@settings(deadline=None)
@given(JSON)
def test_a_payload_of_any_shape_is_looked_through(payload: object) -> None:
    assert all(url.strip() for url in addresses({"docs": payload, "scan": payload, "list": payload}))


def test_an_unusable_path_in_a_deep_payload_fails_alone_and_other_paths_are_extracted() -> None:
    deep = b'{"a":' * 900 + b"1" + b"}" * 900
    payload = b'{"docs":[{"href":"http://h/b"}],"deep":' + deep + b"}"
    raw = b'{"trace_id":"t","domain":"claims","attachments":["http://h/a"],"payload":' + payload + b"}"
    first, second, failed = (one.task for one in tasks_of(record_of(raw), PATHS, DESTINATIONS))
    assert [first.attachment_url, second.attachment_url] == ["http://h/a", "http://h/b"]
    assert (first.refused, second.refused) == (None, None)
    assert failed.refused == "The JSONPath $..['scan'] cannot be followed: recursion limit exceeded."


def test_addresses_alone_objects_and_lists_of_them_are_found_and_the_rest_is_not() -> None:
    payload = {"docs": [{"href": "u1"}, {"href": {"url": "u2"}}, {"href": ["u3", 7, {"url": "u4"}]}, {"href": None}]}
    assert addresses(payload) == ["u1", "u2", "u3", "u4"]
    assert addresses(payload, domain="other") == []
    assert addresses({"x": [{"scan": "u5"}]}, domain="other", attachments=["u0"]) == ["u0", "u5"]


def test_more_addresses_than_one_event_may_have_are_left_out() -> None:
    assert len(addresses({"scan": [f"http://h/{n}" for n in range(10_050)]})) == 10_000


def test_no_two_files_of_one_event_have_the_same_name() -> None:
    declared = [DeclaredAttachment(url=f"http://h/{n}/a.pdf") for n in range(3)] + [
        DeclaredAttachment(url="http://h/b", file_name="A.pdf")
    ]
    names = distinct_names([*declared, *declared])
    assert len({name.lower() for name in names.values()}) == len(names) == 4


def test_an_invalid_json_path_names_its_setting() -> None:
    with pytest.raises(SettingsError, match="INGEST_ATTACHMENT_URL_PATHS"):
        AddressPaths({"claims": ["$.["]})
