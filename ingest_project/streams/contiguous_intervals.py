"""What stays on record of offset ranges when there are too many: stretches, and a few ranges of each partition.

A stretch is offsets of one partition that were planned one range after the other. Once a range has settled in one,
nobody has to look at it again to know that no offset was left out or planned twice; and once it is done for long, it
may go. A gap is never within a stretch: it stays one between two, for as long as it is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

import sqlalchemy as sa

from ingest_project.platform.database.engine import reading, snapshot, writing
from ingest_project.platform.database.statements import KEYS_AT_A_TIME
from ingest_project.streams.range_record import Lane, OffsetRange, RangeState, offset_columns
from ingest_project.streams.ranges import topic_partitions
from ingest_project.streams.tables import stream_intervals as intervals
from ingest_project.streams.tables import stream_ranges as ranges
from ingest_project.streams.user_activity.changed_hours import keep_spans

BEYOND = 2**63 - 1


class Bounds(NamedTuple):
    """Offsets from the first up to, not including, the end."""

    first: int
    end: int


class Seam(NamedTuple):
    """A place where a range does not begin where those before it end.

    Args:
        offsets: that are in no range, or in two.
        is_gap: they are in none.
    """

    offsets: OffsetRange
    is_gap: bool


class StreamIntervals:
    """Reads and writes the table `stream_intervals`, and removes what it stands for. Times are UTC-aware.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: from every method.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def seams(self, topic: str) -> tuple[Seam, ...]:
        """Where offsets are in no range, or in two. Takes as long as there are ranges in no stretch yet."""
        with snapshot(self._engine) as connection:
            return tuple(
                seam
                for topic_partition in topic_partitions(connection, topic)
                for seam in _seams_of(connection, topic_partition)
            )

    def extend(self, settled: datetime) -> None:
        """Let the stretches reach over every range that was planned before a moment, each partition by itself.

        The same ranges a second time change nothing.

        Args:
            settled: no tick of before that can still be planning.
        """
        with reading(self._engine) as connection:
            every = list(topic_partitions(connection))
        for topic_partition in every:
            with writing(self._engine) as connection:
                _become_the_only_one(connection)
                _extend_lane(connection, topic_partition, settled)

    def count_old(self, before: datetime, most: int) -> int:
        """How many ranges may go, of those that were done before a moment; counted up to so many."""
        ends_one = _in_a_stretch(intervals.c.end_offset == ranges.c.end_offset)
        with snapshot(self._engine) as connection:
            stays = sa.or_(ranges.c.range_key.in_(_newest(connection)), ends_one)
            found = sa.select(ranges.c.range_key).where(_long_done(before), ~stays).limit(most).subquery()
            return int(connection.execute(sa.select(sa.func.count()).select_from(found)).scalar_one())

    def purge(self, before: datetime, most: int) -> int:
        """Remove ranges that were done and reported before a moment and lie in a stretch, the oldest first.

        The newest of every partition stays, and whatever failed, got lost, waits or is in a run's hands. Which hours
        they had events of is kept. Killed in between, what is left goes the next time.

        Args:
            before: every end up to then must be counted in the running totals.
            most: to remove.

        Returns:
            how many went.
        """
        gone = 0
        while gone < most:
            with writing(self._engine) as connection:
                _become_the_only_one(connection)
                wanted = min(KEYS_AT_A_TIME, most - gone)
                found = _remove(connection, before, wanted)
            gone += found
            if found < wanted:
                break
        return gone


def holes(known: Sequence[Bounds]) -> list[Bounds]:
    """The offsets that are in none of these stretches, which come in the order in which they begin."""
    found, reached = [], 0
    for interval in known:
        if interval.first > reached:
            found.append(Bounds(reached, interval.first))
        reached = max(reached, interval.end)
    return [*found, Bounds(reached, BEYOND)]


def _become_the_only_one(connection: sa.Connection) -> None:
    # Two that let go at once would each forget what the other remembers. On SQLite the transaction itself is alone.
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("LOCK TABLE stream_intervals IN SHARE ROW EXCLUSIVE MODE"))


def _seams_of(connection: sa.Connection, topic_partition: Lane) -> Iterator[Seam]:
    each = _in_order(topic_partition, _in_holes(topic_partition, _known(connection, topic_partition))).subquery()
    query = sa.select(each).where(each.c.first != each.c.reached).order_by(each.c.first)
    for row in connection.execute(query):
        if row.first > row.reached:
            yield Seam(OffsetRange(*topic_partition, row.reached, row.first), is_gap=True)
        else:
            yield Seam(OffsetRange(*topic_partition, row.first, min(row.end, row.reached)), is_gap=False)


def _extend_lane(connection: sa.Connection, topic_partition: Lane, settled: datetime) -> None:
    # What is planned twice may reach back: nothing from the first range on that has not settled.
    known = _known(connection, topic_partition)
    in_holes = _in_holes(topic_partition, known)
    query = sa.select(sa.func.min(ranges.c.first_offset)).where(in_holes, ranges.c.created_at >= settled)
    until = connection.execute(query).scalar()
    has_settled = sa.and_(ranges.c.created_at < settled, ranges.c.end_offset <= (BEYOND if until is None else until))
    each = _in_order(topic_partition, sa.and_(in_holes, has_settled)).subquery()
    begins = sa.case((sa.and_(each.c.first == each.c.before, each.c.first == each.c.reached), 0), else_=1)
    numbered = sa.select(each, sa.func.sum(begins).over(order_by=(each.c.first, each.c.end)).label("number")).subquery()
    first, end = sa.func.min(numbered.c.first), sa.func.max(numbered.c.end)
    found = [
        Bounds(*row) for row in connection.execute(sa.select(first, end).group_by(numbered.c.number).order_by(first))
    ]
    if found == known:
        return
    rows = [{**topic_partition._asdict(), "first_offset": one.first, "end_offset": one.end} for one in found]
    connection.execute(sa.delete(intervals).where(_of(intervals, topic_partition)))
    connection.execute(sa.insert(intervals), rows)


def _in_order(topic_partition: Lane, others: sa.ColumnElement[bool]) -> sa.Select[tuple[int, ...]]:
    """Stretches of a partition and some ranges in none of them: where each begins, and where those before it end.

    Columns: first, end, before (the end of the last one before it), reached (the highest end of all before it).
    """
    known = sa.select(intervals.c.first_offset, intervals.c.end_offset).where(_of(intervals, topic_partition))
    both = sa.union_all(known, sa.select(ranges.c.first_offset, ranges.c.end_offset).where(others)).subquery()
    first, end = both.c.first_offset, both.c.end_offset
    in_turn = (first, end)
    before = sa.func.lag(end).over(order_by=in_turn).label("before")
    reached = sa.func.max(end).over(order_by=in_turn, rows=(None, -1)).label("reached")
    return sa.select(first.label("first"), end.label("end"), before, reached)


def _in_holes(topic_partition: Lane, known: Sequence[Bounds]) -> sa.ColumnElement[bool]:
    """Whether a range of a partition is in none of its stretches; an index over the ends answers."""
    end, found = ranges.c.end_offset, holes(known)
    return sa.and_(
        _of(ranges, topic_partition), sa.or_(*(sa.and_(end > hole.first, end <= hole.end) for hole in found))
    )


def _known(connection: sa.Connection, topic_partition: Lane) -> list[Bounds]:
    query = sa.select(intervals.c.first_offset, intervals.c.end_offset).where(_of(intervals, topic_partition))
    return [Bounds(*row) for row in connection.execute(query.order_by(intervals.c.first_offset))]


def _of(table: sa.Table, topic_partition: Lane) -> sa.ColumnElement[bool]:
    return sa.and_(
        table.c.topic == topic_partition.topic,
        table.c.topic_id == topic_partition.topic_id,
        table.c.partition == topic_partition.partition,
    )


def _long_done(before: datetime) -> sa.ColumnElement[bool]:
    columns = ranges.c
    return sa.and_(columns.state == RangeState.DONE, columns.updated_at < before, columns.reported_at.is_not(None))


def _remove(connection: sa.Connection, before: datetime, most: int) -> int:
    key, oldest_first = ranges.c.range_key, ranges.c.updated_at
    # What a stretch ends with stays: one of them is the newest of its partition, after which the next plan begins.
    goes_on = (intervals.c.first_offset <= ranges.c.first_offset, intervals.c.end_offset > ranges.c.end_offset)
    chosen = sa.select(key).where(_long_done(before), _in_a_stretch(*goes_on)).order_by(oldest_first).limit(most)
    # The state once more, beside the inner query: PostgreSQL asks it again of a row that a run has just taken.
    statement = sa.delete(ranges).where(key.in_(chosen), _long_done(before)).returning(key, *offset_columns(ranges))
    gone = {row[0]: OffsetRange(*row[1:]) for row in connection.execute(statement)}
    keep_spans(connection, gone)
    return len(gone)


def _in_a_stretch(*where: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    """Whether a stretch of the same partition is like this."""
    same_topic = (intervals.c.topic == ranges.c.topic, intervals.c.topic_id == ranges.c.topic_id)
    return sa.exists().where(*same_topic, intervals.c.partition == ranges.c.partition, *where)


def _newest(connection: sa.Connection) -> list[str]:
    """The key of the range of each partition that ends last."""
    ordered = sa.select(ranges.c.range_key).order_by(ranges.c.end_offset.desc()).limit(1)
    return [
        connection.execute(ordered.where(_of(ranges, topic_partition))).scalar_one()
        for topic_partition in topic_partitions(connection)
    ]
