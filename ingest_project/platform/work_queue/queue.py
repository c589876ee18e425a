"""Generic work queue stored in one SQL table: recording, claiming, leasing, retrying and requeueing entries.

An entry is pending until a tick claims it for a batch, then leased by that batch's run until it is finished and
reported, and pending again if its run is lost. A finished entry stays leased until it is reported: if a run is killed
between storing and reporting, its entries are processed again, so that Dagster shows the stored data.

    pending -> requested -> working -> one of the finished states
       ^           |           |                |
       +-----------+-----------+----------------+   transient failure, lost run, or reopened by a person

A capability describes its table with `QueueTable`; it needs a subclass only for additional statements.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import msgspec
import sqlalchemy as sa

from ingest_project.core.settings import RetrySettings
from ingest_project.platform.database import fetch, reading, writing
from ingest_project.platform.database.sql import contains, in_parts, insert_missing, primary_key, rows_in, update_each

PENDING = "pending"
REQUESTED = "requested"
FAILED = "failed"
RUN_LOST = "RunLostError"
EARLIER_REASON = " Before that: "
LONGEST_REASON = 500
# In the order of the fields of KafkaPosition.
KAFKA_COLUMNS = ("kafka_topic", "kafka_partition", "kafka_offset", "kafka_topic_id", "kafka_timestamp", "traceparent")

Row = Mapping[str, Any]
"""One row of a queue's table, by the names of its columns."""


class JobState(StrEnum):
    """States of a queue that does not define its own: polling jobs and attachment events."""

    PENDING = "pending"
    REQUESTED = "requested"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"

    @property
    def finished(self) -> bool:
        """Return True if only a person can request another attempt."""
        return self in {JobState.DONE, JobState.FAILED}


class KafkaPosition(msgspec.Struct, frozen=True):
    """The Kafka position of an entry's message.

    Args:
        topic_id: distinguishes a topic from an earlier one of the same name, which had other messages at these offsets.
        at: the message's timestamp, if it has one.
        context: context of the message's trace, see `platform.tracing`.
    """

    topic: str
    partition: int
    offset: int
    topic_id: str = ""
    at: datetime | None = None
    context: str | None = None

    def __str__(self) -> str:
        """Return the usual notation, `topic[partition]@offset`."""
        return f"{self.topic}[{self.partition}]@{self.offset}"

    @property
    def position(self) -> tuple[str, int, int, str]:
        """Return the identity of the message: arrivals with equal identities are the same message."""
        return (self.topic, self.partition, self.offset, self.topic_id)

    def columns(self) -> dict[str, Any]:
        """Return the position and the context as columns of a queue's table."""
        return dict(zip(KAFKA_COLUMNS, msgspec.structs.astuple(self), strict=True))

    @classmethod
    def of(cls, row: Row) -> KafkaPosition:
        """Return the position of a stored entry."""
        return cls(*map(row.__getitem__, KAFKA_COLUMNS))


class QueueArrival(Protocol):
    """An entry as read from Kafka. It also has the table's key, as an attribute with the key column's name."""

    @property
    def kafka_position(self) -> KafkaPosition:
        """Return the position of the message."""
        ...

    def own_columns(self, now: datetime) -> Mapping[str, Any]:
        """Return the queue's own columns, which may override the common ones."""
        ...


class QueueEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Common fields of all queues' entries. A queue's own record adds its key and its own columns.

    Args:
        attempts: number of claims since the entry arrived or was reopened.
        reason: why it failed or waits again.
        next_attempt_at: earliest time of the next claim.
    """

    states: ClassVar[type[StrEnum]] = JobState

    kafka_position: KafkaPosition
    state: StrEnum
    attempts: int
    reason: str | None
    error_class: str | None
    batch_id: str | None
    run_id: str | None
    next_attempt_at: datetime
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, row: Row) -> Self:
        """Return the entry in a row of the table."""
        columns = {name: row[name] for name in cls.__struct_fields__ if name in row}
        return cls(**columns | cls.composed_fields(row))

    @classmethod
    def composed_fields(cls, row: Row) -> dict[str, Any]:
        """Return the fields that are built from columns."""
        return {"kafka_position": KafkaPosition.of(row), "state": cls.states(row["state"])}


class Recorded(msgspec.Struct, frozen=True):
    """Keys passed to `record`, by its effect on them.

    Args:
        new: entries that did not exist, and are now pending.
        reopened: entries claimed by a tick whose cursor was never saved, and so never dispatched; pending again.
        known: entries that existed, and are unchanged.
    """

    new: tuple[str, ...] = ()
    reopened: tuple[str, ...] = ()
    known: tuple[str, ...] = ()


class RequeuedEntries(msgspec.Struct, frozen=True):
    """Result of requeueing entries.

    Args:
        pending: number of entries that will be claimed again.
        failed: keys of entries that had no attempts left.
    """

    pending: int = 0
    failed: tuple[str, ...] = ()


class Due(msgspec.Struct, frozen=True):
    """An entry that is due, and the number of its earlier attempts.

    Args:
        retry_group: group of entries of a lost batch that must be retried together, and without others.
        route: route of the entry; a batch contains entries of one route only. Empty if the queue has no routes.
    """

    key: str
    attempts: int
    retry_group: str | None = None
    route: str = ""


class Lease(msgspec.Struct, frozen=True):
    """The entries that one batch, or one run of it, has leased.

    Args:
        batch_id: id of the batch that claimed the entries; None if a person started the run.
        run_id: id of the run; None until a run begins the entries.
        touched_at: time of the last change of any of them.
    """

    batch_id: str | None
    run_id: str | None
    entries: int
    touched_at: datetime


Arrival = TypeVar("Arrival", bound=QueueArrival)
Entry = TypeVar("Entry", bound=QueueEntry)
State = TypeVar("State", bound=StrEnum)


@dataclass(frozen=True, kw_only=True)
class QueueTable(Generic[Entry, State]):
    """Describes one queue.

    Args:
        table: table with one primary key column, `kafka_columns()` and `work_columns()`.
        entry: record class of an entry.
        states: all states of its entries, including `pending`, `requested` and `failed`.
        working: state of entries that a run has begun.
        queue_name: column that names the sensor responsible for an entry; by default its topic.
        order_of_due: columns that order the claiming of due entries; by default the longest waiting first.
        searched: columns that `list` searches.
        halves_lost_batches: True to retry the entries of a lost run in halves, until the one that crashes its run is
            alone. Needs the column retry_group, and batches that respect it.
        route: column that determines the job for an entry; None if one job processes all.
    """

    table: sa.Table
    entry: type[Entry]
    states: type[State]
    working: State
    queue_name: str = "kafka_topic"
    order_of_due: tuple[str, ...] = ("next_attempt_at",)
    searched: tuple[str, ...] = ()
    halves_lost_batches: bool = False
    route: str | None = None

    @property
    def unfinished(self) -> tuple[State, ...]:
        """Return the states of unfinished entries."""
        return (self.states(PENDING), self.states(REQUESTED), self.working)

    @property
    def finished(self) -> tuple[State, ...]:
        """Return the states of finished entries."""
        return tuple(state for state in self.states if state not in self.unfinished)


class WorkQueue(Generic[Arrival, Entry, State]):
    """Claims and requeues the entries of one table. Times are UTC-aware; every method is one transaction.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: from every method.
    """

    def __init__(self, engine: sa.Engine, queue: QueueTable[Entry, State]) -> None:
        self._engine = engine
        self._queue = queue
        self._table = queue.table
        self._key = primary_key(queue.table)
        self._queue_name = queue.table.c[queue.queue_name]

    def key_of(self, one: Arrival | Entry) -> str:
        """Return the key of an arrival or an entry."""
        return str(getattr(one, self._key.name))

    def route_of(self, arrival: Arrival) -> str:
        """Return the route of an arrival; empty if the queue has no routes."""
        return str(getattr(arrival, self._queue.route)) if self._queue.route else ""

    def record(self, arrivals: Sequence[Arrival], now: datetime) -> Recorded:
        """Insert arrivals as pending entries. Existing entries stay unchanged, with one exception.

        A `requested` entry that arrives again from the same position was claimed by a tick whose cursor was never
        saved, so its batch does not exist. It becomes pending again, and that attempt is not counted.
        """
        first = {self.key_of(arrival): arrival for arrival in reversed(arrivals)}
        # Use the same order in every tick: two ticks that record the same entries must not deadlock.
        ordered = sorted(first)
        with writing(self._engine) as connection:
            present = self._select_keys(connection, ordered)
            new = self._insert(connection, [self._row(first[key], now) for key in ordered if key not in present])
            known = {key: first[key] for key in ordered if key not in new}
            reopened = self._reopen_unsaved(connection, known, now) | self._record_known(connection, known, now)
        keys = list(dict.fromkeys(self.key_of(arrival) for arrival in arrivals))
        return Recorded(
            new=tuple(key for key in keys if key in new),
            reopened=tuple(key for key in keys if key in reopened),
            known=tuple(key for key in keys if key not in new and key not in reopened),
        )

    def due(self, queue_name: str, limit: int, now: datetime, routes: Collection[str] | None = None) -> tuple[Due, ...]:
        """Return the due pending entries, in the order of claiming.

        Args:
            queue_name: name of the sensor.
            limit: maximum number of entries.
            now: the current time.
            routes: routes of the entries to return; None for all.
        """
        return tuple(Due(*row) for row in fetch(self._engine, self._due(queue_name, limit, now, routes)))

    def claim(self, batch_id: str, keys: Sequence[str], now: datetime) -> tuple[str, ...]:
        """Claim pending entries for a batch and count an attempt; return the keys that were still pending, in order."""
        columns = self._table.c
        change = {"state": REQUESTED, "batch_id": batch_id, "run_id": None, "reported_at": None}
        return self._change(keys, {**change, "attempts": columns.attempts + 1}, now, columns.state == PENDING)

    def batch(self, batch_id: str) -> tuple[str, ...]:
        """Return the keys of the entries whose latest claim was for this batch."""
        query = sa.select(self._key).where(self._table.c.batch_id == batch_id).order_by(self._key)
        return tuple(fetch(self._engine, query).scalars())

    def begin(self, keys: Sequence[str], run_id: str, now: datetime) -> tuple[Entry, ...]:
        """Lease entries to a run, whatever their state: a person may repeat any of them.

        Returns:
            the complete entries in the order of the keys, without unknown keys.
        """
        change = {"state": self._queue.working, "run_id": run_id, "started_at": now, "updated_at": now}
        change |= {"finished_at": None, "reported_at": None, "reopened_at": self._reopened_at(now), **self._at_begin()}
        found: dict[str, Entry] = {}
        with writing(self._engine) as connection:
            for part in in_parts(keys):
                self._before_begin(connection, part, run_id, now)
                begun = sa.update(self._table).where(self._key.in_(part)).values(change).returning(*self._table.c)
                found.update(self._entries(connection, begun))
        return tuple(found[key] for key in dict.fromkeys(keys) if key in found)

    def finish(self, results: Mapping[str, Mapping[str, Any]], state: State, now: datetime) -> None:
        """Finish entries, each with its own result columns; all results must have the same columns. Idempotent."""
        end = {"state": state, "reason": None, "error_class": None, "finished_at": now, "updated_at": now}
        rows = [{self._key.name: key, **end, **results[key]} for key in sorted(results)]
        with writing(self._engine) as connection:
            update_each(connection, self._table, self._key, rows)

    def fail(self, keys: Sequence[str], reason: str, error_class: str, now: datetime) -> None:
        """Finish entries as failed: only a person can request another attempt."""
        self._change(keys, {"state": FAILED, "reason": reason, "error_class": error_class, "finished_at": now}, now)

    def reopen(self, keys: Sequence[str], now: datetime) -> tuple[str, ...]:
        """Make finished entries pending as if they had just arrived; return the keys that were finished, in order."""
        return self._change(keys, self._as_new(now), now, self._table.c.state.in_(self._queue.finished))

    def request_again(self, keys: Sequence[str], now: datetime) -> None:
        """Record that a backfill of finished entries was requested; they stay finished until its runs begin them."""
        with writing(self._engine) as connection:
            self._update(connection, keys, {"reopened_at": now}, self._table.c.state.in_(self._queue.finished))

    def requeue_later(
        self, keys: Sequence[str], reason: str, error_class: str, retries: RetrySettings, now: datetime
    ) -> RequeuedEntries:
        """Requeue entries with a delay after a transient failure in a live run; fail those with no attempts left."""
        why = {"reason": reason, "error_class": error_class}
        found: list[RequeuedEntries] = []
        with writing(self._engine) as connection:
            for part in in_parts(keys):
                if self._queue.halves_lost_batches:
                    # The run is alive, so these entries did not crash it: leave the retry group.
                    connection.execute(sa.update(self._table).where(self._key.in_(part)).values(retry_group=None))
                chosen = sa.and_(self._key.in_(part), self._is_leased())
                found.append(self._requeue(connection, chosen, why, retries, now))
        return RequeuedEntries(sum(one.pending for one in found), tuple(key for one in found for key in one.failed))

    def requeue_lost(
        self, batch_id: str | None, run_id: str | None, reason: str, retries: RetrySettings, now: datetime
    ) -> RequeuedEntries:
        """Requeue the entries of a batch's dead or never started run; a run that has begun since keeps its lease.

        Finished but unreported entries become pending immediately; with no attempts left they stay finished and count
        as reported. If this queue halves lost batches, entries that a run leased together are retried regardless of
        their attempts: each loss halves the group, so that the culprit is soon alone.
        """
        columns = self._table.c
        unfinished = columns.state.in_([REQUESTED, self._queue.working])
        chosen = sa.and_(
            self._is_leased(),
            columns.batch_id.is_not_distinct_from(batch_id),
            columns.run_id.is_not_distinct_from(run_id),
        )
        lost = sa.and_(chosen, unfinished)
        finished = sa.update(self._table).where(chosen, ~unfinished)
        again = {"state": PENDING, "next_attempt_at": now, "updated_at": now}
        with writing(self._engine) as connection:
            unreported = connection.execute(finished.where(columns.attempts < retries.max_attempts).values(again))
            connection.execute(finished.where(columns.attempts >= retries.max_attempts).values(reported_at=now))
            self._add_reason(connection, lost, reason)
            halved = 0
            if self._queue.halves_lost_batches and run_id is not None:
                halved = self._halve(connection, lost, {"updated_at": now, "next_attempt_at": now + retries.delay(1)})
            requeued = self._requeue(connection, lost, {}, retries, now)
            # No run is left to report these. Unless marked, they would count as leased and be requeued forever.
            self._update(connection, requeued.failed, {"reported_at": now})
        return RequeuedEntries(requeued.pending + unreported.rowcount + halved, requeued.failed)

    def mark_reported(self, keys: Sequence[str], now: datetime) -> None:
        """End the lease of finished entries, which Dagster now shows. A repeated call changes only the time."""
        with writing(self._engine) as connection:
            self._update(connection, keys, {"reported_at": now}, self._table.c.state.not_in(self._queue.unfinished))

    def in_flight_batches(self, queue_name: str) -> int:
        """Count the batches that are requested or running."""
        columns = self._table.c
        query = sa.select(sa.func.count(columns.batch_id.distinct())).where(
            self._queue_name == queue_name, self._is_leased(), columns.state.in_([REQUESTED, self._queue.working])
        )
        return self._count(query)

    def leases(self, queue_name: str, untouched_since: datetime) -> tuple[Lease, ...]:
        """Return the leases whose entries have not changed since `untouched_since`."""
        columns = self._table.c
        touched_at = sa.func.max(columns.updated_at, type_=columns.updated_at.type).label("touched_at")
        query = (
            sa.select(columns.batch_id, columns.run_id, sa.func.count().label("entries"), touched_at)
            .where(self._queue_name == queue_name, self._is_leased())
            .group_by(columns.batch_id, columns.run_id)
            .having(touched_at < untouched_since)
            .order_by(touched_at)
        )
        return tuple(Lease(**row) for row in fetch(self._engine, query).mappings())

    def get(self, key: str) -> Entry | None:
        """Return one entry."""
        found = self.get_many([key])
        return found[0] if found else None

    def get_many(self, keys: Sequence[str]) -> tuple[Entry, ...]:
        """Return entries in the order of the keys, without unknown keys."""
        found: dict[str, Entry] = {}
        with reading(self._engine) as connection:
            for part in in_parts(keys):
                found.update(self._entries(connection, sa.select(self._table).where(self._key.in_(part))))
        return tuple(found[key] for key in dict.fromkeys(keys) if key in found)

    def list(self, state: State | None = None, text: str | None = None, limit: int = 100) -> tuple[Entry, ...]:
        """Return entries, last changed first.

        Args:
            state: state of the entries to return; None for all.
            text: text that one of the searched columns contains, ignoring case.
            limit: maximum number of entries.
        """
        columns = self._table.c
        query = sa.select(self._table).order_by(columns.updated_at.desc(), self._key).limit(limit)
        if state is not None:
            query = query.where(columns.state == state)
        if text:
            query = query.where(contains(text, *(columns[name] for name in self._queue.searched)))
        return self._select(query)

    def counts_by_state(self) -> dict[State, int]:
        """Count the entries in every state, including empty states."""
        query = sa.select(self._table.c.state, sa.func.count()).group_by(self._table.c.state)
        counts = {row[0]: int(row[1]) for row in fetch(self._engine, query)}
        return {state: counts.get(state, 0) for state in self._queue.states}

    def oldest_unfinished(self) -> Entry | None:
        """Return the unfinished entry that arrived first."""
        unfinished = sa.select(self._table).where(self._table.c.state.in_(self._queue.unfinished))
        found = self._select(unfinished.order_by(self._table.c.created_at).limit(1))
        return found[0] if found else None

    def _record_known(self, connection: sa.Connection, known: Mapping[str, Arrival], now: datetime) -> set[str]:
        """Update entries that arrived again; return the keys of those made pending, none by default."""
        return set()

    def _before_begin(self, connection: sa.Connection, keys: Sequence[str], run_id: str, now: datetime) -> None:
        """Prepare entries that a run is about to begin; do nothing by default."""

    def _at_begin(self) -> dict[str, Any]:
        """Return additional column values for entries that a run begins; none by default."""
        return {}

    def _as_new(self, now: datetime) -> dict[str, Any]:
        """Return the column values that reset a finished entry as if it had just arrived."""
        fresh: dict[str, Any] = dict.fromkeys(("batch_id", "run_id", "finished_at"))
        if self._queue.halves_lost_batches:
            fresh["retry_group"] = None
        return {**fresh, "state": PENDING, "attempts": 0, "next_attempt_at": now, "reopened_at": now}

    def _reopened_at(self, now: datetime) -> sa.ColumnElement[datetime]:
        """Return the time at which an entry that a run begins was requested again.

        A run begins a finished entry because a person selected its partition, unless the entry was requeued after its
        run was lost before reporting.
        """
        columns = self._table.c
        ended = sa.and_(columns.state.in_(self._queue.finished), columns.reported_at.is_not(None))
        is_known = sa.func.coalesce(columns.reopened_at > columns.finished_at, sa.false())
        return sa.case((sa.and_(ended, ~is_known), now), else_=columns.reopened_at)

    def _due(self, queue_name: str, limit: int, now: datetime, routes: Collection[str] | None = None) -> sa.Select[Any]:
        columns = self._table.c
        further: list[sa.ColumnElement[Any]] = [columns.retry_group] if self._queue.halves_lost_batches else []
        if self._queue.route:
            further = [*(further or [sa.null()]), columns[self._queue.route]]
        chosen = [] if routes is None else [further[-1].in_(routes)]
        return (
            sa.select(self._key, columns.attempts, *further)
            .where(self._queue_name == queue_name, columns.state == sa.literal_column(f"'{PENDING}'"))
            .where(columns.next_attempt_at <= now, *chosen)
            .order_by(*(columns[name] for name in self._queue.order_of_due))
            .limit(limit)
        )

    def _is_leased(self) -> sa.ColumnElement[bool]:
        # Literal text instead of bound parameters: otherwise neither database uses the partial index.
        return sa.literal_column(f"({self._table.name}.reported_at IS NULL AND state <> '{PENDING}')", sa.Boolean)

    def _row(self, arrival: Arrival, now: datetime) -> dict[str, Any]:
        work = {"state": PENDING, "attempts": 0, "next_attempt_at": now, "created_at": now, "updated_at": now}
        key = {self._key.name: self.key_of(arrival)}
        return {**key, **arrival.kafka_position.columns(), **work, **arrival.own_columns(now)}

    def _insert(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> set[str]:
        return insert_missing(connection, self._table, rows, self._key)

    def _select_keys(
        self, connection: sa.Connection, keys: Sequence[str], *conditions: sa.ColumnElement[bool]
    ) -> set[str]:
        return {row[0] for row in rows_in(connection, sa.select(self._key).where(*conditions), self._key, keys)}

    def _select(self, query: sa.Select[Any]) -> tuple[Entry, ...]:
        with reading(self._engine) as connection:
            return tuple(self._entries(connection, query).values())

    def _entries(self, connection: sa.Connection, statement: sa.Executable) -> dict[str, Entry]:
        result = connection.execute(statement)
        # A dictionary finds a column by name several times as fast as a row does.
        rows = map(dict, map(partial(zip, tuple(result.keys())), result))
        return {row[self._key.name]: self._queue.entry.of(row) for row in rows}

    def _count(self, query: sa.Select[Any]) -> int:
        return int(fetch(self._engine, query).scalar_one())

    def _change(
        self, keys: Sequence[str], change: Mapping[str, Any], now: datetime, *conditions: sa.ColumnElement[bool]
    ) -> tuple[str, ...]:
        """Change the entries that match the conditions, in one transaction; return their keys, in order."""
        with writing(self._engine) as connection:
            changed = self._update(connection, keys, {**change, "updated_at": now}, *conditions)
        return tuple(key for key in dict.fromkeys(keys) if key in changed)

    def _update(
        self,
        connection: sa.Connection,
        keys: Sequence[str],
        change: Mapping[str, Any],
        *conditions: sa.ColumnElement[bool],
    ) -> set[str]:
        changed: set[str] = set()
        for part in in_parts(keys):
            update = sa.update(self._table).where(self._key.in_(part), *conditions).values(change)
            changed.update(connection.execute(update.returning(self._key)).scalars())
        return changed

    def _reopen_unsaved(self, connection: sa.Connection, known: Mapping[str, Arrival], now: datetime) -> set[str]:
        columns = self._table.c
        position = (columns.kafka_topic, columns.kafka_partition, columns.kafka_offset, columns.kafka_topic_id)
        requested = columns.state == REQUESTED
        query = sa.select(self._key, *position).where(requested)
        rows = rows_in(connection, query, self._key, list(known))
        unsaved = [key for key, *found in rows if tuple(found) == known[key].kafka_position.position]
        change = {"state": PENDING, "batch_id": None, "next_attempt_at": now, "updated_at": now}
        return self._update(connection, unsaved, {**change, "attempts": columns.attempts - 1}, requested)

    def _requeue(
        self,
        connection: sa.Connection,
        chosen: sa.ColumnElement[bool],
        why: Mapping[str, str],
        retries: RetrySettings,
        now: datetime,
    ) -> RequeuedEntries:
        columns = self._table.c
        pending = 0
        failed: list[str] = []
        for attempts in sorted(connection.execute(sa.select(columns.attempts).where(chosen).distinct()).scalars()):
            if attempts >= retries.max_attempts:
                change = {"state": FAILED, "finished_at": now}
            else:
                change = {"state": PENDING, "next_attempt_at": now + retries.delay(max(attempts, 1))}
            update = sa.update(self._table).where(chosen, columns.attempts == attempts).returning(self._key)
            update = update.values({**why, **change, "updated_at": now})
            keys = connection.execute(update).scalars().all()
            if change["state"] == FAILED:
                failed += keys
            else:
                pending += len(keys)
        return RequeuedEntries(pending, tuple(failed))

    def _add_reason(self, connection: sa.Connection, lost: sa.ColumnElement[bool], reason: str) -> None:
        """Store the reason of lost runs, followed by each entry's earlier reason, which explains more."""
        columns = self._table.c
        by_reason: dict[str, list[str]] = {}
        for key, earlier, error_class in connection.execute(
            sa.select(self._key, columns.reason, columns.error_class).where(lost)
        ):
            kept = (earlier or "").partition(EARLIER_REASON)[2] if error_class == RUN_LOST else earlier
            full = f"{reason}{EARLIER_REASON}{kept[:LONGEST_REASON]}" if kept else reason
            by_reason.setdefault(full, []).append(key)
        for full, keys in by_reason.items():
            self._update(connection, keys, {"reason": full, "error_class": RUN_LOST})

    def _halve(self, connection: sa.Connection, lost: sa.ColumnElement[bool], change: Mapping[str, Any]) -> int:
        """Split the entries of a lost run into two pending groups; return the number of entries, 0 for a single one."""
        keys = connection.execute(sa.select(self._key).where(lost).order_by(self._key)).scalars().all()
        if len(keys) <= 1:
            connection.execute(sa.update(self._table).where(lost).values(retry_group=uuid.uuid4().hex))
            return 0
        middle = len(keys) // 2
        for half in (keys[:middle], keys[middle:]):
            self._update(connection, half, {**change, "state": PENDING, "retry_group": uuid.uuid4().hex})
        return len(keys)
