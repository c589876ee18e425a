"""Hours of user activity: how often the events of each changed, their offsets, and their statistics.

A change is counted, not flagged: statistics that are computed while another change comes in are stale again at once,
and so is the report of an hour to Dagster.

Statistics are exact, and computed again each time: neither distinct numbers nor percentiles can be added up, and an
hour's events may come late. An hour with more rows than memory should hold is read several times, a share of the event
ids each time. Their table is relational although the events are in Delta: an hour is a few rows that are replaced again
and again, which is one small transaction here and a new file each time there; and it is read together with the
warehouse's figures.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy import Column as Col

from ingest_project.core.items import end_of
from ingest_project.platform.database import reading, writing
from ingest_project.platform.database.sql import Double, UtcTime, in_parts, insert_into, metadata
from ingest_project.platform.delta.table import DeltaStore, query_events
from ingest_project.streams.positions import OffsetRange, joined
from ingest_project.streams.user_activity.event_queries import of_hours

if TYPE_CHECKING:
    import polars as pl

# A late event widens the offsets of its hour within one piece only.
PIECE_OFFSETS = 1_000_000

activity_hours = sa.Table(
    "activity_hours",
    metadata,
    Col("hour", UtcTime, primary_key=True),
    # How often the rows of the hour changed, after how many of these changes its statistics were computed last, and
    # after how many the hour was reported to Dagster.
    Col("changes", sa.BigInteger, nullable=False),
    Col("changed_at", UtcTime, nullable=False),
    Col("computed_changes", sa.BigInteger, nullable=False),
    Col("computed_at", UtcTime),
    Col("reported_changes", sa.BigInteger, nullable=False),
    sa.Index(
        "activity_hours_stale",
        "hour",
        postgresql_where=sa.text("changes > computed_changes"),
        sqlite_where=sa.text("changes > computed_changes"),
    ),
    sa.Index(
        "activity_hours_unreported",
        "hour",
        postgresql_where=sa.text("changes > reported_changes"),
        sqlite_where=sa.text("changes > reported_changes"),
    ),
)

# Offsets from the first to the last that had events of an hour, in pieces: what to read when the hour is rebuilt.
activity_hour_spans = sa.Table(
    "activity_hour_spans",
    metadata,
    Col("hour", UtcTime, primary_key=True),
    Col("topic", sa.Text, primary_key=True),
    Col("topic_id", sa.Text, primary_key=True),
    Col("partition", sa.Integer, primary_key=True, autoincrement=False),
    # Number of the piece of 1,000,000 offsets.
    Col("piece", sa.BigInteger, primary_key=True, autoincrement=False),
    Col("first_offset", sa.BigInteger, nullable=False),
    # Of the first message that is not in it.
    Col("end_offset", sa.BigInteger, nullable=False),
    sa.Index("activity_hour_spans_by_offset", "topic", "topic_id", "partition", "end_offset"),
)


class StaleHour(NamedTuple):
    """An hour whose statistics are older than its events.

    Args:
        changes: how often its events had changed when this was read.
    """

    hour: datetime
    changes: int
    computed_at: datetime | None


class ActivityHours:
    """Reads and writes the tables of hours. Times are UTC-aware; every method is one transaction.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: from every method.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def touch(self, changed: Iterable[datetime], now: datetime) -> None:
        """Count a change of these hours, so that their statistics are computed again."""
        with writing(self._engine) as connection:
            count_changes(connection, changed, now)

    def stale(self, until: datetime, limit: int) -> tuple[StaleHour, ...]:
        """Return hours up to a moment whose statistics are out of date, those that wait longest first."""
        columns = activity_hours.c
        query = (
            sa.select(columns.hour, columns.changes, columns.computed_at)
            .where(sa.literal_column("changes > computed_changes", sa.Boolean), columns.hour <= until)
            .order_by(columns.computed_at.is_not(None), columns.computed_at, columns.hour)
            .limit(limit)
        )
        with reading(self._engine) as connection:
            return tuple(StaleHour(*row) for row in connection.execute(query))

    def due(self, now: datetime, pause: timedelta, limit: int) -> tuple[StaleHour, ...]:
        """Return the stale hours up to now whose statistics were not computed within the pause."""
        stale = self.stale(now, limit)
        return tuple(one for one in stale if one.computed_at is None or one.computed_at + pause <= now)

    def changes(self, chosen: Sequence[datetime]) -> dict[datetime, int]:
        """Return how often each hour has changed so far; 0 where it never did."""
        counts = dict.fromkeys(chosen, 0)
        with reading(self._engine) as connection:
            for part in in_parts(chosen):
                query = sa.select(activity_hours.c.hour, activity_hours.c.changes).where(
                    activity_hours.c.hour.in_(part)
                )
                counts.update((row.hour, row.changes) for row in connection.execute(query))
        return counts

    def unreported(self, first: datetime, until: datetime, limit: int) -> dict[datetime, int]:
        """Return hours that changed since they were reported to Dagster, with the number of their changes."""
        columns = activity_hours.c
        query = (
            sa.select(columns.hour, columns.changes)
            .where(sa.literal_column("changes > reported_changes", sa.Boolean))
            .where(columns.hour >= first, columns.hour <= until)
            .order_by(columns.hour)
            .limit(limit)
        )
        with reading(self._engine) as connection:
            return {row.hour: row.changes for row in connection.execute(query)}

    def mark_reported(self, changes: Mapping[datetime, int]) -> None:
        """Record that these hours were reported to Dagster after this number of changes."""
        columns = activity_hours.c
        with writing(self._engine) as connection:
            for hour, count in sorted(changes.items()):
                older = sa.and_(columns.hour == hour, columns.reported_changes < count)
                connection.execute(sa.update(activity_hours).where(older).values(reported_changes=count))

    def hours_of(self, offsets: OffsetRange) -> list[datetime]:
        """Return the hours that may have events among some offsets, in order."""
        columns = activity_hour_spans.c
        query = (
            sa.select(columns.hour)
            .distinct()
            .where(columns.topic == offsets.topic, columns.topic_id == offsets.topic_id)
            .where(columns.partition == offsets.partition)
            .where(columns.end_offset > offsets.first, columns.first_offset < offsets.end)
            .order_by(columns.hour)
        )
        with reading(self._engine) as connection:
            return list(connection.execute(query).scalars())

    def offsets_of(self, hour: datetime) -> list[OffsetRange]:
        """Return the offsets among which the events of an hour are; others may lie between them."""
        columns = activity_hour_spans.c
        query = sa.select(
            columns.topic, columns.topic_id, columns.partition, columns.first_offset, columns.end_offset
        ).where(columns.hour == hour)
        with reading(self._engine) as connection:
            return joined(OffsetRange(*row) for row in connection.execute(query))


def count_changes(connection: sa.Connection, changed: Iterable[datetime], now: datetime) -> None:
    """Count a change of these hours, in the caller's transaction."""
    counters = {"changes": 1, "computed_changes": 0, "reported_changes": 0}
    rows = [{"hour": hour, "changed_at": now, "computed_at": None, **counters} for hour in sorted(changed)]
    if rows:
        insert = insert_into(connection, activity_hours)
        again = {"changes": activity_hours.c.changes + 1, "changed_at": insert.excluded.changed_at}
        connection.execute(insert.on_conflict_do_update(index_elements=[activity_hours.c.hour], set_=again), rows)


def add_spans(connection: sa.Connection, offsets: OffsetRange, hours: Iterable[datetime]) -> None:
    """Note that some offsets have events of these hours, in the caller's transaction."""
    span = {
        **offsets.topic_partition._asdict(),
        "piece": offsets.first // PIECE_OFFSETS,
        "first_offset": offsets.first,
        "end_offset": offsets.end,
    }
    rows = [{"hour": hour, **span} for hour in sorted(hours)]
    if rows:
        insert = insert_into(connection, activity_hour_spans)
        new, old = insert.excluded, activity_hour_spans.c
        wider = {
            "first_offset": sa.case((new.first_offset < old.first_offset, new.first_offset), else_=old.first_offset),
            "end_offset": sa.case((new.end_offset > old.end_offset, new.end_offset), else_=old.end_offset),
        }
        key = list(activity_hour_spans.primary_key)
        connection.execute(insert.on_conflict_do_update(index_elements=key, set_=wider), rows)


ROWS_AT_A_TIME = 1_000_000
COLUMNS = (
    "event_type, event_id, user_id, session_id, processing_info['processing_ms'] AS processing_ms,"
    " kafka_topic_id, kafka_partition, kafka_offset"
)

user_activity_hourly = sa.Table(
    "user_activity_hourly",
    metadata,
    Col("hour", UtcTime, primary_key=True),
    Col("event_type", sa.Text, primary_key=True),
    # Distinct event ids; an event that was delivered twice counts once.
    Col("events", sa.BigInteger, nullable=False),
    Col("users", sa.BigInteger, nullable=False),
    Col("sessions", sa.BigInteger, nullable=False),
    Col("processing_ms_p50", Double),
    Col("processing_ms_p95", Double),
    # Rows of the Delta table, with the events that were delivered again.
    Col("deliveries", sa.BigInteger, nullable=False),
    Col("computed_at", UtcTime, nullable=False),
)


class HourOfType(msgspec.Struct, frozen=True, kw_only=True):
    """One type of event in one hour.

    Args:
        events: distinct event ids.
        users: distinct user ids.
        sessions: distinct session ids.
        processing_ms_p50: median of the events with a processing time; None without any.
        processing_ms_p95: 95th percentile.
        deliveries: with the events that were delivered again.
    """

    hour: datetime
    event_type: str
    events: int
    users: int
    sessions: int
    processing_ms_p50: float | None
    processing_ms_p95: float | None
    deliveries: int


def replace_hours(
    engine: sa.Engine,
    statistics: Mapping[datetime, Sequence[HourOfType]],
    changes: Mapping[datetime, int],
    now: datetime,
) -> None:
    """Replace all that is stored of these hours, in one transaction. Idempotent.

    Args:
        engine: of the warehouse.
        statistics: by hour; an hour without any has no events.
        changes: how often each hour had changed when its events were read.
        now: when that was.
    """
    rows = [msgspec.structs.asdict(one) | {"computed_at": now} for found in statistics.values() for one in found]
    known = activity_hours.c
    with writing(engine) as connection:
        for hour in sorted(statistics):
            connection.execute(sa.delete(user_activity_hourly).where(user_activity_hourly.c.hour == hour))
            connection.execute(
                sa.update(activity_hours)
                .where(known.hour == hour)
                .values(computed_changes=changes[hour], computed_at=now)
            )
        if rows:
            connection.execute(sa.insert(user_activity_hourly), rows)


def statistics_of(engine: sa.Engine, hour: datetime) -> tuple[HourOfType, ...]:
    """Return the stored statistics of an hour, the type with most events first."""
    columns = [user_activity_hourly.c[name] for name in HourOfType.__struct_fields__]
    query = (
        sa.select(*columns)
        .where(user_activity_hourly.c.hour == hour)
        .order_by(user_activity_hourly.c.events.desc(), user_activity_hourly.c.event_type)
    )
    with reading(engine) as connection:
        return tuple(HourOfType(**row) for row in connection.execute(query).mappings())


@dataclass
class _TypeSoFar:
    """Figures of one type of event, as far as its rows were read."""

    events: int = 0
    deliveries: int = 0
    users: set[str] = field(default_factory=set)
    sessions: set[str] = field(default_factory=set)
    milliseconds: Counter[float] = field(default_factory=Counter)


def statistics_of_hour(store: DeltaStore, hour: datetime) -> list[HourOfType]:
    """Compute the statistics of an hour from the table as it is now, by type of event.

    An event that was delivered several times counts once, as it came first in its partition.

    Raises:
        StoreUnavailableError: the table cannot be read.
    """
    where = of_hours(hour, end_of(hour))
    rows = sum(
        batch.to_pylist()[0]["rows"]
        for batch in query_events(store, f"SELECT count(*) AS rows FROM events WHERE {where}")
    )
    shares = math.ceil(rows / ROWS_AT_A_TIME)
    types: dict[str, _TypeSoFar] = defaultdict(_TypeSoFar)
    for share in range(shares):
        _count(types, _share(store, where, share, shares))
    return [_finished(hour, name, found) for name, found in sorted(types.items())]


def percentile(counts: Counter[float], share: float) -> float | None:
    """Return the value below which this share of the values lies, interpolated linearly; None without any.

    Args:
        counts: how often each value occurs.
        share: 0.5 for the median.
    """
    if not counts:
        return None
    rank = share * (counts.total() - 1)
    low, high = _value_at(counts, math.floor(rank)), _value_at(counts, math.ceil(rank))
    return low + (high - low) * (rank - math.floor(rank))


def _value_at(counts: Counter[float], rank: int) -> float:
    for value in sorted(counts):
        rank -= counts[value]
        if rank < 0:
            return value
    raise IndexError(rank)


def _share(store: DeltaStore, where: str, share: int, shares: int) -> pl.DataFrame:
    """Return the rows of the event ids whose hash falls to this share, in the order in which they came."""
    import polars as pl  # noqa: PLC0415 - heavy

    def chosen() -> Iterator[pl.DataFrame]:
        for batch in query_events(store, f"SELECT {COLUMNS} FROM events WHERE {where}"):
            frame = pl.DataFrame(batch)
            yield frame if shares == 1 else frame.filter(pl.col("event_id").hash() % shares == share)

    return pl.concat(chosen()).sort("kafka_topic_id", "kafka_partition", "kafka_offset")


def _count(types: dict[str, _TypeSoFar], rows: pl.DataFrame) -> None:
    for (name,), deliveries in rows.group_by("event_type"):
        types[str(name)].deliveries += deliveries.height
    for (name,), events in rows.unique("event_id", keep="first").group_by("event_type"):
        found = types[str(name)]
        found.events += events.height
        found.users.update(events["user_id"].drop_nulls().unique())
        found.sessions.update(events["session_id"].drop_nulls().unique())
        found.milliseconds.update(dict(events["processing_ms"].drop_nulls().value_counts().iter_rows()))


def _finished(hour: datetime, name: str, found: _TypeSoFar) -> HourOfType:
    return HourOfType(
        hour=hour,
        event_type=name,
        events=found.events,
        users=len(found.users),
        sessions=len(found.sessions),
        processing_ms_p50=percentile(found.milliseconds, 0.5),
        processing_ms_p95=percentile(found.milliseconds, 0.95),
        deliveries=found.deliveries,
    )
