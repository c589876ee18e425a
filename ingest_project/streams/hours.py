"""Hours of a stream: how often the rows of each changed, and their offsets.

A change is counted, not flagged: figures that are computed while another change comes in are stale again at once,
and so is the report of an hour to Dagster.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy import Column as Col

from ingest_project.platform.database import fetch, reading, writing
from ingest_project.platform.database.sql import UtcTime, insert_into, metadata, partial_index, rows_in
from ingest_project.streams.positions import OffsetRange, joined

# First hourly partition of all streams; earlier times have none.
FIRST_HOUR = datetime(2024, 1, 1, tzinfo=UTC)
HOURLY_SENSOR = "user_activity_hourly_sensor"
# Column with the day of a row, `yyyy-mm-dd`, by which a Delta table is partitioned.
DAY = "event_day"
# Offsets in one piece: a late event widens the span of its hour within one piece only.
PIECE_OFFSETS = 1_000_000

stream_hours = sa.Table(
    "stream_hours",
    metadata,
    Col("stream", sa.Text, primary_key=True),
    Col("hour", UtcTime, primary_key=True),
    # How often the rows of the hour changed, after how many of these changes its statistics were computed last, and
    # after how many the hour was reported to Dagster.
    Col("changes", sa.BigInteger, nullable=False),
    Col("changed_at", UtcTime, nullable=False),
    Col("computed_changes", sa.BigInteger, nullable=False),
    Col("computed_at", UtcTime),
    Col("reported_changes", sa.BigInteger, nullable=False),
    partial_index("stream_hours_stale", "changes > computed_changes", "stream", "hour"),
    partial_index("stream_hours_unreported", "changes > reported_changes", "stream", "hour"),
)

# Offsets from the first to the last that had events of an hour, in pieces: what to read when the hour is rebuilt.
stream_hour_spans = sa.Table(
    "stream_hour_spans",
    metadata,
    Col("stream", sa.Text, primary_key=True),
    Col("hour", UtcTime, primary_key=True),
    Col("topic", sa.Text, primary_key=True),
    Col("topic_id", sa.Text, primary_key=True),
    Col("partition", sa.Integer, primary_key=True, autoincrement=False),
    # Number of the piece of 1,000,000 offsets.
    Col("piece", sa.BigInteger, primary_key=True, autoincrement=False),
    Col("first_offset", sa.BigInteger, nullable=False),
    # Offset after the last message of the span.
    Col("end_offset", sa.BigInteger, nullable=False),
    sa.Index("stream_hour_spans_by_offset", "stream", "topic", "topic_id", "partition", "end_offset"),
)


class StaleHour(NamedTuple):
    """An hour whose statistics are older than its events.

    Args:
        changes: how often its events had changed when this was read.
    """

    hour: datetime
    changes: int
    computed_at: datetime | None


class StreamHours:
    """Reads and writes the tables of hours. Times are UTC-aware; every method is one transaction.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: from every method.
    """

    def __init__(self, engine: sa.Engine, stream: str) -> None:
        self._engine = engine
        self.stream = stream

    def touch(self, changed: Iterable[datetime], now: datetime) -> None:
        """Count a change of these hours, so that their statistics are computed again."""
        with writing(self._engine) as connection:
            count_changes(connection, self.stream, changed, now)

    def stale(self, until: datetime, limit: int) -> tuple[StaleHour, ...]:
        """Return hours up to a moment whose statistics are out of date, those that wait longest first."""
        columns = stream_hours.c
        query = (
            sa.select(columns.hour, columns.changes, columns.computed_at)
            .where(sa.literal_column("changes > computed_changes", sa.Boolean))
            .where(columns.stream == self.stream, columns.hour <= until)
            .order_by(columns.computed_at.is_not(None), columns.computed_at, columns.hour)
            .limit(limit)
        )
        return tuple(StaleHour(*row) for row in fetch(self._engine, query))

    def due(self, now: datetime, pause: timedelta, limit: int) -> tuple[StaleHour, ...]:
        """Return the stale hours up to now whose statistics were not computed within the pause."""
        stale = self.stale(now, limit)
        return tuple(one for one in stale if one.computed_at is None or one.computed_at + pause <= now)

    def changes(self, chosen: Sequence[datetime]) -> dict[datetime, int]:
        """Return the number of changes of each hour so far; 0 without any."""
        columns = stream_hours.c
        query = sa.select(columns.hour, columns.changes).where(columns.stream == self.stream)
        with reading(self._engine) as connection:
            return dict.fromkeys(chosen, 0) | dict(map(tuple, rows_in(connection, query, columns.hour, chosen)))

    def unreported(self, first: datetime, until: datetime, limit: int) -> dict[datetime, int]:
        """Return hours that changed since they were reported to Dagster, with the number of their changes."""
        columns = stream_hours.c
        query = (
            sa.select(columns.hour, columns.changes)
            .where(sa.literal_column("changes > reported_changes", sa.Boolean))
            .where(columns.stream == self.stream, columns.hour >= first, columns.hour <= until)
            .order_by(columns.hour)
            .limit(limit)
        )
        return {row.hour: row.changes for row in fetch(self._engine, query)}

    def mark_reported(self, changes: Mapping[datetime, int]) -> None:
        """Record that these hours were reported to Dagster after this number of changes."""
        columns = stream_hours.c
        with writing(self._engine) as connection:
            for hour, count in sorted(changes.items()):
                older = sa.and_(columns.stream == self.stream, columns.hour == hour, columns.reported_changes < count)
                connection.execute(sa.update(stream_hours).where(older).values(reported_changes=count))

    def hours_of(self, offsets: OffsetRange) -> list[datetime]:
        """Return the hours that may have events among some offsets, in order."""
        columns = stream_hour_spans.c
        query = (
            sa.select(columns.hour)
            .distinct()
            .where(columns.stream == self.stream, columns.topic == offsets.topic)
            .where(columns.topic_id == offsets.topic_id)
            .where(columns.partition == offsets.partition)
            .where(columns.end_offset > offsets.first, columns.first_offset < offsets.end)
            .order_by(columns.hour)
        )
        return list(fetch(self._engine, query).scalars())

    def offsets_of(self, hour: datetime) -> list[OffsetRange]:
        """Return the offsets among which the events of an hour are; others may lie between them."""
        columns = stream_hour_spans.c
        query = sa.select(
            columns.topic, columns.topic_id, columns.partition, columns.first_offset, columns.end_offset
        ).where(columns.stream == self.stream, columns.hour == hour)
        return joined(OffsetRange(*row) for row in fetch(self._engine, query))


def count_changes(connection: sa.Connection, stream: str, changed: Iterable[datetime], now: datetime) -> None:
    """Count a change of these hours, in the caller's transaction."""
    counters = {"changes": 1, "computed_changes": 0, "reported_changes": 0}
    rows = [
        {"stream": stream, "hour": hour, "changed_at": now, "computed_at": None, **counters} for hour in sorted(changed)
    ]
    if rows:
        insert = insert_into(connection, stream_hours)
        again = {"changes": stream_hours.c.changes + 1, "changed_at": insert.excluded.changed_at}
        keys = list(stream_hours.primary_key)
        connection.execute(insert.on_conflict_do_update(index_elements=keys, set_=again), rows)


def add_spans(connection: sa.Connection, stream: str, offsets: OffsetRange, hours: Iterable[datetime]) -> None:
    """Note that some offsets have events of these hours, in the caller's transaction."""
    span = {
        "stream": stream,
        **offsets.topic_partition._asdict(),
        "piece": offsets.first // PIECE_OFFSETS,
        "first_offset": offsets.first,
        "end_offset": offsets.end,
    }
    rows = [{"hour": hour, **span} for hour in sorted(hours)]
    if rows:
        insert = insert_into(connection, stream_hour_spans)
        new, old = insert.excluded, stream_hour_spans.c
        wider = {
            "first_offset": sa.case((new.first_offset < old.first_offset, new.first_offset), else_=old.first_offset),
            "end_offset": sa.case((new.end_offset > old.end_offset, new.end_offset), else_=old.end_offset),
        }
        key = list(stream_hour_spans.primary_key)
        connection.execute(insert.on_conflict_do_update(index_elements=key, set_=wider), rows)


def hours_between(hours: Iterable[datetime], first: datetime, now: datetime) -> list[datetime]:
    """Return the hours that are partitions, in order: none before the first one, none that has yet to begin."""
    return sorted(hour for hour in hours if first <= hour <= now)
