"""Publication of each message exactly once, without transactions.

Neither the embedded broker nor Event Hubs has transactions that isolate, and on Apache Kafka their markers take offsets
of their own, which every count of what waits would show as messages. A producer that was killed does not know what it
had written. So an intent is recorded before anything is written, with the topic's end at that time; after a crash the
next publisher takes the intent over, looks through the topic from there for the ids that made it, writes the rest, and
marks all of them as sent.

A publisher that was suspended, its clocks too, and goes on after another one took its intents over, asks right before
it writes whether they are still its own, and writes nothing. What is left: one that is suspended in the milliseconds
between that question and the broker's socket, or whose request lies unread for longer than SETTLE_SECONDS. Then a
message is on the topic twice, and a consumer that must not take it twice goes by its header `message-id`.

The guarantee holds as long as retention has not removed what a killed publisher wrote before its work is taken up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import msgspec

from ingest_project.core.errors import TransientError
from ingest_project.platform.kafka.consumer import TopicReader
from ingest_project.platform.kafka.offsets import Positions
from ingest_project.platform.kafka.producer import ProducerRecord, TopicWriter

MESSAGE_ID_HEADER = "message-id"
MESSAGES_PER_INTENT = 2_000
# How many are handed over before the publisher asks again whether they are still its own.
MESSAGES_PER_QUESTION = 500
SCAN_MESSAGES = 10_000
SCAN_BYTES = 32 * 1024**2
# The last request of a publisher that was just killed may still lie unread in the broker's socket.
SETTLE_SECONDS = 0.3


class PublisherReplacedError(TransientError):
    """Another publisher took these messages over, because this one had not written them for too long.

    Args:
        topic: they were for.
    """

    def __init__(self, topic: str) -> None:
        self.topic = topic
        super().__init__(f"Messages to {topic} were taken over by another publisher: this one was suspended.")


class Outbox(Protocol):
    """Record of messages on their way out. Every method is durable when it returns."""

    def unsent(self, message_ids: Sequence[str]) -> list[str]:
        """Return those of the ids that are not marked as sent."""

    def intend(self, topic: str, message_ids: Sequence[str], since: Mapping[int, int]) -> Callable[[], bool] | None:
        """Remember that these are about to be written, and where the topic ended before that.

        An intent that exists keeps its earlier `since`.

        Returns:
            tells whether all of them are still this publisher's, for another one may have taken them over; None where
            there is only one publisher.
        """

    def interrupted(self, topic: str, message_ids: Sequence[str]) -> Mapping[str, Mapping[int, int]]:
        """Take over those of the ids with an intent and no mark, each with its `since`: written they may be or not."""

    def mark_sent(self, topic: str, message_ids: Sequence[str]) -> None:
        """Remember that these are on the topic. Marking twice changes nothing."""


def publish_once(
    writer: TopicWriter,
    reader: TopicReader,
    outbox: Outbox,
    topic: str,
    messages: Sequence[tuple[str, ProducerRecord]],
) -> int:
    """Write each message that is not on the topic yet, marked with its id in the header `message-id`.

    Killed anywhere and called again, with the same or other messages, it leaves each id on the topic exactly once.

    Args:
        writer: writes.
        reader: looks for what an interrupted publication had written.
        outbox: remembers what was sent.
        topic: to write to.
        messages: id and message; an id that occurs again is the same message.

    Returns:
        how many messages this call wrote.

    Raises:
        BrokerUnavailableError: not everything was confirmed; call again.
        PublisherReplacedError: another publisher does the rest; nothing of it was written here.
        MessageTooLargeError: the broker refuses a message for its size.
    """
    return sum(_publish(writer, reader, outbox, topic, dict(part)) for part in _parts(messages, MESSAGES_PER_INTENT))


def _publish(
    writer: TopicWriter, reader: TopicReader, outbox: Outbox, topic: str, messages: Mapping[str, ProducerRecord]
) -> int:
    pending = outbox.unsent(list(messages))
    interrupted = outbox.interrupted(topic, pending)
    written = _find_written(reader, topic, interrupted)
    if written:
        outbox.mark_sent(topic, sorted(written))
    pending = [message_id for message_id in pending if message_id not in written]
    if not pending:
        return 0
    is_ours = outbox.intend(topic, pending, reader.end_offsets(topic))
    # Asked while they are handed over, when everything else that may take long is done.
    writer.send_all(topic, _while_ours(topic, (_with_id(name, messages[name]) for name in pending), is_ours))
    outbox.mark_sent(topic, pending)
    return len(pending)


def _while_ours(
    topic: str, messages: Iterable[ProducerRecord], is_ours: Callable[[], bool] | None
) -> Iterator[ProducerRecord]:
    for number, message in enumerate(messages):
        if is_ours is not None and number % MESSAGES_PER_QUESTION == 0 and not is_ours():
            raise PublisherReplacedError(topic)
        yield message


def _find_written(reader: TopicReader, topic: str, interrupted: Mapping[str, Mapping[int, int]]) -> set[str]:
    """Return the interrupted ids that the topic holds, reading from the earliest of their intents to its end."""
    if not interrupted:
        return set()
    time.sleep(SETTLE_SECONDS)
    written: set[str] = set()
    for message_id in _ids_since(reader, topic, _earliest(interrupted.values())):
        if message_id in interrupted:
            written.add(message_id)
    return written


def _ids_since(reader: TopicReader, topic: str, since: Mapping[int, int]) -> Iterator[str]:
    # Without a generation the offsets hold for whatever the topic is now; a partition not named is read from its start.
    positions, remaining = Positions("", since), 1
    while remaining:
        step = reader.read(topic, positions, max_messages=SCAN_MESSAGES, max_bytes=SCAN_BYTES, wait_seconds=0)
        positions, remaining = step.positions, step.remaining
        for message in step.messages:
            message_id = message.header(MESSAGE_ID_HEADER)
            if message_id is not None:
                yield message_id.decode("utf-8", "replace")


def _earliest(sinces: Iterable[Mapping[int, int]]) -> dict[int, int]:
    """Return the lowest offset of each partition; one that an intent does not know is read from its start."""
    known = list(sinces)
    partitions = set(known[0]).intersection(*known)
    return {partition: min(since[partition] for since in known) for partition in partitions}


def _with_id(message_id: str, message: ProducerRecord) -> ProducerRecord:
    return msgspec.structs.replace(message, headers=(*message.headers, (MESSAGE_ID_HEADER, message_id.encode())))


def _parts(messages: Sequence[tuple[str, ProducerRecord]], size: int) -> Iterator[Sequence[tuple[str, ProducerRecord]]]:
    for first in range(0, len(messages), size):
        yield messages[first : first + size]
