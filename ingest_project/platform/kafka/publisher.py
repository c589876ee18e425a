"""Publish each message exactly once, without transactions.

Neither the embedded broker nor Event Hubs isolates transactions, and on Apache Kafka their markers occupy offsets,
which every count of unread messages would include. A killed producer does not know which messages it had written. So a
publisher records an intent in the table `outbox` before it writes anything, with the topic's end offsets at that time.
After a crash, the next publisher takes over the intent, scans the topic from those offsets for the written ids, writes
the rest, and marks all of them as sent.

A publisher checks right before it writes that it still owns its intents: if it was suspended while another took them
over, it writes nothing. One gap remains: a publisher that is suspended in the milliseconds between that check and the
broker's socket, or whose request lies unread for longer than SETTLE_SECONDS. Then a message is on the topic twice, and
a consumer that must not process it twice deduplicates by the header `message-id`.

The guarantee holds unless retention removes a killed publisher's messages before another publisher takes over.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import sqlalchemy as sa
from sqlalchemy import Column as Col
from sqlalchemy.dialects.postgresql import ARRAY

from ingest_project.core.errors import TransientError
from ingest_project.platform.database import fetch, reading, writing
from ingest_project.platform.database.sql import Json, UtcTime, in_parts, insert_missing, metadata, rows_in
from ingest_project.platform.kafka.offsets import Positions
from ingest_project.platform.kafka.producer import ProducerRecord, TopicWriter
from ingest_project.platform.kafka.reader import TopicReader

MESSAGE_ID_HEADER = "message-id"
MESSAGES_PER_INTENT = 2_000
# Messages sent before the publisher checks again that it still owns them.
MESSAGES_PER_CHECK = 500
SCAN_MESSAGES = 10_000
SCAN_BYTES = 32 * 1024**2
# Wait this long: the last request of a publisher that was just killed may still lie unread in the broker's socket.
SETTLE_SECONDS = 0.3
# A younger intent of another publisher is left alone at first: a person can start two runs over the same entries, which
# publish concurrently while both are alive.
YOUNG_SECONDS = 3.0
# How long a replaced publisher waits for the other one to send the messages.
REPLACED_SECONDS = 30.0
# Messages recorded before they are sent. After a crash, a message that is still `intended` may have been sent.
outbox = sa.Table(
    "outbox",
    metadata,
    Col("message_id", sa.Text, primary_key=True),
    Col("topic", sa.Text, primary_key=True),
    Col("state", sa.Text, nullable=False),
    Col("since", Json),
    Col("created_at", UtcTime, nullable=False),
    # The publisher that is about to send it. One that takes over the intent enters its name, and the earlier one stops.
    Col("owner", sa.Text),
)
INTENDED = "intended"
SENT = "sent"
# OFFSET 0 forces an index look-up for each id. Otherwise PostgreSQL plans one join of all ids, and without statistics,
# as for a table that grows fast, it scans the whole table.
_UNSENT = sa.text(
    "SELECT wanted.id FROM unnest(CAST(:message_ids AS text[])) WITH ORDINALITY AS wanted(id, place)"
    f" WHERE NOT EXISTS (SELECT FROM outbox WHERE message_id = wanted.id AND state = '{SENT}' OFFSET 0)"
    " ORDER BY wanted.place"
)
_INTEND = sa.text(
    "INSERT INTO outbox (message_id, topic, state, since, created_at, owner)"
    f" SELECT unnest(CAST(:message_ids AS text[])), :topic, '{INTENDED}', CAST(:since AS jsonb), :created_at, :owner"
    " ON CONFLICT DO NOTHING"
)


class PublisherReplacedError(TransientError):
    """Another publisher took over these messages, because this one had not written them for too long.

    Args:
        topic: topic of the messages.
    """

    def __init__(self, topic: str) -> None:
        self.topic = topic
        super().__init__(f"Messages to {topic} were taken over by another publisher: this one was suspended.")


StillOwns = Callable[[Sequence[str]], bool]
"""Returns True while this publisher owns all messages of these ids."""


def publish_once(
    writer: TopicWriter,
    reader: TopicReader,
    outbox: MessageOutbox,
    topic: str,
    messages: Sequence[tuple[str, ProducerRecord]],
) -> int:
    """Write each message that is not on the topic yet, with its id in the header `message-id`.

    Killed at any point and called again, with the same or other messages, it leaves each id on the topic exactly once.

    Args:
        writer: writes the messages.
        reader: finds the messages that an interrupted publication had written.
        outbox: records the messages that were sent.
        topic: topic to write to.
        messages: pairs of id and message; equal ids are the same message.

    Returns:
        the number of messages that this call, or a publisher that took them over from it, wrote.

    Raises:
        BrokerUnavailableError: not everything was confirmed; call again.
        PublisherReplacedError: another publisher took over the rest and has not written it yet.
        MessageTooLargeError: the broker refuses a message because of its size.
    """
    return sum(_publish(writer, reader, outbox, topic, dict(part)) for part in in_parts(messages, MESSAGES_PER_INTENT))


def _publish(
    writer: TopicWriter, reader: TopicReader, outbox: MessageOutbox, topic: str, messages: Mapping[str, ProducerRecord]
) -> int:
    pending = recover(reader, outbox, topic, list(messages))
    if not pending:
        return 0
    still_owns = outbox.record_intent(topic, pending, reader.end_offsets(topic))
    # The generator checks ownership during sending, after every other step that may take long.
    try:
        writer.send_all(topic, _while_owned(topic, messages, pending, still_owns))
    except PublisherReplacedError:
        give_up_at = time.monotonic() + REPLACED_SECONDS
        while outbox.unsent(pending):
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.1)
    else:
        outbox.mark_sent(topic, pending)
    return len(pending)


def recover(reader: TopicReader, outbox: MessageOutbox, topic: str, message_ids: Sequence[str]) -> list[str]:
    """Find the messages that a killed publisher had written, and return the ids that are not on the topic.

    Args:
        reader: finds the messages.
        outbox: records the messages that were sent.
        topic: topic of the messages.
        message_ids: ids of the messages.
    """
    pending = outbox.unsent(message_ids)
    written = _find_written(reader, topic, outbox.interrupted(topic, pending))
    if written:
        outbox.mark_sent(topic, sorted(written))
    return [message_id for message_id in pending if message_id not in written]


def _while_owned(
    topic: str, messages: Mapping[str, ProducerRecord], pending: Sequence[str], still_owns: StillOwns
) -> Iterator[ProducerRecord]:
    for part in in_parts(pending, MESSAGES_PER_CHECK):
        if not still_owns(part):
            raise PublisherReplacedError(topic)
        for message_id in part:
            message, its_id = messages[message_id], (MESSAGE_ID_HEADER, message_id.encode())
            yield msgspec.structs.replace(message, headers=(*message.headers, its_id))


def _find_written(reader: TopicReader, topic: str, interrupted: Mapping[str, Mapping[int, int]]) -> set[str]:
    """Return the interrupted ids that are on the topic, reading from the earliest offset of their intents."""
    if not interrupted:
        return set()
    time.sleep(SETTLE_SECONDS)
    return set(_ids_since(reader, topic, _earliest(interrupted.values()))).intersection(interrupted)


def _ids_since(reader: TopicReader, topic: str, since: Mapping[int, int]) -> Iterator[str]:
    # Without a topic id, the offsets refer to the current topic; a partition missing here is read from its start.
    positions, remaining = Positions("", since), 1
    while remaining:
        step = reader.read(topic, positions, max_messages=SCAN_MESSAGES, max_bytes=SCAN_BYTES, wait_seconds=0)
        positions, remaining = step.positions, step.remaining
        for message in step.messages:
            message_id = message.header(MESSAGE_ID_HEADER)
            if message_id is not None:
                yield message_id.decode("utf-8", "replace")


def _earliest(sinces: Iterable[Mapping[int, int]]) -> dict[int, int]:
    """Return the lowest offset of each partition, without partitions that are missing from an intent."""
    known = list(sinces)
    partitions = set(known[0]).intersection(*known)
    return {partition: min(since[partition] for since in known) for partition in partitions}


class MessageOutbox:
    """Reads and writes the table `outbox`. Every method is durable when it returns.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: from every method.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._name = uuid.uuid4().hex

    def unsent(self, message_ids: Sequence[str]) -> list[str]:
        """Return the ids that are not marked as sent, in order."""
        if self._engine.dialect.name == "postgresql":
            # Query the missing ids, usually few, with one array parameter; `IN` would send and return thousands.
            return list(fetch(self._engine, _UNSENT, {"message_ids": list(message_ids)}).scalars())
        query = sa.select(outbox.c.message_id).where(outbox.c.state == SENT)
        with reading(self._engine) as connection:
            sent = {row[0] for row in rows_in(connection, query, outbox.c.message_id, message_ids)}
        return [message_id for message_id in message_ids if message_id not in sent]

    def record_intent(self, topic: str, message_ids: Sequence[str], since: Mapping[int, int]) -> StillOwns:
        """Record the intent to write these messages, and the end offsets of the topic before that.

        An existing intent keeps its `since` and its owner.

        Returns:
            a function that returns True if this publisher still owns the given ids; call it right before writing them.
        """
        owner = self._owner()
        offsets = {str(partition): offset for partition, offset in since.items()}
        ids, entry = sorted(set(message_ids)), {"topic": topic, "created_at": datetime.now(UTC), "owner": owner}
        with writing(self._engine) as connection:
            if connection.dialect.name == "postgresql":
                own = {"message_ids": ids, "since": msgspec.json.encode(offsets).decode()}
                connection.execute(_INTEND, entry | own)
            else:
                rows = [{"message_id": one, "state": INTENDED, "since": offsets, **entry} for one in ids]
                insert_missing(connection, outbox, rows, outbox.c.message_id)
        return lambda part: self._owns(topic, part, owner)

    def interrupted(self, topic: str, message_ids: Sequence[str]) -> dict[str, dict[int, int]]:
        """Take over the ids with an intent that is not marked as sent, so that their earlier publisher stops.

        A publisher that has just recorded its intent is probably alive: it gets YOUNG_SECONDS to mark them as sent.

        Returns each id with the offsets, by partition, from which to search for it.
        """
        give_up_at = time.monotonic() + YOUNG_SECONDS
        while time.monotonic() < give_up_at and self._has_young(topic, message_ids):
            time.sleep(0.1)
        found: dict[str, dict[int, int]] = {}
        query = sa.select(outbox.c.message_id, outbox.c.since)
        with reading(self._engine) as connection:
            for part in in_parts(message_ids):
                for message_id, since in connection.execute(query.where(*self._intended(topic, part))):
                    found[message_id] = {int(partition): offset for partition, offset in since.items()}
        if found:
            with writing(self._engine) as connection:
                for part in in_parts(sorted(found)):
                    taken = sa.update(outbox).where(*self._intended(topic, part)).values(owner=self._owner())
                    connection.execute(taken)
        return found

    def _has_young(self, topic: str, message_ids: Sequence[str]) -> bool:
        since = datetime.now(UTC) - timedelta(seconds=YOUNG_SECONDS)
        of_another = sa.and_(outbox.c.owner != self._owner(), outbox.c.created_at > since)
        with reading(self._engine) as connection:
            return any(
                connection.scalar(sa.select(sa.exists().where(*self._intended(topic, part), of_another)))
                for part in in_parts(message_ids)
            )

    def mark_sent(self, topic: str, message_ids: Sequence[str]) -> None:
        """Mark messages as sent. Idempotent."""
        with writing(self._engine) as connection:
            self._mark(connection, topic, message_ids)

    def ids(self, topic: str, prefix: str, since: datetime | None = None) -> list[str]:
        """Return the ids of a topic's messages with a prefix, optionally only those recorded since a time."""
        query = sa.select(outbox.c.message_id).where(
            outbox.c.topic == topic, outbox.c.message_id.startswith(prefix, autoescape=True)
        )
        if since is not None:
            query = query.where(outbox.c.created_at >= since)
        return list(fetch(self._engine, query).scalars())

    def remember(self, topic: str, message_id: str) -> None:
        """Record as sent an id that represents other messages and has no own message. Idempotent."""
        row = {"message_id": message_id, "topic": topic, "state": SENT, "created_at": datetime.now(UTC)}
        with writing(self._engine) as connection:
            insert_missing(connection, outbox, [row], outbox.c.message_id)

    def _mark(self, connection: sa.Connection, topic: str, message_ids: Sequence[str]) -> int:
        """Mark messages as sent and count those that were not marked before."""
        marked = 0
        for part in in_parts(sorted(message_ids)):
            statement = sa.update(outbox).where(*self._intended(topic, part)).values(state=SENT, since=sa.null())
            marked += connection.execute(statement).rowcount
        return marked

    def _owns(self, topic: str, message_ids: Sequence[str], owner: str) -> bool:
        owned = 0
        with reading(self._engine) as connection:
            for part in in_parts(sorted(set(message_ids))):
                query = sa.select(sa.func.count()).where(*self._intended(topic, part), outbox.c.owner == owner)
                owned += connection.execute(query).scalar_one()
        return owned == len(set(message_ids))

    def _owner(self) -> str:
        """Return a name that is unique to this process and thread, even after a fork."""
        return f"{self._name}/{os.getpid()}/{threading.get_ident()}"

    def _intended(self, topic: str, message_ids: Sequence[str]) -> tuple[sa.ColumnElement[bool], ...]:
        return outbox.c.topic == topic, self._is_one_of(message_ids), outbox.c.state == INTENDED

    def _is_one_of(self, message_ids: Sequence[str]) -> sa.ColumnElement[bool]:
        if self._engine.dialect.name == "postgresql":
            # Use one array parameter: SQLAlchemy would render `IN` again for each number of ids.
            return outbox.c.message_id == sa.any_(sa.cast(list(message_ids), ARRAY(sa.Text)))
        return outbox.c.message_id.in_(message_ids)
