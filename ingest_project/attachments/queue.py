"""Work queues: of attachments, with pending downloads, leases, retries and failures; and of events, each kept whole.

An attempt's result is stored before it is published. A run that is killed in between leaves an unpublished result; the
next run that begins the attachment publishes that one and does not download again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar, NamedTuple

import msgspec
import sqlalchemy as sa

from ingest_project.attachments.attempts import AttemptResult, Identity, enter_results
from ingest_project.attachments.tables import (
    AttachmentState,
    attachment_events,
    attachment_replays,
    attachments,
    download_outcomes,
)
from ingest_project.contracts import decode
from ingest_project.contracts.attachments import DownloadStatus, DownloadTask
from ingest_project.platform.database import fetch, writing
from ingest_project.platform.database.sql import in_parts, rows_in, update_each
from ingest_project.platform.work_queue.queue import JobState, KafkaPosition, QueueEntry, QueueTable, WorkQueue

# The two parts of the queue: first attempts, and later ones.
PENDING_QUEUE = "pending"
RETRY_QUEUE = "retry"
EVENTHOUSE_SENSOR = "eventhouse_sensor"
# Most due attachments that are ranked for fair shares; bounds the cost of a tick.
MAX_DUE = 100_000
COLUMNS = attachments.c


class TaskArrival(NamedTuple):
    """A download task that has arrived, found in an event or sent over Kafka.

    Args:
        attachment_key: partition key, see `contracts.attachments.attachment_key`.
        raw: the task as it came, JSON.
        due_at: earliest time of the next attempt; None: immediately.
        event_key: the event it was found in; None over Kafka.
        max_replays: where the attachment had failed, this task replays it at most this number of times; 0: never.
    """

    attachment_key: str
    task: DownloadTask
    raw: str
    kafka_position: KafkaPosition
    due_at: datetime | None = None
    event_key: str | None = None
    max_replays: int = 0

    def own_columns(self, now: datetime) -> dict[str, Any]:
        """Return the columns that only attachments have."""
        task = self.task
        return {
            "trace_id": task.trace_id,
            "domain": task.domain,
            "attachment_url": task.attachment_url,
            "task": self.raw,
            "destination_path": task.destination_path,
            "event_key": self.event_key,
            "queue_name": PENDING_QUEUE if task.attempt == 1 else RETRY_QUEUE,
            "attempt": task.attempt,
            "replays": 0,
            "batch_id": None,
            "run_id": None,
            "next_attempt_at": self.due_at or now,
        }


class AttachmentRecord(QueueEntry, frozen=True, kw_only=True):
    """One attachment.

    Args:
        task: as it came, JSON.
        attempts: how often a batch claimed it since the last attempt ended; more than one: runs were lost.
        attempt: which attempt comes next or was the last, the first being 1.
        replays: how often it was replayed.
    """

    states: ClassVar = AttachmentState

    attachment_key: str
    trace_id: str
    domain: str
    attachment_url: str
    task: str
    destination_path: str
    event_key: str | None
    queue_name: str
    state: AttachmentState
    attempt: int
    replays: int
    first_failed_at: datetime | None
    http_status: int | None
    size_bytes: int | None
    sha256: str | None
    content_type: str | None
    stored_path: str | None

    @property
    def identity(self) -> Identity:
        """Identity of the attempt that comes next or was the last."""
        return (self.attachment_key, self.replays, self.attempt)

    @property
    def this_task(self) -> DownloadTask:
        """The task of the attempt that comes next or was the last."""
        return self.task_of(self.attempt)

    def task_of(self, attempt: int) -> DownloadTask:
        """Return the task of one of the attempts, the first being 1.

        Raises:
            UnreadableMessageError: what is on record is no task.
        """
        task = decode(self.task.encode(), DownloadTask)
        return msgspec.structs.replace(task, destination_path=self.destination_path, attempt=attempt)


class Pending(msgspec.Struct, frozen=True):
    """Attachments that wait with one number of attempts behind them.

    Args:
        attempt: which one comes next, the first being 1.
    """

    queue_name: str
    attempt: int
    waiting: int
    due: int
    next_due_at: datetime


ATTACHMENT_QUEUE = QueueTable(
    table=attachments,
    entry=AttachmentRecord,
    states=AttachmentState,
    working=AttachmentState.DOWNLOADING,
    queue_name="queue_name",
    searched=("attachment_key", "trace_id", "attachment_url", "reason"),
)


class AttachmentQueue(WorkQueue[TaskArrival, AttachmentRecord, AttachmentState]):
    """The queue over the table `attachments`.

    An entry that was finished and that a run begins is replayed: a person selected its partition.
    """

    def __init__(self, engine: sa.Engine) -> None:
        super().__init__(engine, ATTACHMENT_QUEUE)

    def record_extracted(
        self, arrivals: Sequence[TaskArrival], batch_id: str | None, run_id: str, now: datetime
    ) -> dict[str, str]:
        """Enter tasks found in events: leased to the run that found them, or pending where it does not download them.

        One that is known and was never tried is due now: the sender of its task may have set any other time.

        Args:
            arrivals: the tasks.
            batch_id: id of a run that also downloads them; None leaves that to the next one.
            run_id: id of the run.
            now: when.

        Returns:
            of each of these attachments, the event that it is known by.
        """
        first = {arrival.attachment_key: arrival for arrival in reversed(arrivals)}
        leased = {"state": AttachmentState.REQUESTED, "batch_id": batch_id, "run_id": run_id, "attempts": 1}
        rows = [self._row(first[key], now) | (leased if batch_id else {}) for key in sorted(first)]
        never_tried = sa.and_(COLUMNS.state == AttachmentState.PENDING, COLUMNS.first_failed_at.is_(None))
        is_later = sa.or_(COLUMNS.next_attempt_at > now, COLUMNS.attempt > 1)
        due_now = {"next_attempt_at": now, "attempt": 1, "queue_name": PENDING_QUEUE, "updated_at": now}
        query = sa.select(COLUMNS.attachment_key, COLUMNS.event_key)
        with writing(self._engine) as connection:
            new = self._insert(connection, rows)
            self._update(connection, sorted(first.keys() - new), due_now, never_tried, is_later)
            found = rows_in(connection, query, COLUMNS.attachment_key, sorted(first))
            return {key: event_key or "" for key, event_key in found}

    def finish_attempts(
        self, results: Sequence[AttemptResult], run_id: str, now: datetime
    ) -> tuple[AttemptResult, ...]:
        """Store the results of attempts, and the new states of their attachments.

        Of an attempt that had ended already, by a lost run or one that worked at the same time, the first result holds.

        Args:
            results: one of each attachment.
            run_id: id of the run that made them.
            now: when.

        Returns:
            the results that hold, in order of their attachments.
        """
        own = {result.attachment_key: result for result in results}
        with writing(self._engine) as connection:
            present = self._present_attempts(connection, sorted(own))
            holding = enter_results(connection, own, run_id)
            followed = [result for result in holding.values() if result.identity in present]
            for end in (_success_changes, _kept_changes, _failure_changes):
                rows = [row for result in followed if (row := end(result, now))]
                update_each(connection, attachments, COLUMNS.attachment_key, rows)
            failed = [result.attachment_key for result in followed if _failure_changes(result, now)]
            self._update(connection, failed, {"first_failed_at": now}, COLUMNS.first_failed_at.is_(None))
        return tuple(holding.values())

    def postpone(self, keys: Sequence[str], reason: str, until: datetime, now: datetime) -> None:
        """Make attachments pending with a time before which they are not tried; that counts as no attempt."""
        change = {"state": AttachmentState.PENDING, "attempts": 0, "batch_id": None, "run_id": None}
        self._change(keys, {**change, "reason": reason, "next_attempt_at": until}, now)

    def replay(  # noqa: PLR0913, PLR0917 - what, by whom, how often and how fast
        self,
        keys: Sequence[str],
        asked_by: str,
        max_replays: int,
        per_second: float,
        now: datetime,
        states: Collection[AttachmentState] = (AttachmentState.FAILED,),
    ) -> tuple[str, ...]:
        """Replay attachments, a bounded number a second, and return their keys in order.

        Args:
            keys: keys of attachments; those in other states stay unchanged.
            asked_by: who requested the replay, for the audit.
            max_replays: replays after which an attachment is not replayed again.
            per_second: how fast they become due.
            now: the first is due.
            states: states of those that are replayed.
        """
        replayable = (COLUMNS.state.in_(states), COLUMNS.replays < max_replays)
        replayed: list[str] = []
        with writing(self._engine) as connection:
            for part in in_parts(keys):
                begun = self._begin_again(connection, part, asked_by, now, *replayable)
                in_order = [key for key in part if key in begun]
                due = [
                    {"attachment_key": key, "next_attempt_at": now + timedelta(seconds=number / per_second)}
                    for number, key in enumerate(in_order, start=len(replayed))
                ]
                update_each(connection, attachments, COLUMNS.attachment_key, due)
                replayed += in_order
        return tuple(replayed)

    def failed(
        self, conditions: Sequence[sa.ColumnElement[bool]] = (), limit: int = 100
    ) -> tuple[AttachmentRecord, ...]:
        """Return the failed attachments for which all conditions hold, the last ones first."""
        query = sa.select(attachments).where(COLUMNS.state == AttachmentState.FAILED, *conditions)
        return self._select(query.order_by(COLUMNS.updated_at.desc(), COLUMNS.attachment_key).limit(limit))

    def most_overdue(self, queue_name: str) -> AttachmentRecord | None:
        """Return the pending attachment of a queue whose time came first."""
        pending = sa.select(attachments).where(
            COLUMNS.queue_name == queue_name, COLUMNS.state == AttachmentState.PENDING
        )
        found = self._select(pending.order_by(COLUMNS.next_attempt_at).limit(1))
        return found[0] if found else None

    def found_in_events(self) -> int:
        """Count the attachments that were found in events, not sent as tasks."""
        return self._count(sa.select(sa.func.count()).where(COLUMNS.event_key.is_not(None)))

    def ends_without_outcome(self) -> int:
        """Count the finished attachments without a result of their last attempt."""
        outcome = download_outcomes.c
        same = sa.and_(
            outcome.attachment_key == COLUMNS.attachment_key,
            outcome.replays == COLUMNS.replays,
            outcome.attempt == COLUMNS.attempt,
        )
        query = sa.select(sa.func.count()).select_from(attachments.outerjoin(download_outcomes, same))
        is_finished = COLUMNS.state.in_(ATTACHMENT_QUEUE.finished)
        return self._count(query.where(is_finished, outcome.attachment_key.is_(None)))

    def finished_since(self, since: datetime) -> dict[AttachmentState, int]:
        """Count the attachments that were stored and those that failed since then."""
        counted = [sa.func.count().filter(COLUMNS.state == state) for state in ATTACHMENT_QUEUE.finished]
        recent = (COLUMNS.state.in_(ATTACHMENT_QUEUE.finished), COLUMNS.updated_at >= since)
        counts = fetch(self._engine, sa.select(*counted).where(*recent)).one()
        return dict(zip(ATTACHMENT_QUEUE.finished, map(int, counts), strict=True))

    def _due(self, queue_name: str, limit: int, now: datetime, routes: Collection[str] | None = None) -> sa.Select[Any]:
        """Order due attachments in turns of domains, and of traces within each: a large one does not delay others."""
        due = super()._due(queue_name, MAX_DUE, now, routes)
        due_rows = due.add_columns(COLUMNS.domain, COLUMNS.trace_id, COLUMNS.next_attempt_at).subquery().c
        of_trace = sa.func.row_number().over(
            partition_by=[due_rows.domain, due_rows.trace_id], order_by=due_rows.next_attempt_at
        )
        ranked = sa.select(*due_rows, of_trace.label("of_trace")).subquery().c
        of_domain = sa.func.row_number().over(
            partition_by=ranked.domain, order_by=[ranked.of_trace, ranked.next_attempt_at]
        )
        turns = sa.select(*ranked, of_domain.label("of_domain")).subquery().c
        in_turn = sa.select(turns.attachment_key, turns.attempts).order_by(turns.of_domain, turns.next_attempt_at)
        return in_turn.limit(limit)

    def _record_known(self, connection: sa.Connection, known: Mapping[str, TaskArrival], now: datetime) -> set[str]:
        """Replay failed attachments whose tasks another producer sends again, as often as is allowed."""
        failed = COLUMNS.state == AttachmentState.FAILED
        replayed: set[str] = set()
        for most in {arrival.max_replays for arrival in known.values()} - {0}:
            keys = [key for key, arrival in known.items() if arrival.max_replays == most]
            replayed |= self._begin_again(connection, keys, "a message", now, failed, COLUMNS.replays < most)
        return replayed

    def _before_begin(self, connection: sa.Connection, keys: Sequence[str], run_id: str, now: datetime) -> None:
        finished = COLUMNS.state.in_(ATTACHMENT_QUEUE.finished)
        self._begin_again(connection, keys, f"run {run_id}", now, finished)

    def _begin_again(
        self,
        connection: sa.Connection,
        keys: Sequence[str],
        asked_by: str,
        now: datetime,
        *conditions: sa.ColumnElement[bool],
    ) -> set[str]:
        """Make attachments pending as if for the first time, with an entry in the audit; returns their keys."""
        query = sa.select(COLUMNS.attachment_key, COLUMNS.replays, COLUMNS.error_class, COLUMNS.reason)
        query = query.where(*conditions).with_for_update()
        audit = [
            {
                "attachment_key": key,
                "replays": replays + 1,
                "asked_by": asked_by,
                "asked_at": now,
                "earlier_error_class": error_class,
                "earlier_reason": reason,
            }
            for key, replays, error_class, reason in rows_in(connection, query, COLUMNS.attachment_key, keys)
        ]
        if not audit:
            return set()
        connection.execute(sa.insert(attachment_replays), audit)
        again = self._as_new(now) | {"queue_name": PENDING_QUEUE, "attempt": 1, "first_failed_at": None}
        again |= {"replays": COLUMNS.replays + 1, "updated_at": now}
        return self._update(connection, [row["attachment_key"] for row in audit], again)

    @staticmethod
    def _present_attempts(connection: sa.Connection, keys: Sequence[str]) -> set[Identity]:
        """Return the attempt that each attachment is at, locked until the end of the transaction."""
        key = COLUMNS.attachment_key
        query = sa.select(key, COLUMNS.replays, COLUMNS.attempt).with_for_update().order_by(key)
        return {(row[0], row[1], row[2]) for row in rows_in(connection, query, key, keys)}


def next_attempt_at(
    failed_at: datetime, attempt: int, delays: Sequence[timedelta], host_delay: timedelta | None = None
) -> datetime | None:
    """Return when to try again, or None once every delay is used up.

    Args:
        failed_at: when the attempt ended.
        attempt: which one that was, the first being 1.
        delays: delays of the retry topics, in order.
        host_delay: pause that the host requested; one that is longer than ours is kept.
    """
    if attempt > len(delays):
        return None
    return failed_at + max(delays[attempt - 1], host_delay or delays[attempt - 1])


def retry_topic(attempt: int, topics: Sequence[str]) -> str:
    """Return the topic in which a task waits after an attempt, the first being 1."""
    return topics[min(attempt, len(topics)) - 1]


def pending_at(engine: sa.Engine, now: datetime) -> tuple[Pending, ...]:
    """Count the attachments that wait, by queue and attempt. `next_due_at` is the first time after now, if any.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: the database does not answer.
    """
    is_due = COLUMNS.next_attempt_at <= now
    query = (
        sa.select(
            COLUMNS.queue_name,
            COLUMNS.attempt,
            sa.func.count().label("waiting"),
            sa.func.count().filter(is_due).label("due"),
            sa.func.coalesce(
                sa.func.min(COLUMNS.next_attempt_at).filter(~is_due),
                sa.func.min(COLUMNS.next_attempt_at),
                type_=COLUMNS.next_attempt_at.type,
            ).label("next_due_at"),
        )
        .where(COLUMNS.state == AttachmentState.PENDING)
        .group_by(COLUMNS.queue_name, COLUMNS.attempt)
        .order_by(COLUMNS.queue_name, COLUMNS.attempt)
    )
    return tuple(Pending(**row) for row in fetch(engine, query).mappings())


def _success_changes(ended: AttemptResult, now: datetime) -> dict[str, Any] | None:
    """Return the changes after a success; None after anything else, as the two below."""
    result = ended.result
    if result.status is not DownloadStatus.SUCCESS:
        return None
    return {
        **_common_changes(ended, now),
        "state": AttachmentState.STORED,
        "reason": None,
        "error_class": None,
        "size_bytes": result.size_bytes,
        "sha256": result.sha256,
        "content_type": ended.content_type,
        "stored_path": result.onelake_path,
    }


def _kept_changes(ended: AttemptResult, now: datetime) -> dict[str, Any] | None:
    """Return the changes where an attempt failed and the stored bytes stay."""
    if not ended.leaves_stored_bytes:
        return None
    reason = f"Stored; the last attempt to download it again failed: {ended.result.error}"
    return {**_common_changes(ended, now), "state": AttachmentState.STORED, "attempts": 0, "reason": reason}


def _failure_changes(ended: AttemptResult, now: datetime) -> dict[str, Any] | None:
    """Return the changes after a failure: a wait for the next attempt, or the end."""
    if ended.result.status is DownloadStatus.SUCCESS or ended.leaves_stored_bytes:
        return None
    waits = ended.next_attempt_at is not None
    return {
        **_common_changes(ended, now),
        "state": AttachmentState.PENDING if waits else AttachmentState.FAILED,
        "queue_name": RETRY_QUEUE,
        "attempt": ended.result.attempt + waits,
        "attempts": 0,
        "next_attempt_at": ended.next_attempt_at or now,
        "finished_at": None if waits else now,
    }


def _common_changes(ended: AttemptResult, now: datetime) -> dict[str, Any]:
    result = ended.result
    return {
        "attachment_key": ended.attachment_key,
        "attempt": result.attempt,
        "reason": result.error,
        "error_class": result.error_class,
        "http_status": result.http_status,
        "finished_at": now,
        "updated_at": now,
    }


EVENT_COLUMNS = attachment_events.c


class EventArrival(msgspec.Struct, frozen=True, kw_only=True):
    """An event as it was read from Kafka.

    Args:
        event_key: made of its position, see `KafkaPosition`.
        hour: partition it is shown under.
        body: the message, JSON.
    """

    event_key: str
    hour: str
    trace_id: str
    domain: str
    event_type: str
    body: str
    kafka_position: KafkaPosition

    def own_columns(self, now: datetime) -> Mapping[str, Any]:
        """Return the columns that only events have."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if name != "kafka_position"}


class EventRecord(QueueEntry, frozen=True, kw_only=True):
    """One event; `EventArrival` explains its fields."""

    event_key: str
    hour: str
    trace_id: str
    domain: str
    event_type: str
    body: str
    state: JobState


class HourOfEvents(msgspec.Struct, frozen=True):
    """Counts of one hour, over all its finished events."""

    hour: str
    events: int = 0
    addresses: int = 0
    duplicates: int = 0
    unfinished: int = 0
    failed: int = 0

    @property
    def tasks(self) -> int:
        """Download tasks made."""
        return self.addresses - self.duplicates


EVENT_QUEUE = QueueTable(
    table=attachment_events, entry=EventRecord, states=JobState, working=JobState.RUNNING, searched=("trace_id", "body")
)


class EventQueue(WorkQueue[EventArrival, EventRecord, JobState]):
    """The queue over the table `attachment_events`."""

    def __init__(self, engine: sa.Engine) -> None:
        super().__init__(engine, EVENT_QUEUE)

    def of_hour(self, hour: str) -> tuple[str, ...]:
        """Return the keys of the events that arrived in an hour."""
        query = sa.select(EVENT_COLUMNS.event_key).where(EVENT_COLUMNS.hour == hour).order_by(EVENT_COLUMNS.event_key)
        return tuple(fetch(self._engine, query).scalars())

    def hours(self, hours: Sequence[str]) -> tuple[HourOfEvents, ...]:
        """Return the counts of each of these hours, zeros where nothing arrived, in the order of the hours."""
        done = EVENT_COLUMNS.state == JobState.DONE
        query = (
            sa.select(
                EVENT_COLUMNS.hour,
                sa.func.count().label("events"),
                sa.func.coalesce(sa.func.sum(EVENT_COLUMNS.addresses).filter(done), 0).label("addresses"),
                sa.func.coalesce(sa.func.sum(EVENT_COLUMNS.duplicates).filter(done), 0).label("duplicates"),
                sa.func.count().filter(EVENT_COLUMNS.state.in_(EVENT_QUEUE.unfinished)).label("unfinished"),
                sa.func.count().filter(EVENT_COLUMNS.state == JobState.FAILED).label("failed"),
            )
            .where(EVENT_COLUMNS.hour.in_(list(hours)))
            .group_by(EVENT_COLUMNS.hour)
        )
        found = {row["hour"]: HourOfEvents(**row) for row in fetch(self._engine, query).mappings()}
        return tuple(found.get(hour) or HourOfEvents(hour) for hour in sorted(hours))

    def tasks_made(self) -> int:
        """Count the download tasks that all finished events made."""
        total = sa.func.coalesce(sa.func.sum(EVENT_COLUMNS.addresses - EVENT_COLUMNS.duplicates), 0)
        return self._count(sa.select(total).where(EVENT_COLUMNS.state == JobState.DONE))
