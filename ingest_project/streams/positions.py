"""Stored positions of each stream: the tables `sink_positions` and `lost_offsets`.

A row of `sink_positions` is the position of one partition of a topic. A sink in this database moves it in the
transaction of its rows, so that it owns the position. A sink elsewhere (a Delta table) owns a position of its own; the
row then holds the position that was seen last, for ticks, status and metrics, and a run brings it up to date.

A move names the position that it starts from: of two runs at the same offsets, the second one's transaction is rolled
back. A topic that was created again gets rows of its own, under its new topic id and the next epoch.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy import Column as Col

from ingest_project.core.errors import TransactionConflictError
from ingest_project.core.settings import RetrySettings
from ingest_project.platform.database import fetch, writing
from ingest_project.platform.database.sql import Json, UtcTime, insert_into, metadata
from ingest_project.platform.kafka.offsets import Positions
from ingest_project.platform.kafka.reader import Backlog

UNNAMED_TOPIC_ID = "unnamed-"
REMOVED = "removed from the topic before they were read"
# An outcome of messages, also a label of the metric.
LOST = "lost"
PARTITION_KEY = ("stream", "topic", "topic_id", "partition")


def _partition_columns() -> list[Col[Any]]:
    return [
        Col("stream", sa.Text, primary_key=True),
        Col("topic", sa.Text, primary_key=True),
        # `unnamed-1` if the broker has no topic ids, and the next number once a log ends before the stored offsets.
        Col("topic_id", sa.Text, primary_key=True),
        Col("partition", sa.Integer, primary_key=True, autoincrement=False),
    ]


sink_positions = sa.Table(
    "sink_positions",
    metadata,
    *_partition_columns(),
    # 0 for the first topic of this name, one more each time it was created again.
    Col("epoch", sa.Integer, nullable=False),
    # Offset at which reading began.
    Col("first_offset", sa.BigInteger, nullable=False),
    # Offset of the first message that is not stored.
    Col("next_offset", sa.BigInteger, nullable=False),
    # Total number of messages by outcome.
    Col("outcome", Json, nullable=False),
    # Histograms: running totals by metric and bucket, such as `metric_bucket/5` and `metric_sum`.
    Col("seconds", Json, nullable=False, server_default="{}"),
    # When the position moved last.
    Col("updated_at", UtcTime, nullable=False),
    # Runs in a row that began here and did not move the position.
    Col("attempts", sa.Integer, nullable=False),
    # The run that stores this partition now.
    Col("run_id", sa.Text),
    # Why the last run failed, and when the next one may begin; null after a success.
    Col("reason", sa.Text),
    Col("next_attempt_at", UtcTime),
)

lost_offsets = sa.Table(
    "lost_offsets",
    metadata,
    *_partition_columns(),
    Col("first_offset", sa.BigInteger, primary_key=True, autoincrement=False),
    # Offset after the last lost message.
    Col("end_offset", sa.BigInteger, nullable=False),
    # An upper bound: a compacted or transactional topic has offsets without a message.
    Col("messages", sa.BigInteger, nullable=False),
    Col("reason", sa.Text, nullable=False),
    Col("found_at", UtcTime, nullable=False),
)


class PositionConflictError(TransactionConflictError):
    """Another run has stored these offsets."""


class TopicPartition(NamedTuple):
    """A partition of one topic: `topic_id` distinguishes topics of the same name."""

    topic: str
    topic_id: str
    partition: int


class OffsetRange(msgspec.Struct, frozen=True, order=True):
    """Offsets of one partition, from `first` up to, not including, `end`."""

    topic: str
    topic_id: str
    partition: int
    first: int
    end: int

    @property
    def topic_partition(self) -> TopicPartition:
        """The partition."""
        return TopicPartition(self.topic, self.topic_id, self.partition)

    def __len__(self) -> int:
        """Return the number of offsets."""
        return self.end - self.first

    def __str__(self) -> str:
        """Name topic, partition, first and last offset."""
        return f"{self.topic}[{self.partition}] {self.first} to {self.end - 1}"

    def pieces(self, size: int) -> list[OffsetRange]:
        """Divide into ranges of at most `size` offsets."""
        starts = range(self.first, self.end, size)
        return [OffsetRange(*self.topic_partition, first, min(first + size, self.end)) for first in starts]


class SinkPosition(msgspec.Struct, frozen=True, kw_only=True):
    """Position of a partition and result of its last runs; see the columns of `sink_positions`."""

    stream: str
    topic: str
    topic_id: str
    partition: int
    epoch: int
    first_offset: int
    next_offset: int
    outcome: dict[str, int]
    updated_at: datetime
    seconds: dict[str, float] = {}
    attempts: int = 0
    run_id: str | None = None
    reason: str | None = None
    next_attempt_at: datetime | None = None

    @property
    def topic_partition(self) -> TopicPartition:
        """The partition."""
        return TopicPartition(self.topic, self.topic_id, self.partition)

    def until(self, end: int) -> OffsetRange:
        """Return the offsets from this position up to, not including, `end`."""
        return OffsetRange(*self.topic_partition, self.next_offset, end)

    def is_due(self, now: datetime) -> bool:
        """Return whether a run may begin."""
        return self.next_attempt_at is None or self.next_attempt_at <= now

    def __str__(self) -> str:
        """Name topic and partition."""
        return f"{self.topic}[{self.partition}]"


class LostOffsets(msgspec.Struct, frozen=True, kw_only=True):
    """Offsets whose messages are in no table and no longer in Kafka.

    Args:
        messages: an upper bound.
    """

    offsets: OffsetRange
    messages: int
    reason: str
    found_at: datetime

    def __str__(self) -> str:
        """Name the offsets and the reason."""
        return f"{self.offsets}: {self.reason}"


class StreamPositions:
    """Positions of the partitions of one stream. Times are UTC-aware; every method is one transaction.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: from every method.
    """

    def __init__(self, engine: sa.Engine, stream: str, topic: str) -> None:
        self._engine = engine
        self.stream = stream
        self.topic = topic

    def all(self) -> tuple[SinkPosition, ...]:
        """Return every partition, also those of topics of the same name that are gone, the oldest topic first."""
        columns = sink_positions.c
        query = sa.select(sink_positions).where(columns.stream == self.stream, columns.topic == self.topic)
        rows = fetch(self._engine, query.order_by(columns.epoch, columns.partition)).mappings()
        return tuple(SinkPosition(**row) for row in rows)

    def current(self) -> dict[int, SinkPosition]:
        """Return the partitions of the topic that was read last."""
        known = self.all()
        return {one.partition: one for one in known if one.epoch == known[-1].epoch}

    def saved(self) -> Positions | None:
        """Return the positions to read from; None before the first read."""
        current = self.current()
        if not current:
            return None
        topic_id = next(iter(current.values())).topic_id
        named = "" if topic_id.startswith(UNNAMED_TOPIC_ID) else topic_id
        return Positions(named, {partition: one.next_offset for partition, one in current.items()})

    def begin(self, backlog: Backlog, now: datetime) -> dict[int, SinkPosition]:
        """Enter the partitions that are new, each where it is to be read from, and return all of the present topic.

        Args:
            backlog: backlog of the topic, beyond `saved()`.
            now: when that is.
        """
        known = self.current()
        topic_id, epoch = _present_topic(list(known.values()), backlog)
        if any(one.epoch != epoch for one in known.values()):
            starts, known = backlog.starts if backlog.topic_id else backlog.log_starts, {}
        else:
            starts = backlog.starts
        if missing := sorted(backlog.ends.keys() - known.keys()):
            rows = [
                {
                    "stream": self.stream,
                    "topic": self.topic,
                    "topic_id": topic_id,
                    "partition": partition,
                    "epoch": epoch,
                    "first_offset": starts[partition],
                    "next_offset": starts[partition],
                    "outcome": {},
                    "attempts": 0,
                    "updated_at": now,
                }
                for partition in missing
            ]
            with writing(self._engine) as connection:
                connection.execute(insert_into(connection, sink_positions).on_conflict_do_nothing(), rows)
            known = self.current()
        return {partition: known[partition] for partition in sorted(backlog.ends)}

    def restart(self, position: SinkPosition, first: int, next_offset: int, outcome: Mapping[str, int]) -> None:
        """Move the beginning of a partition back, and its position to `next_offset`.

        Args:
            position: position of the partition.
            first: the offset where reading begins.
            next_offset: the offset of the next message to store.
            outcome: number of messages between the two by outcome.
        """
        values = {"first_offset": first, "next_offset": next_offset, "outcome": outcome}
        with writing(self._engine) as connection:
            connection.execute(sa.update(sink_positions).where(_row_at(position)).values(values))

    def begin_again(self, now: datetime) -> list[SinkPosition]:
        """Move partitions back to where reading began, as the table of their rows is gone; returns those that moved.

        What earlier topics of the same name had is entered as lost. Idempotent.
        """
        known = [one for one in self.all() if one.next_offset > one.first_offset]
        present = {one.topic_partition for one in self.current().values()}
        for one in known:
            self.restart(one, one.first_offset, one.first_offset, {})
            if one.topic_partition not in present:
                gone = OffsetRange(*one.topic_partition, one.first_offset, one.next_offset)
                reason = f"{len(gone)} offsets: their table is gone, and so is the topic that they were read from"
                self.add_lost([LostOffsets(offsets=gone, messages=len(gone), reason=reason, found_at=now)])
        return known

    def lease(self, positions: Iterable[SinkPosition], run_id: str) -> None:
        """Lease these partitions to a run; it counts as a failed attempt until the position moves."""
        columns = sink_positions.c
        with writing(self._engine) as connection:
            for one in positions:
                statement = sa.update(sink_positions).where(_row_at(one))
                connection.execute(statement.values(run_id=run_id, attempts=columns.attempts + 1))

    def release(self, positions: Iterable[SinkPosition], run_id: str, *, is_stored: bool) -> None:
        """End the lease of partitions that a run has stored, or that it has left to another run."""
        success = {"attempts": 0, "reason": None, "next_attempt_at": None} if is_stored else {}
        with writing(self._engine) as connection:
            for one in positions:
                held = sink_positions.c.run_id == run_id
                connection.execute(sa.update(sink_positions).where(_row_at(one), held).values(run_id=None, **success))

    def fail(
        self, failures: Iterable[tuple[SinkPosition, str]], run_id: str, retries: RetrySettings, now: datetime
    ) -> None:
        """Record why a run did not store these partitions; the next one begins after a pause that grows."""
        columns = sink_positions.c
        with writing(self._engine) as connection:
            for one, reason in failures:
                held = sa.and_(_row_at(one), columns.run_id == run_id)
                attempts = connection.execute(sa.select(columns.attempts).where(held)).scalar()
                if attempts is not None:
                    pause = retries.delay(max(1, attempts))
                    values = {"run_id": None, "reason": reason, "next_attempt_at": now + pause}
                    connection.execute(sa.update(sink_positions).where(held).values(values))

    def correct_future_times(self, now: datetime, skew_seconds: float) -> int:
        """Set times in the future, which a clock that was ahead wrote, to now; return the number of partitions."""
        columns = sink_positions.c
        ahead = now + timedelta(seconds=skew_seconds)
        in_future = sa.or_(columns.updated_at > ahead, columns.next_attempt_at > ahead)
        statement = sa.update(sink_positions).where(columns.stream == self.stream, in_future)
        with writing(self._engine) as connection:
            return connection.execute(statement.values(updated_at=now, next_attempt_at=None)).rowcount

    def lost(self, since: datetime | None = None, limit: int | None = None) -> tuple[LostOffsets, ...]:
        """Return lost offsets, the last found first.

        Args:
            since: only those found since then.
            limit: maximum number.
        """
        columns = lost_offsets.c
        query = sa.select(lost_offsets).where(columns.stream == self.stream, columns.topic == self.topic)
        if since is not None:
            query = query.where(columns.found_at >= since)
        query = query.order_by(columns.found_at.desc(), columns.topic_id, columns.partition, columns.first_offset)
        return tuple(_lost(row) for row in fetch(self._engine, query.limit(limit)).mappings())

    def add_lost(self, lost: Sequence[LostOffsets]) -> None:
        """Enter lost offsets. Idempotent."""
        with writing(self._engine) as connection:
            enter_lost(connection, self.stream, lost)


def move(  # noqa: PLR0913 - the position and all that moves with it
    connection: sa.Connection,
    position: SinkPosition,
    to: int,
    outcome: Mapping[str, int],
    now: datetime,
    *,
    seconds: Mapping[str, float] | None = None,
) -> SinkPosition:
    """Move a position in the caller's transaction, and count the messages that it passes.

    Args:
        connection: connection of the transaction that stores the rows, where they are in this database.
        position: where the partition is.
        to: where it is afterwards.
        outcome: number of messages by outcome.
        now: when that is.
        seconds: what they add to the histograms, see `sink_positions`.

    Returns:
        the new position.

    Raises:
        PositionConflictError: the partition is somewhere else; the transaction must be rolled back.
    """
    columns = sink_positions.c
    moved = msgspec.structs.replace(
        position,
        next_offset=to,
        outcome=dict(Counter(position.outcome) + Counter(outcome)),
        seconds=position.seconds
        | {name: position.seconds.get(name, 0) + more for name, more in (seconds or {}).items()},
        updated_at=now,
        attempts=min(position.attempts, 1),
    )
    statement = (
        sa.update(sink_positions)
        .where(_row_at(position), columns.next_offset == position.next_offset)
        .values(next_offset=to, outcome=moved.outcome, seconds=moved.seconds, updated_at=now)
        .values(attempts=sa.case((columns.attempts > 1, 1), else_=columns.attempts))
    )
    if not connection.execute(statement).rowcount:
        raise PositionConflictError(str(position), f"another run has moved it from {position.next_offset}")
    return moved


def enter_lost(connection: sa.Connection, stream: str, lost: Sequence[LostOffsets]) -> None:
    """Enter lost offsets in the caller's transaction. Idempotent."""
    if not lost:
        return
    rows = [
        {
            "stream": stream,
            **one.offsets.topic_partition._asdict(),
            "first_offset": one.offsets.first,
            "end_offset": one.offsets.end,
            "messages": one.messages,
            "reason": one.reason,
            "found_at": one.found_at,
        }
        for one in lost
    ]
    insert = insert_into(connection, lost_offsets)
    # Retention may have removed more since a killed run entered the offsets.
    more = insert.excluded.end_offset > lost_offsets.c.end_offset
    changes = {name: insert.excluded[name] for name in ("end_offset", "messages", "reason")}
    key = list(lost_offsets.primary_key)
    connection.execute(insert.on_conflict_do_update(index_elements=key, set_=changes, where=more), rows)


def epochs(connection: sa.Connection, topic: str) -> dict[str, int]:
    """Number the topics of one name by topic id: 0 for the first one that was read."""
    columns = sink_positions.c
    query = sa.select(columns.topic_id, sa.func.max(columns.epoch)).where(columns.topic == topic)
    return {topic_id: epoch for topic_id, epoch in connection.execute(query.group_by(columns.topic_id))}  # noqa: C416 - dict() loses the types


def message_totals(connection: sa.Connection) -> tuple[Counter[tuple[str, str]], dict[tuple[str, ...], float]]:
    """Return the messages of all streams by topic and outcome, and their histograms by metric, stream and bucket."""
    counts: Counter[tuple[str, str]] = Counter()
    totals: defaultdict[tuple[str, ...], float] = defaultdict(float)
    c = sink_positions.c
    for stream, topic, outcome, seconds in connection.execute(sa.select(c.stream, c.topic, c.outcome, c.seconds)):
        counts.update({(topic, name): number for name, number in outcome.items()})
        for series, value in seconds.items():
            name, *bucket = series.split("/")
            totals[name, stream, *bucket] += value
    return counts, totals


def stream_failures(
    connection: sa.Connection, streams: Sequence[tuple[str, str]], limit: int
) -> tuple[list[SinkPosition], list[LostOffsets]]:
    """Return the partitions whose last run failed, and the lost offsets that were found last, at most `limit` each.

    Args:
        connection: to read with.
        streams: names and topics; what others have left on record is no present problem.
        limit: most of each.
    """

    def of_streams(table: sa.Table) -> sa.Select[Any]:
        return sa.select(table).where(sa.tuple_(table.c.stream, table.c.topic).in_(streams)).limit(limit)

    failed = of_streams(sink_positions).where(sink_positions.c.reason.is_not(None))
    lost = of_streams(lost_offsets).order_by(lost_offsets.c.found_at.desc())
    return (
        [SinkPosition(**row) for row in connection.execute(failed).mappings()],
        [_lost(row) for row in connection.execute(lost).mappings()],
    )


def joined(ranges: Iterable[OffsetRange]) -> list[OffsetRange]:
    """Join ranges that follow one another or overlap."""
    found: list[OffsetRange] = []
    for one in sorted(ranges):
        last = found[-1] if found else None
        if last and last.topic_partition == one.topic_partition and one.first <= last.end:
            found[-1] = OffsetRange(*one.topic_partition, last.first, max(last.end, one.end))
        else:
            found.append(one)
    return found


def removed(offsets: OffsetRange, now: datetime) -> LostOffsets:
    """Describe offsets that retention removed from the topic before they were read."""
    return LostOffsets(
        offsets=offsets, messages=len(offsets), reason=f"{len(offsets)} offsets: {REMOVED}", found_at=now
    )


def _present_topic(known: Sequence[SinkPosition], backlog: Backlog) -> tuple[str, int]:
    """Return id and epoch of the present topic: those on record, or new ones where it is another topic."""
    if not known:
        return backlog.topic_id or f"{UNNAMED_TOPIC_ID}1", 0
    last = known[0]
    unnamed = last.topic_id.startswith(UNNAMED_TOPIC_ID)
    if backlog.topic_id:
        is_same = backlog.topic_id == last.topic_id
    else:
        is_same = unnamed and all(one.next_offset <= backlog.ends.get(one.partition, 0) for one in known)
    if is_same:
        return last.topic_id, last.epoch
    return backlog.topic_id or f"{UNNAMED_TOPIC_ID}{last.epoch + 2}", last.epoch + 1


def _row_at(position: SinkPosition) -> sa.ColumnElement[bool]:
    columns = sink_positions.c
    values = (position.stream, position.topic, position.topic_id, position.partition)
    return sa.and_(*(columns[name] == value for name, value in zip(PARTITION_KEY, values, strict=True)))


def _lost(row: sa.RowMapping) -> LostOffsets:
    offsets = OffsetRange(row["topic"], row["topic_id"], row["partition"], row["first_offset"], row["end_offset"])
    return LostOffsets(offsets=offsets, messages=row["messages"], reason=row["reason"], found_at=row["found_at"])
