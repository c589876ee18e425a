"""What happened in an hour, by type of event, from the rows of the Delta table.

Exact, and made again each time: neither distinct numbers nor percentiles can be added up, and an hour's events may come
late. An hour with more rows than memory should hold is gone through several times, a share of the event ids each time.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

import polars as pl

from ingest_project.core.hours import end_of
from ingest_project.platform.delta.table import DeltaStore, ask
from ingest_project.streams.user_activity.events_schema import of_hours
from ingest_project.streams.user_activity.hourly_table import HourOfType

ROWS_AT_A_TIME = 1_000_000
COLUMNS = (
    "event_type, event_id, user_id, session_id, processing_info['processing_ms'] AS processing_ms,"
    " kafka_topic_id, kafka_partition, kafka_offset"
)


@dataclass
class _TypeSoFar:
    """One type of event, as far as its rows were seen."""

    events: int = 0
    deliveries: int = 0
    users: set[str] = field(default_factory=set)
    sessions: set[str] = field(default_factory=set)
    milliseconds: Counter[float] = field(default_factory=Counter)


def statistics_of_hour(store: DeltaStore, hour: datetime) -> list[HourOfType]:
    """The statistics of an hour as the table is now, by type of event.

    An event that was delivered several times counts once, as it came first in its partition.

    Raises:
        StoreUnavailableError: the table cannot be read.
    """
    where = of_hours(hour, end_of(hour))
    rows = sum(
        batch.to_pylist()[0]["rows"] for batch in ask(store, f"SELECT count(*) AS rows FROM events WHERE {where}")
    )
    shares = math.ceil(rows / ROWS_AT_A_TIME)
    types: dict[str, _TypeSoFar] = defaultdict(_TypeSoFar)
    for share in range(shares):
        _count(types, _share(store, where, share, shares))
    return [_finished(hour, name, found) for name, found in sorted(types.items())]


def percentile(counts: Counter[float], share: float) -> float | None:
    """The value below which this share of the values lies, between two of them in proportion; None without any.

    Args:
        counts: how often each value occurs.
        share: 0.5 for the median.
    """
    if not counts:
        return None
    place = share * (counts.total() - 1)
    low, high = _value_at(counts, math.floor(place)), _value_at(counts, math.ceil(place))
    return low + (high - low) * (place - math.floor(place))


def _value_at(counts: Counter[float], place: int) -> float:
    for value in sorted(counts):
        place -= counts[value]
        if place < 0:
            return value
    raise IndexError(place)


def _share(store: DeltaStore, where: str, share: int, shares: int) -> pl.DataFrame:
    """The rows of the event ids whose hash falls to this share, in the order in which they came."""
    import polars as pl  # noqa: PLC0415 - heavy

    def chosen() -> Iterator[pl.DataFrame]:
        for batch in ask(store, f"SELECT {COLUMNS} FROM events WHERE {where}"):
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
