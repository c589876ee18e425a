"""Work queues that know a few attachments, as sensors and runs would have left them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from ingest_project.attachments.attempts import AttemptResult
from ingest_project.attachments.queue import TaskArrival
from ingest_project.contracts import encode
from ingest_project.contracts.attachments import DownloadResult, DownloadStatus, DownloadTask, attachment_key
from ingest_project.operations import SystemResources
from ingest_project.platform.work_queue.queue import KafkaPosition

ARRIVED = datetime(2026, 1, 15, 10, 30, tzinfo=UTC)
SIGNATURE = "sig=hunter2"
SHA256 = "ab" * 32
NOT_FOUND = "Cannot download https://files.example/x: the server answered 404 Not Found."


def arrive(
    services: SystemResources, name: str, *, trace_id: str = "t-1", domain: str = "claims", attempt: int = 1
) -> str:
    """A task has come and waits; returns the attachment's key."""
    url = f"https://files.example/in/{name}?{SIGNATURE}"
    task = DownloadTask(
        trace_id=trace_id,
        domain=domain,
        attachment_url=url,
        destination_path=f"{domain}/{name}",
        event_type="documents.received",
        attempt=attempt,
    )
    arrival = TaskArrival(
        attachment_key(trace_id, url),
        task,
        encode(task).decode(),
        KafkaPosition("downloads.pending", 0, 7, "g", ARRIVED),
    )
    services.attachments.record([arrival], datetime.now(UTC))
    return arrival.attachment_key


def finish(  # noqa: PLR0913 - one for each thing that an attempt may end in
    services: SystemResources,
    key: str,
    *,
    error_class: str | None = None,
    error: str = NOT_FOUND,
    again_in: timedelta | None = None,
    at: datetime | None = None,
) -> None:
    """A run has tried it: stored, failed for good, or waiting for a retry; the outcome is published."""
    now = at or datetime.now(UTC)
    (record,) = services.attachments.begin([key], "run-1", now)
    status = DownloadStatus.SUCCESS if error_class is None else DownloadStatus.FAILED_PERMANENT
    if again_in is not None:
        status = DownloadStatus.FAILED_TRANSIENT
    stored = status is DownloadStatus.SUCCESS
    result = DownloadResult(
        trace_id=record.trace_id,
        attachment_url=record.attachment_url,
        status=status,
        http_status=200 if stored else 404,
        error_class=error_class,
        error=None if stored else error,
        size_bytes=1_234 if stored else None,
        sha256=SHA256 if stored else None,
        onelake_path=f"/store/{record.destination_path}" if stored else None,
        attempt=record.attempt,
        completed_at=now,
    )
    outcome = AttemptResult(
        attachment_key=key,
        replays=record.replays,
        domain=record.domain,
        event_type="documents.received",
        result=result,
        content_type="application/pdf" if stored else None,
        next_attempt_at=None if again_in is None else now + again_in,
    )
    services.attachments.finish_attempts([outcome], "run-1", now)
    services.outcomes.mark_published([outcome], now)
    services.attachments.mark_reported([key], now)


def dead(  # noqa: PLR0913 - one for each way to choose it
    services: SystemResources,
    name: str,
    *,
    trace_id: str = "t-1",
    domain: str = "claims",
    error_class: str = "DownloadRejectedError",
    at: datetime | None = None,
) -> str:
    """An attachment that has failed for good; returns its key."""
    key = arrive(services, name, trace_id=trace_id, domain=domain)
    finish(services, key, error_class=error_class, at=at)
    return key
