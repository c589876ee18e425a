"""What the ledgers of files, jobs, events and attachments have in common: who is asked to work on what, and until when.

An entry is pending until a tick asks for it in a batch, held by that batch's run until it is finished and reported, and
pending again when its run came to nothing. Finished is not the end: a run that is killed between storing and reporting
leaves its entries held, and they are done again so that what Dagster shows is what is stored.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa

from ingest_project.platform.database.engine import reading, writing
from ingest_project.platform.work_queue.sql_helpers import add_reason, in_parts, requeue
from ingest_project.platform.work_queue.states import PENDING, REQUESTED
from ingest_project.platform.work_queue.types import DelayRule, KafkaPosition, RequeuedEntry


class Due(msgspec.Struct, frozen=True):
    """An entry whose time has come, and how often it was tried before.

    Args:
        retry_group: name of the half of a lost batch that it is to be tried with, and with nothing else.
    """

    key: str
    attempts: int
    retry_group: str | None = None


class Lease(msgspec.Struct, frozen=True):
    """Entries that one batch, or one run of it, holds.

    Args:
        batch_id: None where a person took them by hand.
        run_id: None while no run has started on them.
        touched_at: when the last of them changed.
    """

    batch_id: str | None
    run_id: str | None
    entries: int
    touched_at: datetime


class WorkLedger:
    """Asking for work and taking it back, over one table. Times are UTC-aware; every method is one transaction.

    Args:
        engine: of the database.
        table: with the columns state, attempts, batch_id, run_id, next_attempt_at, reported_at.
        key: its primary key.
        working_state: of entries in a run's hands.
        queue: the column that says which sensor looks after an entry; the topic it came from, by default.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: from every method.
    """

    # Entries that wait longest first; a ledger with priorities puts them in front.
    order_of_due: tuple[str, ...] = ("next_attempt_at",)
    # Whether what a lost run held is tried again in halves, until what takes its run down is alone. Needs the column
    # retry_group, and whoever asks for runs has to keep to it.
    halves_lost_batches = False

    def __init__(
        self,
        engine: sa.Engine,
        table: sa.Table,
        key: sa.Column[str],
        working_state: str,
        queue_name: sa.Column[str] | None = None,
    ) -> None:
        self._engine = engine
        self._table = table
        self._key = key
        self._working = working_state
        self._queue_name: sa.Column[str] = table.c.kafka_topic if queue_name is None else queue_name

    def due(self, queue_name: str, limit: int, now: datetime) -> tuple[Due, ...]:
        """Pending entries whose time has come, in the order they are to be asked for."""
        with reading(self._engine) as connection:
            return tuple(Due(*row) for row in connection.execute(self._due(queue_name, limit, now)))

    def _due(self, queue_name: str, limit: int, now: datetime) -> sa.Select[Any]:
        columns = self._table.c
        group = [columns.retry_group] if self.halves_lost_batches else []
        return (
            sa.select(self._key, columns.attempts, *group)
            .where(self._queue_name == queue_name, columns.state == sa.literal_column(f"'{PENDING}'"))
            .where(columns.next_attempt_at <= now)
            .order_by(*(columns[name] for name in self.order_of_due))
            .limit(limit)
        )

    def request(self, batch_id: str, keys: Sequence[str], now: datetime) -> tuple[str, ...]:
        """Claim pending entries for a batch, one attempt more each; returns those that were still pending, in order."""
        columns = self._table.c
        change = {"state": REQUESTED, "batch_id": batch_id, "run_id": None, "reported_at": None, "updated_at": now}
        claimed: set[str] = set()
        with writing(self._engine) as connection:
            for part in in_parts(keys):
                statement = (
                    sa.update(self._table)
                    .where(self._key.in_(part), columns.state == PENDING)
                    .values(**change, attempts=columns.attempts + 1)
                    .returning(self._key)
                )
                claimed.update(connection.execute(statement).scalars())
        return tuple(key for key in dict.fromkeys(keys) if key in claimed)

    def batch(self, batch_id: str) -> tuple[str, ...]:
        """Keys of the entries that were last asked for in this batch."""
        query = sa.select(self._key).where(self._table.c.batch_id == batch_id).order_by(self._key)
        with reading(self._engine) as connection:
            return tuple(connection.execute(query).scalars())

    def in_flight_batches(self, queue_name: str) -> int:
        """Batches that are asked for or running."""
        columns = self._table.c
        query = sa.select(sa.func.count(columns.batch_id.distinct())).where(
            self._queue_name == queue_name, self._is_held(), columns.state.in_([REQUESTED, self._working])
        )
        with reading(self._engine) as connection:
            return int(connection.execute(query).scalar_one())

    def held(self, queue_name: str, untouched_since: datetime) -> tuple[Lease, ...]:
        """Batches with entries that are asked for, in a run's hands or not yet reported, untouched since then."""
        columns = self._table.c
        touched_at = sa.func.max(columns.updated_at, type_=columns.updated_at.type).label("touched_at")
        query = (
            sa.select(columns.batch_id, columns.run_id, sa.func.count().label("entries"), touched_at)
            .where(self._queue_name == queue_name, self._is_held())
            .group_by(columns.batch_id, columns.run_id)
            .having(touched_at < untouched_since)
            .order_by(touched_at)
        )
        with reading(self._engine) as connection:
            return tuple(Lease(**row) for row in connection.execute(query).mappings())

    def release(  # noqa: PLR0913, PLR0917 - the retry rule is two settings
        self,
        batch_id: str | None,
        run_id: str | None,
        reason: str,
        max_attempts: int,
        delay: DelayRule,
        now: datetime,
        *,
        error_class: str = "RunLostError",
    ) -> RequeuedEntry:
        """Take back what a batch's dead or never started run holds; a run that started meanwhile keeps its entries.

        What was finished and only not reported is pending at once; with no attempt left it stays finished, unreported.
        Where this ledger halves lost batches, what a run held together with others is tried again whatever its
        attempts: each loss halves its company, so that it is alone soon.
        """
        columns = self._table.c
        chosen = sa.and_(
            self._is_held(),
            columns.batch_id.is_not_distinct_from(batch_id),
            columns.run_id.is_not_distinct_from(run_id),
        )
        unfinished = columns.state.in_([REQUESTED, self._working])
        finished = sa.update(self._table).where(chosen, ~unfinished)
        again = {"state": PENDING, "next_attempt_at": now, "updated_at": now}
        with writing(self._engine) as connection:
            unreported = connection.execute(finished.where(columns.attempts < max_attempts).values(**again))
            connection.execute(finished.where(columns.attempts >= max_attempts).values(reported_at=now))
            lost = sa.and_(chosen, unfinished)
            add_reason(connection, self._table, self._key, lost, reason, error_class)
            halved = 0
            if self.halves_lost_batches and run_id is not None:
                halved = self._halve(connection, lost, {"updated_at": now, "next_attempt_at": now + delay(1)})
            released = requeue(
                connection, self._table, self._key, lost,
                reason=columns.reason, error_class=error_class, max_attempts=max_attempts, delay=delay, now=now,
            )  # fmt: skip
            # No run is left that could report them: unmarked, they would be found held, and tried again for ever.
            for part in in_parts(released.failed):
                connection.execute(sa.update(self._table).where(self._key.in_(part)).values(reported_at=now))
        return RequeuedEntry(pending=released.pending + unreported.rowcount + halved, failed=released.failed)

    def _halve(self, connection: sa.Connection, lost: sa.ColumnElement[bool], change: Mapping[str, Any]) -> int:
        """Make two groups of what a lost run held, pending; one entry alone stays alone, and is not given back here."""
        keys = connection.execute(sa.select(self._key).where(lost).order_by(self._key)).scalars().all()
        if len(keys) <= 1:
            connection.execute(sa.update(self._table).where(lost).values(retry_group=uuid.uuid4().hex))
            return 0
        middle = len(keys) // 2
        for half in (keys[:middle], keys[middle:]):
            group = {"state": PENDING, "retry_group": uuid.uuid4().hex}
            for part in in_parts(half):
                connection.execute(sa.update(self._table).where(self._key.in_(part)).values(**change, **group))
        return len(keys)

    def requeue_later(  # noqa: PLR0913, PLR0917 - as release
        self,
        keys: Sequence[str],
        reason: str,
        error_class: str,
        max_attempts: int,
        delay: DelayRule,
        now: datetime,
    ) -> RequeuedEntry:
        """A transient failure inside a run: pending again after a pause, or failed when no attempt is left."""
        pending = 0
        failed: list[str] = []
        with writing(self._engine) as connection:
            for part in in_parts(keys):
                if self.halves_lost_batches:
                    # Its run lives to tell: it is not what took the others down.
                    connection.execute(sa.update(self._table).where(self._key.in_(part)).values(retry_group=None))
                given_back = requeue(
                    connection, self._table, self._key, sa.and_(self._key.in_(part), self._is_held()),
                    reason=reason, error_class=error_class, max_attempts=max_attempts, delay=delay, now=now,
                )  # fmt: skip
                pending += given_back.pending
                failed += given_back.failed
        return RequeuedEntry(pending=pending, failed=tuple(failed))

    def bring_back_to(self, now: datetime, skew_seconds: float) -> int:
        """Entries that were written with a time in the future, by a clock that has been set back, count as of now.

        Args:
            now: the right time.
            skew_seconds: by how much clocks differ anyway.

        Returns:
            how many there were; a second time there are none.
        """
        columns = self._table.c
        statement = (
            sa.update(self._table)
            .where(columns.updated_at > now + timedelta(seconds=skew_seconds))
            .values(
                updated_at=now,
                next_attempt_at=sa.case((columns.next_attempt_at > now, now), else_=columns.next_attempt_at),
            )
        )
        with writing(self._engine) as connection:
            return connection.execute(statement).rowcount

    def mark_reported(self, keys: Sequence[str], now: datetime) -> None:
        """Dagster knows what became of these finished entries. Marking twice changes nothing but the time."""
        working = [PENDING, REQUESTED, self._working]
        with writing(self._engine) as connection:
            for part in in_parts(keys):
                connection.execute(
                    sa.update(self._table)
                    .where(self._key.in_(part), self._table.c.state.not_in(working))
                    .values(reported_at=now)
                )

    def _reopen_unsaved(
        self, connection: sa.Connection, came_from: Mapping[str, KafkaPosition], now: datetime
    ) -> set[str]:
        """Entries that are requested and arrive again from the very position they came from: pending again.

        They were asked for by a tick whose cursor was never saved, so that batch does not exist; that attempt is not
        counted.
        """
        columns = self._table.c
        position = (columns.kafka_topic, columns.kafka_partition, columns.kafka_offset, columns.kafka_topic_id)
        reopened: set[str] = set()
        for part in in_parts(list(came_from)):
            query = sa.select(self._key, *position).where(self._key.in_(part), columns.state == REQUESTED)
            same = [key for key, *found in connection.execute(query) if tuple(found) == came_from[key].position]
            if not same:
                continue
            statement = (
                sa.update(self._table)
                .where(self._key.in_(same), columns.state == REQUESTED)
                .values(state=PENDING, batch_id=None, next_attempt_at=now, updated_at=now)
                .values(attempts=columns.attempts - 1)
                .returning(self._key)
            )
            reopened.update(connection.execute(statement).scalars())
        return reopened

    def _is_held(self) -> sa.ColumnElement[bool]:
        # Spelt out, not bound: only then does either database see that the partial index answers.
        return sa.literal_column(f"({self._table.name}.reported_at IS NULL AND state <> '{PENDING}')", sa.Boolean)
