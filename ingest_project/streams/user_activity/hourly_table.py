"""The table `user_activity_hourly`: what happened in an hour, by type of event.

It is relational although the events are in Delta: an hour is a few rows that are replaced again and again, which is one
small transaction here and a new file each time there; and it is read beside the other figures in the warehouse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec
import sqlalchemy as sa

from ingest_project.platform.database.engine import reading, writing
from ingest_project.streams.user_activity.tables import activity_hours, user_activity_hourly


class HourOfType(msgspec.Struct, frozen=True, kw_only=True):
    """One type of event in one hour.

    Args:
        events: distinct event ids.
        users: distinct user ids.
        sessions: distinct session ids.
        processing_ms_p50: median of the events that say; None where none does.
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
    """Replace all that is stored of these hours, in one transaction; the second time it is the same.

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
    """What is stored of an hour, the type with most events first."""
    columns = [user_activity_hourly.c[name] for name in HourOfType.__struct_fields__]
    query = (
        sa.select(*columns)
        .where(user_activity_hourly.c.hour == hour)
        .order_by(user_activity_hourly.c.events.desc(), user_activity_hourly.c.event_type)
    )
    with reading(engine) as connection:
        return tuple(HourOfType(**row) for row in connection.execute(query).mappings())
