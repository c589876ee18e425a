"""Rows that the Delta table has lost: read from Kafka again, each offset once, and reported with where they belong.

The table owns its position: it says in each partition how far it is. Where that is behind the plan, or where a commit
since the last look may have removed rows (a restore, a delete, an overwrite), the rows themselves are counted, in
pieces, and what a piece lacks is read again. Offsets without a row that Kafka still has are read and decided on once
more; a dead letter is published once all the same. What Kafka has no more is lost, and the ledger says so.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pyarrow as pa

from ingest_project.core.errors import BrokerUnavailableError, TransactionConflictError
from ingest_project.core.keys import hour_key
from ingest_project.core.logging import get_logger
from ingest_project.platform.database.engine import exclusive
from ingest_project.platform.delta.table import EVERY_STREAM, Standing, checked_by
from ingest_project.platform.work_queue.consume import dead_letter_message
from ingest_project.streams.range_record import Lane, OffsetRange, RangeRecord, RangeState, cut
from ingest_project.streams.user_activity.appending import Place, append_bisecting
from ingest_project.streams.user_activity.events_schema import Offsets, count_offsets, stored_offsets
from ingest_project.streams.user_activity.resources import UserActivityResources
from ingest_project.streams.user_activity.stream import (
    CHUNK_BYTES,
    CHUNK_MESSAGES,
    EVENTS,
    FOUND_STORED,
    LOCK,
    LOCK_WAIT_SECONDS,
    stream_of,
)

logger = get_logger(__name__)

PIECE_OFFSETS = 100_000
MOST_SHOWN = 20
MOST_DOUBTS = 20


@dataclass
class Recovered:
    """What was missing in the table.

    Args:
        rows: that were read again from Kafka and stored.
        spans: their offsets; between the first and the last of a span there may be offsets that never had a row.
        hours: rows that were stored again, by the hour of their events.
        lost: offsets that Kafka has no more, with how many rows are lost at most.
    """

    rows: int = 0
    spans: list[OffsetRange] = field(default_factory=list)
    hours: Counter[datetime] = field(default_factory=Counter)
    lost: list[tuple[OffsetRange, int]] = field(default_factory=list)

    def add(self, other: Recovered) -> None:
        """Count what another partition lacked as well."""
        self.rows += other.rows
        self.spans += other.spans
        self.hours.update(other.hours)
        self.lost += other.lost

    def metadata(self) -> dict[str, str | int]:
        """As Dagster shows it; nothing where nothing was missing."""
        shown: dict[str, str | int] = {}
        if self.spans:
            shown |= {"rows_recovered": self.rows, "recovered": ", ".join(map(str, self.spans[:MOST_SHOWN]))}
        if self.lost:
            shown["lost_from_table"] = ", ".join(f"{span} ({rows} rows)" for span, rows in self.lost[:MOST_SHOWN])
        return shown


def complete_until(
    services: UserActivityResources, offsets: OffsetRange, standing: Standing, recovered: Recovered
) -> int | None:
    """Make sure that the table has everything before a range that is to be stored next.

    Args:
        services: Kafka, the table and the ledger.
        offsets: the range; all ranges before it in its partition are finished.
        standing: of the table in this partition.
        recovered: is told what was missing.

    Returns:
        the position of the table in this partition, with which the next commit goes on.

    Raises:
        TransactionConflictError: somebody else is at it; try again later.
        TransientError: something was away. What was recovered until then stays.
    """
    begin = _begin_of(services, offsets)
    if not _in_doubt(standing, begin, offsets.first):
        return standing.position
    with exclusive(services.engine, LOCK, LOCK_WAIT_SECONDS):
        found = _recover(services, OffsetRange(*offsets.topic_partition, begin, offsets.first))
    recovered.add(found)
    return services.user_activity_events.committed_version(stream_of(offsets))


def complete_all(services: UserActivityResources) -> Recovered:
    """Make sure that the table has everything that the ledger says is stored; the caller holds LOCK.

    Raises:
        TransactionConflictError: events are being stored in between; the next time will do.
        TransientError: something was away. What was recovered until then stays.
    """
    store, recovered = services.user_activity_events, Recovered()
    every = checked_by(EVERY_STREAM)
    topic_partitions = services.stream_ranges.topic_partitions(services.settings.topics.user_activity_events)
    finished = {
        topic_partition: services.stream_ranges.finished_until(topic_partition) for topic_partition in topic_partitions
    }
    ends = [OffsetRange(*topic_partition, end, end) for topic_partition, end in finished.items()]
    standings = store.standings([every, *map(stream_of, ends)])
    for next_range in ends:
        begin = _begin_of(services, next_range)
        if _in_doubt(standings[stream_of(next_range)], begin, next_range.first):
            recovered.add(_recover(services, OffsetRange(*next_range.topic_partition, begin, next_range.first)))
    before = standings[every]
    if before.doubts or before.table_version - (before.position or 0) > MOST_DOUBTS:
        store.mark_checked(before.table_version)
    return recovered


def _begin_of(services: UserActivityResources, offsets: OffsetRange) -> int:
    """The first offset of a partition that the table should have."""
    first = services.stream_ranges.first_planned(*offsets.topic_partition)
    return offsets.first if first is None else min(first, offsets.first)


def _in_doubt(standing: Standing, begin: int, end: int) -> bool:
    behind = begin if standing.position is None else standing.position
    return bool(standing.doubts) or behind < end


def _recover(services: UserActivityResources, offsets: OffsetRange) -> Recovered:
    """Read again what the table lacks of offsets that should be stored, then bring its position to their end."""
    store, stream = services.user_activity_events, stream_of(offsets)
    standing = store.standings([stream])[stream]
    whole = OffsetRange(*offsets.topic_partition, offsets.first, max(offsets.end, standing.position or 0))
    logger.warning("table_in_doubt", offsets=str(whole), position=standing.position, commits=list(standing.doubts))
    recovered = Recovered()
    gone: list[tuple[int, int]] = []
    retained = _oldest_retained(services, whole.topic_partition)
    for piece in _incomplete(services, whole):
        missing = _missing_runs(services, piece)
        gone += [(first, min(end, retained)) for first, end in missing if first < retained]
        _read_again(services, piece, [run for run in missing if run[1] > retained], retained, recovered)
    recovered.lost = _enter_lost(services, whole, gone, retained, "; ".join(standing.doubts))
    _finish(services, whole, standing)
    _tell(recovered)
    return recovered


def _oldest_retained(services: UserActivityResources, topic_partition: Lane) -> int:
    """The first offset that Kafka still has of a partition; beyond every offset where this life of it is over."""
    backlog = services.range_reader.backlog(topic_partition.topic, None, 0)
    if backlog is None:
        return 2**63 - 1
    topic_id = backlog.topic_id or services.stream_ranges.latest_life(topic_partition.topic, backlog.ends)
    return (
        backlog.log_starts.get(topic_partition.partition, 2**63 - 1)
        if topic_id == topic_partition.topic_id
        else 2**63 - 1
    )


def _incomplete(services: UserActivityResources, whole: OffsetRange) -> Iterator[OffsetRange]:
    """The pieces of some offsets that have fewer rows than offsets."""
    rows = count_offsets(services.user_activity_events, _place(whole), PIECE_OFFSETS)
    start = whole.first - whole.first % PIECE_OFFSETS
    for piece in cut(*whole.topic_partition, start, whole.end, PIECE_OFFSETS):
        clipped = OffsetRange(*piece.topic_partition, max(piece.first, whole.first), piece.end)
        if rows.get(piece.first, 0) < len(clipped):
            yield clipped


def _missing_runs(services: UserActivityResources, piece: OffsetRange) -> list[tuple[int, int]]:
    """The offsets of a piece that have no row, as runs from the first up to, not including, the end."""
    return runs_between(stored_offsets(services.user_activity_events, _place(piece)), piece.first, piece.end)


def runs_between(present: Sequence[int], first: int, end: int) -> list[tuple[int, int]]:
    """The runs of numbers from `first` up to, not including, `end` that are not among the present ones, in order."""
    found = []
    for number in (*present, end):
        if number > first:
            found.append((first, number))
        first = max(first, number + 1)
    return found


def _read_again(
    services: UserActivityResources,
    piece: OffsetRange,
    missing: Sequence[tuple[int, int]],
    retained: int,
    recovered: Recovered,
) -> None:
    """Store what Kafka has of the missing offsets of a piece."""
    if not missing:
        return
    from ingest_project.streams.user_activity.event_table import event_rows, hours_in  # noqa: PLC0415 - brings pyarrow

    first, end = max(missing[0][0], retained), missing[-1][1]
    ends = [run[1] for run in missing]
    for chunk in services.range_reader.read(*piece.topic_partition, first, end, CHUNK_MESSAGES, CHUNK_BYTES):
        if chunk.lost:
            reason = f"retention removed part of {piece} while it was read"
            raise BrokerUnavailableError(services.settings.kafka.bootstrap_servers, reason)
        wanted = []
        for message in chunk.messages:
            place = bisect_left(ends, message.offset + 1)
            if place < len(missing) and missing[place][0] <= message.offset:
                wanted.append(message)
        rows = event_rows(wanted, piece.topic_id)
        dead_letter_message(services, services.settings.topics.user_activity_events_dlq, rows.refused, piece.topic_id)
        if rows.table.num_rows:
            stored = _append(services, piece, rows.table)
            recovered.rows += stored.num_rows
            recovered.hours.update(hours_in(stored))
            _extend(recovered, piece, stored["kafka_offset"].to_pylist(), missing)


def _append(services: UserActivityResources, piece: OffsetRange, table: pa.Table) -> pa.Table:
    """Commit rows; those that are in the table then."""
    from ingest_project.streams.user_activity.event_table import hours_in, with_few_days  # noqa: PLC0415 - brings pyarrow

    store, stream = services.user_activity_events, f"{stream_of(piece)}/recovered"
    hours, before = hours_in(table), store.committed_version(stream)
    # Before and after: killed in between, the hours are counted again all the same.
    services.activity_hours.touch(hours, datetime.now(UTC))
    done = append_bisecting(
        services, with_few_days(table), Place(piece, stream, before, lambda row: (before or 0) + row)
    )
    if done.table_version is None:
        raise TransactionConflictError(store.url, f"somebody else recovers {piece}")
    services.activity_hours.touch(hours, datetime.now(UTC))
    return done.rows


def _extend(
    recovered: Recovered, piece: OffsetRange, offsets: Sequence[int], missing: Sequence[tuple[int, int]]
) -> None:
    """Add offsets that were stored again to the spans, one for each run that was missing."""
    for run_first, run_end in missing:
        some = offsets[bisect_left(offsets, run_first) : bisect_left(offsets, run_end)]
        if not some:
            continue
        last = recovered.spans[-1] if recovered.spans else None
        # A run goes on in the next chunk, and in the next piece.
        if last and last.topic_partition == piece.topic_partition and (last.end == some[0] or last.end > run_first):
            recovered.spans[-1] = OffsetRange(*piece.topic_partition, last.first, some[-1] + 1)
        else:
            recovered.spans.append(OffsetRange(*piece.topic_partition, some[0], some[-1] + 1))


def _enter_lost(
    services: UserActivityResources, whole: OffsetRange, gone: Sequence[tuple[int, int]], retained: int, why: str
) -> list[tuple[OffsetRange, int]]:
    """Say in the ledger which rows cannot be had back, neither from the table nor from Kafka."""
    if not gone:
        return []
    ledger, now, lost = services.stream_ranges, datetime.now(UTC), []
    reason = f"rows are missing in the table ({why or 'its position went back'}), and Kafka has them no more"
    records = ledger.overlapping(OffsetRange(*whole.topic_partition, gone[0][0], gone[-1][1]))
    for record in records:
        runs = clipped(gone, record.offsets.first, record.offsets.end)
        rows = _rows_lost(services, record, runs, retained)
        if record.state is RangeState.DONE and rows:
            span = OffsetRange(*whole.topic_partition, runs[0][0], runs[-1][1])
            hours = ", ".join(map(hour_key, services.activity_hours.hours_of(record.range_key)[:MOST_SHOWN]))
            ledger.mark_lost(record.range_key, f"{rows} {reason}: {span}; hours {hours}.", now)
            lost.append((span, rows))
    # Of ranges that were let go nothing says how many rows they had: dead letters have none.
    ends = [0, *(record.offsets.end for record in records)]
    firsts = [*(record.offsets.first for record in records), whole.end]
    forgotten = [run for first, end in zip(ends, firsts, strict=True) for run in clipped(gone, first, end)]
    if forgotten:
        span, rows = OffsetRange(*whole.topic_partition, forgotten[0][0], forgotten[-1][1]), _size(forgotten)
        if ledger.enter_lost(span, f"At most {rows} {reason}: {span}.", now):
            lost.append((span, rows))
    return lost


def _rows_lost(
    services: UserActivityResources, record: RangeRecord, runs: Sequence[tuple[int, int]], retained: int
) -> int:
    """How many rows fewer the table has of a range than the ledger says were stored."""
    if not runs:
        return 0
    if record.offsets.end <= retained:
        there = len(record.offsets) - _size(runs)
    else:
        there = len(stored_offsets(services.user_activity_events, _place(record.offsets)))
    return max(0, stored_rows(record) - there)


def stored_rows(record: RangeRecord) -> int:
    """How many rows a range has in the table, as the run said that stored it."""
    return sum((record.outcome or {}).get(name, 0) for name in (EVENTS, FOUND_STORED))


def clipped(runs: Sequence[tuple[int, int]], first: int, end: int) -> list[tuple[int, int]]:
    """The parts of some runs that lie between two offsets."""
    return [(max(first, begin), min(end, stop)) for begin, stop in runs if begin < end and stop > first]


def _size(runs: Sequence[tuple[int, int]]) -> int:
    return sum(end - first for first, end in runs)


def _finish(services: UserActivityResources, whole: OffsetRange, standing: Standing) -> None:
    """Bring the position to the end of what was looked at, and remember that it was."""
    from ingest_project.streams.user_activity.event_table import SCHEMA  # noqa: PLC0415 - brings pyarrow

    store, stream = services.user_activity_events, stream_of(whole)
    if standing.position is None or standing.position < whole.end:
        nothing = SCHEMA.empty_table()
        checked = max(standing.table_version, 0)
        store.append(nothing, app_id=stream, version=whole.end, after=standing.position, checked=checked)
    else:
        store.mark_checked(standing.table_version, stream)


def _tell(recovered: Recovered) -> None:
    hours = [f"{hour_key(hour)}: {rows}" for hour, rows in sorted(recovered.hours.items())[:MOST_SHOWN]]
    for span in recovered.spans[:MOST_SHOWN]:
        logger.warning("rows_recovered", offsets=str(span), rows=recovered.rows, hours=hours)
    for span, rows in recovered.lost[:MOST_SHOWN]:
        logger.error("rows_lost", offsets=str(span), rows=rows)


def _place(offsets: OffsetRange) -> Offsets:
    return Offsets(*offsets.topic_partition, offsets.first, offsets.end)
