"""Work-queue entries with a history, written straight into the tables."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from ingest_project.attachments.tables import attachments, download_outcomes
from ingest_project.file_ingest.tables import files
from ingest_project.platform.database import writing
from ingest_project.polling.job_queue import polling_jobs
from ingest_project.streams.positions import sink_positions


def file_row(key: str, state: str, ended_at: datetime, *, seconds: float = 3.0, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - columns
    """A file as the work queue keeps it; `seconds` from its message to its end."""
    finished = state not in {"pending", "requested", "ingesting"}
    row = {
        **_intake("file-event-queue", ended_at - timedelta(seconds=seconds)),
        **_work(state, ended_at, finished=finished),
        "file_key": key,
        "location": f"file:///data/{key}",
        "source_type": "local",
        "file_path": f"/data/{key}",
        "file_name": key,
        "event_id": key,
        "metadata": {},
        "source_config": {},
        "profile": "canonical",
        "landed_bytes": 50_000 if finished else None,
        "rows_accepted": 1_000 if state == "ingested" else None,
        "rows_quarantined": 0 if state == "ingested" else None,
        "rule_counts": {},
    }
    return {**row, **more}


def job_row(key: str, state: str, ended_at: datetime, published: int = 0, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - columns
    """A polling job."""
    row = {
        **_intake("polling-queue", ended_at),
        **_work(state, ended_at, finished=state in {"done", "failed"}),
        "job_key": key,
        "job_id": key,
        "source_type": "sftp",
        "request": {"job_id": key, "source_config": {"source_type": "sftp", "path": "/"}},
        "priority": "normal",
        "urgency": 1,
        "files_published": published,
    }
    return {**row, **more}


def attachment_row(key: str, state: str, ended_at: datetime, *, attempt: int = 1, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - columns
    """An attachment."""
    row = {
        **_intake("downloads.pending", ended_at - timedelta(seconds=9)),
        **_work(state, ended_at, finished=state in {"stored", "failed"}),
        "attachment_key": key,
        "trace_id": f"trace-{key}",
        "domain": "claims",
        "attachment_url": f"https://files.example.com/{key}",
        "task": "{}",
        "destination_path": key,
        "queue_name": "retry" if attempt > 1 else "pending",
        "attempt": attempt,
        "replays": 0,
    }
    return {**row, **more}


def outcome_row(key: str, attempt: int, status: str, completed_at: datetime, **result: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    """How one attempt at a download ended."""
    return {
        "attachment_key": key,
        "replays": 0,
        "attempt": attempt,
        "domain": "claims",
        "event_type": "claim.documents.received",
        "result": {"status": status, **result},
        "completed_at": completed_at,
        "run_id": "run",
    }


def position_row(moved_at: datetime, outcome: dict[str, int]) -> dict[str, Any]:
    """Return a partition of `sales_events` that is stored."""
    partition = {"stream": "crm", "topic": "sales_events", "topic_id": "g", "partition": 0, "epoch": 0}
    return {
        **partition,
        "first_offset": 0,
        "next_offset": 100,
        "outcome": outcome,
        "updated_at": moved_at,
        "attempts": 0,
    }


def put(engine: sa.Engine, table: sa.Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows; columns that only some of them name are null in the others."""
    names = {name for row in rows for name in row}
    with writing(engine) as connection:
        connection.execute(sa.insert(table), [{name: row.get(name) for name in names} for row in rows])


def busy_hour(engine: sa.Engine, now: datetime, pace: float = 1.0) -> int:
    """The last hour of a system that has much to do and some trouble; how many files it ingested.

    Args:
        engine: of the warehouse.
        now: the end of the hour.
        pace: how many files, as a share of those that look like much.
    """
    chance = random.Random(7)  # noqa: S311 - no secret
    of_an_hour = [*_files_of_an_hour(chance, now, pace)]
    put(engine, files, of_an_hour)
    jobs = [
        job_row(f"job_{n}", "done" if n % 6 else "failed", now - timedelta(minutes=1 + 7 * n), 40) for n in range(8)
    ]
    jobs[0] |= {"reason": "Cannot list sftp://files.example.com/in: timed out. Check host and credentials."}
    put(engine, polling_jobs, [*jobs, job_row("job_now", "running", now)])
    put(engine, attachments, [*_attachments(chance, now)])
    put(engine, download_outcomes, [*_outcomes(chance, now)])
    outcome = {"opportunities": 41_200, "projects": 8_730, "unidentified": 70}
    put(engine, sink_positions, [position_row(now - timedelta(minutes=3), outcome)])
    return sum(row["state"] == "ingested" for row in of_an_hour)


RULES = ("value_out_of_range", "timestamp_in_future", "missing_device_id", "unknown_unit", "not_a_number")
REFUSALS = (
    (
        "missing_column",
        "The file has no column 'device_id' (profile canonical wants timestamp, device_id, sensor_type).",
    ),
    ("too_many_bad_rows", "612 of 1,000 rows break the contract; the limit is 50 %."),
    ("encrypted_workbook", "The workbook is protected by a password. Send it without one."),
)


def _files_of_an_hour(chance: random.Random, now: datetime, pace: float) -> Iterator[dict[str, Any]]:
    number = 0
    for minute in range(58):
        arrived = 40 + 35 * (minute % 20 < 8) + chance.randrange(12)
        for _ in range(int(arrived * pace)):
            number += 1
            ended = now - timedelta(minutes=minute, seconds=chance.uniform(6, 50))
            key = f"plant_{chance.randrange(40):02d}_{number:05d}.csv~{chance.randrange(16**10):010x}"
            seconds = chance.lognormvariate(1.2, 0.5)
            luck = chance.random()
            if luck < 0.93:
                bad = chance.randrange(30) if luck < 0.1 else 0
                rules = {chance.choice(RULES): bad} if bad else {}
                yield file_row(key, "ingested", ended, seconds=seconds, rows_quarantined=bad, rule_counts=rules)
            elif luck < 0.955:
                yield file_row(key, "duplicate", ended, seconds=seconds)
            elif luck < 0.99:
                rule, reason = chance.choice(REFUSALS)
                yield file_row(key, "quarantined", ended, reason=reason, rule_counts={rule: 1}, run_id=f"{number:032x}")
            else:
                yield file_row(key, "failed", ended, reason="Given up after 8 attempts: connection reset by peer.")
    yield from (file_row(f"waiting_{n}.csv", "pending", now - timedelta(seconds=20)) for n in range(640))
    yield from (file_row(f"held_{n}.csv", "ingesting", now - timedelta(seconds=2)) for n in range(1_000))


def _attachments(chance: random.Random, now: datetime) -> Iterator[dict[str, Any]]:
    for n in range(900):
        yield attachment_row(f"claim_{n}.pdf", "stored", now - timedelta(minutes=chance.uniform(0.2, 59)))
    for n in range(7):
        more: dict[str, Any] = {
            "reason": "https://files.example.com answered 404 Not Found.",
            "error_class": "DownloadRejectedError",
        }
        yield attachment_row(
            f"gone_{n}.jpg~{n:010x}", "failed", now - timedelta(minutes=1 + 5 * n), run_id="d" * 32, **more
        )
    for attempt, waiting in ((2, 57), (3, 12), (5, 2)):
        due = now + timedelta(seconds=70 * attempt)
        for n in range(waiting):
            yield attachment_row(f"again_{attempt}_{n}", "pending", now, attempt=attempt, next_attempt_at=due)


def _outcomes(chance: random.Random, now: datetime) -> Iterator[dict[str, Any]]:
    for attempt, success, transient, permanent in ((1, 830, 140, 7), (2, 52, 57, 0), (3, 14, 12, 0), (4, 4, 2, 0)):
        ends = ["success"] * success + ["failed_transient"] * transient + ["failed_permanent"] * permanent
        for n, status in enumerate(ends):
            failed = (
                {}
                if status == "success"
                else {"error_class": chance.choice(("DownloadFailedError", "HostThrottledError"))}
            )
            at = now - timedelta(minutes=chance.uniform(0.2, 59))
            yield outcome_row(f"o_{n}", attempt, status, at, size_bytes=250_000, **failed)


def _intake(topic: str, at: datetime) -> dict[str, Any]:
    position = {"kafka_topic": topic, "kafka_partition": 0, "kafka_offset": 0, "kafka_topic_id": "g"}
    return {**position, "kafka_timestamp": at}


def _work(state: str, at: datetime, *, finished: bool) -> dict[str, Any]:
    times = {"next_attempt_at": at, "created_at": at, "updated_at": at, "finished_at": at if finished else None}
    return {"state": state, "attempts": 1, **times, "reported_at": at if finished else None}
