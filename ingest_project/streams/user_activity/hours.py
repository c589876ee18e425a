"""Statistics of the hours of user activity.

They are exact, and computed again each time: neither distinct numbers nor percentiles can be added up, and an hour's
events may come late. An hour with more rows than memory should hold is read several times, a share of the event ids
each time. Their table is relational although the events are in Delta: an hour is a few rows that are replaced again
and again, which is one small transaction here and a new file each time there; and it is read together with the
warehouse's figures.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import msgspec
import polars as pl
import sqlalchemy as sa
from sqlalchemy import Column as Col

from ingest_project.core.items import end_of
from ingest_project.platform.database import fetch, writing
from ingest_project.platform.database.sql import Double, UtcTime, metadata
from ingest_project.platform.delta.table import DeltaStore, query_events
from ingest_project.streams.delta.queries import of_hours
from ingest_project.streams.hours import stream_hours
from ingest_project.streams.user_activity.event_table import NAME

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
        engine: engine of the warehouse.
        statistics: by hour; an hour without any has no events.
        changes: how often each hour had changed when its events were read.
        now: when that was.
    """
    rows = [msgspec.structs.asdict(one) | {"computed_at": now} for found in statistics.values() for one in found]
    known = stream_hours.c
    with writing(engine) as connection:
        for hour in sorted(statistics):
            connection.execute(sa.delete(user_activity_hourly).where(user_activity_hourly.c.hour == hour))
            connection.execute(
                sa.update(stream_hours)
                .where(known.stream == NAME, known.hour == hour)
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
    return tuple(HourOfType(**row) for row in fetch(engine, query).mappings())


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
    counts = query_events(store, f"SELECT count(*) AS rows FROM events WHERE {where}")
    rows = sum(batch.to_pylist()[0]["rows"] for batch in counts)
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
