"""From the notification of an object store to stored rows."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest

from ingest_project.core.secrets import text_of
from ingest_project.core.settings import Settings
from ingest_project.file_ingest.capability import IGNORED_NOTIFICATIONS
from ingest_project.operations import RunningTotals
from ingest_project.platform.object_store.store import S3Options
from ingest_project_tests.contracts.test_storage_events import grid_event, s3_record
from ingest_project_tests.journeys.system import System, readings
from ingest_project_tests.services.dfs_server import DfsServer
from ingest_project_tests.sources.backends import OneLakeBackend, S3Backend


def reach(system: System, backend: S3Backend | OneLakeBackend, **changes: object) -> None:
    """Let a system read what a backend holds."""
    values = {**backend.settings, **changes}
    remote = Settings.model_validate(values)
    system.settings = system.settings.model_copy(update={name: getattr(remote, name) for name in values})
    system.restart()


class Notifications:
    """What S3 itself sends of a bucket, by a queue."""

    def __init__(self, options: S3Options, backend: S3Backend) -> None:
        session = boto3.Session(
            options.access_key_id, text_of(options.secret_access_key or ""), region_name=options.region
        )
        self.client: Any = session.client("sqs", endpoint_url=options.endpoint_url)
        self.queue = self.client.create_queue(QueueName=backend.bucket)["QueueUrl"]
        name = self.client.get_queue_attributes(QueueUrl=self.queue, AttributeNames=["QueueArn"])
        queue: Any = {
            "QueueArn": name["Attributes"]["QueueArn"],
            "Events": ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"],
        }
        backend.client.put_bucket_notification_configuration(
            Bucket=backend.bucket, NotificationConfiguration={"QueueConfigurations": [queue]}
        )

    def sent(self) -> list[bytes]:
        """The bodies that arrived since the last call."""
        bodies: list[bytes] = []
        while found := self.client.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=10).get("Messages"):
            bodies += [message["Body"].encode() for message in found]
            for message in found:
                self.client.delete_message(QueueUrl=self.queue, ReceiptHandle=message["ReceiptHandle"])
        return bodies


def letters(system: System) -> list[str]:
    """The reasons of the dead letters."""
    found = system.on_topic(system.settings.topics.file_event_queue_dlq)
    return [(letter.header("dlq.reason") or b"").decode() for letter in found]


def ignored(system: System) -> Counter[str]:
    """The counter of records that announce no file, by reason."""
    totals = RunningTotals(system.services.engine)
    totals.count(datetime.now(UTC))
    counted = {
        labels[0]: int(value) for (name, labels), value in totals.totals().items() if name == IGNORED_NOTIFICATIONS
    }
    return Counter(counted)


def test_an_upload_to_s3_is_ingested_once_however_often_and_by_whomever_it_is_announced(
    system: System, s3_options: S3Options
) -> None:
    backend = S3Backend(s3_options, f"test-{uuid.uuid4().hex}")
    reach(system, backend)
    notifications = Notifications(s3_options, backend)
    backend.put("a b+c%.csv", readings(3).encode())
    backend.put("gone.csv", b"x")
    backend.remove("gone.csv")
    sent = [body for body in notifications.sent() if b"gone" not in body or b"Removed" in body]
    assert any(b"a+b%2Bc%25" in body for body in sent), "as S3 writes it"
    system.send(system.settings.topics.file_event_queue, *sent, *sent)
    system.drive()
    system.send_job("", source_config=backend.config)
    system.drive()
    assert system.states() == {"a b+c%.csv": "ingested"}
    assert (system.file("a b+c%.csv").rows_accepted, len(system.services.files.list())) == (3, 1)
    assert letters(system) == []
    assert ignored(system) == {"deleted": 2, "test": 2 * sum(b"s3:TestEvent" in body for body in sent)}
    # The cursor was never saved: the same messages are read again.
    system.cursors.clear()
    system.drive()
    assert ignored(system)["deleted"] == 2

    backend.put("a b+c%.csv", readings(5).encode())
    system.send(system.settings.topics.file_event_queue, *notifications.sent())
    system.drive()
    assert (system.file("a b+c%.csv").rows_accepted, len(system.services.files.list())) == (5, 2)


def test_of_a_notification_that_is_half_bad_the_good_half_is_ingested_and_the_rest_has_its_reasons(
    system: System, s3_options: S3Options
) -> None:
    backend = S3Backend(s3_options, f"test-{uuid.uuid4().hex}")
    metadata = {"sources": {"orders": {"source_config": backend.config, "metadata": {"note": "of the source"}}}}
    reach(system, backend, **metadata)
    for name in ("a.csv", "z.csv", "notes.txt"):
        backend.put(name, readings(2, name).encode())
    records = [s3_record(f"in/{name}", size=None, eTag=None) for name in ("a.csv", "notes.txt", "", "z.csv")]
    records.append(s3_record("in/stranger.csv"))
    for record in records[:4]:
        record["s3"]["bucket"]["name"] = backend.bucket
    message = {"Records": [*records, s3_record(event="ObjectRemoved:Delete")]}
    system.send(system.settings.topics.file_event_queue, message, message)
    system.drive()
    assert system.states() == {"a.csv": "ingested", "z.csv": "ingested"}
    event = system.file("a.csv").event
    assert (event.job_id, event.metadata) == ("orders", {"note": "of the source"})
    first, second = letters(system)
    assert first == second
    assert first.startswith("2 of 4 objects are not ingested."), "a folder marker is ignored"
    assert f"s3://{backend.bucket}/in/notes.txt: Only csv, xlsx, xls are ingested, not 'txt'." in first
    assert "s3://landing/in/stranger.csv: Refused to read" in first
    assert "INGEST_ALLOWED_BUCKETS" in first


def test_of_a_bucket_that_keeps_versions_the_last_one_counts_though_its_content_was_there_before(
    system: System, s3_options: S3Options
) -> None:
    backend = S3Backend(s3_options, f"test-{uuid.uuid4().hex}")
    reach(system, backend)
    backend.client.put_bucket_versioning(Bucket=backend.bucket, VersioningConfiguration={"Status": "Enabled"})
    before, between = readings(3), readings(5, "device-2")
    for minute, content in enumerate((before, between, before)):
        put = backend.client.put_object(Bucket=backend.bucket, Key="in/a.csv", Body=content.encode())
        etag, version = put["ETag"].strip('"'), put["VersionId"]
        record = s3_record("in/a.csv", eTag=etag, versionId=version, size=len(content))
        record["eventTime"] = f"2026-01-15T10:{minute:02d}:00Z"
        record["s3"]["bucket"]["name"] = backend.bucket
        system.send(system.settings.topics.file_event_queue, {"Records": [record]})
        system.drive()
    assert len(system.services.files.list()) == 3
    (standing,) = (record for record in system.services.files.list() if record.stands)
    assert standing.event.metadata == {"s3_version_id": version}
    totals = system.services.files.row_totals("sensor_readings")
    assert totals.accepted == 3


@pytest.mark.parametrize("listed", [True, False])
def test_a_bucket_is_read_with_the_credentials_that_list_it(
    system: System,
    s3_options: S3Options,
    listed: bool,  # noqa: FBT001
) -> None:
    backend = S3Backend(s3_options, f"test-{uuid.uuid4().hex}")
    pattern = "test-*" if listed else "other-*"
    key = {"access_key_id": "of-the-bucket", "secret_access_key": "secret", "buckets": [pattern]}
    storage = {**backend.settings["storage"], "s3_access_key_id": None, "s3_secret_access_key": None}
    reach(system, backend, sources={}, storage=storage, credentials={"warehouse": key})
    backend.put("a.csv", readings(2).encode())
    record = s3_record("in/a.csv", size=None, eTag=None)
    record["s3"]["bucket"]["name"] = backend.bucket
    system.send(system.settings.topics.file_event_queue, {"Records": [record]})
    system.drive()
    assert system.states() == ({"a.csv": "ingested"} if listed else {})
    assert ["no setting names this bucket" in reason for reason in letters(system)] == ([] if listed else [True])


def test_a_blob_that_event_grid_announces_is_ingested_once_it_is_complete(
    system: System, dfs: DfsServer, dfs_url: str
) -> None:
    backend = OneLakeBackend(dfs, dfs_url)
    reach(system, backend)
    backend.put("a b.csv", readings(4).encode())
    url = backend.path("a b.csv")
    created = grid_event(url, api="CreateFile", eTag=None, contentLength=None)
    closed = grid_event(url, api="FlushWithClose", eTag=None, contentLength=None)
    stranger = grid_event("https://stranger.blob.core.windows.net/in/a.csv")
    messages = [json.dumps(events).encode() for events in ([created, closed], [closed], [stranger])]
    system.send(system.settings.topics.file_event_queue, *messages)
    system.drive()
    assert system.states() == {"a b.csv": "ingested"}
    assert (system.file("a b.csv").rows_accepted, len(system.services.files.list())) == (4, 1)
    (reason,) = letters(system)
    assert "INGEST_ONELAKE_ALLOWED_ACCOUNTS" in reason
