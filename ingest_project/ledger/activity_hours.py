"""The ledger of hours: which hours' events changed, by which offset ranges, and which need their statistics anew.

A change is counted, not flagged: statistics that are being made while another change comes in are stale again at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from ingest_project.database.activity_tables import activity_hours as hours
from ingest_project.database.activity_tables import activity_range_hours as range_hours
from ingest_project.database.engine import reading, writing
from ingest_project.database.stream_tables import stream_ranges as ranges
from ingest_project.ledger.statements import in_parts
from ingest_project.ledger.stream_ranges import OffsetRange

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime, timedelta


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
        DatabaseUnavailable, TransactionConflict: from every method.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def mark_changed(self, range_key: str, events: Mapping[datetime, int], now: datetime) -> None:
        """Events of these hours were stored out of a range. Marked again, the same hours are made anew once more.

        Args:
            range_key: where the events came from.
            events: how many of each hour the range has.
            now: when that was.
        """
        if not events:
            return
        of_range = [{"range_key": range_key, "hour": hour, "events": count} for hour, count in sorted(events.items())]
        with writing(self._engine) as connection:
            statement = self._upsert(range_hours, range_hours.c.range_key, range_hours.c.hour)
            connection.execute(statement, of_range)
            self._count_change(connection, events, now)

    def touch(self, changed: Iterable[datetime], now: datetime) -> None:
        """Make the statistics of these hours anew, whatever is known of them."""
        with writing(self._engine) as connection:
            self._count_change(connection, changed, now)

    def stale(self, until: datetime, limit: int) -> tuple[StaleHour, ...]:
        """Hours up to a moment that need their statistics anew, those that wait longest first."""
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

    def ranges_of(self, hour: datetime) -> tuple[OffsetRange, ...]:
        """The offset ranges with events of an hour, in the order of their offsets."""
        columns = (ranges.c.topic, ranges.c.generation, ranges.c.partition, ranges.c.first_offset, ranges.c.end_offset)
        query = (
            sa.select(*columns)
            .join(range_hours, range_hours.c.range_key == ranges.c.range_key)
            .where(range_hours.c.hour == hour)
        )
        with reading(self._engine) as connection:
            return tuple(sorted(OffsetRange(*row) for row in connection.execute(query)))

    def _count_change(self, connection: sa.Connection, changed: Iterable[datetime], now: datetime) -> None:
        rows = [
            {"hour": hour, "changes": 1, "changed_at": now, "computed_changes": 0, "computed_at": None}
            for hour in sorted(changed)
        ]
        if rows:
            insert = self._insert(hours)
            again = {"changes": hours.c.changes + 1, "changed_at": insert.excluded.changed_at}
            connection.execute(insert.on_conflict_do_update(index_elements=[hours.c.hour], set_=again), rows)

    def _upsert(self, table: sa.Table, *key: sa.Column[object]) -> sa.Insert:
        insert = self._insert(table)
        others = {column.name: insert.excluded[column.name] for column in table.c if column not in set(key)}
        return insert.on_conflict_do_update(index_elements=list(key), set_=others)

    def _insert(self, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
        if self._engine.dialect.name == "postgresql":
            return postgresql.insert(table)
        return sqlite.insert(table)
