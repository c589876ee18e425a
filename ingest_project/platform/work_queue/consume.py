"""Consume a queue topic from the saved cursor: decode, store, and dead-letter messages that cannot be stored.

This module saves no positions: the tick after a killed one reads the same messages again. A dead letter carries the
position of its message and is published only once, however often the message is read.

An error of one message, in any step, affects only that message, which becomes a dead letter with the reason. An
unavailable service fails the tick instead, and all messages wait.

A tick can also fail without an exception that belongs to one message: all of them together take too long, or publishing
a dead letter fails. After each such failure, the next tick from the same positions takes half as many messages; a
message that fails a tick alone is refused from then on. A tick that succeeds doubles the limit of the next one. This
state lives in this process: after a restart the culprit is found again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Generic, TypeVar

from ingest_project.contracts import trace_id_in
from ingest_project.core.errors import SkippedByOperatorError, UnexpectedError
from ingest_project.core.items import store_bisecting
from ingest_project.core.logging import get_logger
from ingest_project.platform import tracing
from ingest_project.platform.errors import SERVICES, error_class_of, is_item_fault, reason_of, traceback_of
from ingest_project.platform.kafka.consumer import ConsumerRecord, log_each
from ingest_project.platform.kafka.dead_letters import dead_letter
from ingest_project.platform.kafka.offsets import Positions
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.platform.kafka.publisher import publish_once
from ingest_project.platform.kafka.reader import BoundedRead, TopicReader
from ingest_project.platform.runtime import Runtime
from ingest_project.platform.tracing import headers_of
from ingest_project.platform.work_queue.queue import KafkaPosition

logger = get_logger(__name__)

MAX_BYTES_PER_TICK = 32 * 1024**2
MESSAGES_AT_A_TIME = 1_000
# The daemon gives up a tick after 60 s and would start over: after this time, the rest waits for the next tick.
LONGEST_SECONDS = 15.0
# A tick that the daemon gave up has no recorded cause: a hanging database looks the same, so count several.
MAX_UNFINISHED_ALONE = 3
MAX_REFUSED = 10_000

Message = TypeVar("Message")
Refused = tuple[ConsumerRecord, Exception]
PartitionOffset = tuple[int, int]


@dataclass(frozen=True)
class ConsumedMessage(Generic[Message]):
    """One decoded message, its Kafka position, and the record that it was read from."""

    message: Message
    kafka_position: KafkaPosition
    received: ConsumerRecord

    @property
    def trace_id(self) -> str | None:
        """Return the trace id from its headers, or of the trace that began when it was consumed."""
        return trace_id_in((*self.received.headers, *headers_of(self.kafka_position.context)))


@dataclass(frozen=True)
class Queue(Generic[Message]):
    """A topic whose messages are consumed one by one.

    Args:
        topic: topic to read from.
        dead_letter_topic: topic for messages that cannot be stored.
        decode: decodes a value; a message for which it raises any exception is refused.
        max_messages: maximum number of messages of one tick.
        wait_seconds: how long to wait for a first message on a quiet topic.
        reader: reader of the topic's cluster; the main cluster's by default.
        partly_refused: returns why parts of a message are refused although the others are stored, so that the message
            also becomes a dead letter; None for a message that is stored whole.
    """

    topic: str
    dead_letter_topic: str
    decode: Callable[[bytes | None], Message]
    max_messages: int
    wait_seconds: float
    reader: TopicReader | None = None
    partly_refused: Callable[[Message], Exception | None] = lambda _: None


@dataclass
class Attempt:
    """One tick's attempt at a topic.

    Args:
        saved: positions at its start.
        max_messages: maximum number of messages to read.
        refused: messages that failed a tick alone, with the errors.
        messages: messages that it read.
        unfinished_alone: number of unfinished ticks without an exception in which each message was the only one.
    """

    saved: Positions | None
    max_messages: int
    refused: dict[PartitionOffset, Exception]
    messages: Sequence[ConsumerRecord] = ()
    unfinished_alone: dict[PartitionOffset, int] = field(default_factory=dict)

    def refusal_of(self, message: ConsumerRecord) -> Exception | None:
        """Return the reason to refuse a message without decoding it; None to decode it."""
        return self.refused.get((message.partition, message.offset))

    def refuse_single(self, cause: Exception) -> None:
        """Refuse the only message of this attempt from now on."""
        if len(self.refused) < MAX_REFUSED:
            (message,) = self.messages
            error = UnexpectedError("Taking this message", cause)
            self.refused.setdefault((message.partition, message.offset), error)

    def next_attempt(self, saved: Positions | None, limit: int) -> Attempt:
        """Return the next attempt at the topic; if it starts at the same positions, it gets half as many messages."""
        attempt = Attempt(saved, min(limit, self.max_messages), self.refused, (), self.unfinished_alone)
        if self.saved == saved and self.messages:
            attempt.max_messages = max(1, len(self.messages) // 2)
            if len(self.messages) == 1:
                self._count_unfinished_alone()
        return attempt

    def _count_unfinished_alone(self) -> None:
        where = (self.messages[0].partition, self.messages[0].offset)
        self.unfinished_alone[where] = self.unfinished_alone.get(where, 0) + 1
        if self.unfinished_alone[where] >= MAX_UNFINISHED_ALONE:
            self.refuse_single(TimeoutError(f"{MAX_UNFINISHED_ALONE} ticks that took it alone did not end in time"))


# The last attempt at each topic, until one succeeds with the full number of messages of a tick.
_attempts: dict[str, Attempt] = {}
# The last notices of each topic, so that a missing topic does not log the same one every few seconds.
_logged_notices: dict[str, Sequence[str]] = {}


def consume(
    services: Runtime,
    queue: Queue[Message],
    saved: Positions | None,
    store: Callable[[Sequence[ConsumedMessage[Message]]], object],
) -> Positions:
    """Consume a bounded number of messages.

    Args:
        services: Kafka, the outbox and the quarantine.
        queue: the topic to consume, and how.
        saved: positions of the last saved cursor; None at the first tick.
        store: stores messages idempotently. The message that makes it raise an exception is refused, unless a service
            is unavailable.

    Returns:
        the positions to save.

    Raises:
        BrokerUnavailableError, DatabaseUnavailableError, TransactionConflictError, StoreUnavailableError: call again
            with the same positions.
    """
    reader = queue.reader or services.reader
    with attempting(queue.topic, saved, queue.max_messages) as attempt:
        read = reader.read(
            queue.topic,
            saved,
            max_messages=attempt.max_messages,
            max_bytes=MAX_BYTES_PER_TICK,
            wait_seconds=queue.wait_seconds,
        )
        attempt.messages = read.messages
        log_each(read.messages)
        if saved is not None:
            # Commit only after the broker has answered: with an unavailable broker, the library aborts the process.
            reader.commit(queue.topic, saved)
        _log_new_notices(queue.topic, read.notices)
        return _store_read(services, queue, read, attempt, store)


@contextmanager
def attempting(topic: str, saved: Positions | None, limit: int) -> Iterator[Attempt]:
    """Make one attempt at a topic; its result determines how many messages the next one reads.

    Args:
        topic: topic to consume.
        saved: positions at which to start.
        limit: maximum number of messages after successful attempts.
    """
    last = _attempts.get(topic)
    attempt = last.next_attempt(saved, limit) if last else Attempt(saved, limit, {})
    _attempts[topic] = attempt
    try:
        yield attempt
    except Exception as error:
        if not is_item_fault(error):
            # A service is unavailable: do not blame the messages.
            attempt.messages = ()
        elif len(attempt.messages) == 1:
            attempt.refuse_single(error)
        raise
    if _attempts.get(topic) is attempt:
        attempt.messages = ()
        attempt.max_messages *= 2
        if attempt.max_messages >= limit:
            del _attempts[topic]


def without_skipped(
    services: Runtime, messages: Sequence[ConsumerRecord], topic_id: str
) -> tuple[Sequence[ConsumerRecord], list[Refused]]:
    """Split the messages of one topic into those to process and those that an operator skips, which are refused."""
    ranges = services.skipped_offsets.of(messages[0].topic, topic_id) if messages else ()
    wanted: list[ConsumerRecord] = []
    refused: list[Refused] = []
    for message in messages:
        skipped = next((one for one in ranges if one.covers(message.partition, message.offset)), None)
        if skipped is None:
            wanted.append(message)
        else:
            refused.append((message, SkippedByOperatorError(skipped.asked_by, skipped.reason)))
    return wanted, refused


def dead_letter_message(services: Runtime, dead_letter_topic: str, refused: Sequence[Refused], topic_id: str) -> None:
    """Publish messages that cannot be stored as dead letters, each once. Idempotent.

    A message that the topic does not accept, e.g. because of its size, goes to the quarantine store instead.

    Args:
        services: Kafka, the outbox and the quarantine.
        dead_letter_topic: topic to publish to.
        refused: the messages with their errors.
        topic_id: id of the topic from which they were read.

    Raises:
        BrokerUnavailableError: not all were published; call again.
    """
    now = datetime.now(UTC)
    _log_refused(refused)
    refused = [(tracing.refused(received, error), error) for received, error in refused]
    letters = [
        dead_letter(
            received,
            error_class=error_class_of(error),
            reason=reason_of(error),
            first_failed_at=now,
            last_failed_at=now,
            topic_id=topic_id,
        )
        for received, error in refused
    ]

    def publish(part: Sequence[tuple[Refused, tuple[str, ProducerRecord]]]) -> None:
        messages = [letter for _, letter in part]
        publish_once(services.writer, services.reader, services.outbox, dead_letter_topic, messages)

    pairs = list(zip(refused, letters, strict=True))
    for ((received, cause), (message_id, _)), error in store_bisecting(pairs, publish, is_item_fault):
        logger.warning("dead_letter_kept_in_quarantine", message_id=message_id, reason=reason_of(error))
        note = {"reason": reason_of(cause), "topic": received.topic, "not_dead_lettered": reason_of(error)}
        services.quarantine.put(message_id, received.value or b"", note)


def _store_read(
    services: Runtime,
    queue: Queue[Message],
    read: BoundedRead,
    attempt: Attempt,
    store: Callable[[Sequence[ConsumedMessage[Message]]], object],
) -> Positions:
    topic_id, give_up_at = read.positions.topic_id, time.monotonic() + LONGEST_SECONDS
    wanted, refused = without_skipped(services, read.messages, topic_id)
    messages, seen = iter(wanted), 0
    while True:
        part = islice(messages, MESSAGES_AT_A_TIME)
        arrived, undecodable = _decode(queue, part, topic_id, attempt, give_up_at)
        if not arrived and not undecodable:
            break
        seen += len(arrived) + len(undecodable)
        failures = store_bisecting(arrived, store, is_item_fault)
        refused += [*undecodable, *((one.received, error) for one, error in failures)]
        failed = {id(one) for one, _ in failures}
        stored = (one for one in arrived if id(one) not in failed)
        refused += [(one.received, error) for one in stored if (error := queue.partly_refused(one.message))]
        dead_letter_message(services, queue.dead_letter_topic, refused, topic_id)
        refused = []
        if time.monotonic() > give_up_at:
            break
    dead_letter_message(services, queue.dead_letter_topic, refused, topic_id)
    return _positions(read, wanted[seen:])


def _decode(
    queue: Queue[Message], messages: Iterator[ConsumerRecord], topic_id: str, attempt: Attempt, give_up_at: float
) -> tuple[list[ConsumedMessage[Message]], list[Refused]]:
    """Decode messages until the time is up; return the decoded and the refused messages."""
    arrived: list[ConsumedMessage[Message]] = []
    refused: list[Refused] = []
    for received in messages:
        if refusal := attempt.refusal_of(received):
            refused.append((received, refusal))
        else:
            try:
                message = queue.decode(received.value)
                context = tracing.receive(received, getattr(message, "trace_id", None))
                place = (received.topic, received.partition, received.offset, topic_id)
                kafka_position = KafkaPosition(*place, received.timestamp, context)
                arrived.append(ConsumedMessage(message, kafka_position, received))
            except SERVICES:
                raise
            except Exception as error:  # noqa: BLE001 - whatever one message causes is that message's
                refused.append((received, error))
        if time.monotonic() > give_up_at:
            break
    return arrived, refused


def _positions(read: BoundedRead, left: Sequence[ConsumerRecord]) -> Positions:
    """Return the next positions: those of the first unprocessed message of each partition."""
    next_offsets = dict(read.positions.next_offsets)
    for received in left:
        next_offsets[received.partition] = min(next_offsets[received.partition], received.offset)
    return Positions(read.positions.topic_id, next_offsets)


def _log_refused(refused: Sequence[Refused]) -> None:
    """Log every refused message, with a traceback for the first of each error class."""
    traced: set[str] = set()
    for received, error in refused:
        error_class = error_class_of(error)
        logger.warning(
            "message_dead_lettered",
            topic=received.topic,
            partition=received.partition,
            offset=received.offset,
            reason=reason_of(error),
            exc_info=None if error_class in traced else traceback_of(error),
        )
        traced.add(error_class)


def _log_new_notices(topic: str, notices: Sequence[str]) -> None:
    if notices != _logged_notices.get(topic, []):
        for notice in notices:
            logger.warning("topic_notice", topic=topic, notice=notice)
    _logged_notices[topic] = notices
