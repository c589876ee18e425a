"""`ingest send`: the sensors can read the messages that it publishes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ingest_project.contracts.attachments import attachment_key, decode_attachment_event, decode_download_task
from ingest_project.contracts.files import decode_file_event, decode_polling_job
from ingest_project.core.settings import load_settings
from ingest_project.devstack.embedded_kafka import EmbeddedBroker
from ingest_project.operations import SystemResources
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.platform.kafka.reader import TopicReader
from ingest_project.platform.work_queue.queue import KafkaPosition
from ingest_project.polling.job_queue import JobArrival, JobOutbox
from ingest_project_tests.cli.conftest import Ingest


@pytest.fixture
def only_message(
    ingest: Ingest, embedded_broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], ConsumerRecord]:
    """Reads the one message that a topic has."""
    del ingest
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", embedded_broker.bootstrap_servers)

    def read(topic: str) -> ConsumerRecord:
        reader = TopicReader(load_settings().settings.kafka)
        (message,) = reader.read(topic, None, max_messages=10, max_bytes=10**6, wait_seconds=10).messages
        reader.close()
        return message

    return read


def test_a_polling_job_arrives_as_requested(ingest: Ingest, only_message: Callable[[str], ConsumerRecord]) -> None:
    sent = ingest(
        "send", "polling-job", "--job-id", "j 1", "--pattern", "*.csv", "--priority", "high", "--format", "luftdaten",
        "--metadata", "site=a=b", "--source", "credentials=sftp-1", "--trace-id", "t-1", "--json",
    )  # fmt: skip
    assert sent.exit_code == 0
    assert sent.json["topic"] == "polling-queue"
    message = only_message("polling-queue")
    job = decode_polling_job(message.value)
    assert (job.job_id, job.file_pattern, job.priority, job.trace_id) == ("j 1", "*.csv", "high", "t-1")
    assert job.source_config == {"source_type": "dummy", "path": "./dummy_data", "credentials": "sftp-1"}
    assert job.metadata == {"site": "a=b", "format": "luftdaten"}
    assert message.header("trace-id") == b"t-1"
    assert sent.json["message"]["job_id"] == "j 1"


def test_missing_ids_of_a_polling_job_are_generated(
    ingest: Ingest, only_message: Callable[[str], ConsumerRecord]
) -> None:
    sent = ingest("send", "polling-job")
    assert sent.exit_code == 0
    job = decode_polling_job(only_message("polling-queue").value)
    assert job.trace_id
    assert job.trace_id in sent.out
    assert job.job_id in sent.out
    assert "polling-queue" in sent.out


def test_a_local_folder_of_this_host_is_sent_with_its_whole_path(
    ingest: Ingest, only_message: Callable[[str], ConsumerRecord], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    assert ingest("send", "polling-job", "--source-type", "local", "--path", "in").exit_code == 0
    assert decode_polling_job(only_message("polling-queue").value).path == str(tmp_path / "in")


def test_a_path_outside_of_the_examples_is_a_local_folder(
    ingest: Ingest, only_message: Callable[[str], ConsumerRecord], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    assert ingest("send", "polling-job", "--path", "in").exit_code == 0
    job = decode_polling_job(only_message("polling-queue").value)
    assert (job.source_type, job.path) == ("local", str(tmp_path / "in"))


def test_a_path_in_the_examples_is_the_source_of_the_examples(
    ingest: Ingest, only_message: Callable[[str], ConsumerRecord]
) -> None:
    assert ingest("send", "polling-job", "--path", "./dummy_data").exit_code == 0
    assert decode_polling_job(only_message("polling-queue").value).source_type == "dummy"


def as_soon_as_it_is_there(only_message: Callable[[str], ConsumerRecord], topic: str) -> ConsumerRecord:
    give_up_at = time.monotonic() + 60
    while time.monotonic() < give_up_at:
        with suppress(ValueError):
            return only_message(topic)
        time.sleep(0.1)
    raise TimeoutError


@pytest.mark.parametrize(
    ("ended", "said", "exit_code"),
    [("done", "Found 3 files, announced 2", 0), ("failed", "It failed: no such folder", 1), ("waits", "not done", 1)],
)
def test_a_polling_job_that_is_waited_for_says_how_it_ended(  # noqa: PLR0913, PLR0917 - fixtures
    ingest: Ingest,
    services: SystemResources,
    only_message: Callable[[str], ConsumerRecord],
    ended: str,
    said: str,
    exit_code: int,
) -> None:
    def look() -> None:
        """What the sensor and its run do, once the job has come."""
        queue, now = services.polling_jobs, datetime.now(UTC)
        message = as_soon_as_it_is_there(only_message, "polling-queue")
        position = KafkaPosition(message.topic, message.partition, message.offset, "g", message.timestamp)
        queue.record([JobArrival("j~1", decode_polling_job(message.value), position)], now)
        if ended == "done":
            queue.begin(["j~1"], "run", now)
            JobOutbox(services.engine, "j~1").record_intent("files", ["a", "b"], {0: 0})
            JobOutbox(services.engine, "j~1").mark_sent("files", ["a", "b"])
            queue.finish_listing("j~1", 3, {"Announced before, in this version.": 1}, now)
        elif ended == "failed":
            queue.fail(["j~1"], "no such folder", "SourceNotFoundError", now)

    with ThreadPoolExecutor(1) as elsewhere:
        looked = elsewhere.submit(look)
        result = ingest(
            "send", "polling-job", "--job-id", "j", "--wait", "--timeout", "1" if ended == "waits" else "60"
        )
        looked.result()
    assert result.exit_code == exit_code
    assert said in result.out + result.err


def test_a_file_event_names_the_version_that_is_there(
    ingest: Ingest, only_message: Callable[[str], ConsumerRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INGEST_LOCAL_ROOTS", str(tmp_path))
    (tmp_path / "a.csv").write_text("x,y\n")
    os.utime(tmp_path / "a.csv", ns=(0, 1_700_000_000_123_456_000))
    sent = ingest("send", "file-event", "a.csv", "--format", "luftdaten", "--json")
    assert sent.exit_code == 0, sent.err
    event = decode_file_event(only_message("file-event-queue").value)
    assert (event.file_path, event.file_name, event.file_type) == (str(tmp_path / "a.csv"), "a.csv", "csv")
    assert event.size_bytes == 4
    assert event.modified_at is not None
    assert event.modified_at.isoformat() == "2023-11-14T22:13:20.123456+00:00"
    assert event.metadata == {"format": "luftdaten"}
    assert event.trace_id == sent.json["trace_id"]


def test_a_file_event_for_a_file_of_another_host_leaves_the_version_open(
    ingest: Ingest, only_message: Callable[[str], ConsumerRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INGEST_LOCAL_ROOTS", "/data/elsewhere")
    assert ingest("send", "file-event", "/data/elsewhere/b.xlsx").exit_code == 0
    event = decode_file_event(only_message("file-event-queue").value)
    assert (event.file_path, event.size_bytes, event.modified_at) == ("/data/elsewhere/b.xlsx", None, None)


def test_the_short_form_has_path_and_name_only(
    ingest: Ingest, only_message: Callable[[str], ConsumerRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INGEST_LOCAL_ROOTS", "/data/elsewhere")
    assert ingest("send", "file-event", "/data/elsewhere/b.csv", "--short").exit_code == 0
    assert only_message("file_events").value == b'{"file_path":"/data/elsewhere/b.csv","file_name":"b.csv"}'


def test_an_attachment_event_arrives_as_requested_and_no_signature_is_printed(
    ingest: Ingest, only_message: Callable[[str], ConsumerRecord]
) -> None:
    urls = ["https://files.example/a.pdf?sig=hunter2", "https://files.example/b.jpg"]
    sent = ingest(
        "send", "attachment-event", *urls, "--domain", "claims", "--event-type", "received",
        "--payload", '{"scan": "https://files.example/c?sig=hunter2"}', "--trace-id", "t-1", "--json",
    )  # fmt: skip
    assert sent.exit_code == 0, sent.err
    message = only_message("events.raw")
    event = decode_attachment_event(message.value)
    assert (event.trace_id, event.domain, event.event_type, event.attachments) == ("t-1", "claims", "received", urls)
    assert event.payload == {"scan": "https://files.example/c?sig=hunter2"}
    assert event.occurred_at is not None
    assert message.header("trace-id") == b"t-1"
    assert sent.json["topic"] == "events.raw"
    assert sent.json["message"]["attachments"] == ["https://files.example/a.pdf?…", urls[1]]
    assert "hunter2" not in sent.out


def test_a_download_task_arrives_as_requested_and_names_its_attachment(
    ingest: Ingest, only_message: Callable[[str], ConsumerRecord]
) -> None:
    url = "https://files.example/a.pdf?sig=hunter2"
    sent = ingest(
        "send", "download-task", url, "--domain", "claims", "--trace-id", "t-1", "--destination", "in/a.pdf",
        "--file-name", "a.pdf", "--content-type", "application/pdf", "--expected-size", "12", "--checksum", "md5:00",
    )  # fmt: skip
    assert sent.exit_code == 0, sent.err
    message = only_message("downloads.pending")
    task = decode_download_task(message.value)
    assert (task.attachment_url, task.domain, task.trace_id, task.attempt) == (url, "claims", "t-1", 1)
    assert (task.destination_path, task.file_name, task.content_type) == ("in/a.pdf", "a.pdf", "application/pdf")
    assert (task.expected_size, task.checksum) == (12, "md5:00")
    assert attachment_key("t-1", url) in sent.out
    assert "hunter2" not in sent.out
    # Without it the sensor takes the task for another try by somebody else, which is what this is.
    assert message.header("origin") is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["polling-job", "--source-type", "gopher"], "gopher"),
        (["polling-job", "--source-type", "local"], "--path"),
        (["polling-job", "--path", "gopher://host/in"], "gopher"),
        (["polling-job", "--path", "sftp://me:pw@host/in"], "--credentials"),
        (["polling-job", "--dummy", "--source-type", "local", "--path", "in"], "--source-type"),
        (["polling-job", "--metadata", "novalue"], "KEY=VALUE"),
        (["polling-job", "--source", "password=x"], "password"),
        (["polling-job", "--priority", "urgent"], "urgent"),
        (["polling-job", "--dummy", "--format", "luftdatn"], "luftdaten?"),
        (["polling-job", "--metadata", "format=nothing"], "No reader profile 'nothing'"),
        (["file-event", "dummy_data/a.csv", "--format", "luftdatn"], "luftdaten?"),
        (["file-event", "notes.txt"], "csv"),
        (["attachment-event", "https://files.example/a"], "--domain"),
        (["attachment-event", "--domain", " "], "domain"),
        (["attachment-event", "--domain", "d", "--payload", "{"], "--payload"),
        (["download-task", "", "--domain", "d"], "attachment_url"),
        (["download-task", "u", "--domain", "d", "--expected-size", "-1"], "expected-size"),
        (["file-event", "a.csv", "--short", "--format", "x"], "short"),
        (["file-event", "bad\udcff.csv"], "UTF-8"),
    ],
)
def test_a_message_that_would_be_refused_is_not_sent_and_exits_with_2(
    ingest: Ingest, arguments: list[str], said: str
) -> None:
    result = ingest("send", *arguments)
    assert result.exit_code == 2
    assert said in result.err
    assert "Traceback" not in result.err


def test_a_file_outside_the_roots_is_refused_with_the_setting_that_would_allow_it(
    ingest: Ingest, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text("x\n")
    for path in ("a.csv", "/srv/missing.csv"):
        result = ingest("send", "file-event", path)
        assert result.exit_code == 1
        assert "INGEST_LOCAL_ROOTS" in result.err


def test_an_unreachable_broker_is_one_error_line_and_exits_with_1(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setenv("KAFKA_REQUEST_TIMEOUT_SECONDS", "1")
    result = ingest("send", "polling-job")
    assert result.exit_code == 1
    assert result.err.startswith("Kafka at 127.0.0.1:1 does not answer")
    assert result.err.count("\n") == 1
