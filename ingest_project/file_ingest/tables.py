"""The tables of rows, files, polling jobs and sent messages, as the code sees them. The migrations create them.

A test compares the two after every migration, so that neither can drift from the other.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column as Col

from ingest_project.platform.database.columns import (
    Double,
    Json,
    Texts,
    UtcTime,
    held_index,
    kafka_columns,
    metadata,
    pending_index,
    work_columns,
)

# No primary key: identity and key together cost 45 % of the time of a COPY. A file's rows are found by their file_key.
raw_sensor_data = sa.Table(
    "raw_sensor_data",
    metadata,
    Col("timestamp", UtcTime, nullable=False),
    Col("device_id", sa.Text, nullable=False),
    Col("sensor_type", sa.Text, nullable=False),
    Col("value", Double, nullable=False),
    Col("unit", sa.Text),
    Col("file_key", sa.Text, nullable=False),
    Col("line_number", sa.BigInteger, nullable=False),
)

aggregated_metrics = sa.Table(
    "aggregated_metrics",
    metadata,
    Col("file_key", sa.Text, primary_key=True),
    Col("device_id", sa.Text, primary_key=True),
    Col("sensor_type", sa.Text, primary_key=True),
    Col("min", Double, nullable=False),
    Col("max", Double, nullable=False),
    Col("mean", Double, nullable=False),
    Col("count", sa.BigInteger, nullable=False),
    # Of the sample; null for a single reading.
    Col("stddev", Double),
)

quarantined_rows = sa.Table(
    "quarantined_rows",
    metadata,
    Col("file_key", sa.Text, nullable=False),
    Col("line_number", sa.BigInteger, nullable=False),
    Col("raw_text", sa.Text, nullable=False),
    Col("reasons", Texts, nullable=False),
    sa.Index("quarantined_rows_by_file", "file_key"),
)

# Which file's rows stand for a content: the same bytes under another name that mean the same count once.
contents = sa.Table(
    "contents",
    metadata,
    Col("sha256", sa.Text, primary_key=True),
    # Hash of everything beside the bytes that decides which rows they are, see `file_ingest.versions.meaning_of`.
    Col("meaning", sa.Text, primary_key=True),
    Col("file_key", sa.Text, nullable=False),
    sa.Index("contents_by_file", "file_key"),
)

files = sa.Table(
    "files",
    metadata,
    Col("file_key", sa.Text, primary_key=True),
    Col("location", sa.Text, nullable=False),
    # Hash of the location, which is too long for an index.
    Col("location_key", sa.Text, nullable=False, server_default=""),
    Col("source_type", sa.Text, nullable=False),
    Col("file_path", sa.Text, nullable=False),
    Col("file_name", sa.Text, nullable=False),
    Col("file_type", sa.Text),
    Col("size_bytes", sa.BigInteger),
    Col("modified_at", UtcTime),
    Col("etag", sa.Text),
    Col("event_id", sa.Text, nullable=False),
    Col("job_id", sa.Text),
    Col("trace_id", sa.Text),
    Col("discovered_at", UtcTime),
    Col("metadata", Json, nullable=False),
    Col("source_config", Json, nullable=False),
    Col("profile", sa.Text, nullable=False),
    # Of the versions of one location the one with the later pair replaces the others.
    Col("version_at", UtcTime),
    Col("announced_at", UtcTime),
    # Whether the event said which version it means; else it means the one that is there.
    Col("pinned", sa.Boolean, nullable=False, server_default=sa.true()),
    # Whether this version is the one of its location that counts: its rows, or those it is a duplicate of.
    Col("stands", sa.Boolean, nullable=False, server_default=sa.false()),
    Col("replaced_by", sa.Text),
    # Files that a lost run held are asked for again in halves: each half has a name.
    Col("retry_group", sa.Text),
    # Whose share of a batch it takes, see `ledger.fair_shares`.
    Col("origin", sa.Text, nullable=False, server_default=""),
    *kafka_columns(),
    *work_columns(),
    Col("sha256", sa.Text),
    Col("landed_bytes", sa.BigInteger),
    Col("duplicate_of", sa.Text),
    Col("rows_read", sa.BigInteger),
    Col("rows_accepted", sa.BigInteger),
    Col("rows_quarantined", sa.BigInteger),
    Col("rule_counts", Json),
    pending_index("files", "kafka_topic"),
    pending_index("files", "kafka_topic", "origin", name="files_due_by_origin"),
    held_index("files", "kafka_topic"),
    sa.Index("files_by_batch", "batch_id"),
    # Counts by state, lists by state, newest first.
    sa.Index("files_by_state", "state", "updated_at"),
    # Of a file that grows every minute there are soon thousands of versions: those that were replaced are left out.
    sa.Index(
        "files_by_location",
        "location_key",
        postgresql_where=sa.text("state <> 'replaced'"),
        sqlite_where=sa.text("state <> 'replaced'"),
    ),
    sa.Index(
        "files_by_original",
        "duplicate_of",
        postgresql_where=sa.text("duplicate_of IS NOT NULL"),
        sqlite_where=sa.text("duplicate_of IS NOT NULL"),
    ),
)
