"""The ledger of hours: which hours' events changed, by which offset ranges, and which need their statistics again.

A change is counted, not flagged: statistics that are being made while another change comes in are stale again at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from ingest_project.platform.database.engine import reading, writing
from ingest_project.platform.database.statements import in_parts
from ingest_project.streams.range_record import OffsetRange, offset_columns
from ingest_project.streams.tables import stream_ranges as ranges
from ingest_project.streams.user_activity.tables import activity_hour_spans as spans
from ingest_project.streams.user_activity.tables import activity_hours as hours
from ingest_project.streams.user_activity.tables import activity_range_hours as range_hours


class StaleHour(NamedTuple):
    """An hour whose statistics are older than its events.

    Args:
        changes: how often its events had changed when this was asked.
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

    def mark_changed(self, range_key: str, events: Mapping[datetime, int], now: datetime) -> None:
        """Events of these hours were stored out of a range. Marked again, the same hours are made again once more.

        Args:
            range_key: where the events came from.
            events: how many of each hour the range has.
            now: when that was.
        """
        if not events:
            return
        of_range = [{"range_key": range_key, "hour": hour, "events": count} for hour, count in sorted(events.items())]
        with writing(self._engine) as connection:
            connection.execute(_upsert(connection, range_hours), of_range)
            self._count_change(connection, events, now)

    def touch(self, changed: Iterable[datetime], now: datetime) -> None:
        """Make the statistics of these hours again, whatever is known of them."""
        with writing(self._engine) as connection:
            self._count_change(connection, changed, now)

    def stale(self, until: datetime, limit: int) -> tuple[StaleHour, ...]:
        """Hours up to a moment that need their statistics again, those that wait longest first."""
        query = (
            sa.select(hours.c.hour, hours.c.changes, hours.c.computed_at)
            .where(sa.literal_column("changes > computed_changes", sa.Boolean), hours.c.hour <= until)
            .order_by(hours.c.computed_at.is_not(None), hours.c.computed_at, hours.c.hour)
            .limit(limit)
        )
        with reading(self._engine) as connection:
            return tuple(StaleHour(*row) for row in connection.execute(query))

    def due(self, now: datetime, pause: timedelta, limit: int) -> tuple[StaleHour, ...]:
        """Of the stale hours up to now, those whose statistics were not made within the pause."""
        stale = self.stale(now, limit)
        return tuple(one for one in stale if one.computed_at is None or one.computed_at + pause <= now)

    def changes(self, chosen: Sequence[datetime]) -> dict[datetime, int]:
        """How often each hour has changed so far; 0 where it never did."""
        counts = dict.fromkeys(chosen, 0)
        with reading(self._engine) as connection:
            for part in in_parts(chosen):
                query = sa.select(hours.c.hour, hours.c.changes).where(hours.c.hour.in_(part))
                counts.update((row.hour, row.changes) for row in connection.execute(query))
        return counts

    def hours_of(self, range_key: str) -> list[datetime]:
        """The hours that a range on record had events of, in order."""
        query = sa.select(range_hours.c.hour).where(range_hours.c.range_key == range_key).order_by(range_hours.c.hour)
        with reading(self._engine) as connection:
            return list(connection.execute(query).scalars())

    def ranges_of(self, hour: datetime) -> tuple[OffsetRange, ...]:
        """The offset ranges with events of an hour, in the order of their offsets.

        Of ranges that were let go, one from the first to the last with events of the hour; others may lie between.
        """
        on_record = (
            sa.select(*offset_columns(ranges))
            .join(range_hours, range_hours.c.range_key == ranges.c.range_key)
            .where(range_hours.c.hour == hour)
        )
        purge = sa.select(*offset_columns(spans)).where(spans.c.hour == hour)
        with reading(self._engine) as connection:
            found = connection.execute(sa.union_all(on_record, purge))
            return tuple(sorted(OffsetRange(*row) for row in found))

    def _count_change(self, connection: sa.Connection, changed: Iterable[datetime], now: datetime) -> None:
        rows = [
            {"hour": hour, "changes": 1, "changed_at": now, "computed_changes": 0, "computed_at": None}
            for hour in sorted(changed)
        ]
        if rows:
            insert = _insert(connection, hours)
            again = {"changes": hours.c.changes + 1, "changed_at": insert.excluded.changed_at}
            connection.execute(insert.on_conflict_do_update(index_elements=[hours.c.hour], set_=again), rows)


def keep_spans(connection: sa.Connection, purge: Mapping[str, OffsetRange]) -> None:
    """Keep in short which hours these ranges had events of, in the transaction that removes them.

    Args:
        connection: of that transaction.
        purge: the ranges by their keys; those of other streams have no hours.
    """
    found: dict[tuple[object, ...], tuple[int, int]] = {}
    for part in in_parts(list(purge)):
        removed = sa.delete(range_hours).where(range_hours.c.range_key.in_(part))
        for key, hour in connection.execute(removed.returning(range_hours.c.range_key, range_hours.c.hour)):
            one = purge[key]
            place = (hour, *one.topic_partition)
            first, end = found.get(place, (one.first, one.end))
            found[place] = (min(first, one.first), max(end, one.end))
    if found:
        names = [column.name for column in spans.c]
        rows = [dict(zip(names, (*place, *span), strict=True)) for place, span in found.items()]
        connection.execute(_widened(_insert(connection, spans)), rows)


def _widened(insert: postgresql.Insert | sqlite.Insert) -> sa.Insert:
    new, old = insert.excluded, spans.c
    wider = {
        "first_offset": sa.case((new.first_offset < old.first_offset, new.first_offset), else_=old.first_offset),
        "end_offset": sa.case((new.end_offset > old.end_offset, new.end_offset), else_=old.end_offset),
    }
    return insert.on_conflict_do_update(index_elements=list(spans.primary_key), set_=wider)


def _upsert(connection: sa.Connection, table: sa.Table) -> sa.Insert:
    insert, key = _insert(connection, table), table.primary_key
    others = {column.name: insert.excluded[column.name] for column in table.c if column.name not in key.columns}
    return insert.on_conflict_do_update(index_elements=list(key), set_=others)


def _insert(connection: sa.Connection, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)
