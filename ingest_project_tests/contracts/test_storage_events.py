"""Notifications of object stores, in each form that stores and their services write them."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_project.contracts.files import FileEvent
from ingest_project.contracts.storage_events import (
    MAX_RECORDS,
    Ignored,
    StorageNotification,
    decode_storage_notification,
)
from ingest_project.core.errors import UnreadableMessageError
from ingest_project.core.settings import Settings
from ingest_project.file_ingest.sensors import Announced, announcement_of
from ingest_project.sources.registry import SourceContext

AT = "2026-01-15T10:30:45.123Z"
BLOB = "https://acct.blob.core.windows.net/in/a b.csv"


def s3_record(key: str = "in/a.csv", event: str = "ObjectCreated:Put", **changes: object) -> dict[str, Any]:
    """As Amazon S3 writes it, shortened."""
    found = {"key": key, "size": 5213, "eTag": "d41d8cd98f00b204", "sequencer": "0A1B", **changes}
    entity = {"bucket": {"name": "landing", "arn": "arn:aws:s3:::landing"}, "object": found}
    return {"eventVersion": "2.1", "eventSource": "aws:s3", "eventTime": AT, "eventName": event, "s3": entity}


def grid_event(url: str = BLOB, kind: str = "Microsoft.Storage.BlobCreated", **data: object) -> dict[str, Any]:
    """As Event Grid writes it in its own schema."""
    about = {"api": "PutBlob", "eTag": "0x8D4BCC2E4835CD0", "contentLength": 524288, "url": url, **data}
    return {
        "topic": "/subscriptions/x",
        "subject": "s",
        "eventType": kind,
        "id": "831e",
        "eventTime": AT,
        "data": about,
    }


def cloud_event() -> dict[str, Any]:
    """As Event Grid writes it in the schema of CloudEvents."""
    event = grid_event()
    event["type"], event["time"] = event.pop("eventType"), event.pop("eventTime")
    return {**event, "specversion": "1.0", "source": event.pop("topic")}


def decoded(message: object) -> StorageNotification:
    """Decode a message that must be a notification."""
    notification = decode_storage_notification(json.dumps(message).encode())
    assert notification is not None
    return notification


BRIDGED = {
    "version": "0", "id": "17793124", "detail-type": "Object Created", "source": "aws.s3", "time": AT,
    "detail": {"bucket": {"name": "landing"}, "object": {"key": "in/a.csv", "size": 5213, "etag": "d41d8cd98f00b204"}},
}  # fmt: skip
CREATED = {
    "s3": {"Records": [s3_record()]},
    "minio": {
        "EventName": "s3:ObjectCreated:Put",
        "Key": "landing/in/a.csv",
        "Records": [s3_record("in%2Fa.csv", "s3:ObjectCreated:Put")],
    },
    "sns": {"Type": "Notification", "TopicArn": "arn:x", "Message": json.dumps({"Records": [s3_record()]})},
    "eventbridge": BRIDGED,
    "eventbridge over sns": {"Type": "Notification", "TopicArn": "arn:x", "Message": json.dumps(BRIDGED)},
}


@pytest.mark.parametrize("form", CREATED)
def test_each_form_of_s3_announces_the_same_file(form: str) -> None:
    (event,) = decoded(CREATED[form]).files
    assert (event.source_type, event.file_path, event.file_name) == ("s3", "s3://landing/in/a.csv", "a.csv")
    assert (event.etag, event.size_bytes) == ("d41d8cd98f00b204", 5213)
    assert event.discovered_at == datetime(2026, 1, 15, 10, 30, 45, 123_000, UTC)


@pytest.mark.parametrize(
    ("encoded", "key"),
    [("in/a+b.csv", "in/a b.csv"), ("in/a%2Bb.csv", "in/a+b.csv"), ("in%2F%C3%A4%25.csv", "in/ä%.csv")],
)
def test_keys_in_records_are_decoded(encoded: str, key: str) -> None:
    (event,) = decoded({"Records": [s3_record(encoded)]}).files
    assert event.file_path == f"s3://landing/{key}"


def test_keys_that_are_not_encoded_stay_as_they_are() -> None:
    key = "in/a+b%20c.csv"
    detail = {"bucket": {"name": "landing"}, "object": {"key": key}}
    minio = {"EventName": "s3:ObjectCreated:Put", "Key": f"landing/{key}"}
    for message in ({**BRIDGED, "detail": detail}, minio):
        (event,) = decoded(message).files
        assert (event.file_path, event.etag) == (f"s3://landing/{key}", None)


def test_a_version_of_a_bucket_that_keeps_versions_is_named() -> None:
    first, unversioned = decoded({"Records": [s3_record(versionId="v1"), s3_record(versionId="null")]}).files
    assert (first.metadata, unversioned.metadata) == ({"s3_version_id": "v1"}, {})


@pytest.mark.parametrize("form", ["event grid", "list", "cloud event", "cloud events"])
def test_each_form_of_event_grid_announces_the_same_file(form: str) -> None:
    messages = {
        "event grid": grid_event(),
        "list": [grid_event()],
        "cloud event": cloud_event(),
        "cloud events": [cloud_event()],
    }
    (event,) = decoded(messages[form]).files
    assert (event.source_type, event.file_path, event.file_name) == ("onelake", BLOB, "a b.csv")
    assert (event.etag, event.size_bytes, event.event_id) == ("0x8D4BCC2E4835CD0", 524288, "831e")


@pytest.mark.parametrize(
    ("api", "complete"),
    [
        *((name, True) for name in ("PutBlob", "PutBlockList", "CopyBlob", "FlushWithClose", "SftpCommit")),
        *((name, False) for name in ("CreateFile", "SftpCreate", "AppendFile", "Flush", 7)),
    ],
)
def test_only_a_write_that_is_complete_announces_a_file(api: object, complete: bool) -> None:  # noqa: FBT001
    notification = decoded([grid_event(api=api)])
    assert len(notification.files) == complete
    assert notification.ignored.total() == (not complete)


IGNORED = {
    "ObjectRemoved:Delete": ("deleted", {"Records": [s3_record(event="ObjectRemoved:Delete")]}),
    "ObjectRestore:Completed": ("other_event", {"Records": [s3_record(event="ObjectRestore:Completed")]}),
    "ObjectCreated:Put": ("folder", {"Records": [s3_record("in/folder/")]}),
    "s3:TestEvent": ("test", {"Service": "Amazon S3", "Event": "s3:TestEvent", "Time": AT, "Bucket": "landing"}),
    "SubscriptionConfirmation": (
        "subscription",
        {"Type": "SubscriptionConfirmation", "TopicArn": "arn:x", "Message": "Visit"},
    ),
    "UnsubscribeConfirmation": ("subscription", {"Type": "UnsubscribeConfirmation", "TopicArn": "arn:x"}),
    "Object Deleted": ("deleted", {**BRIDGED, "detail-type": "Object Deleted"}),
    "s3:ObjectRemoved:Delete": ("deleted", {"EventName": "s3:ObjectRemoved:Delete", "Key": "landing/in/a.csv"}),
    "s3:LifecycleExpiration:Delete": ("deleted", {"Records": [s3_record(event="s3:LifecycleExpiration:Delete")]}),
    "Microsoft.Storage.BlobDeleted": ("deleted", [grid_event(kind="Microsoft.Storage.BlobDeleted")]),
    "Microsoft.Fabric.OneLake.FileDeleted": ("deleted", [grid_event(kind="Microsoft.Fabric.OneLake.FileDeleted")]),
    "Microsoft.Storage.BlobCreated": ("incomplete_write", [grid_event(api="CreateFile")]),
    "Microsoft.Storage.BlobTierChanged": ("other_event", [grid_event(kind="Microsoft.Storage.BlobTierChanged")]),
    "Microsoft.EventGrid.SubscriptionValidationEvent": (
        "subscription",
        [grid_event(kind="Microsoft.EventGrid.SubscriptionValidationEvent", validationCode="x")],
    ),
    "x" * 100: ("other_event", {"Records": [s3_record(event="x" * 300)]}),
}


@pytest.mark.parametrize("name", IGNORED)
def test_records_that_announce_no_file_are_ignored_and_counted_by_reason(name: str) -> None:
    reason, message = IGNORED[name]
    notification = decoded(message)
    assert (notification.files, notification.rejected, dict(notification.ignored)) == ([], [], {(name, reason): 1})


def test_a_bad_record_costs_the_others_nothing_and_has_a_reason() -> None:
    bad: list[Any] = [s3_record(""), s3_record("in/%ff.csv"), s3_record(size=-1), {"eventName": "ObjectCreated:Put"}, 7]
    notification = decoded({"Records": [s3_record("a.csv"), *bad, s3_record("z.csv")]})
    assert [event.file_name for event in notification.files] == ["a.csv", "z.csv"]
    assert [reason.partition(":")[0] for reason in notification.rejected] == [f"record {n}" for n in range(2, 7)]
    for reason, expected in zip(
        notification.rejected, ["file_name", "utf-8", "size_bytes", "s3 is missing", "no event"], strict=True
    ):
        assert expected in reason
    assert decoded([grid_event(), 7, {"eventType": "Microsoft.Storage.BlobCreated", "data": {}}]).rejected == [
        "record 2: it names no event of a store",
        "record 3: $.data.url is missing",
    ]


@pytest.mark.parametrize(
    "message",
    [
        None, 7, "text", [], [[]], [7], {}, {"Records": []}, {"Records": [{"body": "of SQS"}]}, {"Records": 7},
        {"file_path": "a.csv"}, {"Type": "Notification"}, {"EventName": 7, "Key": "a/b"}, {"detail-type": "x"},
    ],
)  # fmt: skip
def test_other_messages_are_not_notifications(message: object) -> None:
    assert decode_storage_notification(json.dumps(message).encode()) is None


def test_too_many_records_or_a_wrong_sns_envelope_are_refused() -> None:
    with pytest.raises(UnreadableMessageError, match="at most 5000"):
        decoded({"Records": [{"eventName": "x"}] * (MAX_RECORDS + 1)})
    wrapped: object = {"Type": "Notification", "Message": "not JSON"}
    for _ in range(2):
        with pytest.raises(UnreadableMessageError, match="SNS wrapped"):
            decoded(wrapped)
        wrapped = {"Type": "Notification", "Message": json.dumps(CREATED["sns"])}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    "eventName",
    "s3",
    "bucket",
    "object",
    "key",
    "name",
    "size",
    "data",
    "url",
    "eventType",
    "specversion",
    "type",
]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON), st.sampled_from(["ObjectCreated:Put", "x"]), JSON)
def test_no_record_of_any_shape_ends_in_another_error(record: dict[str, Any], name: str, entity: object) -> None:
    records = [record, {**record, "eventName": name}, {"eventName": name, "s3": entity}]
    azure = {**record, "eventType": "Microsoft.Storage.BlobCreated", "data": entity}
    for message in ({"Records": records}, [azure], {**BRIDGED, "detail": entity}):
        decode_storage_notification(json.dumps(message).encode())


def test_a_notification_whose_files_are_all_rejected_still_has_its_ignored_records_counted() -> None:
    ignored = Counter({("Microsoft.Storage.BlobCreated", Ignored.INCOMPLETE_WRITE): 2})
    rejected = StorageNotification(rejected=["record 1: url is missing"], ignored=ignored)

    def not_asked(_: FileEvent) -> list[Announced]:
        raise AssertionError

    found = announcement_of(rejected, SourceContext(Settings()), not_asked)
    assert (found.files, found.ignored) == ([], {Ignored.INCOMPLETE_WRITE: 2})
    assert "url is missing" in str(found.error)
    with pytest.raises(UnreadableMessageError):
        announcement_of(StorageNotification(rejected=["url is missing"]), SourceContext(Settings()), not_asked)
