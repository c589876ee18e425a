"""Arrivals as a sensor makes them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from ingest_project.contracts.files import FileEvent, PollingJob, Priority
from ingest_project.core.settings import RetrySettings
from ingest_project.file_ingest.file_queue import FileArrival
from ingest_project.platform.work_queue.queue import KafkaPosition
from ingest_project.polling.job_queue import JobArrival

NOW = datetime(2026, 1, 15, 10, 30, 45, 123456, tzinfo=UTC)
TOPIC = "file-event-queue"


def retries(max_attempts: int) -> RetrySettings:
    """So many attempts, 5, 10, 20 … seconds apart."""
    return RetrySettings(max_attempts=max_attempts, delay_seconds=5)


def arrival(key: str, offset: int = 0, *, topic: str = TOPIC, topic_id: str = "g1") -> FileArrival:
    event = FileEvent(
        file_path=f"/in/{key}",
        file_name=key.partition("~")[0],
        event_id=f"event-{key}",
        job_id="job_123",
        size_bytes=5_213,
        modified_at=NOW - timedelta(days=1),
        metadata={"format": "canonical", "nested": {"ü": [1, None, 2.5]}},
        source_config={"source_type": "local", "path": "/in"},
    )
    return FileArrival(key, f"local:/in/{key}", event, "canonical", KafkaPosition(topic, 3, offset, topic_id, NOW))


def job(key: str, offset: int = 0, priority: Priority = "normal") -> JobArrival:
    request = PollingJob(
        job_id=f"id-{key}",
        source_config={"source_type": "dummy", "path": "./dummy_data"},
        file_pattern="*.csv",
        priority=priority,
        metadata={"a": 1},
        trace_id="trace",
    )
    return JobArrival(key, request, KafkaPosition("polling-queue", 0, offset, "g1", NOW))
