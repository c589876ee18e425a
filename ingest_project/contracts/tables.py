"""Meanings of the columns of shipped tables, as Dagster shows them on the page of an asset, and the documentation."""

from __future__ import annotations

from collections.abc import Mapping

# Columns that mean the same in every table that has them.
COMMON: Mapping[str, str] = {
    "account_id": "The CRM's id of the account",
    "attachment_key": "Key of the attachment, and of its partition in Dagster",
    "attachment_url": "Address of the file, as the event gives it",
    "attempts": "How often the entry was claimed for a run",
    "batch_id": "The batch that claimed the entry last",
    "completed_at": "When the attempt ended",
    "content_sha256": "SHA-256 of the whole message, in hexadecimal digits",
    "content_type": "Media type, e.g. `application/pdf`",
    "created_at": "When the row was written",
    "domain": "Business domain; decides where files are stored",
    "end_offset": "Offset of the first message that is not included",
    "error_class": "Class of the last error",
    "event_type": "Type of the event, e.g. `page_view`",
    "file_key": "Key of the file, and of its partition in Dagster",
    "finished_at": "When the entry reached its last state",
    "first_offset": "Offset of the first message",
    "http_status": "Status of the server's last answer",
    "hour": "Start of the hour, UTC",
    "kafka_epoch": "Number of the topic id: the later of two topics of one name has the greater one",
    "kafka_offset": "Offset of the message",
    "kafka_partition": "Kafka partition of the message",
    "kafka_timestamp": "Time that the broker has of the message",
    "kafka_topic": "Topic of the message",
    "kafka_topic_id": "Id of the topic; a topic that is created again has another one",
    "labels": "Values of the labels, a JSON list in the order of their names",
    "last_modified": "Version of the record, from `meta_data.last_modified`",
    "line_number": "Line of the file, the first being 1",
    "meta_data": "The message's `meta_data`, whole",
    "next_attempt_at": "The entry is not claimed before this time",
    "notes": "From `meta_data`",
    "other_fields": "Fields that the contract does not know, by name",
    "owner_id": "The CRM's id of the owner",
    "partition": "Kafka partition",
    "reason": "Why the entry is in its state; the last real error",
    "replays": "How often the attachment was replayed, 0 at first",
    "reported_at": "When the result was reported to Dagster; until then a run holds the lease",
    "reopened_at": "When it was last requested again after an end: by an operator, a replay, a corrected version or a "
    "backfill; latency counts from then",
    "rescued_data": "Fields that the declaration does not know, by name; null where there are none",
    "run_id": "Dagster run that holds or held the lease",
    "sha256": "SHA-256 of the bytes, in hexadecimal digits",
    "size_bytes": "Size in bytes",
    "source": "From `meta_data`",
    "source_type": "Kind of source, e.g. `sftp`",
    "started_at": "When a run began to work on the entry",
    "state": "See [States](#states)",
    "stored_at": "When the row was written",
    "tags": "From `meta_data`, a JSON list",
    "topic": "Kafka topic",
    "topic_id": "Id of the topic; a topic that is created again has another one",
    "trace_id": "Trace of the message: every table of one trace has the same",
    "traceparent": "W3C trace context of the message it came from, with its `tracestate` after a space",
    "updated_at": "When the row last changed",
}

# By table: where COMMON has none or another.
MEANINGS: Mapping[str, Mapping[str, str]] = {
    "raw_sensor_data": {
        "timestamp": "Time of the reading",
        "device_id": "Device that measured",
        "sensor_type": "Quantity, e.g. `temperature`",
        "value": "The reading, in `unit`",
        "unit": "Unit of `value`; null where the file names none and the sensor type has none",
        "rescued_data": "Cells of the row in columns that the reader profile does not know, by their names; null "
        "where there are none. In a wide file each reading of the row has them",
    },
    "aggregated_metrics": {
        "device_id": "Device that measured",
        "sensor_type": "Quantity, e.g. `temperature`",
        "min": "Smallest value, in the unit of the readings",
        "max": "Greatest value, in the unit of the readings",
        "mean": "Arithmetic mean, in the unit of the readings",
        "count": "Number of readings",
        "stddev": "Sample standard deviation, in the unit of the readings; null for one reading",
    },
    "quarantined_rows": {
        "raw_text": "The row as the file has it; of a workbook or a Parquet file, its cells as a JSON object",
        "reasons": "Every rule it broke",
    },
    "opportunities": {
        "event_id": "Id of the record",
        "name": "Name of the opportunity",
        "stage": "Stage as the CRM names it",
        "amount": "Amount, exact; the message names no currency",
        "probability": "As the CRM has it, e.g. 75 for 75 %",
        "expected_close_date": "Date",
    },
    "projects": {
        "event_id": "Id of the record",
        "name": "Name of the project",
        "status": "Status as the CRM names it",
        "start_date": "Date",
        "end_date": "Date",
        "budget": "Budget, exact; the message names no currency",
    },
    "unidentified_messages": {
        "message_id": "Its position, as people write it",
        "message_key": "Key of the message",
        "headers": "Names and values (base64) in the order they were sent",
        "payload": "The bytes as they were sent",
        "payload_text": "The same as text, where it is UTF-8",
        "reason": "Why it is neither",
        "received_at": "When it was read",
        "retries": "How often it was tried again",
        "retried_at": "When it was last tried again",
        "identified_at": "When it was identified after all",
        "identified_as": "As which kind",
        "event_id": "The record it became",
    },
    "user_activity_hourly": {
        "events": "Distinct event ids",
        "users": "Distinct users",
        "sessions": "Distinct sessions",
        "processing_ms_p50": "Median of `processing_ms`, milliseconds",
        "processing_ms_p95": "95th percentile of `processing_ms`, milliseconds",
        "deliveries": "Rows of the Delta table, events that were delivered again included",
        "computed_at": "When the figures were computed",
    },
    "attachment_results": {
        "day": "Day on which the attempt ended, UTC, `yyyy-mm-dd`",
        "status": "`success`, `failed_transient` or `failed_permanent`",
        "error": "Reason; null for a success",
        "onelake_path": "Address of the stored file; null for a failure",
        "attempt": "Number of the attempt, the first being 1",
    },
    "user_activity_events": {
        "event_id": "Id of the event",
        "request_id": "Request it belongs to",
        "timestamp": "When it happened",
        "user_id": "User",
        "session_id": "Session",
        "page_url": "Page",
        "event_data": "JSON object as it was sent",
        "client_info": "The user's browser",
        "service_info": "Who sent the event",
        "processing_info": "What enriching took; `processing_ms` in milliseconds",
        "_rescued": "Fields that the contract does not know, a JSON object",
        "event_day": "Day of `timestamp`, UTC, `yyyy-mm-dd`; null where that time cannot be right",
    },
}
# Declared tables have them too, next to columns whose meaning only their users know.
OF_EVERY_TABLE = frozenset({"file_key", "line_number", "trace_id", "stored_at", "rescued_data"})


def meaning_of(table: str, column: str) -> str | None:
    """Return the meaning of a table's column; None for a column that a user declared."""
    is_common = table in MEANINGS or column in OF_EVERY_TABLE or column.startswith("kafka_")
    return MEANINGS.get(table, {}).get(column) or (COMMON.get(column) if is_common else None)
