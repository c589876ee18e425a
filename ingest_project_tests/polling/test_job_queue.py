"""Methods that only the queue of polling jobs has, on PostgreSQL and SQLite."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest

from ingest_project.platform.database import open_engine
from ingest_project.platform.work_queue.queue import JobState, Recorded
from ingest_project.polling.job_queue import JobQueue
from ingest_project_tests.file_ingest.samples import NOW, job

LATER = NOW + timedelta(minutes=1)
TOPIC = "polling-queue"


@pytest.fixture
def queue(database_url: str) -> Iterator[JobQueue]:
    engine = open_engine(database_url)
    yield JobQueue(engine)
    engine.dispose()


def due(queue: JobQueue, now: datetime, limit: int = 10) -> tuple[str, ...]:
    return tuple(entry.key for entry in queue.due(TOPIC, limit, now))


def test_a_job_comes_back_as_it_was_sent(queue: JobQueue) -> None:
    sent = job("a", 5)
    assert queue.record([sent, sent], NOW) == Recorded(new=("a",))
    assert queue.record([sent], LATER) == Recorded(known=("a",))
    record = queue.get("a")
    assert record is not None
    assert (record.job, record.kafka_position, record.state, record.created_at) == (
        sent.job,
        sent.kafka_position,
        "pending",
        NOW,
    )
    assert queue.get("b") is None


def test_high_priority_goes_first_then_age(queue: JobQueue) -> None:
    queue.record([job("low", 1, "low"), job("old", 2), job("new", 3), job("high", 4, "high")], NOW)
    assert due(queue, NOW, limit=3) == ("high", "old", "new")


def test_a_finished_job_says_what_it_found(queue: JobQueue) -> None:
    queue.record([job("a")], NOW)
    queue.claim("batch", ["a"], NOW)
    (started,) = queue.begin(["a", "unknown"], "run-1", NOW)
    assert started.job.job_id == "id-a"
    record = queue.finish_listing("a", 12, {"hidden": 1, "not an ingestible type": 2}, LATER)
    assert record == queue.get("a")
    assert (record.state, record.files_found, record.files_published, record.files_skipped) == ("done", 12, 0, 3)
    assert record.skipped == {"hidden": 1, "not an ingestible type": 2}
    assert record.finished_at == LATER
    assert queue.counts_by_state()[JobState.DONE] == 1


def test_jobs_are_listed_by_state_and_text(queue: JobQueue) -> None:
    queue.record([job("a"), job("b")], NOW)
    queue.fail(["a"], "no such folder", "SourceNotFoundError", LATER)
    assert [record.job_key for record in queue.list()] == ["a", "b"]
    assert [record.job_key for record in queue.list(state=JobState.PENDING)] == ["b"]
    assert [record.job_key for record in queue.list(text="FOLDER")] == ["a"]
