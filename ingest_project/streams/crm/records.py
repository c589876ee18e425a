"""Opportunities and projects: each record once, in its newest version, for any order of arrival.

Of two versions the one with the later `last_modified` stays. Two that claim the same moment are ordered by their
position in Kafka: by the epoch of the topic (a topic that was recreated is younger), then by topic name and topic id,
by partition, and by offset. So the later offset of a partition wins, across partitions the higher partition number, and
any order, any chunks and any repetition of the same messages leave the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Column as Col

from ingest_project.contracts.crm_event import CrmKind
from ingest_project.platform.database.sql import ExactDecimal, Json, UtcTime, lookup_indexes, metadata, partial_index
from ingest_project.streams.sql.upsert import KAFKA_ORDER


def _origin() -> list[Col[Any]]:
    """Return the columns that identify the version of a record, and the message that brought it."""
    return [
        Col("last_modified", UtcTime, nullable=False),
        # Digest of the whole message.
        Col("content_sha256", sa.Text, nullable=False),
        Col("kafka_topic", sa.Text, nullable=False),
        Col("kafka_topic_id", sa.Text, nullable=False),
        Col("kafka_partition", sa.Integer, nullable=False),
        Col("kafka_offset", sa.BigInteger, nullable=False),
        Col("stored_at", UtcTime, nullable=False),
        # Number of the topic among those of the same name: of two simultaneous versions, the later topic's stays.
        Col("kafka_epoch", sa.Integer, nullable=False, server_default="0"),
        # Trace id of the message that brought this version, if its headers have one.
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
        # The complete object as sent; the columns above are extracted from it.
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
    # Its position as text, such as `sales_events-0-42`, and `~` with the topic's id if it has one.
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
    # The payload as text if it is UTF-8, with NUL characters replaced.
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
    partial_index("unidentified_messages_open", "identified_at IS NULL", "received_at", "message_id"),
)


TABLES: Mapping[CrmKind, sa.Table] = {CrmKind.OPPORTUNITY: opportunities, CrmKind.PROJECT: projects}
VERSION = ("last_modified", *KAFKA_ORDER)


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
