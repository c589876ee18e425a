"""The ledger of offset ranges: which offsets of a stream were planned to be read, by whom, and what came of it.

A range is entered when it is planned, under a key made of where it begins. A tick that is killed before its cursor is
saved plans again and finds what it had planned: ranges never overlap, and the next one begins where the last one ends.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from ingest_project.platform.database.engine import reading, writing
from ingest_project.platform.database.statements import in_parts, insert_missing
from ingest_project.platform.work_queue.queue import QueueTable, WorkQueue
from ingest_project.streams.range_record import (
    FINISHED,
    UNFINISHED,
    Lane,
    OffsetRange,
    RangeRecord,
    RangeState,
    offset_columns,
    range_row,
)
from ingest_project.streams.tables import stream_intervals as intervals
from ingest_project.streams.tables import stream_ranges as ranges

UNNAMED_LIFE = "life-"
# Of the ranges that are done there are ever more: nobody needs to know whether it is one million or two.
MOST_COUNTED = 10_000
REMOVED = "removed from the topic before they were read."


class StreamRangeLedger(WorkQueue[Any, Any, RangeState]):
    """Reads and writes the table `stream_ranges`. Times are UTC-aware; every method is one transaction.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: from every method.
    """

    def __init__(self, engine: sa.Engine) -> None:
        # Oldest offsets first, all partitions in turn.
        order = ("first_offset", "partition", "created_at")
        queue: QueueTable[Any, RangeState] = QueueTable(
            table=ranges,
            entry=RangeRecord,
            states=RangeState,
            working=RangeState.RUNNING,
            queue_name="topic",
            order_of_due=order,
        )
        super().__init__(engine, queue)

    def planned_ends(self, topic: str, topic_id: str, partitions: Iterable[int]) -> dict[int, int]:
        """Where the last planned range of each partition ends; partitions without any are left out."""
        found: dict[int, int] = {}
        with reading(self._engine) as connection:
            for partition in partitions:
                end = connection.execute(
                    sa.select(ranges.c.end_offset)
                    .where(ranges.c.topic == topic, ranges.c.topic_id == topic_id)
                    .where(ranges.c.partition == partition)
                    .order_by(ranges.c.end_offset.desc())
                    .limit(1)
                ).scalar()
                if end is not None:
                    found[partition] = end
        return found

    def latest_life(self, topic: str, ends: Mapping[int, int]) -> str:
        """What to call this life of a topic whose broker does not say.

        Args:
            topic: which.
            ends: of its partitions, now. Where one ends before what was planned, the topic was created again.
        """
        with reading(self._engine) as connection:
            lives = [
                int(topic_id.removeprefix(UNNAMED_LIFE))
                for topic_id in _topic_ids(connection, topic)
                if topic_id.startswith(UNNAMED_LIFE)
            ]
        number = max(lives, default=1)
        latest = f"{UNNAMED_LIFE}{number}"
        planned = self.planned_ends(topic, latest, ends)
        if any(planned[partition] > ends[partition] for partition in planned):
            return f"{UNNAMED_LIFE}{number + 1}"
        return latest

    def topic_partitions(self, topic: str) -> tuple[Lane, ...]:
        """Every partition of every life of a topic that was planned to be read."""
        with reading(self._engine) as connection:
            return tuple(topic_partitions(connection, topic))

    def finished_until(self, topic_partition: Lane) -> int:
        """The offset up to which every range of a partition is done or lost."""
        unfinished = (
            sa.select(sa.func.min(ranges.c.first_offset))
            .where(ranges.c.topic == topic_partition.topic, ranges.c.topic_id == topic_partition.topic_id)
            .where(
                ranges.c.partition == topic_partition.partition, ranges.c.state.in_({*UNFINISHED, RangeState.FAILED})
            )
        )
        with reading(self._engine) as connection:
            first = connection.execute(unfinished).scalar()
        return (
            first
            if first is not None
            else self.planned_ends(topic_partition.topic, topic_partition.topic_id, [topic_partition.partition])[
                topic_partition[2]
            ]
        )

    def overlapping(self, offsets: OffsetRange) -> tuple[RangeRecord, ...]:
        """The ranges on record that have some of these offsets, in their order."""
        query = (
            sa.select(ranges)
            .where(ranges.c.topic == offsets.topic, ranges.c.topic_id == offsets.topic_id)
            .where(ranges.c.partition == offsets.partition)
            .where(ranges.c.end_offset > offsets.first, ranges.c.first_offset < offsets.end)
            .order_by(ranges.c.first_offset)
        )
        with reading(self._engine) as connection:
            return tuple(RangeRecord.of(row) for row in connection.execute(query).mappings())

    def mark_lost(self, key: str, reason: str, now: datetime) -> None:
        """Rows of a range that were stored are lost for good."""
        statement = sa.update(ranges).where(ranges.c.range_key == key, ranges.c.state == RangeState.DONE)
        with writing(self._engine) as connection:
            connection.execute(statement.values(state=RangeState.LOST, reason=reason, updated_at=now))

    def enter_lost(self, offsets: OffsetRange, reason: str, now: datetime) -> bool:
        """Enter offsets as lost whose ranges are not on record any more; False where they are known to be lost."""
        row = range_row(offsets, RangeState.LOST, now)
        gone = {"reason": reason, "finished_at": now, "reported_at": now}
        with writing(self._engine) as connection:
            return bool(insert_missing(connection, ranges, [row | gone], ranges.c.range_key))

    def epochs(self, topic: str) -> dict[str, int]:
        """Number the lives of a topic in the order in which they were read: 0 for the first.

        Retention keeps the newest range of every partition, so that a life keeps its number.
        """
        newest: dict[str, datetime] = {}
        with reading(self._engine) as connection:
            for topic_partition in topic_partitions(connection, topic):
                created_at = connection.execute(
                    sa.select(ranges.c.created_at)
                    .where(ranges.c.topic == topic, ranges.c.topic_id == topic_partition.topic_id)
                    .where(ranges.c.partition == topic_partition.partition)
                    .order_by(ranges.c.end_offset.desc())
                    .limit(1)
                ).scalar_one()
                newest[topic_partition.topic_id] = max(created_at, newest.get(topic_partition.topic_id, created_at))
        return {life: number for number, life in enumerate(sorted(newest, key=lambda life: (newest[life], life)))}

    def plan(self, planned: Sequence[OffsetRange], lost: Sequence[OffsetRange], now: datetime) -> int:
        """Enter ranges as pending, and those that are gone from the topic as lost; how many were new.

        What begins in a stretch was planned before, however long ago, and is not entered again.
        """
        gone = {"reason": REMOVED, "finished_at": now, "reported_at": now}
        with writing(self._engine) as connection:
            known = _in_stretches(connection, [*planned, *lost])
            rows = [range_row(entry, RangeState.PENDING, now) for entry in planned if entry not in known]
            lost_rows = [range_row(entry, RangeState.LOST, now) | gone for entry in lost if entry not in known]
            new = insert_missing(connection, ranges, rows, ranges.c.range_key)
            return len(new | insert_missing(connection, ranges, lost_rows, ranges.c.range_key))

    def recover_uncommitted(self, topic: str, topic_id: str, saved: Mapping[int, int], now: datetime) -> int:
        """Ranges beyond the saved cursor that were asked for: by a tick that was never saved, hence never really.

        They are pending again, and that attempt is not counted. Returns how many.
        """
        with writing(self._engine) as connection:
            found = connection.execute(
                sa.select(ranges.c.range_key, ranges.c.partition, ranges.c.first_offset)
                .where(ranges.c.topic == topic, ranges.c.topic_id == topic_id)
                .where(ranges.c.state == RangeState.REQUESTED, ranges.c.reported_at.is_(None))
            ).all()
            unsaved = [row.range_key for row in found if row.first_offset >= saved.get(row.partition, 0)]
            for part in in_parts(unsaved):
                connection.execute(
                    sa.update(ranges)
                    .where(ranges.c.range_key.in_(part), ranges.c.state == RangeState.REQUESTED)
                    .values(state=RangeState.PENDING, attempts=ranges.c.attempts - 1)
                    .values(next_attempt_at=now, updated_at=now)
                )
        return len(unsaved)

    def start(self, keys: Sequence[str], run_id: str, now: datetime) -> tuple[RangeRecord, ...]:
        """A run takes ranges into its hands, in whatever state they are; ordered by partition and offset."""
        statement = (
            sa.update(ranges)
            .where(ranges.c.range_key.in_(keys))
            .values(state=RangeState.RUNNING, run_id=run_id, started_at=now, updated_at=now)
            .values(finished_at=None, reported_at=None)
            .returning(*ranges.c)
        )
        with writing(self._engine) as connection:
            found = [RangeRecord.of(row) for row in connection.execute(statement).mappings()]
        return tuple(sorted(found, key=lambda record: record.offsets))

    def finish(self, key: str, messages: int, lost: int, outcome: Mapping[str, int], now: datetime) -> None:  # type: ignore[override]
        """Every message of a range is stored.

        Args:
            key: of the range.
            messages: how many there were.
            lost: offsets that had been removed from the topic before they were read.
            outcome: what became of the messages, name to number.
            now: when that was.
        """
        statement = (
            sa.update(ranges)
            .where(ranges.c.range_key == key)
            .values(state=RangeState.LOST if lost else RangeState.DONE, error_class=None)
            .values(reason=f"{lost} offsets: {REMOVED}" if lost else None)
            .values(messages=messages, outcome=dict(outcome), finished_at=now, updated_at=now)
        )
        with writing(self._engine) as connection:
            connection.execute(statement)

    def reopen(self, topic: str, states: Sequence[RangeState], now: datetime) -> int:  # type: ignore[override]
        """A person wants finished ranges read again, as if for the first time; how many there were."""
        statement = (
            sa.update(ranges)
            .where(ranges.c.topic == topic, ranges.c.state.in_(set(states) & FINISHED))
            .values(state=RangeState.PENDING, attempts=0, run_id=None, finished_at=None)
            .values(next_attempt_at=now, updated_at=now)
        )
        with writing(self._engine) as connection:
            return connection.execute(statement).rowcount

    def get_many(self, keys: Sequence[str]) -> tuple[RangeRecord, ...]:
        """Records by key, ordered by partition and offset."""
        with reading(self._engine) as connection:
            found = [
                RangeRecord.of(row)
                for part in in_parts(keys)
                for row in connection.execute(sa.select(ranges).where(ranges.c.range_key.in_(part))).mappings()
            ]
        return tuple(sorted(found, key=lambda record: record.offsets))

    def list(  # type: ignore[override]
        self,
        topic: str,
        states: Sequence[RangeState] = tuple(RangeState),
        limit: int = 100,
        since: datetime | None = None,
    ) -> tuple[RangeRecord, ...]:
        """Ranges of a topic in these states, changed since then, the last changed first."""
        query = (
            sa.select(ranges)
            .where(ranges.c.topic == topic, ranges.c.state.in_(states))
            .order_by(ranges.c.updated_at.desc(), ranges.c.range_key)
            .limit(limit)
        )
        if since is not None:
            query = query.where(ranges.c.updated_at >= since)
        with reading(self._engine) as connection:
            return tuple(RangeRecord.of(row) for row in connection.execute(query).mappings())

    def counts_by_state(self, topic: str) -> dict[RangeState, int]:  # type: ignore[override]
        """Number of ranges in every state, also those with none; of those that are done at most MOST_COUNTED."""
        others = (
            sa.select(ranges.c.state, sa.func.count())
            .where(ranges.c.topic == topic, ranges.c.state.in_(frozenset(RangeState) - {RangeState.DONE}))
            .group_by(ranges.c.state)
        )
        some = sa.select(ranges.c.range_key).where(ranges.c.topic == topic, ranges.c.state == RangeState.DONE)
        with reading(self._engine) as connection:
            counts = {row[0]: int(row[1]) for row in connection.execute(others)}
            done = sa.select(sa.func.count()).select_from(some.limit(MOST_COUNTED).subquery())
            counts[RangeState.DONE] = int(connection.execute(done).scalar_one())
        return {state: counts.get(state, 0) for state in RangeState}

    def unread(self, topic: str, topic_id: str) -> int:
        """Offsets that are planned and not done."""
        unfinished = [RangeState.PENDING, RangeState.REQUESTED, RangeState.RUNNING, RangeState.FAILED]
        query = sa.select(sa.func.coalesce(sa.func.sum(ranges.c.end_offset - ranges.c.first_offset), 0)).where(
            ranges.c.topic == topic, ranges.c.topic_id == topic_id, ranges.c.state.in_(unfinished)
        )
        with reading(self._engine) as connection:
            return int(connection.execute(query).scalar_one())

    def first_planned(self, topic: str, topic_id: str, partition: int) -> int | None:
        """The first offset of a partition that was ever planned to be read."""
        firsts = sa.union_all(
            *(
                sa.select(sa.func.min(table.c.first_offset).label("first")).where(
                    table.c.topic == topic, table.c.topic_id == topic_id, table.c.partition == partition
                )
                for table in (ranges, intervals)
            )
        ).subquery()
        with reading(self._engine) as connection:
            return connection.execute(sa.select(sa.func.min(firsts.c.first))).scalar()

    def before(self, offsets: OffsetRange) -> RangeRecord | None:
        """The range before this one in the same partition and life of the topic."""
        query = (
            sa.select(ranges)
            .where(ranges.c.topic == offsets.topic, ranges.c.topic_id == offsets.topic_id)
            .where(ranges.c.partition == offsets.partition, ranges.c.end_offset <= offsets.first)
            .order_by(ranges.c.end_offset.desc())
            .limit(1)
        )
        with reading(self._engine) as connection:
            row = connection.execute(query).mappings().one_or_none()
        return None if row is None else RangeRecord.of(row)

    def unfinished(self, topic: str, limit: int) -> tuple[RangeRecord, ...]:
        """Ranges that are planned and not finished, the first planned first."""
        query = (
            sa.select(ranges)
            .where(ranges.c.topic == topic, ranges.c.state.in_(UNFINISHED))
            .order_by(ranges.c.created_at, ranges.c.partition, ranges.c.first_offset)
            .limit(limit)
        )
        with reading(self._engine) as connection:
            return tuple(RangeRecord.of(row) for row in connection.execute(query).mappings())

    def unfinished_since(self, topic: str, moment: datetime, limit: int) -> tuple[RangeRecord, ...]:
        """Ranges that were planned before a moment and are not finished, the oldest first."""
        query = (
            sa.select(ranges)
            .where(ranges.c.topic == topic, ranges.c.state.in_(UNFINISHED), ranges.c.created_at < moment)
            .order_by(ranges.c.created_at, ranges.c.range_key)
            .limit(limit)
        )
        with reading(self._engine) as connection:
            return tuple(RangeRecord.of(row) for row in connection.execute(query).mappings())


def topic_partitions(connection: sa.Connection, topic: str = "") -> Iterator[Lane]:
    """Every partition of every life of a topic, or of all topics: each found by one look into an index."""
    columns = (ranges.c.topic, ranges.c.topic_id, ranges.c.partition)
    query = sa.select(*columns).order_by(*columns).limit(1)
    last = Lane(topic, "", -1)
    # Asked for the topic as well, PostgreSQL would go through all the entries of the index before the next one.
    while row := connection.execute(query.where(sa.tuple_(*columns) > sa.tuple_(*last))).one_or_none():
        last = Lane(*row)
        if topic and last.topic != topic:
            return
        yield last


def _topic_ids(connection: sa.Connection, topic: str) -> Iterator[str]:
    """Every life of a topic that is on record: each found by one look into an index, however many ranges it has."""
    query, last = sa.select(sa.func.min(ranges.c.topic_id)).where(ranges.c.topic == topic), ""
    # One without a name is never one of those that the ledger has named.
    while (found := connection.execute(query.where(ranges.c.topic_id > last)).scalar()) is not None:
        last = found
        yield last


def _in_stretches(connection: sa.Connection, entries: Sequence[OffsetRange]) -> set[OffsetRange]:
    """Those that begin where ranges were planned and looked at before."""
    if not entries:
        return set()
    query = sa.select(*offset_columns(intervals)).where(
        intervals.c.topic.in_({entry.topic for entry in entries}),
        intervals.c.topic_id.in_({entry.topic_id for entry in entries}),
    )
    known: dict[Lane, list[tuple[int, int]]] = defaultdict(list)
    for *topic_partition, first_offset, end_offset in connection.execute(query):
        known[Lane(*topic_partition)].append((first_offset, end_offset))
    return {
        entry for entry in entries if any(first <= entry.first < end for first, end in known[entry.topic_partition])
    }
