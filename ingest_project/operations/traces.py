"""Everything that is on record of one trace, in the order in which it happened."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa

from ingest_project.attachments.tables import attachment_events, attachment_replays, attachments, download_outcomes
from ingest_project.file_ingest.tables import files
from ingest_project.platform.database.engine import reading
from ingest_project.polling.job_queue import polling_jobs
from ingest_project.streams.crm.tables import opportunities, projects, unidentified_messages

MOST_ENTRIES = 10_000


class Moment(msgspec.Struct, frozen=True, order=True):
    """One thing that happened.

    Args:
        at: when, UTC.
        subject: what it happened to, e.g. `file readings.csv~3fa9c1d2e0`.
        what: what happened.
        detail: the rest, for a person.
    """

    at: datetime
    subject: str
    what: str
    detail: str = ""


def story_of(engine: sa.Engine, trace_id: str) -> list[Moment]:
    """What happened in a trace, oldest first; empty for a trace that is not on record.

    Raises:
        DatabaseUnavailableError: the database does not answer.
    """
    with reading(engine) as connection:
        moments = [
            *_of_jobs(connection, trace_id),
            *_of_files(connection, trace_id),
            *_of_events(connection, trace_id),
            *_of_attachments(connection, trace_id),
            *_of_records(connection, trace_id),
            *_of_unidentified(connection, trace_id),
        ]
    return sorted(moments)


def _rows(connection: sa.Connection, table: sa.Table, chosen: sa.ColumnElement[bool]) -> Iterator[sa.RowMapping]:
    yield from connection.execute(sa.select(table).where(chosen).limit(MOST_ENTRIES)).mappings()


def _life(subject: str, row: sa.RowMapping, end: str) -> Iterator[Moment]:
    """What every ledger says of an entry: when it arrived, when a run took it, when it was finished."""
    position = f"{row['kafka_topic']}[{row['kafka_partition']}]@{row['kafka_offset']}"
    yield Moment(row["created_at"], subject, "arrived", position)
    if row["started_at"]:
        yield Moment(row["started_at"], subject, "taken by a run", f"run {row['run_id']}")
    if row["finished_at"]:
        yield Moment(row["finished_at"], subject, row["state"], end)
    elif row["reason"]:
        until = f" Not before {row['next_attempt_at']:%Y-%m-%d %H:%M:%S} UTC."
        yield Moment(row["updated_at"], subject, "waits for another try", row["reason"] + until)


def _of_jobs(connection: sa.Connection, trace_id: str) -> Iterator[Moment]:
    for row in _rows(connection, polling_jobs, polling_jobs.c.trace_id == trace_id):
        counts = f"{row['files_found'] or 0} files found, {row['files_published'] or 0} announced"
        yield from _life(f"polling job {row['job_key']}", row, row["reason"] or counts)


def _of_files(connection: sa.Connection, trace_id: str) -> Iterator[Moment]:
    for row in _rows(connection, files, files.c.trace_id == trace_id):
        rows = f"{row['rows_accepted'] or 0} rows accepted, {row['rows_quarantined'] or 0} in quarantine"
        yield from _life(f"file {row['file_key']}", row, row["reason"] or rows)
        if row["discovered_at"]:
            yield Moment(row["discovered_at"], f"file {row['file_key']}", "discovered", row["location"])


def _of_events(connection: sa.Connection, trace_id: str) -> Iterator[Moment]:
    for row in _rows(connection, attachment_events, attachment_events.c.trace_id == trace_id):
        found = f"{row['addresses'] or 0} addresses, {row['duplicates'] or 0} of them known"
        yield from _life(f"event {row['domain']} {row['event_type']}".strip(), row, row["reason"] or found)


def _of_attachments(connection: sa.Connection, trace_id: str) -> Iterator[Moment]:
    keys: list[str] = []
    for row in _rows(connection, attachments, attachments.c.trace_id == trace_id):
        keys.append(row["attachment_key"])
        yield from _life(f"attachment {row['attachment_key']}", row, row["reason"] or row["stored_path"] or "")
    for row in _rows(connection, download_outcomes, download_outcomes.c.attachment_key.in_(keys)):
        yield _attempt(row)
    for row in _rows(connection, attachment_replays, attachment_replays.c.attachment_key.in_(keys)):
        subject = f"attachment {row['attachment_key']}"
        yield Moment(row["asked_at"], subject, "replayed", f"by {row['asked_by']}")


def _of_records(connection: sa.Connection, trace_id: str) -> Iterator[Moment]:
    for table in (opportunities, projects):
        for row in _rows(connection, table, table.c.trace_id == trace_id):
            version = f"version of {row['last_modified']:%Y-%m-%d %H:%M:%S} UTC from {_place_of(row)}"
            yield Moment(row["stored_at"], f"{table.name} {row['event_id']}", "stored", version)


def _of_unidentified(connection: sa.Connection, trace_id: str) -> Iterator[Moment]:
    for row in _rows(connection, unidentified_messages, unidentified_messages.c.trace_id == trace_id):
        subject = f"message {row['message_id']}"
        yield Moment(row["received_at"], subject, "unidentified", row["reason"])
        if row["identified_at"]:
            yield Moment(row["identified_at"], subject, "identified", f"{row['identified_as']} {row['event_id']}")


def _place_of(row: sa.RowMapping) -> str:
    return f"{row['kafka_topic']}[{row['kafka_partition']}]@{row['kafka_offset']}"


def _attempt(row: sa.RowMapping) -> Moment:
    result: dict[str, Any] = row["result"]
    detail = result.get("error") or f"{result.get('size_bytes')} bytes"
    return Moment(
        row["completed_at"],
        f"attachment {row['attachment_key']}",
        f"attempt {row['attempt']}: {result['status']}",
        detail,
    )
