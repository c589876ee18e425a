"""The work queue of attachment events, each kept whole until its addresses are extracted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa

from ingest_project.attachments.tables import attachment_events
from ingest_project.platform.database import reading
from ingest_project.platform.work_queue.queue import JobState, KafkaPosition, QueueEntry, QueueTable, WorkQueue

COLUMNS = attachment_events.c


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

    def own_columns(self, now: datetime) -> Mapping[str, Any]:  # noqa: ARG002 - no column of an event depends on the time
        """Return the columns that only events have."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if name != "intake"}


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
        query = sa.select(COLUMNS.event_key).where(COLUMNS.hour == hour).order_by(COLUMNS.event_key)
        with reading(self._engine) as connection:
            return tuple(connection.execute(query).scalars())

    def hours(self, hours: Sequence[str]) -> tuple[HourOfEvents, ...]:
        """Return the counts of each of these hours, zeros where nothing arrived, in the order of the hours."""
        done = COLUMNS.state == JobState.DONE
        query = (
            sa.select(
                COLUMNS.hour,
                sa.func.count().label("events"),
                sa.func.coalesce(sa.func.sum(COLUMNS.addresses).filter(done), 0).label("addresses"),
                sa.func.coalesce(sa.func.sum(COLUMNS.duplicates).filter(done), 0).label("duplicates"),
                sa.func.count().filter(COLUMNS.state.in_(EVENT_QUEUE.unfinished)).label("unfinished"),
                sa.func.count().filter(COLUMNS.state == JobState.FAILED).label("failed"),
            )
            .where(COLUMNS.hour.in_(list(hours)))
            .group_by(COLUMNS.hour)
        )
        with reading(self._engine) as connection:
            found = {row["hour"]: HourOfEvents(**row) for row in connection.execute(query).mappings()}
        return tuple(found.get(hour) or HourOfEvents(hour) for hour in sorted(hours))

    def tasks_made(self) -> int:
        """Count the download tasks that all finished events made."""
        total = sa.func.coalesce(sa.func.sum(COLUMNS.addresses - COLUMNS.duplicates), 0)
        return self._count(sa.select(total).where(COLUMNS.state == JobState.DONE))
