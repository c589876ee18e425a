"""The contract of every work queue: those of the capabilities, and one that is a plain table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa

from ingest_project.attachments.queue import AttachmentQueue, EventQueue
from ingest_project.file_ingest.file_queue import FileQueue
from ingest_project.platform.database import open_engine, reading
from ingest_project.platform.database.sql import kafka_columns, work_columns
from ingest_project.platform.work_queue.queue import (
    Due,
    JobState,
    KafkaPosition,
    Lease,
    QueueEntry,
    QueueTable,
    Recorded,
    RequeuedEntries,
    WorkQueue,
)
from ingest_project.polling.job_queue import JobQueue
from ingest_project_tests.attachments import samples as attachments
from ingest_project_tests.file_ingest import samples as files
from ingest_project_tests.file_ingest.samples import NOW, retries

LATER = NOW + timedelta(minutes=1)
AFTER = NOW + timedelta(minutes=2)


class Thing(NamedTuple):
    """Work of a capability without code of its own."""

    thing_key: str
    kafka_position: KafkaPosition

    def own_columns(self, _now: datetime) -> dict[str, Any]:
        """What only things have."""
        return {"colour": "blue"}


class ThingEntry(QueueEntry, frozen=True, kw_only=True):
    """One thing."""

    thing_key: str
    colour: str


THINGS = QueueTable(
    table=sa.Table(
        "things",
        sa.MetaData(),
        sa.Column("thing_key", sa.Text, primary_key=True),
        sa.Column("colour", sa.Text),
        *kafka_columns(),
        *work_columns(),
    ),
    entry=ThingEntry,
    states=JobState,
    working=JobState.RUNNING,
    searched=("thing_key", "reason"),
)


def open_things(engine: sa.Engine) -> WorkQueue[Thing, ThingEntry, JobState]:
    THINGS.table.create(engine)
    return WorkQueue(engine, THINGS)


def thing(key: str, offset: int = 0) -> Thing:
    return Thing(key, KafkaPosition("things", 0, offset, "g1", NOW))


@dataclass(frozen=True)
class Case:
    """One queue, and how its work arrives."""

    queue: WorkQueue[Any, Any, Any]
    name: str
    arrival: Callable[..., Any]

    def record(self, *keys: str, now: datetime = NOW) -> Recorded:
        """Record arrivals, each at its own offset."""
        return self.queue.record([self.arrival(key, number) for number, key in enumerate(keys)], now)

    def begin(self, *keys: str, batch_id: str = "batch", run_id: str = "run", now: datetime = NOW) -> None:
        """Claim entries and begin them."""
        self.queue.claim(batch_id, keys, now)
        self.queue.begin(keys, run_id, now)

    def due(self, now: datetime) -> set[str]:
        """Keys that are due."""
        return {entry.key for entry in self.queue.due(self.name, 10, now)}

    def reopened_at(self, key: str) -> datetime | None:
        """When the entry was last requested again."""
        table = self.queue._table
        with reading(self.queue._engine) as connection:
            found = connection.execute(sa.select(table.c.reopened_at).where(next(iter(table.primary_key)) == key))
            return found.scalar_one()  # type: ignore[no-any-return]

    def entry(self, key: str) -> Any:  # noqa: ANN401 - each queue has its own
        """The entry, which is known."""
        found = self.queue.get(key)
        assert found is not None
        return found


CASES: dict[str, tuple[Callable[[sa.Engine], WorkQueue[Any, Any, Any]], str, Callable[..., Any]]] = {
    "files": (FileQueue, files.TOPIC, files.arrival),
    "polling jobs": (JobQueue, "polling-queue", files.job),
    "attachment events": (EventQueue, "events.raw", attachments.event),
    "attachments": (AttachmentQueue, "pending", attachments.arrival),
    "a table alone": (open_things, "things", thing),
}


ON_SQLITE = [pytest.param(("sqlite", name), marks=() if name == "files" else pytest.mark.long) for name in CASES]


@pytest.fixture(params=[*(("postgres", name) for name in CASES), *ON_SQLITE], ids="-".join)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    """Each queue on PostgreSQL; on SQLite one of them in the ordinary run, as the statements are the same."""
    database, queue = request.param
    open_queue, name, arrival = CASES[queue]
    engine = open_engine(request.getfixturevalue(f"{database}_url"))
    yield Case(open_queue(engine), name, arrival)
    engine.dispose()


def test_recording_again_changes_nothing(case: Case) -> None:
    twice = [case.arrival("b", 1), case.arrival("a", 2), case.arrival("b", 3)]
    assert case.queue.record(twice, NOW) == Recorded(new=("b", "a"))
    before = case.entry("a")
    assert case.queue.record([*twice, case.arrival("c", 4)], LATER) == Recorded(new=("c",), known=("b", "a"))
    assert case.entry("a") == before
    assert case.queue.record([], NOW) == Recorded()
    assert case.queue.get("unknown") is None


def test_an_entry_is_claimed_by_one_batch(case: Case) -> None:
    case.record("a", "b")
    assert case.due(NOW) == {"a", "b"}
    assert case.queue.claim("batch-1", ["b", "a", "unknown"], NOW) == ("b", "a")
    assert case.queue.claim("batch-2", ["a", "b"], NOW) == ()
    assert case.queue.batch("batch-1") == ("a", "b")
    assert case.due(LATER) == set()
    assert case.queue.in_flight_batches(case.name) == 1


def test_claims_of_a_tick_whose_cursor_was_never_saved_are_pending_again(case: Case) -> None:
    case.record("a", "b", "c")
    case.queue.claim("lost", ["a", "b"], NOW)
    again = [case.arrival("a", 0), case.arrival("b", 9), case.arrival("c", 2)]
    assert case.queue.record(again, LATER) == Recorded(reopened=("a",), known=("b", "c"))
    entry = case.entry("a")
    assert (entry.state, entry.attempts, entry.batch_id) == ("pending", 0, None)
    assert case.queue.batch("lost") == ("b",)


def test_a_run_begins_entries_in_its_order_whatever_their_state(case: Case) -> None:
    case.record("a", "b", "c")
    case.queue.claim("batch", ["a"], NOW)
    case.queue.fail(["b"], "why", "Error", NOW)
    begun = case.queue.begin(["b", "unknown", "a"], "run-1", LATER)
    assert [case.queue.key_of(entry) for entry in begun] == ["b", "a"]
    assert {(entry.run_id, entry.started_at, entry.finished_at) for entry in begun} == {("run-1", LATER, None)}
    assert case.entry("c").state == "pending"


def test_leases_that_no_run_touches_are_found(case: Case) -> None:
    case.record("a", "b", "c", "d")
    case.queue.claim("claimed", ["a"], NOW)
    case.begin("b", "c", batch_id="running")
    case.queue.claim("fresh", ["d"], LATER)
    assert set(case.queue.leases(case.name, LATER)) == {Lease("claimed", None, 1, NOW), Lease("running", "run", 2, NOW)}
    case.queue.begin(["b"], "run", LATER)
    assert case.queue.leases(case.name, LATER) == (Lease("claimed", None, 1, NOW),)
    assert case.queue.in_flight_batches(case.name) == 3


def test_entries_of_a_lost_run_are_requeued_and_failed_at_the_limit(case: Case) -> None:
    case.record("a", "b")
    case.begin("a", batch_id="batch-1", run_id="run-1")
    assert case.queue.requeue_lost("batch-1", None, "never started", retries(2), NOW) == RequeuedEntries()
    assert case.queue.requeue_lost("batch-1", "run-1", "killed", retries(2), NOW) == RequeuedEntries(pending=1)
    now = NOW + timedelta(seconds=5)
    assert (case.due(NOW + timedelta(seconds=4)), case.due(now)) == ({"b"}, {"a", "b"})
    case.begin("a", batch_id="batch-2", run_id="run-2", now=now)
    assert case.queue.requeue_lost("batch-2", "run-2", "killed", retries(2), now) == RequeuedEntries(failed=("a",))
    entry = case.entry("a")
    assert (entry.state, entry.reason, entry.error_class, entry.finished_at) == (
        "failed",
        "killed",
        "RunLostError",
        now,
    )
    assert case.queue.requeue_lost("batch-2", "run-2", "killed", retries(2), now) == RequeuedEntries()
    assert case.queue.leases(case.name, LATER) == ()


def test_a_run_that_began_meanwhile_keeps_its_entries(case: Case) -> None:
    case.record("a")
    case.begin("a")
    assert case.queue.requeue_lost("batch", None, "never started", retries(5), LATER) == RequeuedEntries()
    assert case.entry("a").run_id == "run"


def test_the_failure_reason_of_an_entry_survives_the_loss_of_its_run(case: Case) -> None:
    case.record("a")
    case.begin("a", batch_id="batch-1", run_id="run-1")
    case.queue.requeue_later(["a"], "timed out", "SourceUnreachableError", retries(5), NOW)
    for number in (2, 3):
        case.begin("a", batch_id=f"batch-{number}", run_id=f"run-{number}")
        case.queue.requeue_lost(f"batch-{number}", f"run-{number}", f"run {number} was killed.", retries(9), NOW)
    entry = case.entry("a")
    assert (entry.reason, entry.error_class) == ("run 3 was killed. Before that: timed out", "RunLostError")


def test_a_transient_failure_requeues_an_entry_with_its_reason(case: Case) -> None:
    case.record("a", "b")
    case.begin("a", "b")
    failure = ("timed out", "SourceUnreachableError")
    assert case.queue.requeue_later(["a"], *failure, retries(5), NOW) == RequeuedEntries(pending=1)
    entry = case.entry("a")
    assert (entry.state, entry.reason, entry.error_class) == ("pending", *failure)
    assert entry.next_attempt_at == NOW + timedelta(seconds=5)
    assert case.queue.due(case.name, 10, LATER) == (Due("a", 1, route=case.queue.route_of(case.arrival("a", 0))),)
    assert case.queue.requeue_later(["b"], *failure, retries(1), NOW) == RequeuedEntries(failed=("b",))


def test_a_run_that_died_between_storing_and_reporting_is_done_again_at_once(case: Case) -> None:
    case.record("stored", "reported")
    case.begin("stored", "reported")
    case.queue.fail(["stored", "reported"], "why", "Error", NOW)
    case.queue.mark_reported(["reported"], NOW)
    assert case.queue.in_flight_batches(case.name) == 0
    assert case.queue.leases(case.name, LATER) == (Lease("batch", "run", 1, NOW),)
    assert case.queue.requeue_lost("batch", "run", "killed", retries(2), LATER) == RequeuedEntries(pending=1)
    assert case.queue.due(case.name, 10, LATER) == (Due("stored", 1, route=case.queue.route_of(case.arrival("a", 0))),)
    assert case.queue.leases(case.name, LATER) == ()
    assert case.entry("reported").state == "failed"


def test_an_entry_whose_runs_always_die_while_reporting_is_not_done_again_for_ever(case: Case) -> None:
    case.record("stored")
    case.begin("stored")
    case.queue.fail(["stored"], "why", "Error", NOW)
    assert case.queue.requeue_lost("batch", "run", "killed", retries(1), LATER) == RequeuedEntries()
    assert case.queue.leases(case.name, LATER) == ()
    assert case.entry("stored").state == "failed"


def test_unfinished_entries_cannot_be_reported(case: Case) -> None:
    case.record("a")
    case.begin("a")
    case.queue.mark_reported(["a"], NOW)
    assert case.queue.leases(case.name, LATER) == (Lease("batch", "run", 1, NOW),)


def test_a_person_reopens_finished_entries_only(case: Case) -> None:
    case.record("a", "b")
    case.queue.claim("batch", ["a"], NOW)
    case.queue.fail(["a"], "why", "Error", NOW)
    assert case.queue.reopen(["b", "a", "unknown"], LATER) == ("a",)
    entry = case.entry("a")
    assert (entry.state, entry.attempts, entry.batch_id, entry.finished_at) == ("pending", 0, None, None)
    assert case.due(LATER) == {"a", "b"}


def test_the_time_at_which_a_finished_entry_is_requested_again_is_kept(case: Case) -> None:
    case.record("a", "b", "lost")
    case.begin("a", "b", "lost")
    case.queue.fail(["a", "b", "lost"], "why", "Error", NOW)
    case.queue.mark_reported(["a", "b"], NOW)
    case.queue.requeue_lost("batch", "run", "killed", retries(5), LATER)
    case.begin("lost", now=LATER)
    assert [case.reopened_at(key) for key in ("a", "b", "lost")] == [None] * 3
    # By hand; by a backfill whose run begins later; by a run that a person started on its partition.
    case.queue.reopen(["a"], LATER)
    case.queue.request_again(["b"], LATER)
    case.begin("a", now=AFTER)
    case.queue.begin(["b"], "run of a backfill", AFTER)
    # A run that begins a finished attachment replays it.
    assert [case.reopened_at(key) for key in ("a", "b")] == [LATER, AFTER if case.name == "pending" else LATER]
    case.queue.fail(["a", "b"], "why", "Error", AFTER)
    case.queue.mark_reported(["a", "b"], AFTER)
    case.queue.begin(["a"], "of a person", AFTER + timedelta(hours=1))
    assert case.reopened_at("a") == AFTER + timedelta(hours=1)


def test_entries_are_listed_and_counted(case: Case) -> None:
    case.record("a", "b")
    case.queue.fail(["a"], "no such folder", "SourceNotFoundError", LATER)
    assert [case.queue.key_of(entry) for entry in case.queue.list()] == ["a", "b"]
    assert [case.queue.key_of(entry) for entry in case.queue.list(limit=1)] == ["a"]
    failed = case.entry("a").state
    assert [case.queue.key_of(entry) for entry in case.queue.list(state=failed)] == ["a"]
    assert {state: count for state, count in case.queue.counts_by_state().items() if count} == {"pending": 1, failed: 1}
    oldest = case.queue.oldest_unfinished()
    assert oldest is not None
    assert case.queue.key_of(oldest) == "b"


def test_a_work_queue_table_alone_finishes_and_finds_its_entries(postgres_url: str) -> None:
    engine = open_engine(postgres_url)
    queue = open_things(engine)
    queue.record([thing("a"), thing("b", 1)], NOW)
    queue.begin(["a", "b"], "run", NOW)
    queue.finish({"a": {"colour": "red"}, "b": {"colour": "green"}}, JobState.DONE, LATER)
    queue.mark_reported(["a", "b"], LATER)
    found = {entry.thing_key: (entry.colour, entry.state, entry.finished_at) for entry in queue.list(text="a")}
    assert found == {"a": ("red", JobState.DONE, LATER)}
    assert queue.leases("things", LATER + timedelta(days=1)) == ()
    engine.dispose()
