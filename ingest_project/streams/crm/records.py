"""Opportunities and projects: each record once, in its newest version, for any order of arrival.

Of two versions the one with the later `last_modified` stays. Two that claim the same moment are ordered by their
position in Kafka: by the epoch of the topic (a topic that was recreated is younger), then by topic name and topic id,
by partition, and by offset. So the later offset of a partition wins, across partitions the higher partition number, and
any order, any chunks and any repetition of the same messages leave the same rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Column as Col

from ingest_project.contracts.crm_event import CrmEvent, CrmKind
from ingest_project.platform.database.sql import ExactDecimal, Json, UtcTime, lookup_indexes, metadata
from ingest_project.streams.sql.upsert import KAFKA_ORDER, upsert_rows


def _origin() -> list[Col[Any]]:
    """Return the columns that identify the version of a record, and the message that brought it."""
    return [
        Col("last_modified", UtcTime, nullable=False),
        # Of the whole message.
        Col("content_sha256", sa.Text, nullable=False),
        Col("kafka_topic", sa.Text, nullable=False),
        Col("kafka_topic_id", sa.Text, nullable=False),
        Col("kafka_partition", sa.Integer, nullable=False),
        Col("kafka_offset", sa.BigInteger, nullable=False),
        Col("stored_at", UtcTime, nullable=False),
        # Number of the topic among those of the same name: of two versions of one moment the later one stays.
        Col("kafka_epoch", sa.Integer, nullable=False, server_default="0"),
        # Of the message that brought this version, where its headers name one.
        Col("trace_id", sa.Text, index=True),
    ]


def _described() -> list[Col[Any]]:
    """Return the columns that both kinds of records have in common."""
    return [
        Col("account_id", sa.Text),
        Col("owner_id", sa.Text),
        Col("source", sa.Text),
        Col("tags", Json),
        Col("notes", sa.Text),
        # Whole, as it came; the columns above are taken from it.
        Col("meta_data", Json, nullable=False),
        # Fields that the contract does not know, by name.
        Col("other_fields", Json),
    ]


opportunities = sa.Table(
    "opportunities",
    metadata,
    Col("event_id", sa.Text, primary_key=True),
    Col("name", sa.Text, nullable=False),
    Col("stage", sa.Text, nullable=False),
    Col("amount", ExactDecimal),
    Col("probability", ExactDecimal),
    Col("expected_close_date", sa.Date),
    *_described(),
    *_origin(),
    *lookup_indexes("opportunities"),
)

projects = sa.Table(
    "projects",
    metadata,
    Col("event_id", sa.Text, primary_key=True),
    Col("name", sa.Text, nullable=False),
    Col("status", sa.Text, nullable=False),
    Col("start_date", sa.Date),
    Col("end_date", sa.Date),
    Col("budget", ExactDecimal),
    *_described(),
    *_origin(),
    *lookup_indexes("projects"),
)

unidentified_messages = sa.Table(
    "unidentified_messages",
    metadata,
    # Its position, as people write it.
    Col("message_id", sa.Text, primary_key=True),
    Col("kafka_topic", sa.Text, nullable=False),
    Col("kafka_topic_id", sa.Text, nullable=False),
    Col("kafka_partition", sa.Integer, nullable=False),
    Col("kafka_offset", sa.BigInteger, nullable=False),
    Col("kafka_timestamp", UtcTime),
    Col("message_key", sa.LargeBinary),
    # Names and values (base64) in the order they were sent.
    Col("headers", Json),
    # The bytes as they were sent; null for a message without any.
    Col("payload", sa.LargeBinary),
    # The same where it is UTF-8, NUL characters replaced.
    Col("payload_text", sa.Text),
    Col("size_bytes", sa.BigInteger, nullable=False),
    Col("reason", sa.Text, nullable=False),
    Col("error_class", sa.Text, nullable=False),
    Col("received_at", UtcTime, nullable=False),
    Col("retries", sa.Integer, nullable=False),
    Col("retried_at", UtcTime),
    # Set once it was identified after all: when, as what, and which record it became.
    Col("identified_at", UtcTime),
    Col("identified_as", sa.Text),
    Col("event_id", sa.Text),
    Col("trace_id", sa.Text, index=True),
    *lookup_indexes("unidentified_messages"),
    sa.Index(
        "unidentified_messages_open",
        "received_at",
        "message_id",
        postgresql_where=sa.text("identified_at IS NULL"),
        sqlite_where=sa.text("identified_at IS NULL"),
    ),
)


TABLES: Mapping[CrmKind, sa.Table] = {CrmKind.OPPORTUNITY: opportunities, CrmKind.PROJECT: projects}
VERSION = ("last_modified", *KAFKA_ORDER)


class MessageOrder(NamedTuple):
    """Position of a message, by which versions of one moment are ordered.

    Args:
        topic_id: of the topic.
        epoch: number of that topic among those of the same name: 0 for the first one that was read.
    """

    topic: str
    topic_id: str
    partition: int
    offset: int
    epoch: int = 0

    def __str__(self) -> str:
        """Name topic, partition and offset."""
        return f"{self.topic}[{self.partition}]@{self.offset}"


class PlacedEvent(NamedTuple):
    """A version of a record and the message that brought it.

    Args:
        trace_id: the trace that the message's headers name.
    """

    event: CrmEvent
    position: MessageOrder
    trace_id: str | None = None

    @property
    def version(self) -> tuple[object, ...]:
        """Orders all versions of a record: the greatest one stays. The same order as VERSION."""
        position = self.position
        return (
            self.event.last_modified,
            position.epoch,
            position.topic.encode(),
            position.topic_id.encode(),
            position.partition,
            position.offset,
        )


class Upserted(NamedTuple):
    """Result of an upsert.

    Args:
        messages: versions that were given.
        changed: rows that are new or have a newer version now.
    """

    messages: int
    changed: int


def upsert(connection: sa.Connection, kind: CrmKind, placed: Iterable[PlacedEvent], now: datetime) -> Upserted:
    """Store versions of records of one kind, in the caller's transaction.

    Upserts on event_id; an older version never overwrites a newer one, and doing it again changes nothing.
    """
    messages = list(placed)
    rows = [_row(one, now) for one in _newest(messages)]
    changed = upsert_rows(connection, TABLES[kind], VERSION, rows)
    return Upserted(len(messages), changed)


def out_of_range(connection: sa.Connection, kind: CrmKind) -> int:
    """Count stored records with a negative amount, or a probability outside 0 to 100."""
    table = TABLES[kind]
    number: Any = sa.REAL if connection.dialect.name == "sqlite" else sa.Numeric

    def below(name: str, limit: int) -> sa.ColumnElement[bool]:
        return sa.cast(table.c[name], number) < limit

    if kind is CrmKind.PROJECT:
        wrong = below("budget", 0)
    else:
        wrong = sa.or_(below("amount", 0), below("probability", 0), sa.cast(table.c.probability, number) > 100)  # noqa: PLR2004 - per cent
    return int(connection.execute(sa.select(sa.func.count()).select_from(table).where(wrong)).scalar_one())


def count(connection: sa.Connection, kind: CrmKind) -> int:
    """Count the stored records."""
    return int(connection.execute(sa.select(sa.func.count()).select_from(TABLES[kind])).scalar_one())


def _newest(messages: Sequence[PlacedEvent]) -> Iterable[PlacedEvent]:
    """Return the version of each record that would be left in the end: one statement touches a row only once."""
    newest: dict[str, PlacedEvent] = {}
    for one in messages:
        known = newest.setdefault(one.event.event_id, one)
        if known is not one and one.version > known.version:
            newest[one.event.event_id] = one
    return newest.values()


def _row(placed: PlacedEvent, stored_at: datetime) -> dict[str, Any]:
    event, position, trace_id = placed
    return {
        "event_id": event.event_id,
        "name": event.name,
        **event.own,
        "account_id": event.account_id,
        "owner_id": event.owner_id,
        "source": event.source,
        "tags": event.tags,
        "notes": event.notes,
        "meta_data": event.meta_data,
        "other_fields": event.other_fields,
        "last_modified": event.last_modified,
        "content_sha256": event.content_sha256,
        "kafka_topic": position.topic,
        "kafka_topic_id": position.topic_id,
        "kafka_epoch": position.epoch,
        "kafka_partition": position.partition,
        "kafka_offset": position.offset,
        "trace_id": trace_id,
        "stored_at": stored_at,
    }
