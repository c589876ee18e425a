"""The first half of every tick: read on from the saved cursor, decode, and put the unreadable aside.

Nothing here remembers where it was: a tick that is killed reads the same messages again. Dead letters carry the
position of the message they came from and are published once, however often that happens.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Generic, TypeVar

from ingest_project.errors import PermanentError, UnreadableMessage
from ingest_project.kafka.dead_letters import dead_letter
from ingest_project.kafka.publishing import publish_once
from ingest_project.ledger.entries import Intake
from ingest_project.logs import get_logger
from ingest_project.messages.tracing import trace_id_in

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ingest_project.kafka.positions import Positions
    from ingest_project.kafka.reading import TopicReader
    from ingest_project.kafka.received import Received
    from ingest_project.kafka.writing import Outgoing
    from ingest_project.resources import Services

logger = get_logger(__name__)

MAX_BYTES_PER_TICK = 32 * 1024**2

Message = TypeVar("Message")


@dataclass(frozen=True)
class Arrived(Generic[Message]):
    """One decoded message, where it stood, and the headers it came with."""

    message: Message
    intake: Intake
    received: Received

    @property
    def trace_id(self) -> str | None:
        """The trace that its headers name."""
        return trace_id_in(self.received.headers)


@dataclass(frozen=True)
class Taken(Generic[Message]):
    """What one tick took from a topic.

    Args:
        arrived: the readable messages.
        dead_lettered: how many were not.
        positions: to be saved as the cursor.
        remaining: messages left in the topic.
        notices: what a person should know, e.g. that the topic was recreated.
    """

    arrived: Sequence[Arrived[Message]]
    dead_lettered: int
    positions: Positions
    remaining: int
    notices: Sequence[str]


def take(  # noqa: PLR0913 - two topics, two bounds
    services: Services,
    topic: str,
    dead_letter_topic: str,
    decode: Callable[[bytes | None], Message],
    saved: Positions | None,
    *,
    max_messages: int,
    wait_seconds: float,
    reader: TopicReader | None = None,
) -> Taken[Message]:
    """Read and decode what has arrived, at most so many messages.

    Args:
        services: Kafka and the ledger.
        topic: to read from.
        dead_letter_topic: where messages go that `decode` refuses.
        decode: value to message; raises UnreadableMessage or another PermanentError for what must not be taken.
        saved: positions of the last saved cursor; None at the first tick.
        max_messages: bound of this tick.
        wait_seconds: how long to wait for a first message on a quiet topic.
        reader: of the cluster that has the topic; the main one by default.

    Raises:
        BrokerUnavailable: nothing was taken.
    """
    reader = reader or services.reader
    read = reader.read(topic, saved, max_messages=max_messages, max_bytes=MAX_BYTES_PER_TICK, wait_seconds=wait_seconds)
    if saved is not None:
        # Only now that the broker has answered: a commit that meets one that was away ends the process from within.
        reader.commit(topic, saved)
    _log_new_notices(topic, read.notices)
    arrived: list[Arrived[Message]] = []
    refused: list[tuple[Received, PermanentError | UnreadableMessage]] = []
    for received in read.messages:
        try:
            arrived.append(Arrived(decode(received.value), _intake(received, read.positions.generation), received))
        except (UnreadableMessage, PermanentError) as error:
            refused.append((received, error))
    put_aside(services, dead_letter_topic, refused, read.positions.generation)
    return Taken(arrived, len(refused), read.positions, read.remaining, read.notices)


# What was last said of each topic: a topic that is not there yet would say so every few seconds.
_said: dict[str, Sequence[str]] = {}


def _log_new_notices(topic: str, notices: Sequence[str]) -> None:
    if notices != _said.get(topic, []):
        for notice in notices:
            logger.warning("topic_notice", topic=topic, notice=notice)
    _said[topic] = notices


def _intake(received: Received, generation: str) -> Intake:
    return Intake(received.topic, received.partition, received.offset, generation, received.timestamp)


def put_aside(
    services: Services,
    dead_letter_topic: str,
    refused: Sequence[tuple[Received, PermanentError | UnreadableMessage]],
    generation: str,
) -> None:
    """Publish messages that cannot be read as dead letters, each once however often this is called.

    Args:
        services: Kafka, the outbox, and the quarantine for what no topic takes.
        dead_letter_topic: where to.
        refused: the messages and what is wrong with them.
        generation: life of the topic they were read from.

    Raises:
        BrokerUnavailable: not all were published; call again.
    """
    if not refused:
        return
    now = datetime.now(UTC)
    letters = []
    for received, error in refused:
        logger.warning(
            "message_dead_lettered",
            topic=received.topic,
            partition=received.partition,
            offset=received.offset,
            reason=str(error),
        )
        letters.append(
            dead_letter(
                received,
                error_class=error.error_class,
                reason=str(error),
                first_failed_at=now,
                last_failed_at=now,
                generation=generation,
            )
        )
    try:
        publish_once(services.writer, services.reader, services.outbox, dead_letter_topic, letters)
    except PermanentError:
        for (received, error), letter in zip(refused, letters, strict=True):
            _publish_or_keep(services, dead_letter_topic, received, error, letter)


def _publish_or_keep(
    services: Services,
    dead_letter_topic: str,
    received: Received,
    error: PermanentError | UnreadableMessage,
    letter: tuple[str, Outgoing],
) -> None:
    """One dead letter; one that its headers make too large for the broker goes to the quarantine store instead."""
    try:
        publish_once(services.writer, services.reader, services.outbox, dead_letter_topic, [letter])
    except PermanentError as refusal:
        logger.warning("dead_letter_kept_in_quarantine", message_id=letter[0], reason=str(refusal))
        note = {"reason": str(error), "topic": received.topic, "not_dead_lettered": str(refusal)}
        services.quarantine.put(letter[0], io.BytesIO(received.value or b""), note)
