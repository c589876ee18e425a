"""During a broker outage reads and writes fail in bounded time, and continue automatically after it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from confluent_kafka import KafkaError, KafkaException

from ingest_project.core.errors import (
    BrokerAccessDeniedError,
    BrokerUnavailableError,
    MessageTooLargeError,
    SettingsError,
)
from ingest_project.core.settings import KafkaSettings
from ingest_project.platform.kafka import client_config
from ingest_project.platform.kafka.offsets import TopicStates
from ingest_project.platform.kafka.producer import ProducerRecord, TopicWriter
from ingest_project.platform.kafka.reader import BoundedRead, TopicReader
from ingest_project_tests.services.kafka import EmbeddedServer, OwnServer, start_server

pytestmark = pytest.mark.long

# The request time-out of the tests' settings, twice for a look-up and a fetch, and some for a busy machine.
BOUND_SECONDS = 7.0


@pytest.fixture(scope="module")
def fragile_server() -> Iterator[OwnServer]:
    server = start_server()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def fragile_embedded() -> Iterator[OwnServer]:
    server = EmbeddedServer()
    yield server
    server.stop()


@pytest.fixture(params=["fragile_server", "fragile_embedded"])
def broker(request: pytest.FixtureRequest) -> OwnServer:
    """A broker of this module's own: others must not suffer from what is done to it."""
    server: OwnServer = request.getfixturevalue(request.param)
    return server


def read(reader: TopicReader, topic: str, brought: BoundedRead | None = None, wait: float = 0) -> BoundedRead:
    positions = brought.positions if brought else None
    return reader.read(topic, positions, max_messages=100, max_bytes=1_000_000, wait_seconds=wait)


def test_a_paused_broker_fails_reads_and_writes_in_time_and_both_go_on_after_it(
    broker: OwnServer, reader: TopicReader, writer: TopicWriter, topic: str
) -> None:
    broker.create_topic(topic)
    writer.send_all(topic, [ProducerRecord(b"before")])
    before = read(reader, topic)
    broker.pause()
    try:
        started = time.monotonic()
        with pytest.raises(BrokerUnavailableError, match=broker.bootstrap_servers):
            read(reader, topic, before, wait=0.2)
        with pytest.raises(BrokerUnavailableError, match="0 of 3 messages to"):
            writer.send_all(topic, [ProducerRecord(b"lost?")] * 3)
        assert time.monotonic() - started < 2 * BOUND_SECONDS
    finally:
        broker.resume()

    writer.send_all(topic, [ProducerRecord(b"after")])
    assert read(reader, topic, before, wait=5).messages[-1].value == b"after"


def test_losing_the_broker_during_a_wait_is_an_error_and_not_an_empty_read(
    broker: OwnServer, reader: TopicReader, writer: TopicWriter, topic: str
) -> None:
    broker.create_topic(topic)
    writer.send_all(topic, [ProducerRecord(b"before")])
    before = read(reader, topic)
    pause = threading.Timer(0.3, broker.pause)
    pause.start()
    try:
        with pytest.raises(BrokerUnavailableError):
            read(reader, topic, before, wait=1)
    finally:
        pause.join()
        broker.resume()


def test_a_killed_broker_is_used_again_once_it_is_back(
    broker: OwnServer, reader: TopicReader, writer: TopicWriter, topic: str
) -> None:
    broker.create_topic(topic)
    writer.send_all(topic, [ProducerRecord(b"%d" % number) for number in range(5)])
    before = read(reader, topic)
    broker.kill()
    try:
        with pytest.raises(BrokerUnavailableError, match=r"[Cc]onnect"):
            read(reader, topic, before)
    finally:
        broker.restart()
    if not broker.keeps_messages:
        broker.create_topic(topic)
    writer.send_all(topic, [ProducerRecord(b"after")])

    after = read(reader, topic, before, wait=5)

    assert [message.value for message in after.messages] == [b"after"]
    # What a broker forgot is said: its topic is another one, even with the same name and address.
    assert len(after.notices) == (0 if broker.keeps_messages else 1)


def test_a_message_that_the_broker_refuses_for_its_size_is_permanent(fragile_server: OwnServer, topic: str) -> None:
    if isinstance(fragile_server, EmbeddedServer):
        pytest.skip("the embedded broker takes messages of any size")
    fragile_server.create_topic(topic, config={"max.message.bytes": "10000", "compression.type": "uncompressed"})
    writer = TopicWriter(fragile_server.settings)
    noise = bytes(number * number % 251 for number in range(50_000)) + b"".join(b"%d" % n for n in range(20_000))
    with pytest.raises(MessageTooLargeError, match=topic):
        writer.send_all(topic, [ProducerRecord(noise)])

    assert writer.send_all(topic, [ProducerRecord(b"small")]) == 1
    writer.close()


def test_without_an_address_the_error_says_what_to_set() -> None:
    with pytest.raises(BrokerUnavailableError, match="KAFKA_BOOTSTRAP_SERVERS"):
        read(TopicReader(KafkaSettings()), "events")


def test_a_secured_connection_without_credentials_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match="KAFKA_SASL_USERNAME"):
        client_config(KafkaSettings(bootstrap_servers="broker:9093", security_protocol="SASL_SSL"))


def test_event_hubs_is_reached_with_its_connection_string() -> None:
    settings = KafkaSettings.model_validate(
        {
            "bootstrap_servers": "example.servicebus.windows.net:9093",
            "security_protocol": "SASL_SSL",
            "sasl_username": "$ConnectionString",
            "sasl_password": "Endpoint=sb://example/",
        }
    )
    config = client_config(settings)

    assert config["sasl.mechanism"] == "PLAIN"
    assert config["sasl.password"] == "Endpoint=sb://example/"
    assert "Endpoint" not in repr(settings)


def test_a_topic_that_the_broker_denies_is_named_at_once_and_the_others_are_read(
    embedded_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded_server.create_topic("open_topic")
    describe = TopicStates._describe

    def denied(states: TopicStates, topic: str, timeout: float) -> tuple[str, list[int]]:
        if topic == "closed_topic":
            raise KafkaException(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))
        return describe(states, topic, timeout)

    monkeypatch.setattr(TopicStates, "_describe", denied)
    reader = TopicReader(embedded_server.settings)
    began = time.monotonic()
    with pytest.raises(BrokerAccessDeniedError, match=r"denies access: closed_topic: .* Grant it to the user"):
        reader.lag("closed_topic", None)
    assert time.monotonic() - began < 4
    assert reader.lag("open_topic", None) == {0: 0}
    reader.close()
