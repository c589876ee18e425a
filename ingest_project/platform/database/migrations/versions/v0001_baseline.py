"""All tables of the first release."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from ingest_project.platform.database.columns import Double, ExactDecimal, Json, Texts, UtcTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

PENDING = "state = 'pending'"
# Leased by a run, or finished and not reported yet.
HELD = "reported_at IS NULL AND state <> 'pending'"

# PostgreSQL refuses a whole statement where one product leaves the range of a double. What is below the least here
# counts as zero; a group with a figure above the most has no mean, or no deviation, rather than a wrong one.
LEAST, MOST_TO_SUM, MOST_TO_SQUARE = "1e-150", "1e290", "1e145"


def _square(value: str) -> str:
    return f"CASE WHEN ABS({value}) BETWEEN {LEAST} AND {MOST_TO_SQUARE} THEN {value} * {value} ELSE 0 END"


DEVICE_METRICS = f"""
CREATE VIEW device_metrics AS
SELECT device_id,
       sensor_type,
       MIN("min") AS "min",
       MAX("max") AS "max",
       MAX(grand_mean) AS "mean",
       CAST(SUM("count") AS BIGINT) AS "count",
       CASE WHEN SUM("count") > 1
                 AND MAX(ABS("mean" - grand_mean)) <= {MOST_TO_SQUARE}
                 AND MAX(COALESCE(ABS(stddev), 0)) <= {MOST_TO_SQUARE} THEN
           SQRT(SUM(("count" - 1) * {_square("stddev")} + "count" * {_square('("mean" - grand_mean)')})
                / (SUM("count") - 1))
       END AS stddev
FROM (SELECT summed.*,
             CASE WHEN MAX(ABS("mean")) OVER devices <= {MOST_TO_SUM} THEN
                 SUM(weight) OVER devices / SUM("count") OVER devices
             END AS grand_mean
      FROM (SELECT aggregated_metrics.*,
                   CASE WHEN ABS("mean") BETWEEN {LEAST} AND {MOST_TO_SUM} THEN "mean" * "count" ELSE 0 END AS weight
            FROM aggregated_metrics) AS summed
      WINDOW devices AS (PARTITION BY device_id, sensor_type)) AS per_file
GROUP BY device_id, sensor_type
"""


def _record_columns() -> list[sa.Column[Any]]:
    """Return the columns that opportunities and projects share."""
    return [
        sa.Column("account_id", sa.Text, nullable=True),
        sa.Column("owner_id", sa.Text, nullable=True),
        sa.Column("source", sa.Text, nullable=True),
        sa.Column("tags", Json, nullable=True),
        sa.Column("notes", sa.Text, nullable=True),
        sa.Column("meta_data", Json, nullable=False),
        sa.Column("other_fields", Json, nullable=True),
        sa.Column("last_modified", UtcTime, nullable=False),
        sa.Column("content_sha256", sa.Text, nullable=False),
        sa.Column("kafka_topic", sa.Text, nullable=False),
        sa.Column("kafka_topic_id", sa.Text, nullable=False),
        sa.Column("kafka_partition", sa.Integer, nullable=False),
        sa.Column("kafka_offset", sa.BigInteger, nullable=False),
        sa.Column("stored_at", UtcTime, nullable=False),
        sa.Column("kafka_epoch", sa.Integer, server_default="0", nullable=False),
        sa.Column("trace_id", sa.Text, nullable=True),
    ]


def _kafka_columns() -> list[sa.Column[Any]]:
    """Return the Kafka position that a row came from."""
    return [
        sa.Column("kafka_topic", sa.Text, nullable=False),
        sa.Column("kafka_partition", sa.Integer, nullable=False),
        sa.Column("kafka_offset", sa.BigInteger, nullable=False),
        sa.Column("kafka_topic_id", sa.Text, nullable=False),
        sa.Column("kafka_timestamp", UtcTime, nullable=True),
    ]


def _work_columns() -> list[sa.Column[Any]]:
    """Return the columns of every work queue."""
    return [
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("reason", sa.Text, nullable=True),
        sa.Column("error_class", sa.Text, nullable=True),
        sa.Column("batch_id", sa.Text, nullable=True),
        sa.Column("run_id", sa.Text, nullable=True),
        sa.Column("next_attempt_at", UtcTime, nullable=False),
        sa.Column("created_at", UtcTime, nullable=False),
        sa.Column("updated_at", UtcTime, nullable=False),
        sa.Column("started_at", UtcTime, nullable=True),
        sa.Column("finished_at", UtcTime, nullable=True),
        sa.Column("reported_at", UtcTime, nullable=True),
    ]


def _partition_columns() -> list[sa.Column[Any]]:
    """Return the columns that name one partition of a stream."""
    return [
        sa.Column("stream", sa.Text, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("topic_id", sa.Text, nullable=False),
        sa.Column("partition", sa.Integer, autoincrement=False, nullable=False),
    ]


def _partial_index(name: str, table: str, columns: list[str], condition: str) -> None:
    """Create an index over the rows that meet a condition."""
    op.create_index(name, table, columns, postgresql_where=sa.text(condition), sqlite_where=sa.text(condition))


def upgrade() -> None:
    """Create the tables and the view over all files."""
    _create_activity_hour_spans()
    _create_activity_hours()
    _create_aggregated_metrics()
    _create_attachment_events()
    _create_attachment_replays()
    _create_attachments()
    _create_contents()
    _create_download_outcomes()
    _create_eventhouse_positions()
    _create_files()
    _create_lost_offsets()
    _create_metric_minutes()
    _create_metric_progress()
    _create_metric_totals()
    _create_opportunities()
    _create_outbox()
    _create_polling_jobs()
    _create_projects()
    _create_quarantined_rows()
    _create_raw_sensor_data()
    _index_readings()
    _create_sink_positions()
    _create_skipped_offsets()
    _create_unidentified_messages()
    _create_user_activity_hourly()
    op.execute(DEVICE_METRICS)


def downgrade() -> None:
    """Drop everything."""
    op.execute("DROP VIEW device_metrics")
    for table in (
        "user_activity_hourly",
        "unidentified_messages",
        "skipped_offsets",
        "sink_positions",
        "raw_sensor_data",
        "quarantined_rows",
        "projects",
        "polling_jobs",
        "outbox",
        "opportunities",
        "metric_totals",
        "metric_progress",
        "metric_minutes",
        "lost_offsets",
        "files",
        "eventhouse_positions",
        "download_outcomes",
        "contents",
        "attachments",
        "attachment_replays",
        "attachment_events",
        "aggregated_metrics",
        "activity_hours",
        "activity_hour_spans",
    ):
        op.drop_table(table)


def _index_readings() -> None:
    """Create the index that finds one file's readings.

    Measured on 2.6 and 5 million rows in groups of 64 files: a b-tree doubles the time of a COPY (275 ms a group
    against 130) and a hash index collapses on one large file (234 s for a million equal keys), while this one of
    fractions of a megabyte costs nothing to write and finds one file in 1.2 ms, 64 files in 40 ms.
    """
    if op.get_bind().dialect.name != "postgresql":
        op.create_index("raw_sensor_data_by_file", "raw_sensor_data", ["file_key"])
        return
    # A range of 64 pages holds the ends of a few ordinary files, or some hundred tiny ones.
    op.execute(
        "CREATE INDEX raw_sensor_data_by_file ON raw_sensor_data"
        " USING brin (file_key text_bloom_ops (n_distinct_per_range = 256))"
        " WITH (pages_per_range = 64, autosummarize = on)"
    )


def _create_activity_hour_spans() -> None:
    op.create_table(
        "activity_hour_spans",
        sa.Column("hour", UtcTime, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("topic_id", sa.Text, nullable=False),
        sa.Column("partition", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("piece", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("first_offset", sa.BigInteger, nullable=False),
        sa.Column("end_offset", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("hour", "topic", "topic_id", "partition", "piece"),
    )
    by_offset = ["topic", "topic_id", "partition", "end_offset"]
    op.create_index("activity_hour_spans_by_offset", "activity_hour_spans", by_offset)


def _create_activity_hours() -> None:
    op.create_table(
        "activity_hours",
        sa.Column("hour", UtcTime, nullable=False),
        sa.Column("changes", sa.BigInteger, nullable=False),
        sa.Column("changed_at", UtcTime, nullable=False),
        sa.Column("computed_changes", sa.BigInteger, nullable=False),
        sa.Column("computed_at", UtcTime, nullable=True),
        sa.Column("reported_changes", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("hour"),
    )
    _partial_index("activity_hours_stale", "activity_hours", ["hour"], "changes > computed_changes")
    _partial_index("activity_hours_unreported", "activity_hours", ["hour"], "changes > reported_changes")


def _create_aggregated_metrics() -> None:
    op.create_table(
        "aggregated_metrics",
        sa.Column("file_key", sa.Text, nullable=False),
        sa.Column("device_id", sa.Text, nullable=False),
        sa.Column("sensor_type", sa.Text, nullable=False),
        sa.Column("min", Double, nullable=False),
        sa.Column("max", Double, nullable=False),
        sa.Column("mean", Double, nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("stddev", Double, nullable=True),
        sa.PrimaryKeyConstraint("file_key", "device_id", "sensor_type"),
    )


def _create_attachment_events() -> None:
    op.create_table(
        "attachment_events",
        sa.Column("event_key", sa.Text, nullable=False),
        sa.Column("hour", sa.Text, nullable=False),
        sa.Column("trace_id", sa.Text, nullable=False),
        sa.Column("domain", sa.Text, nullable=False),
        sa.Column("event_type", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        *_kafka_columns(),
        *_work_columns(),
        sa.Column("addresses", sa.Integer, nullable=True),
        sa.Column("duplicates", sa.Integer, nullable=True),
        sa.PrimaryKeyConstraint("event_key"),
    )
    op.create_index("attachment_events_by_batch", "attachment_events", ["batch_id"])
    op.create_index("attachment_events_by_hour", "attachment_events", ["hour"])
    op.create_index("attachment_events_by_state", "attachment_events", ["state", "updated_at"])
    op.create_index("attachment_events_by_trace", "attachment_events", ["trace_id"])
    _partial_index("attachment_events_due", "attachment_events", ["kafka_topic", "next_attempt_at"], PENDING)
    _partial_index(
        "attachment_events_held",
        "attachment_events",
        ["kafka_topic", "batch_id", "run_id", "updated_at"],
        HELD,
    )


def _create_attachment_replays() -> None:
    op.create_table(
        "attachment_replays",
        sa.Column("attachment_key", sa.Text, nullable=False),
        sa.Column("replays", sa.Integer, nullable=False),
        sa.Column("asked_by", sa.Text, nullable=False),
        sa.Column("asked_at", UtcTime, nullable=False),
        sa.Column("earlier_error_class", sa.Text, nullable=True),
        sa.Column("earlier_reason", sa.Text, nullable=True),
        sa.PrimaryKeyConstraint("attachment_key", "replays"),
    )
    op.create_index("attachment_replays_by_time", "attachment_replays", ["asked_at"])


def _create_attachments() -> None:
    op.create_table(
        "attachments",
        sa.Column("attachment_key", sa.Text, nullable=False),
        sa.Column("trace_id", sa.Text, nullable=False),
        sa.Column("domain", sa.Text, nullable=False),
        sa.Column("attachment_url", sa.Text, nullable=False),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("destination_path", sa.Text, nullable=False),
        sa.Column("event_key", sa.Text, nullable=True),
        *_kafka_columns(),
        sa.Column("queue_name", sa.Text, nullable=False),
        *_work_columns(),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("replays", sa.Integer, nullable=False),
        sa.Column("first_failed_at", UtcTime, nullable=True),
        sa.Column("http_status", sa.Integer, nullable=True),
        sa.Column("size_bytes", sa.BigInteger, nullable=True),
        sa.Column("sha256", sa.Text, nullable=True),
        sa.Column("content_type", sa.Text, nullable=True),
        sa.Column("stored_path", sa.Text, nullable=True),
        sa.PrimaryKeyConstraint("attachment_key"),
    )
    op.create_index("attachments_by_batch", "attachments", ["batch_id"])
    op.create_index("attachments_by_event", "attachments", ["event_key"])
    op.create_index("attachments_by_state", "attachments", ["state", "updated_at"])
    op.create_index("attachments_by_trace", "attachments", ["trace_id"])
    _partial_index("attachments_due", "attachments", ["queue_name", "next_attempt_at"], PENDING)
    _partial_index(
        "attachments_held",
        "attachments",
        ["queue_name", "batch_id", "run_id", "updated_at"],
        HELD,
    )


def _create_contents() -> None:
    op.create_table(
        "contents",
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("meaning", sa.Text, nullable=False),
        sa.Column("file_key", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("sha256", "meaning"),
    )
    op.create_index("contents_by_file", "contents", ["file_key"])


def _create_download_outcomes() -> None:
    op.create_table(
        "download_outcomes",
        sa.Column("attachment_key", sa.Text, nullable=False),
        sa.Column("replays", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("domain", sa.Text, nullable=False),
        sa.Column("event_type", sa.Text, nullable=False),
        sa.Column("result", Json, nullable=False),
        sa.Column("completed_at", UtcTime, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("published_at", UtcTime, nullable=True),
        sa.Column("commit_number", sa.BigInteger, nullable=True),
        sa.Column("committed_at", UtcTime, nullable=True),
        sa.Column("publish_error", sa.Text, nullable=True),
        sa.Column("commit_error", sa.Text, nullable=True),
        sa.PrimaryKeyConstraint("attachment_key", "replays", "attempt"),
    )
    op.create_index("download_outcomes_by_commit", "download_outcomes", ["commit_number"])
    op.create_index("download_outcomes_by_time", "download_outcomes", ["completed_at"])
    _partial_index("download_outcomes_uncommitted", "download_outcomes", ["commit_number"], "committed_at IS NULL")


def _create_eventhouse_positions() -> None:
    op.create_table(
        "eventhouse_positions",
        sa.Column("domain", sa.Text, nullable=False),
        sa.Column("position", sa.Text, nullable=False),
        sa.Column("events", sa.BigInteger, nullable=False),
        sa.Column("refused", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=True),
        sa.Column("updated_at", UtcTime, nullable=False),
        sa.PrimaryKeyConstraint("domain"),
    )


def _create_files() -> None:
    op.create_table(
        "files",
        sa.Column("file_key", sa.Text, nullable=False),
        sa.Column("location", sa.Text, nullable=False),
        sa.Column("location_key", sa.Text, server_default="", nullable=False),
        sa.Column("source_type", sa.Text, nullable=False),
        sa.Column("file_path", sa.Text, nullable=False),
        sa.Column("file_name", sa.Text, nullable=False),
        sa.Column("file_type", sa.Text, nullable=True),
        sa.Column("size_bytes", sa.BigInteger, nullable=True),
        sa.Column("modified_at", UtcTime, nullable=True),
        sa.Column("etag", sa.Text, nullable=True),
        sa.Column("event_id", sa.Text, nullable=False),
        sa.Column("job_id", sa.Text, nullable=True),
        sa.Column("trace_id", sa.Text, nullable=True),
        sa.Column("discovered_at", UtcTime, nullable=True),
        sa.Column("metadata", Json, nullable=False),
        sa.Column("source_config", Json, nullable=False),
        sa.Column("profile", sa.Text, nullable=False),
        sa.Column("version_at", UtcTime, nullable=True),
        sa.Column("announced_at", UtcTime, nullable=True),
        sa.Column("pinned", sa.Boolean, server_default=sa.true(), nullable=False),
        sa.Column("stands", sa.Boolean, server_default=sa.false(), nullable=False),
        sa.Column("replaced_by", sa.Text, nullable=True),
        sa.Column("retry_group", sa.Text, nullable=True),
        sa.Column("origin", sa.Text, server_default="", nullable=False),
        *_kafka_columns(),
        *_work_columns(),
        sa.Column("sha256", sa.Text, nullable=True),
        sa.Column("landed_bytes", sa.BigInteger, nullable=True),
        sa.Column("duplicate_of", sa.Text, nullable=True),
        sa.Column("rows_read", sa.BigInteger, nullable=True),
        sa.Column("rows_accepted", sa.BigInteger, nullable=True),
        sa.Column("rows_quarantined", sa.BigInteger, nullable=True),
        sa.Column("rule_counts", Json, nullable=True),
        sa.PrimaryKeyConstraint("file_key"),
    )
    op.create_index("files_by_batch", "files", ["batch_id"])
    _partial_index("files_by_location", "files", ["location_key"], "state <> 'replaced'")
    _partial_index("files_by_original", "files", ["duplicate_of"], "duplicate_of IS NOT NULL")
    op.create_index("files_by_state", "files", ["state", "updated_at"])
    _partial_index("files_due", "files", ["kafka_topic", "next_attempt_at"], PENDING)
    _partial_index("files_due_by_origin", "files", ["kafka_topic", "origin", "next_attempt_at"], PENDING)
    _partial_index(
        "files_held",
        "files",
        ["kafka_topic", "batch_id", "run_id", "updated_at"],
        HELD,
    )


def _create_lost_offsets() -> None:
    op.create_table(
        "lost_offsets",
        *_partition_columns(),
        sa.Column("first_offset", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("end_offset", sa.BigInteger, nullable=False),
        sa.Column("messages", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("found_at", UtcTime, nullable=False),
        sa.PrimaryKeyConstraint("stream", "topic", "topic_id", "partition", "first_offset"),
    )


def _create_metric_minutes() -> None:
    op.create_table(
        "metric_minutes",
        sa.Column("minute", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("value", Double, nullable=False),
        sa.PrimaryKeyConstraint("minute", "name", "labels"),
    )


def _create_metric_progress() -> None:
    op.create_table(
        "metric_progress",
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("counted_until", UtcTime, nullable=False),
        sa.PrimaryKeyConstraint("source"),
    )


def _create_metric_totals() -> None:
    op.create_table(
        "metric_totals",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("value", Double, nullable=False),
        sa.PrimaryKeyConstraint("name", "labels"),
    )


def _create_opportunities() -> None:
    op.create_table(
        "opportunities",
        sa.Column("event_id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("stage", sa.Text, nullable=False),
        sa.Column("amount", ExactDecimal, nullable=True),
        sa.Column("probability", ExactDecimal, nullable=True),
        sa.Column("expected_close_date", sa.Date, nullable=True),
        *_record_columns(),
        sa.PrimaryKeyConstraint("event_id"),
    )
    op.create_index("ix_opportunities_trace_id", "opportunities", ["trace_id"])


def _create_outbox() -> None:
    op.create_table(
        "outbox",
        sa.Column("message_id", sa.Text, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("since", Json, nullable=True),
        sa.Column("created_at", UtcTime, nullable=False),
        sa.Column("owner", sa.Text, nullable=True),
        sa.PrimaryKeyConstraint("message_id", "topic"),
    )


def _create_polling_jobs() -> None:
    op.create_table(
        "polling_jobs",
        sa.Column("job_key", sa.Text, nullable=False),
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("source_type", sa.Text, nullable=False),
        sa.Column("request", Json, nullable=False),
        sa.Column("priority", sa.Text, nullable=False),
        sa.Column("urgency", sa.Integer, nullable=False),
        sa.Column("trace_id", sa.Text, nullable=True),
        *_kafka_columns(),
        *_work_columns(),
        sa.Column("files_found", sa.BigInteger, nullable=True),
        sa.Column("files_published", sa.BigInteger, nullable=True),
        sa.Column("files_skipped", sa.BigInteger, nullable=True),
        sa.Column("skipped", Json, nullable=True),
        sa.PrimaryKeyConstraint("job_key"),
    )
    op.create_index("polling_jobs_by_batch", "polling_jobs", ["batch_id"])
    op.create_index("polling_jobs_by_state", "polling_jobs", ["state", "updated_at"])
    _partial_index("polling_jobs_due", "polling_jobs", ["kafka_topic", "urgency", "next_attempt_at"], PENDING)
    _partial_index(
        "polling_jobs_held",
        "polling_jobs",
        ["kafka_topic", "batch_id", "run_id", "updated_at"],
        HELD,
    )


def _create_projects() -> None:
    op.create_table(
        "projects",
        sa.Column("event_id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("start_date", sa.Date, nullable=True),
        sa.Column("end_date", sa.Date, nullable=True),
        sa.Column("budget", ExactDecimal, nullable=True),
        *_record_columns(),
        sa.PrimaryKeyConstraint("event_id"),
    )
    op.create_index("ix_projects_trace_id", "projects", ["trace_id"])


def _create_quarantined_rows() -> None:
    op.create_table(
        "quarantined_rows",
        sa.Column("file_key", sa.Text, nullable=False),
        sa.Column("line_number", sa.BigInteger, nullable=False),
        sa.Column("raw_text", sa.Text, nullable=False),
        sa.Column("reasons", Texts, nullable=False),
    )
    op.create_index("quarantined_rows_by_file", "quarantined_rows", ["file_key"])


def _create_raw_sensor_data() -> None:
    op.create_table(
        "raw_sensor_data",
        sa.Column("timestamp", UtcTime, nullable=False),
        sa.Column("device_id", sa.Text, nullable=False),
        sa.Column("sensor_type", sa.Text, nullable=False),
        sa.Column("value", Double, nullable=False),
        sa.Column("unit", sa.Text, nullable=True),
        sa.Column("file_key", sa.Text, nullable=False),
        sa.Column("line_number", sa.BigInteger, nullable=False),
    )


def _create_sink_positions() -> None:
    op.create_table(
        "sink_positions",
        *_partition_columns(),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("first_offset", sa.BigInteger, nullable=False),
        sa.Column("next_offset", sa.BigInteger, nullable=False),
        sa.Column("outcome", Json, nullable=False),
        sa.Column("updated_at", UtcTime, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("run_id", sa.Text, nullable=True),
        sa.Column("reason", sa.Text, nullable=True),
        sa.Column("next_attempt_at", UtcTime, nullable=True),
        sa.PrimaryKeyConstraint("stream", "topic", "topic_id", "partition"),
    )


def _create_skipped_offsets() -> None:
    op.create_table(
        "skipped_offsets",
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("topic_id", sa.Text, nullable=False),
        sa.Column("partition", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("first_offset", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("end_offset", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("asked_by", sa.Text, nullable=False),
        sa.Column("asked_at", UtcTime, nullable=False),
        sa.PrimaryKeyConstraint("topic", "topic_id", "partition", "first_offset"),
    )


def _create_unidentified_messages() -> None:
    op.create_table(
        "unidentified_messages",
        sa.Column("message_id", sa.Text, nullable=False),
        sa.Column("kafka_topic", sa.Text, nullable=False),
        sa.Column("kafka_topic_id", sa.Text, nullable=False),
        sa.Column("kafka_partition", sa.Integer, nullable=False),
        sa.Column("kafka_offset", sa.BigInteger, nullable=False),
        sa.Column("kafka_timestamp", UtcTime, nullable=True),
        sa.Column("message_key", sa.LargeBinary(), nullable=True),
        sa.Column("headers", Json, nullable=True),
        sa.Column("payload", sa.LargeBinary(), nullable=True),
        sa.Column("payload_text", sa.Text, nullable=True),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("error_class", sa.Text, nullable=False),
        sa.Column("received_at", UtcTime, nullable=False),
        sa.Column("retries", sa.Integer, nullable=False),
        sa.Column("retried_at", UtcTime, nullable=True),
        sa.Column("identified_at", UtcTime, nullable=True),
        sa.Column("identified_as", sa.Text, nullable=True),
        sa.Column("event_id", sa.Text, nullable=True),
        sa.Column("trace_id", sa.Text, nullable=True),
        sa.PrimaryKeyConstraint("message_id"),
    )
    op.create_index("ix_unidentified_messages_trace_id", "unidentified_messages", ["trace_id"])
    _partial_index(
        "unidentified_messages_open", "unidentified_messages", ["received_at", "message_id"], "identified_at IS NULL"
    )


def _create_user_activity_hourly() -> None:
    op.create_table(
        "user_activity_hourly",
        sa.Column("hour", UtcTime, nullable=False),
        sa.Column("event_type", sa.Text, nullable=False),
        sa.Column("events", sa.BigInteger, nullable=False),
        sa.Column("users", sa.BigInteger, nullable=False),
        sa.Column("sessions", sa.BigInteger, nullable=False),
        sa.Column("processing_ms_p50", Double, nullable=True),
        sa.Column("processing_ms_p95", Double, nullable=True),
        sa.Column("deliveries", sa.BigInteger, nullable=False),
        sa.Column("computed_at", UtcTime, nullable=False),
        sa.PrimaryKeyConstraint("hour", "event_type"),
    )
