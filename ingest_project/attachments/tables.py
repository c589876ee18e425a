"""Tables of the attachments capability, as the code sees them, and the states of an attachment.

The migrations create the tables.

    event        pending -> requested -> running     -> done | failed
    attachment   pending -> requested -> downloading -> stored | failed

A transient failure or a lost run leads back to pending; a person may reopen any finished one.
"""

from __future__ import annotations

from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy import Column as Col

from ingest_project.platform.database.sql import (
    Json,
    UtcTime,
    kafka_columns,
    metadata,
    partial_index,
    queue_indexes,
    work_columns,
)


class AttachmentState(StrEnum):
    """State of an attachment in the work queue. In a retry topic it is pending until its due time."""

    PENDING = "pending"
    REQUESTED = "requested"
    DOWNLOADING = "downloading"
    STORED = "stored"
    FAILED = "failed"

    @property
    def finished(self) -> bool:
        """True when only a person can request another attempt."""
        return self in {AttachmentState.STORED, AttachmentState.FAILED}


# An event as it was read, kept whole: extracting its addresses again after a fixed setting finds what was missed.
attachment_events = sa.Table(
    "attachment_events",
    metadata,
    Col("event_key", sa.Text, primary_key=True),
    # The hour in which it arrived, as Dagster names hourly partitions.
    Col("hour", sa.Text, nullable=False),
    Col("trace_id", sa.Text, nullable=False),
    Col("domain", sa.Text, nullable=False),
    Col("event_type", sa.Text, nullable=False),
    Col("body", sa.Text, nullable=False),
    *kafka_columns(),
    *work_columns(),
    # Addresses found in it, and of those the ones that were attachments already.
    Col("addresses", sa.Integer),
    Col("duplicates", sa.Integer),
    *queue_indexes("attachment_events"),
    sa.Index("attachment_events_by_hour", "hour"),
    sa.Index("attachment_events_by_trace", "trace_id"),
)

attachments = sa.Table(
    "attachments",
    metadata,
    Col("attachment_key", sa.Text, primary_key=True),
    Col("trace_id", sa.Text, nullable=False),
    Col("domain", sa.Text, nullable=False),
    Col("attachment_url", sa.Text, nullable=False),
    # The task as received (JSON): dead letters and replays contain it unchanged.
    Col("task", sa.Text, nullable=False),
    Col("destination_path", sa.Text, nullable=False),
    # The event it was found in; null for a task that came over Kafka.
    Col("event_key", sa.Text),
    *kafka_columns(),
    # Sensor that serves it: `pending` for a first attempt, `retry` for the others.
    Col("queue_name", sa.Text, nullable=False),
    *work_columns(),
    # Which attempt comes next or was last, the first being 1; and how often it began again.
    Col("attempt", sa.Integer, nullable=False),
    Col("replays", sa.Integer, nullable=False),
    Col("first_failed_at", UtcTime),
    Col("http_status", sa.Integer),
    Col("size_bytes", sa.BigInteger),
    Col("sha256", sa.Text),
    Col("content_type", sa.Text),
    Col("stored_path", sa.Text),
    *queue_indexes(
        "attachments", "attachment_url", "sha256", "stored_path", names=("attachment_key",), queue_name="queue_name"
    ),
    sa.Index("attachments_by_trace", "trace_id"),
    sa.Index("attachments_by_event", "event_key"),
)

# The result of each attempt: messages, Dagster events and Delta commits are made of these, also after a crash.
download_outcomes = sa.Table(
    "download_outcomes",
    metadata,
    Col("attachment_key", sa.Text, primary_key=True),
    Col("replays", sa.Integer, primary_key=True),
    Col("attempt", sa.Integer, primary_key=True),
    Col("domain", sa.Text, nullable=False),
    Col("event_type", sa.Text, nullable=False),
    Col("result", Json, nullable=False),
    Col("completed_at", UtcTime, nullable=False),
    Col("run_id", sa.Text, nullable=False),
    # When it was published to Kafka and reported to Dagster.
    Col("published_at", UtcTime),
    # The commit of the Delta table that holds it: numbered before the commit, so that a repeated one has the same rows.
    Col("commit_number", sa.BigInteger),
    Col("committed_at", UtcTime),
    # Why its message was not published or its row not committed; other attempts continue.
    Col("publish_error", sa.Text),
    Col("commit_error", sa.Text),
    partial_index("download_outcomes_uncommitted", "committed_at IS NULL", "commit_number"),
    sa.Index("download_outcomes_by_commit", "commit_number"),
    sa.Index("download_outcomes_by_time", "completed_at"),
)

# Audit of replays: who replayed which attachment, and when.
attachment_replays = sa.Table(
    "attachment_replays",
    metadata,
    Col("attachment_key", sa.Text, primary_key=True),
    Col("replays", sa.Integer, primary_key=True),
    Col("asked_by", sa.Text, nullable=False),
    Col("asked_at", UtcTime, nullable=False),
    Col("earlier_error_class", sa.Text),
    Col("earlier_reason", sa.Text),
    sa.Index("attachment_replays_by_time", "asked_at"),
)

# Read position of each domain of Eventhouse.
eventhouse_positions = sa.Table(
    "eventhouse_positions",
    metadata,
    Col("domain", sa.Text, primary_key=True),
    Col("position", sa.Text, nullable=False),
    Col("events", sa.BigInteger, nullable=False),
    Col("refused", sa.BigInteger, nullable=False),
    Col("reason", sa.Text),
    Col("updated_at", UtcTime, nullable=False),
)
