"""What each finished entry of the ledger adds to which counter.

The names here are those of the metrics without their ending `_total`. Counters are of what happened: a file that is
ingested a second time on purpose was ingested twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import RowMapping

from ingest_project.attachments.tables import AttachmentState, attachment_events, attachments, download_outcomes
from ingest_project.file_ingest.tables import FileState, files
from ingest_project.platform.work_queue.queue import JobState
from ingest_project.polling.job_queue import polling_jobs

JOBS = "poller_jobs"
FILES_PUBLISHED = "poller_files_published"
FILES = "ingest_files"
ROWS = "ingest_rows"
LANDED_BYTES = "ingest_landed_bytes"
QUARANTINED_FILES = "ingest_quarantined_files"
QUARANTINED_ROWS = "ingest_quarantined_rows"
ATTACHMENT_EVENTS = "ingest_attachment_events"
ATTACHMENTS = "ingest_attachments"
DOWNLOADS = "ingest_downloads"
DOWNLOAD_FAILURES = "ingest_download_failures"
UPLOADED_BYTES = "ingest_uploaded_bytes"
STREAM_MESSAGES = "ingest_stream_messages"
LATENCY = "ingest_event_to_stored_seconds"
LATENCY_SUM = f"{LATENCY}_sum"
LATENCY_BUCKET = f"{LATENCY}_bucket"

# Upper ends in seconds, close together where files of an unhurried system lie, up to a day of retries.
LATENCY_BUCKETS = (0.5, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60, 120, 300, 600, 1800, 3600, 14400, 86400)
BEYOND = "+Inf"


class Amount(NamedTuple):
    """What is added to one series of a counter."""

    name: str
    labels: tuple[str, ...]
    value: float


@dataclass(frozen=True)
class CountedTable:
    """Entries of the ledger that are counted once they have come to an end.

    Args:
        name: under which the progress is kept.
        table: of the entries.
        state: that they ended in; None for a table whose rows are ends themselves.
        ended_at: when that was; indexed, with the state before it where there is one.
        columns: what `amounts` looks at.
        amounts: what one of them adds.
    """

    name: str
    table: sa.Table
    state: str | None
    ended_at: sa.Column[datetime]
    columns: tuple[sa.Column[Any], ...]
    amounts: Callable[[RowMapping], Iterator[Amount]]


def bucket_of(seconds: float) -> str:
    """The bucket of a latency, by its upper end."""
    return next((f"{end:g}" for end in LATENCY_BUCKETS if seconds <= end), BEYOND)


def of_file(row: RowMapping) -> Iterator[Amount]:
    """What a finished file adds."""
    state = row["state"]
    yield Amount(FILES, (state,), 1)
    if state == FileState.REPLACED:
        # It was counted when it was stored, if it ever was.
        return
    yield Amount(LANDED_BYTES, (), row["landed_bytes"] or 0)
    if state == FileState.INGESTED:
        yield Amount(ROWS, ("accepted",), row["rows_accepted"] or 0)
        yield Amount(ROWS, ("quarantined",), row["rows_quarantined"] or 0)
        for rule, rows in (row["rule_counts"] or {}).items():
            yield Amount(QUARANTINED_ROWS, (rule,), rows)
        yield from _latency("files", row)
    elif state == FileState.QUARANTINED:
        yield Amount(QUARANTINED_FILES, (_first_rule(row),), 1)


def of_job(row: RowMapping) -> Iterator[Amount]:
    """What a finished polling job adds."""
    yield Amount(JOBS, (row["state"],), 1)
    yield Amount(FILES_PUBLISHED, (row["source_type"],), row["files_published"] or 0)


def of_event(row: RowMapping) -> Iterator[Amount]:
    """What an attachment event adds whose addresses were taken out."""
    yield Amount(ATTACHMENT_EVENTS, (row["state"],), 1)


def of_attachment(row: RowMapping) -> Iterator[Amount]:
    """What a finished attachment adds."""
    yield Amount(ATTACHMENTS, (row["state"],), 1)
    if row["state"] == AttachmentState.STORED:
        yield from _latency("attachments", row)


def of_download(row: RowMapping) -> Iterator[Amount]:
    """What one attempt at a download adds."""
    result: Mapping[str, Any] = row["result"]
    status = str(result.get("status"))
    yield Amount(DOWNLOADS, (status, str(row["attempt"])), 1)
    if status == "success":
        yield Amount(UPLOADED_BYTES, (row["domain"],), result.get("size_bytes") or 0)
    else:
        yield Amount(DOWNLOAD_FAILURES, (result.get("error_class") or "unknown",), 1)


def sources() -> Iterator[CountedTable]:
    """Everything that is counted. One source a state, so that an index leads straight to what is new."""
    columns = files.c
    told = (columns.state, columns.landed_bytes, columns.rows_accepted, columns.rows_quarantined, columns.rule_counts)
    yield from _by_state(files, _ends(FileState), (*told, columns.error_class, *_times(files)), of_file)
    jobs = polling_jobs.c
    yield from _by_state(polling_jobs, _ends(JobState), (jobs.state, jobs.source_type, jobs.files_published), of_job)
    yield from _by_state(attachment_events, _ends(JobState), (attachment_events.c.state,), of_event)
    told_of_one = (attachments.c.state, *_times(attachments))
    yield from _by_state(attachments, _ends(AttachmentState), told_of_one, of_attachment)
    outcome = download_outcomes.c
    attempts = (outcome.attempt, outcome.domain, outcome.result)
    yield CountedTable(download_outcomes.name, download_outcomes, None, outcome.completed_at, attempts, of_download)


def _by_state(
    table: sa.Table,
    states: tuple[str, ...],
    columns: tuple[sa.Column[Any], ...],
    amounts: Callable[[RowMapping], Iterator[Amount]],
) -> Iterator[CountedTable]:
    # Ending changes both times at once, and this one is indexed.
    for state in states:
        yield CountedTable(f"{table.name}/{state}", table, state, table.c.updated_at, columns, amounts)


def _ends(states: type[FileState | JobState | AttachmentState]) -> tuple[str, ...]:
    return tuple(state.value for state in states if state.finished)


def _times(table: sa.Table) -> tuple[sa.Column[Any], ...]:
    return (table.c.kafka_timestamp, table.c.created_at, table.c.finished_at)


def _latency(pipeline: str, row: RowMapping) -> Iterator[Amount]:
    # A message without a timestamp of its own counts from when it was read.
    began = row["kafka_timestamp"] or row["created_at"]
    if row["finished_at"] is None:
        return
    # Clocks of producers may be ahead of ours.
    seconds = max(0.0, (row["finished_at"] - began).total_seconds())
    yield Amount(LATENCY_BUCKET, (pipeline, bucket_of(seconds)), 1)
    yield Amount(LATENCY_SUM, (pipeline,), seconds)


def _first_rule(row: RowMapping) -> str:
    """Why a whole file was refused: the broken rule, or where none is named the class of the error."""
    rules: Mapping[str, int] = row["rule_counts"] or {}
    return max(rules, key=lambda rule: rules[rule]) if rules else row["error_class"] or "unknown"
