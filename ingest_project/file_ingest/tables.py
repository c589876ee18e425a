"""Tables of file ingest in SQLAlchemy, and the states of a file. The migrations create the tables.

A test compares the two after every migration, so that neither can drift from the other.

    pending -> requested -> ingesting -> ingested | quarantined | duplicate | failed | superseded

A transient failure or a lost run leads back to pending; a person may reopen any finished file; each finished file but
a superseded one may end as replaced.
"""

from __future__ import annotations

from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy import Column as Col

from ingest_project.contracts.files import SENSOR_READINGS
from ingest_project.platform.database.sql import (
    PENDING,
    Double,
    Json,
    Texts,
    UtcTime,
    kafka_columns,
    metadata,
    partial_index,
    queue_indexes,
    work_columns,
)


class FileState(StrEnum):
    """State of a file in the work queue."""

    PENDING = "pending"
    REQUESTED = "requested"
    INGESTING = "ingesting"
    INGESTED = "ingested"
    QUARANTINED = "quarantined"
    DUPLICATE = "duplicate"
    FAILED = "failed"
    # Its source had another version when it was read.
    SUPERSEDED = "superseded"
    # A newer version of the same location, or the same one read by another profile, counts instead.
    REPLACED = "replaced"

    @property
    def finished(self) -> bool:
        """True when only a person or a newer version changes it."""
        return self not in {FileState.PENDING, FileState.REQUESTED, FileState.INGESTING}


def partitions_of(dataset: str) -> str:
    """Return the name of the set of partitions whose keys are the files of a dataset."""
    return "files" if dataset == SENSOR_READINGS else f"{dataset}_files"


def asset_of(dataset: str) -> str:
    """Return the path of the asset whose partitions show the files of a dataset."""
    return "validated_sensor_data" if dataset == SENSOR_READINGS else f"{dataset}/validated"


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
    # Cells of the row in columns that the profile does not know, by their names.
    Col("rescued_data", Json),
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
    sa.Index("quarantined_rows_by_file", "file_key", "line_number"),
)

# Records of storage notifications that announce no file, in running totals.
ignored_notifications = sa.Table(
    "ignored_notifications",
    metadata,
    Col("topic", sa.Text, primary_key=True),
    Col("topic_id", sa.Text, primary_key=True),
    Col("partition", sa.Integer, primary_key=True, autoincrement=False),
    # One of `Ignored`: the name that a record gives to its event is untrusted.
    Col("reason", sa.Text, primary_key=True),
    Col("number", sa.BigInteger, nullable=False),
    # Messages before it were counted: a tick that was killed reads them again.
    Col("next_offset", sa.BigInteger, nullable=False),
)

# What baselines compare: one row for each ingested file, see `file_ingest.warehouse.baselines`.
file_statistics = sa.Table(
    "file_statistics",
    metadata,
    Col("file_key", sa.Text, primary_key=True),
    Col("dataset", sa.Text, nullable=False),
    Col("source", sa.Text, nullable=False),
    # Random, but the same for the same file: the first ones of a source are a sample of all its files.
    Col("sample_order", sa.Integer, nullable=False),
    # When the file first entered the work queue.
    Col("arrived_at", UtcTime, nullable=False),
    Col("rows_read", sa.BigInteger, nullable=False),
    Col("rows_quarantined", sa.BigInteger, nullable=False),
    # Nulls in accepted rows by column; columns without any are left out.
    Col("null_counts", Json, nullable=False),
    # From the last change of the file to its announcement; null where the time of the change is unknown.
    Col("lateness_seconds", Double),
    sa.Index("file_statistics_sample", "dataset", "source", "sample_order"),
    sa.Index("file_statistics_newest", "dataset", "source", "arrived_at"),
)

# The file whose rows represent a content: the same bytes under another name that mean the same count once.
contents = sa.Table(
    "contents",
    metadata,
    Col("sha256", sa.Text, primary_key=True),
    # Hash of everything but the bytes that decides which rows they are, see `file_ingest.contract.meaning_of`.
    Col("meaning", sa.Text, primary_key=True),
    Col("file_key", sa.Text, nullable=False),
    sa.Index("contents_by_file", "file_key"),
)

# Errors of a declaration, a setting or a table, which only a person can fix: files wait, however long that takes.
FIXED_BY_A_PERSON = ("SchemaConflictError", "SettingsError", "TableUnusableError")
# In the words of the index: otherwise neither database uses it.
AWAITING_A_PERSON = (
    f"error_class IN ({', '.join(map(repr, FIXED_BY_A_PERSON))}) AND state IN ('pending', 'requested', 'ingesting')"
)
KEPT = "stands AND reason IS NOT NULL AND delta_version IS NOT NULL"

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
    Col("dataset", sa.Text, nullable=False, server_default=SENSOR_READINGS),
    # How many runs began it: without an earlier one, no row of it can be stored anywhere.
    Col("begun", sa.Integer, nullable=False, server_default="0"),
    # Of the versions of one location the one with the later pair replaces the others.
    Col("version_at", UtcTime),
    Col("announced_at", UtcTime),
    # True if the event names its version; otherwise it means the one present when it is consumed.
    Col("pinned", sa.Boolean, nullable=False, server_default=sa.true()),
    # True for the current version of its location: its rows count, or those of the file it duplicates.
    Col("stands", sa.Boolean, nullable=False, server_default=sa.false()),
    Col("replaced_by", sa.Text),
    # The file that an operator corrected by uploading this one; its bytes are in the landing store alone.
    Col("corrects", sa.Text),
    # Files of a lost run are retried in halves: each half has a name.
    Col("retry_group", sa.Text),
    # Origin for fair scheduling, see `file_ingest.file_queue`.
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
    # True if its columns differ from those that its dataset declares.
    Col("drifted", sa.Boolean),
    # Of a dataset in Delta: the version of the table in which the recorded rows are.
    Col("delta_version", sa.BigInteger),
    *queue_indexes("files", "trace_id", "event_id", "sha256", "etag", names=("file_name",)),
    partial_index("files_due_by_origin", PENDING, "kafka_topic", "origin", "next_attempt_at"),
    sa.Index("files_by_job", "job_id"),
    # Stored files that could not be ingested again: their rows in Delta may be those of the attempt.
    partial_index("files_kept", KEPT, "dataset"),
    partial_index("files_awaiting_a_person", AWAITING_A_PERSON, "dataset"),
    # A file that grows every minute soon has thousands of versions: those that were replaced are left out.
    partial_index("files_by_location", "state <> 'replaced'", "location_key"),
    partial_index("files_by_original", "duplicate_of IS NOT NULL", "duplicate_of"),
)
