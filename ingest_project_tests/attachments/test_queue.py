"""Methods that only the queue of attachments and the results of their attempts have, on PostgreSQL and SQLite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from ingest_project.attachments.attempts import AttemptResults
from ingest_project.attachments.capability import conditions_of
from ingest_project.attachments.queue import PENDING_QUEUE, RETRY_QUEUE, AttachmentQueue
from ingest_project.attachments.tables import AttachmentState
from ingest_project.platform.actions import ActionRequest
from ingest_project.platform.database import open_engine
from ingest_project_tests.attachments.samples import NOW, arrival, dead, stored, waiting
from ingest_project_tests.file_ingest.samples import retries

LATER = NOW + timedelta(minutes=1)
PAST_ATTEMPTS = """
    INSERT INTO download_outcomes (attachment_key, replays, attempt, domain, event_type, result, completed_at, run_id,
                                   published_at, commit_number, committed_at)
    SELECT 'past-' || n, 0, 1, 'd', '', '{}', now(), 'run', now(), n / 100, now() FROM generate_series(1, 10000) AS n
"""


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    engine = open_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def queue(engine: sa.Engine) -> AttachmentQueue:
    return AttachmentQueue(engine)


@pytest.fixture
def outcomes(engine: sa.Engine) -> AttemptResults:
    return AttemptResults(engine)


def state(queue: AttachmentQueue, key: str) -> tuple[str, str, int, int]:
    record = queue.get(key)
    assert record is not None
    return record.state.value, record.queue_name, record.attempt, record.replays


def begun(queue: AttachmentQueue, *keys: str) -> None:
    """Attachments in the hands of a run."""
    queue.record([arrival(key, offset) for offset, key in enumerate(keys)], NOW)
    queue.claim("batch", keys, NOW)
    queue.begin(keys, "run", NOW)


def test_a_task_comes_back_as_it_was_sent(queue: AttachmentQueue) -> None:
    sent = arrival("a", 5)
    assert queue.record([sent, sent], NOW).new == ("a",)
    assert queue.record([arrival("a", 9)], NOW).known == ("a",)
    record = queue.get("a")
    assert record is not None
    assert (record.task, record.this_task, record.kafka_position) == (sent.raw, sent.task, sent.kafka_position)


def test_an_attachment_belongs_to_the_event_that_named_it_first(queue: AttachmentQueue) -> None:
    assert queue.record_extracted([arrival("a", event="e1"), arrival("b", event="e1")], "b1", "r1", NOW) == {
        "a": "e1",
        "b": "e1",
    }
    assert queue.record_extracted([arrival("a", event="e2"), arrival("c", event="e2")], "b2", "r2", NOW) == {
        "a": "e1",
        "c": "e2",
    }
    assert queue.batch("b1") == ("a", "b")
    assert queue.found_in_events() == 3
    assert state(queue, "a")[0] == "requested"


def test_attachments_that_their_run_does_not_download_are_pending(queue: AttachmentQueue) -> None:
    queue.record_extracted([arrival("a", event="e1")], None, "r1", NOW)
    assert [(due.key, due.attempts) for due in queue.due(PENDING_QUEUE, 10, NOW)] == [("a", 0)]


def test_success_is_stored_and_a_failure_waits_in_the_retry_queue_until_it_is_due(queue: AttachmentQueue) -> None:
    begun(queue, "a", "b", "c")
    queue.finish_attempts([stored("a"), waiting("b"), dead("c")], "run", NOW)
    assert state(queue, "a") == ("stored", PENDING_QUEUE, 1, 0)
    assert state(queue, "b") == ("pending", RETRY_QUEUE, 2, 0)
    assert state(queue, "c") == ("failed", RETRY_QUEUE, 1, 0)
    assert queue.due(RETRY_QUEUE, 10, NOW) == ()
    assert [due.key for due in queue.due(RETRY_QUEUE, 10, NOW + timedelta(minutes=6))] == ["b"]
    assert queue.finished_since(NOW) == {AttachmentState.STORED: 1, AttachmentState.FAILED: 1}


def test_due_entries_are_ordered_by_due_time(queue: AttachmentQueue) -> None:
    begun(queue, "a", "b", "c")
    queue.finish_attempts([waiting("a", minutes=3), waiting("b", minutes=1), waiting("c", minutes=2)], "run", NOW)
    due = queue.due(RETRY_QUEUE, 10, NOW + timedelta(hours=1))
    assert [one.key for one in due] == ["b", "c", "a"]
    first = queue.most_overdue(RETRY_QUEUE)
    assert first is not None
    assert first.attachment_key == "b"


def test_the_first_of_two_runs_that_ends_an_attempt_decides_its_outcome(queue: AttachmentQueue) -> None:
    begun(queue, "a", "b")
    assert queue.finish_attempts([stored("a"), dead("b")], "run", NOW) == (stored("a"), dead("b"))
    assert queue.finish_attempts([dead("a"), stored("b")], "other", LATER) == (stored("a"), dead("b"))
    assert (state(queue, "a")[0], state(queue, "b")[0]) == ("stored", "failed")


def test_a_late_end_of_an_earlier_attempt_does_not_disturb_the_present_one(queue: AttachmentQueue) -> None:
    begun(queue, "a")
    queue.finish_attempts([waiting("a")], "run", NOW)
    queue.begin(["a"], "second", LATER)
    assert queue.finish_attempts([stored("a")], "run", LATER) == (waiting("a"),)
    assert state(queue, "a") == ("downloading", RETRY_QUEUE, 2, 0)


def test_results_of_a_lost_run_are_found_published_or_not(queue: AttachmentQueue, outcomes: AttemptResults) -> None:
    begun(queue, "a", "b", "c")
    queue.finish_attempts([stored("a"), stored("b"), waiting("c")], "run", NOW)
    assert outcomes.unpublished() == 3
    outcomes.mark_published([stored("a")], NOW)
    assert outcomes.recovered(["a", "b", "c"]) == (stored("a"), stored("b"), waiting("c"))
    outcomes.mark_published([waiting("c")], NOW)
    assert outcomes.recovered(["a", "b", "c"]) == (stored("a"), stored("b"))


def test_a_lost_run_is_no_attempt_of_the_servers(queue: AttachmentQueue) -> None:
    begun(queue, "a")
    released = queue.requeue_lost("batch", "run", "It ended.", retries(2**31 - 1), NOW)
    assert released.pending == 1
    assert state(queue, "a") == ("pending", PENDING_QUEUE, 1, 0)


def test_a_replay_resets_the_attempts_leaves_an_audit_and_is_limited(queue: AttachmentQueue) -> None:
    begun(queue, "a", "b", "good")
    queue.finish_attempts([dead("a"), dead("b"), stored("good")], "run", NOW)
    replayed = queue.replay(["b", "a", "good", "unknown"], "anna", 1, per_second=2, now=LATER)
    assert replayed == ("b", "a")
    assert state(queue, "a") == ("pending", PENDING_QUEUE, 1, 1)
    assert [due.key for due in queue.due(PENDING_QUEUE, 10, LATER)] == ["b"]
    assert [due.key for due in queue.due(PENDING_QUEUE, 10, LATER + timedelta(seconds=1))] == ["b", "a"]
    queue.begin(["a", "b"], "again", LATER)
    queue.finish_attempts([dead("a", replays=1), stored("b", replays=1)], "again", LATER)
    assert queue.replay(["a", "b"], "anna", 1, per_second=2, now=LATER) == ()


def test_a_failed_task_of_another_producer_is_replayed_and_our_own_is_not(queue: AttachmentQueue) -> None:
    begun(queue, "a")
    queue.finish_attempts([dead("a")], "run", NOW)
    assert queue.record([arrival("a", 7)], LATER).known == ("a",)
    assert queue.record([arrival("a", 8, repeat=True)], LATER).reopened == ("a",)
    assert state(queue, "a") == ("pending", PENDING_QUEUE, 1, 1)


def test_a_finished_attachment_that_a_person_starts_is_a_replay(queue: AttachmentQueue) -> None:
    begun(queue, "a")
    queue.finish_attempts([stored("a")], "run", NOW)
    (record,) = queue.begin(["a", "unknown"], "by-hand", LATER)
    assert (record.state, record.replays, record.attempt) == (AttachmentState.DOWNLOADING, 1, 1)


def test_waiting_for_a_host_to_recover_costs_no_attempt(queue: AttachmentQueue) -> None:
    begun(queue, "a")
    queue.postpone(["a"], "The host is busy.", LATER, NOW)
    assert state(queue, "a") == ("pending", PENDING_QUEUE, 1, 0)
    assert queue.due(PENDING_QUEUE, 10, NOW) == ()
    assert [(due.key, due.attempts) for due in queue.due(PENDING_QUEUE, 10, LATER)] == [("a", 0)]


def test_dead_attachments_are_found_by_each_field(queue: AttachmentQueue) -> None:
    begun(queue, "a", "b", "c")
    queue.finish_attempts([dead("a"), dead("b"), stored("c")], "run", NOW)

    def found(**wanted: str) -> list[str]:
        return [one.attachment_key for one in queue.failed(conditions_of(ActionRequest(parameters=wanted)))]

    assert found() == found(domain="claims") == found(trace_id="trace", error_class="DownloadFailedError") == ["a", "b"]
    assert found(domain="other") == found(until=NOW.isoformat()) == found(since=LATER.isoformat()) == []
    assert found(key="b\nc") == ["b"]
    assert [record.attachment_key for record in queue.list(AttachmentState.STORED, "EXAMPLE")] == ["c"]


def test_every_end_is_in_one_numbered_commit(queue: AttachmentQueue, outcomes: AttemptResults) -> None:
    begun(queue, "a", "b", "unpublished")
    queue.finish_attempts([stored("a"), stored("unpublished")], "run", NOW)
    outcomes.mark_published([stored("a")], NOW)
    outcomes.number_next_commit()
    queue.finish_attempts([dead("b")], "run", NOW)
    outcomes.mark_published([dead("b")], NOW)
    outcomes.number_next_commit()
    assert outcomes.open_commits() == (1, 2)
    assert (outcomes.of_commit(1), outcomes.of_commit(2)) == ((stored("a"),), (dead("b"),))
    outcomes.mark_committed(1, LATER)
    outcomes.number_next_commit()
    assert outcomes.open_commits() == (2,)
    assert (outcomes.uncommitted(), outcomes.committed()) == (2, 1)
    ended = outcomes.ended_between(NOW, LATER)
    assert ended == {"success": 2, "failed_transient": 0, "failed_permanent": 1}


def test_an_end_without_its_outcome_is_noticed(queue: AttachmentQueue) -> None:
    begun(queue, "a", "b")
    queue.finish_attempts([stored("a"), dead("b")], "run", NOW)
    assert queue.ends_without_outcome() == 0
    queue.begin(["a"], "run", NOW)
    queue.finish_attempts([stored("a")], "run", NOW)
    assert queue.ends_without_outcome() == 0


def test_queries_of_the_sensors_use_an_index_among_ten_thousand_waiting_entries(postgres_url: str) -> None:
    engine = open_engine(postgres_url)
    queue, outcomes = AttachmentQueue(engine), AttemptResults(engine)
    asleep = [arrival(str(n), n)._replace(due_at=LATER) for n in range(10_000)]
    retries = [one._replace(task=msgspec.structs.replace(one.task, attempt=2)) for one in asleep]
    queue.record(retries, NOW)
    with engine.begin() as connection:
        # As if there had been as many attempts before; the database's own housekeeping does the rest after a while.
        connection.exec_driver_sql(PAST_ATTEMPTS)
        connection.exec_driver_sql("ANALYZE attachments, download_outcomes")
    asked: dict[Callable[[], object], str] = {
        lambda: queue.due(RETRY_QUEUE, 5_000, NOW): "attachments_due",
        lambda: queue.most_overdue(RETRY_QUEUE): "attachments_due",
        lambda: queue.leases(RETRY_QUEUE, NOW): "attachments_held",
        lambda: queue.in_flight_batches(RETRY_QUEUE): "attachments_held",
        outcomes.open_commits: "download_outcomes_uncommitted",
        outcomes.number_next_commit: "download_outcomes_by_commit",
    }
    for question, index in asked.items():
        assert index in plan(engine, question)
    engine.dispose()


def plan(engine: sa.Engine, question: Callable[[], object]) -> str:
    """How PostgreSQL goes about what a question asks it."""
    statements: list[tuple[str, Any]] = []

    def note(*execution: Any) -> None:  # noqa: ANN401 - connection, cursor, statement, parameters and more
        statements.append((execution[2], execution[3]))

    sa.event.listen(engine, "before_cursor_execute", note)
    question()
    sa.event.remove(engine, "before_cursor_execute", note)
    with engine.connect() as connection:
        explained = [
            connection.exec_driver_sql(f"EXPLAIN {statement}", parameters).all()
            for statement, parameters in statements
            if statement.startswith("SELECT")
        ]
    return str(explained)
