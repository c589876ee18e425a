"""Confirmed writes: a message counts as sent once all in-sync replicas have acknowledged it."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Iterable
from typing import Any

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from ingest_project.core.errors import BrokerUnavailableError, MessageTooLargeError
from ingest_project.core.settings import KafkaSettings
from ingest_project.platform.kafka import (
    EVENT_HUBS_REQUEST_MS,
    PresentPassword,
    client_config,
    is_event_hubs,
    unavailable,
)
from ingest_project.platform.kafka.consumer import Headers

LINGER_MS = 5
# Bounds the memory for unacknowledged messages, however many one call sends.
MAX_UNDER_WAY_KIB = 64 * 1024
MAX_UNDER_WAY_MESSAGES = 50_000
# Only the broker should decide which message is too large: this keeps the library from refusing it first.
MAX_MESSAGE_BYTES = 64 * 1024**2
EVENT_HUBS_MESSAGE_BYTES = 1_046_528
MESSAGES_BETWEEN_REPORTS = 500
CLOSE_SECONDS = 2.0
# librdkafka's value for "choose the partition by key".
PARTITION_BY_KEY = -1

_TOO_LARGE = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE)


class ProducerRecord(msgspec.Struct, frozen=True, gc=False):
    """A message to send: its value, its headers, and the key that selects the partition, or the partition itself."""

    value: bytes | None
    key: bytes | None = None
    headers: Headers = ()
    partition: int | None = None


class TopicWriter:
    """Writes to topics for any number of threads, over one idempotent producer that stays connected.

    The producer's own retries never write a message twice. A failed call may still have written some or all of its
    messages: use `publish_once` for messages that must not be duplicated.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._producer: Producer | None = None
        self._password = PresentPassword(settings)
        self._lock = threading.Lock()
        atexit.register(self.close)

    def send_all(self, topic: str, messages: Iterable[ProducerRecord]) -> int:
        """Send messages and wait until all in-sync replicas have acknowledged every one.

        Args:
            topic: topic to write to.
            messages: any number of messages; only a bounded part of them is held in memory.

        Returns:
            the number of messages sent.

        Raises:
            BrokerUnavailableError: not all were confirmed; names the first failure and the counts.
            MessageTooLargeError: the broker refuses a message because of its size.
        """
        with self._lock:
            call = _Call(self._connected(topic), topic, self._settings.request_timeout_seconds)
            try:
                call.send(messages)
                call.wait()
            except BaseException:
                self._discard()
                raise
            if call.failure is not None or call.confirmed < call.sent:
                self._discard()
                raise self._error(call)
            return call.confirmed

    def require_topic(self, topic: str) -> None:
        """Wait until a topic can be written to; most brokers create a missing one on request.

        Raises:
            BrokerUnavailableError: the broker does not answer, or does not create topics automatically.
        """
        give_up_at = time.monotonic() + self._settings.request_timeout_seconds
        with self._lock:
            while not self._has_partitions(topic):
                if time.monotonic() > give_up_at:
                    raise unavailable(
                        self._settings,
                        f"the topic {topic} does not exist, and the broker does not create it. Create it",
                    )
                time.sleep(0.05)

    def close(self) -> None:
        """Disconnect. A later write reconnects."""
        with self._lock:
            self._discard()

    def _has_partitions(self, topic: str) -> bool:
        try:
            found = self._connected(topic).list_topics(topic, timeout=self._settings.request_timeout_seconds)
        except KafkaException as error:
            raise unavailable(self._settings, error) from error
        return found.topics[topic].error is None and bool(found.topics[topic].partitions)

    def _connected(self, topic: str) -> Producer:
        if self._producer is None:
            producer = Producer(_producer_config(self._settings))
            try:
                # Connect first: an unconnected idempotent producer idles for half a second at its first message. The
                # first answer may use the connection to the bootstrap address, the second uses the broker's own.
                for _ in range(2):
                    producer.list_topics(topic, timeout=self._settings.request_timeout_seconds)
            except KafkaException as error:
                raise unavailable(self._settings, error) from error
            self._producer = producer
            self._password = PresentPassword(self._settings)
        self._password.give(self._producer)
        return self._producer

    def _discard(self) -> None:
        """Discard the producer and its unsent messages: nothing more is written after a failure was reported."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge(in_queue=True, in_flight=True, blocking=False)
            producer.flush(CLOSE_SECONDS)

    def _error(self, call: _Call) -> BrokerUnavailableError | MessageTooLargeError:
        counts = f"{call.confirmed} of {call.sent} messages to {call.topic} were confirmed"
        if call.failure is None:
            return unavailable(self._settings, f"{counts} in time")
        if call.failure.code() in _TOO_LARGE:
            return MessageTooLargeError(call.topic, f"{counts}: {call.failure.str()}")
        return unavailable(self._settings, call.failure, f"{counts}, the first failure: ")


class _Call:
    """One call of send_all: numbers of messages sent and confirmed."""

    def __init__(self, producer: Producer, topic: str, timeout_seconds: float) -> None:
        self.topic = topic
        self.sent = 0
        self.confirmed = 0
        self.failure: KafkaError | None = None
        self._producer = producer
        self._timeout_seconds = timeout_seconds
        self._reported_at = time.monotonic()

    def send(self, messages: Iterable[ProducerRecord]) -> None:
        for message in messages:
            if self.failure is not None or not self._produce(message):
                return
            if self.sent % MESSAGES_BETWEEN_REPORTS == 0:
                self._producer.poll(0)

    def wait(self) -> None:
        """Wait until every message has a delivery report, or no report arrives for too long."""
        while len(self._producer) and self._may_wait():
            self._producer.flush(0.1)

    def _may_wait(self) -> bool:
        # The producer gives up a message after this time, and reports that a little later.
        return time.monotonic() - self._reported_at < self._timeout_seconds + 1

    def _produce(self, message: ProducerRecord) -> bool:
        while True:
            try:
                self._producer.produce(
                    self.topic,
                    message.value,
                    message.key,
                    PARTITION_BY_KEY if message.partition is None else message.partition,
                    headers=list(message.headers),
                    on_delivery=self._report,
                )
            except BufferError:
                if not self._may_wait():
                    return False
                self._producer.poll(0.1)
            except KafkaException as error:
                self.failure = error.args[0]
                return False
            else:
                self.sent += 1
                return True

    def _report(self, error: KafkaError | None, _message: Message) -> None:
        self._reported_at = time.monotonic()
        if error is None:
            self.confirmed += 1
        elif self.failure is None:
            self.failure = error


def _producer_config(settings: KafkaSettings) -> dict[str, Any]:
    return {
        **client_config(settings),
        **_limits(settings),
        "acks": "all",
        "enable.idempotence": True,
        "linger.ms": LINGER_MS,
        "message.timeout.ms": round(settings.request_timeout_seconds * 1000),
        "queue.buffering.max.kbytes": MAX_UNDER_WAY_KIB,
        "queue.buffering.max.messages": MAX_UNDER_WAY_MESSAGES,
    }


def _limits(settings: KafkaSettings) -> dict[str, Any]:
    if is_event_hubs(settings):
        # Event Hubs supports no other compression, and has the same size limit for every topic.
        return {
            "compression.type": "gzip",
            "message.max.bytes": EVENT_HUBS_MESSAGE_BYTES,
            "request.timeout.ms": EVENT_HUBS_REQUEST_MS,
        }
    # lz4 needs the least CPU time.
    return {"compression.type": "lz4", "message.max.bytes": MAX_MESSAGE_BYTES}
