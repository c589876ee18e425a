"""The first half of every tick: read on from the saved cursor, decode, store, and put aside what cannot be taken.

Nothing here remembers where it was: a tick that is killed reads the same messages again. Dead letters carry the
position of the message they came from and are published once, however often that happens.

Whatever one message causes, in whichever step, costs that message alone: it becomes a dead letter with the reason. A
service that is away fails the tick instead, and everything waits where it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Generic, TypeVar

from ingest_project.contracts.decoding import trace_id_in
from ingest_project.core.batches import store_bisecting
from ingest_project.core.errors import SkippedByOperatorError
from ingest_project.core.logging import get_logger
from ingest_project.platform.kafka.consumer import BoundedRead, TopicReader
from ingest_project.platform.kafka.dead_letters import dead_letter
from ingest_project.platform.kafka.offsets import Positions
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.platform.kafka.publisher import publish_once
from ingest_project.platform.kafka.records import ConsumerRecord
from ingest_project.platform.runtime import Runtime
from ingest_project.platform.work_queue.item_errors import (
    SERVICES,
    error_class_of,
    is_item_fault,
    reason_of,
    traceback_of,
)
from ingest_project.platform.work_queue.narrowing import Attempt, beginning
from ingest_project.platform.work_queue.types import KafkaPosition

logger = get_logger(__name__)

MAX_BYTES_PER_TICK = 32 * 1024**2
MESSAGES_AT_A_TIME = 1_000
# The daemon gives up a tick after 60 s, and would begin again with the same messages: what is left goes to the next
# one.
LONGEST_SECONDS = 15.0

Message = TypeVar("Message")
Refused = tuple["ConsumerRecord", Exception]


@dataclass(frozen=True)
class ConsumedMessage(Generic[Message]):
    """One decoded message, where it stood, and the headers it came with."""

    message: Message
    intake: KafkaPosition
    received: ConsumerRecord

    @property
    def trace_id(self) -> str | None:
        """The trace that its headers name."""
        return trace_id_in(self.received.headers)


@dataclass(frozen=True)
class Queue(Generic[Message]):
    """A topic whose messages are taken one by one into a ledger.

    Args:
        topic: to read from.
        dead_letter_topic: where messages go that cannot be taken.
        decode: value to message; whatever it raises refuses that message.
        max_messages: bound of one tick.
        wait_seconds: how long to wait for a first message on a quiet topic.
        reader: of the cluster that has the topic; the main one by default.
    """

    topic: str
    dead_letter_topic: str
    decode: Callable[[bytes | None], Message]
    max_messages: int
    wait_seconds: float
    reader: TopicReader | None = None


def consume(
    services: Runtime,
    queue: Queue[Message],
    saved: Positions | None,
    store: Callable[[Sequence[ConsumedMessage[Message]]], object],
) -> Positions:
    """Take what has arrived, at most so many messages.

    Args:
        services: Kafka and the ledger.
        queue: to take from.
        saved: positions of the last saved cursor; None at the first tick.
        store: enters messages in their ledger; doing it again leaves the same state. What it raises refuses the
            message that caused it, unless a service is away.

    Returns:
        the positions to save.

    Raises:
        BrokerUnavailableError, DatabaseUnavailableError, TransactionConflictError, StoreUnavailableError: call again
            with the same positions.
    """
    reader = queue.reader or services.reader
    with beginning(queue.topic, saved, queue.max_messages) as attempt:
        read = reader.read(
            queue.topic,
            saved,
            max_messages=attempt.max_messages,
            max_bytes=MAX_BYTES_PER_TICK,
            wait_seconds=queue.wait_seconds,
        )
        attempt.messages = read.messages
        if saved is not None:
            # Only now that the broker has answered: a commit that meets one that was away ends the process from within.
            reader.commit(queue.topic, saved)
        _log_new_notices(queue.topic, read.notices)
        return _take_read(services, queue, read, attempt, store)


def _take_read(
    services: Runtime,
    queue: Queue[Message],
    read: BoundedRead,
    attempt: Attempt,
    store: Callable[[Sequence[ConsumedMessage[Message]]], object],
) -> Positions:
    topic_id, give_up_at = read.positions.topic_id, time.monotonic() + LONGEST_SECONDS
    wanted, refused = without_skipped(services, read.messages, topic_id)
    messages, taken = iter(wanted), 0
    while part := _decoded(queue, islice(messages, MESSAGES_AT_A_TIME), topic_id, attempt, give_up_at):
        failures = store_bisecting(part.arrived, store, is_item_fault)
        dead_letter_message(
            services,
            queue.dead_letter_topic,
            [*refused, *part.refused, *((one.received, error) for one, error in failures)],
            topic_id,
        )
        refused, taken = [], taken + part.seen
        if time.monotonic() > give_up_at:
            break
    dead_letter_message(services, queue.dead_letter_topic, refused, topic_id)
    return _positions(read, wanted[taken:])


def without_skipped(
    services: Runtime, messages: Sequence[ConsumerRecord], topic_id: str
) -> tuple[Sequence[ConsumerRecord], list[Refused]]:
    """Messages of one topic that are to be taken, and those that an operator has asked to be skipped."""
    asked = services.skipped_offsets.of(messages[0].topic, topic_id) if messages else ()
    wanted: list[ConsumerRecord] = []
    refused: list[Refused] = []
    for message in messages:
        skipped = next((one for one in asked if one.covers(message.partition, message.offset)), None)
        if skipped is None:
            wanted.append(message)
        else:
            refused.append((message, SkippedByOperatorError(skipped.asked_by, skipped.reason)))
    return wanted, refused


@dataclass(frozen=True)
class _Part(Generic[Message]):
    """Some messages, decoded as far as there was time."""

    arrived: Sequence[ConsumedMessage[Message]]
    refused: Sequence[Refused]

    @property
    def seen(self) -> int:
        return len(self.arrived) + len(self.refused)

    def __bool__(self) -> bool:
        return bool(self.seen)


def _decoded(
    queue: Queue[Message], messages: islice[ConsumerRecord], topic_id: str, attempt: Attempt, give_up_at: float
) -> _Part[Message]:
    arrived: list[ConsumedMessage[Message]] = []
    refused: list[Refused] = []
    for received in messages:
        if refusal := attempt.refusal_of(received):
            refused.append((received, refusal))
        else:
            try:
                intake = _intake(received, topic_id)
                arrived.append(ConsumedMessage(queue.decode(received.value), intake, received))
            except SERVICES:
                raise
            except Exception as error:  # noqa: BLE001 - whatever one message causes is that message's
                refused.append((received, error))
        if time.monotonic() > give_up_at:
            break
    return _Part(arrived, refused)


def _positions(read: BoundedRead, left: Sequence[ConsumerRecord]) -> Positions:
    """Where the next tick goes on: before the first message of each partition that there was no time for."""
    next_offsets = dict(read.positions.next_offsets)
    for received in left:
        next_offsets[received.partition] = min(next_offsets[received.partition], received.offset)
    return Positions(read.positions.topic_id, next_offsets)


# What was last said of each topic: a topic that is not there yet would say so every few seconds.
_said: dict[str, Sequence[str]] = {}


def _log_new_notices(topic: str, notices: Sequence[str]) -> None:
    if notices != _said.get(topic, []):
        for notice in notices:
            logger.warning("topic_notice", topic=topic, notice=notice)
    _said[topic] = notices


def _intake(received: ConsumerRecord, topic_id: str) -> KafkaPosition:
    return KafkaPosition(received.topic, received.partition, received.offset, topic_id, received.timestamp)


def dead_letter_message(services: Runtime, dead_letter_topic: str, refused: Sequence[Refused], topic_id: str) -> None:
    """Publish messages that cannot be taken as dead letters, each once however often this is called.

    Args:
        services: Kafka, the outbox, and the quarantine for what no topic takes.
        dead_letter_topic: where to.
        refused: the messages and what is wrong with them.
        topic_id: life of the topic they were read from.

    Raises:
        BrokerUnavailableError: not all were published; call again.
    """
    if not refused:
        return
    now = datetime.now(UTC)
    letters = []
    told: set[str] = set()
    for received, error in refused:
        error_class = error_class_of(error)
        logger.warning(
            "message_dead_lettered",
            topic=received.topic,
            partition=received.partition,
            offset=received.offset,
            reason=reason_of(error),
            exc_info=None if error_class in told else traceback_of(error),
        )
        told.add(error_class)
        letters.append(
            dead_letter(
                received,
                error_class=error_class,
                reason=reason_of(error),
                first_failed_at=now,
                last_failed_at=now,
                topic_id=topic_id,
            )
        )
    try:
        publish_once(services.writer, services.reader, services.outbox, dead_letter_topic, letters)
    except Exception as error:
        if not is_item_fault(error):
            raise
        for (received, cause), letter in zip(refused, letters, strict=True):
            _publish_or_keep(services, dead_letter_topic, received, cause, letter)


def _publish_or_keep(
    services: Runtime,
    dead_letter_topic: str,
    received: ConsumerRecord,
    cause: Exception,
    letter: tuple[str, ProducerRecord],
) -> None:
    """One dead letter; one that no topic takes, e.g. for its size, goes to the quarantine store instead."""
    try:
        publish_once(services.writer, services.reader, services.outbox, dead_letter_topic, [letter])
    except Exception as refusal:
        if not is_item_fault(refusal):
            raise
        logger.warning("dead_letter_kept_in_quarantine", message_id=letter[0], reason=reason_of(refusal))
        note = {"reason": reason_of(cause), "topic": received.topic, "not_dead_lettered": reason_of(refusal)}
        services.quarantine.put(letter[0], received.value or b"", note)
