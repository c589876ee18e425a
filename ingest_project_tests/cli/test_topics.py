"""`ingest topics`: messages are skipped without being decoded, whether a sensor runs meanwhile or not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from dagster import DagsterInstance

from ingest_project.core.settings import load_settings
from ingest_project.operations import SystemResources
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.platform.work_queue.consume import Queue, consume
from ingest_project_tests.cli.conftest import Ingest
from ingest_project_tests.cli.test_status import save_cursor
from ingest_project_tests.journeys.system import close
from ingest_project_tests.services.kafka import Server

VALUES = [f"message {number}".encode() for number in range(6)]


@pytest.fixture
def services(  # noqa: PLR0913, PLR0917 - fixtures
    request: pytest.FixtureRequest,
    ingest: Ingest,
    kafka_server: Server,
    postgres_url: str,
    dagster_instance: DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[SystemResources]:
    """A topic of this test alone, of one partition with six messages."""
    del ingest, dagster_instance
    name = request.node.name.lower()[:80]
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", kafka_server.bootstrap_servers)
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    monkeypatch.setenv("KAFKA_TOPIC_POLLING_QUEUE", f"{name}.polling")
    monkeypatch.setenv("KAFKA_TOPIC_POLLING_QUEUE_DLQ", f"{name}.polling.dlq")
    opened = SystemResources(load_settings().settings)
    kafka_server.create_topic(f"{name}.polling", 1)
    opened.writer.send_all(
        opened.settings.topics.polling_queue, [ProducerRecord(value, b"k", (("trace-id", b"t"),)) for value in VALUES]
    )
    yield opened
    close(opened)


def taken(services: SystemResources) -> list[bytes]:
    """The messages that a tick of a sensor takes."""
    topics = services.settings.topics
    found: list[bytes] = []
    queue = Queue(topics.polling_queue, topics.polling_queue_dlq, lambda raw: raw or b"", 100, 0.0)
    # Once more from the same positions, as after a crash: the dead letters are there once.
    consume(services, queue, None, len)
    positions = consume(services, queue, None, lambda arrived: found.extend(one.message for one in arrived))
    assert positions.next_offsets == {0: len(VALUES)}
    return found


def test_a_skipped_message_becomes_a_dead_letter_unchanged_and_the_others_are_consumed(
    ingest: Ingest, services: SystemResources
) -> None:
    topic = services.settings.topics.polling_queue
    result = ingest("topics", "skip", topic, "0", "2", "--count", "2", "--reason", "it hangs the sensor")
    assert result.exit_code == 0, result.err
    assert "will be skipped" in result.out
    assert "are skipped already" in ingest("topics", "skip", topic, "0", "2", "--reason", "again").out
    assert taken(services) == [*VALUES[:2], *VALUES[4:]]
    read = services.reader.read(
        services.settings.topics.polling_queue_dlq, None, max_messages=9, max_bytes=10**6, wait_seconds=5
    )
    assert [letter.value for letter in read.messages] == VALUES[2:4]
    letter = read.messages[0]
    assert (letter.key, letter.header("trace-id")) == (b"k", b"t")
    assert (letter.header("dlq.error-class"), letter.header("dlq.original-offset")) == (b"SkippedByOperatorError", b"2")
    assert b"it hangs the sensor" in (letter.header("dlq.reason") or b"")
    (listed,) = ingest("topics", "skipped", "--json").json["skipped"]
    assert (listed["topic"], listed["first_offset"], listed["end_offset"]) == (topic, 2, 4)
    assert "it hangs the sensor" in ingest("topics", "skipped").out


def test_offsets_that_are_consumed_or_missing_or_of_unread_topics_cannot_be_skipped(
    ingest: Ingest, services: SystemResources, dagster_instance: DagsterInstance
) -> None:
    topics = services.settings.topics
    positions = consume(
        services, Queue(topics.polling_queue, topics.polling_queue_dlq, lambda raw: raw, 3, 0.0), None, len
    )
    save_cursor(dagster_instance, "polling_queue_sensor", positions.to_cursor())
    for arguments, reason in (
        ((topics.polling_queue, "0", "1"), "has been consumed already"),
        ((topics.polling_queue, "0", "6"), "ends before offset 6"),
        ((topics.polling_queue, "5", "6"), "no partition 5"),
        (("elsewhere", "0", "0"), "is not read here"),
        ((topics.sales_events, "0", "0"), "nothing to skip"),
    ):
        refused = ingest("topics", "skip", *arguments, "--reason", "r")
        assert (refused.exit_code, reason in refused.err) == (1, True), refused.err
    assert services.skipped_offsets.list() == ()
    assert ingest("topics", "skip", topics.polling_queue, "0", "3", "--reason", "r").exit_code == 0
