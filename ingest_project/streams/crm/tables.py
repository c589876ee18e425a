"""Tables of the crm capability, as the code sees them. The migrations create them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import Column as Col

from ingest_project.platform.database.sql import ExactDecimal, Json, UtcTime, metadata


def _origin() -> list[Col[Any]]:
    """Return the columns that say which version of the record this is, and which message brought it."""
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
    sa.Index(
        "unidentified_messages_open",
        "received_at",
        "message_id",
        postgresql_where=sa.text("identified_at IS NULL"),
        sqlite_where=sa.text("identified_at IS NULL"),
    ),
)
