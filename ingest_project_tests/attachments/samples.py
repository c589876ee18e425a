"""Attachments, events and ends of attempts as sensors and runs make them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from ingest_project.attachments.attempts import AttemptResult
from ingest_project.attachments.queue import PENDING_QUEUE, AttachmentRecord, EventArrival, TaskArrival
from ingest_project.attachments.tables import AttachmentState
from ingest_project.contracts import encode
from ingest_project.contracts.attachments import DownloadResult, DownloadStatus, DownloadTask
from ingest_project.platform.work_queue.queue import KafkaPosition

NOW = datetime(2026, 1, 15, 10, 30, 45, 123456, tzinfo=UTC)
# More replays than any test makes.
MANY = 100
URL = "http://files.example.com/a.pdf"


def task(url: str = URL, trace_id: str = "trace") -> DownloadTask:
    return DownloadTask(trace_id=trace_id, domain="claims", attachment_url=url, destination_path="claims/a.pdf")


def arrival(key: str, offset: int = 0, *, event: str | None = None, repeat: bool = False) -> TaskArrival:
    one = task(f"{URL}?{key}")
    kafka_position = KafkaPosition("downloads.pending", 0, offset, "g1", NOW)
    return TaskArrival(
        key, one, encode(one).decode(), kafka_position, event_key=event, max_replays=MANY if repeat else 0
    )


def event(key: str, offset: int = 0) -> EventArrival:
    kafka_position = KafkaPosition("events.raw", 0, offset, "g1", NOW)
    return EventArrival(
        event_key=key,
        hour="2026-01-15-10:00",
        trace_id=f"trace-{key}",
        domain="claims",
        event_type="",
        body='{"trace_id": "t"}',
        kafka_position=kafka_position,
    )


def record(key: str, url: str = URL) -> AttachmentRecord:
    return AttachmentRecord(
        attachment_key=key, trace_id="trace", domain="claims", attachment_url=url, task=encode(task(url)).decode(),
        destination_path="claims/a.pdf", event_key=None, kafka_position=KafkaPosition("t", 0, 0, "g1", NOW),
        queue_name=PENDING_QUEUE,
        state=AttachmentState.DOWNLOADING, attempts=1, attempt=1, replays=0, reason=None, error_class=None,
        batch_id=None, run_id=None, next_attempt_at=NOW, first_failed_at=None, http_status=None, size_bytes=None,
        sha256=None, content_type=None, stored_path=None, created_at=NOW, updated_at=NOW, started_at=None,
        finished_at=None,
    )  # fmt: skip


def stored(key: str, attempt: int = 1, replays: int = 0) -> AttemptResult:
    return _outcome(key, DownloadStatus.SUCCESS, attempt, replays)


def waiting(key: str, attempt: int = 1, minutes: int = 5) -> AttemptResult:
    """Failed, and tried again so much later."""
    return _outcome(key, DownloadStatus.FAILED_TRANSIENT, attempt, 0, NOW + timedelta(minutes=minutes))


def dead(key: str, attempt: int = 1, replays: int = 0) -> AttemptResult:
    return _outcome(key, DownloadStatus.FAILED_PERMANENT, attempt, replays)


def _outcome(
    key: str, status: DownloadStatus, attempt: int, replays: int, next_attempt_at: datetime | None = None
) -> AttemptResult:
    good = status is DownloadStatus.SUCCESS
    result = DownloadResult(
        trace_id="trace", attachment_url=f"{URL}?{key}", status=status, http_status=200 if good else 503,
        error_class=None if good else "DownloadFailedError", error=None if good else "It failed.",
        size_bytes=10 if good else None, sha256="ab" if good else None, onelake_path="/x" if good else None,
        attempt=attempt, completed_at=NOW,
    )  # fmt: skip
    return AttemptResult(
        attachment_key=key, replays=replays, domain="claims", event_type="", result=result,
        next_attempt_at=next_attempt_at,
    )  # fmt: skip
