"""The ledger of attachment events: what arrived, kept whole until its addresses are taken out, and what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from ingest_project.attachments.tables import attachment_events as events
from ingest_project.platform.database.engine import reading, writing
from ingest_project.platform.work_queue.queue import WorkLedger
from ingest_project.platform.work_queue.sql_helpers import in_parts, insert_missing, update_each
from ingest_project.platform.work_queue.states import JobState
from ingest_project.platform.work_queue.types import KafkaPosition, Recorded


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
    intake: KafkaPosition


class EventRecord(EventArrival, frozen=True, kw_only=True):
    """What a run needs of one event: all that arrived, and how often it was tried."""

    attempts: int

    @classmethod
    def of(cls, row: sa.RowMapping) -> EventRecord:
        """Of a row of the table."""
        own = {name: row[name] for name in cls.__struct_fields__ if name != "intake"}
        return cls(**own, intake=KafkaPosition.of(row))


class Extracted(NamedTuple):
    """What was found in one event.

    Args:
        addresses: found in it.
        duplicates: of those, the ones that were attachments already.
    """

    event_key: str
    addresses: int
    duplicates: int


class HourOfEvents(msgspec.Struct, frozen=True):
    """What one hour brought, over all its finished events."""

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


class EventLedger(WorkLedger):
    """Reads and writes the table `attachment_events`. Times are UTC-aware; every method is one transaction.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: from every method.
    """

    def __init__(self, engine: sa.Engine) -> None:
        super().__init__(engine, events, events.c.event_key, JobState.RUNNING)

    def record(self, arrivals: Sequence[EventArrival], now: datetime) -> Recorded:
        """Enter events as pending; those that are there stay as they are, see `WorkLedger`."""
        first = {arrival.event_key: arrival for arrival in reversed(arrivals)}
        ordered = sorted(first.values(), key=lambda arrival: arrival.event_key)
        with writing(self._engine) as connection:
            new = insert_missing(connection, events, [_row(arrival, now) for arrival in ordered], events.c.event_key)
            known = {a.event_key: a.intake for a in ordered if a.event_key not in new}
            reopened = self._reopen_unsaved(connection, known, now)
        return Recorded(
            new=tuple(key for key in first if key in new),
            reopened=tuple(key for key in first if key in reopened),
            known=tuple(key for key in known if key not in reopened),
        )

    def start(self, event_keys: Sequence[str], run_id: str, now: datetime) -> tuple[EventRecord, ...]:
        """A run takes events into its hands, in whatever state they are; keys that are not here are left out."""
        change = {"state": JobState.RUNNING, "run_id": run_id, "started_at": now, "updated_at": now}
        change |= {"finished_at": None, "reported_at": None}
        found: dict[str, EventRecord] = {}
        with writing(self._engine) as connection:
            for part in in_parts(event_keys):
                statement = sa.update(events).where(events.c.event_key.in_(part)).values(**change)
                rows = connection.execute(statement.returning(*events.c)).mappings()
                found.update((row["event_key"], EventRecord.of(row)) for row in rows)
        return tuple(found[key] for key in dict.fromkeys(event_keys) if key in found)

    def finish(self, extracted: Sequence[Extracted], now: datetime) -> None:
        """The addresses of these events are attachments now."""
        done = {"state": JobState.DONE, "reason": None, "error_class": None, "finished_at": now, "updated_at": now}
        rows = [{**one._asdict(), **done} for one in sorted(extracted)]
        with writing(self._engine) as connection:
            update_each(connection, events, events.c.event_key, rows)

    def fail(self, failures: Mapping[str, tuple[str, str]], now: datetime) -> None:
        """No addresses can be taken out of these events.

        Args:
            failures: class and reason of the error, by event.
            now: when.
        """
        ended = {"state": JobState.FAILED, "finished_at": now, "updated_at": now}
        rows = [
            {"event_key": key, "error_class": error_class, "reason": reason, **ended}
            for key, (error_class, reason) in sorted(failures.items())
        ]
        with writing(self._engine) as connection:
            update_each(connection, events, events.c.event_key, rows)

    def of_hour(self, hour: str) -> tuple[str, ...]:
        """Keys of the events that arrived in an hour."""
        query = sa.select(events.c.event_key).where(events.c.hour == hour).order_by(events.c.event_key)
        with reading(self._engine) as connection:
            return tuple(connection.execute(query).scalars())

    def hours(self, hours: Sequence[str]) -> tuple[HourOfEvents, ...]:
        """Return what each of these hours brought, zeros where that is nothing, in the order of the hours."""
        done = events.c.state == JobState.DONE
        query = (
            sa.select(
                events.c.hour,
                sa.func.count().label("events"),
                sa.func.coalesce(sa.func.sum(events.c.addresses).filter(done), 0).label("addresses"),
                sa.func.coalesce(sa.func.sum(events.c.duplicates).filter(done), 0).label("duplicates"),
                sa.func.count().filter(events.c.state.not_in([JobState.DONE, JobState.FAILED])).label("unfinished"),
                sa.func.count().filter(events.c.state == JobState.FAILED).label("failed"),
            )
            .where(events.c.hour.in_(list(hours)))
            .group_by(events.c.hour)
            .order_by(events.c.hour)
        )
        with reading(self._engine) as connection:
            found = {row["hour"]: HourOfEvents(**row) for row in connection.execute(query).mappings()}
        return tuple(found.get(hour) or HourOfEvents(hour) for hour in sorted(hours))

    def counts_by_state(self) -> dict[JobState, int]:
        """Number of events in every state, also those with none."""
        query = sa.select(events.c.state, sa.func.count()).group_by(events.c.state)
        with reading(self._engine) as connection:
            counts = {row[0]: int(row[1]) for row in connection.execute(query)}
        return {state: counts.get(state, 0) for state in JobState}

    def tasks_made(self) -> int:
        """Download tasks that all finished events say they made."""
        total = sa.func.coalesce(sa.func.sum(events.c.addresses - events.c.duplicates), 0)
        with reading(self._engine) as connection:
            return int(connection.execute(sa.select(total).where(events.c.state == JobState.DONE)).scalar_one())


def _row(arrival: EventArrival, now: datetime) -> dict[str, Any]:
    own = {name: getattr(arrival, name) for name in arrival.__struct_fields__ if name != "intake"}
    return {
        **own,
        **arrival.intake.columns(),
        "state": JobState.PENDING,
        "attempts": 0,
        "next_attempt_at": now,
        "created_at": now,
        "updated_at": now,
    }
