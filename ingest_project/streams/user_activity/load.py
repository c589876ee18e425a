"""Offset ranges to commits of the Delta table, each offset exactly once.

Every commit carries how far it brings the table in its partition, and is made only where the table is just before that.
So a range that is read twice, by a run that goes on after a crash or by two runs at once, ends in the same rows: what
the table has is not written again, what is missing is. Dead letters go out before the commit of the offsets around them
and the ledger hears of a range after its last one, both of them idempotent: a run may be killed anywhere.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pyarrow as pa

from ingest_project.core.batches import prefetch
from ingest_project.core.errors import TransactionConflictError, TransientError
from ingest_project.core.logging import get_logger
from ingest_project.platform.kafka.offset_ranges import Chunk, OpenRanges
from ingest_project.platform.work_queue.consume import dead_letter_message
from ingest_project.streams.range_record import OffsetRange, RangeRecord, RangeState
from ingest_project.streams.user_activity.appending import Place, append_bisecting
from ingest_project.streams.user_activity.events_schema import Offsets, rows_by_hour
from ingest_project.streams.user_activity.recovery import Recovered, complete_until
from ingest_project.streams.user_activity.resources import UserActivityResources
from ingest_project.streams.user_activity.stream import CHUNK_BYTES, CHUNK_MESSAGES, EVENTS, FOUND_STORED, stream_of

logger = get_logger(__name__)

COMMIT_ROWS = 50_000
COMMIT_BYTES = 64 * 1024**2


@dataclass
class Stored:
    """What a run did.

    Args:
        done: ranges that are finished.
        hours: rows that were stored, by the hour of their events.
        by_range: events, dead letters, lost offsets and rows that were there before, name to number, by range key.
        recovered: rows that were missing in the table.
        table_version: of the last commit.
    """

    done: list[RangeRecord] = field(default_factory=list)
    hours: Counter[datetime] = field(default_factory=Counter)
    by_range: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    recovered: Recovered = field(default_factory=Recovered)
    table_version: int | None = None
    _hours_of_range: dict[str, Counter[datetime]] = field(default_factory=lambda: defaultdict(Counter))

    @property
    def totals(self) -> Counter[str]:
        """What became of all ranges together; what never happened is left out."""
        return sum(self.by_range.values(), Counter())

    def add(self, key: str, hours: Mapping[datetime, int], outcome: Counter[str]) -> dict[datetime, int]:
        """Count what became of a part of a range; how many rows of each hour the range has so far."""
        self.by_range[key].update(outcome)
        self.hours.update(hours)
        self._hours_of_range[key].update(hours)
        return dict(self._hours_of_range[key])


@dataclass
class _Part:
    """The rows of one commit, and where it brings the table."""

    record: RangeRecord
    after: int | None
    next_offset: int
    checked: int
    tables: list[pa.Table] = field(default_factory=list)
    dead_letters: int = 0
    lost: int = 0

    @property
    def ends_range(self) -> bool:
        return self.next_offset >= self.record.offsets.end

    @property
    def rows(self) -> int:
        return sum(table.num_rows for table in self.tables)

    @property
    def is_full(self) -> bool:
        return self.rows >= COMMIT_ROWS or sum(table.nbytes for table in self.tables) >= COMMIT_BYTES


def store_ranges(services: UserActivityResources, records: Sequence[RangeRecord], stored: Stored) -> None:
    """Store ranges one after the other; while one commit is made, the rows of the next are decoded.

    What the table lacks before the first of them, in each partition, is read again first. A partition where that
    cannot be done waits, and the others are stored.

    Args:
        services: Kafka, the table and the ledger.
        records: in the order of their partitions and offsets.
        stored: is told what was done, also where this raises.

    Raises:
        TransientError: the ranges that are not done may be tried again.
    """
    trouble: TransientError | None = None
    waiting = _intervals(records)
    while waiting:
        # One stretch of each partition at a time: where the next one begins is seen in the table after this one.
        now = {interval[0].offsets.topic_partition: interval for interval in reversed(waiting)}
        waiting = [interval for interval in waiting if now[interval[0].offsets.topic_partition] is not interval]
        ready: list[tuple[Sequence[RangeRecord], int | None]] = []
        firsts = {topic_partition: now[topic_partition][0].offsets for topic_partition in sorted(now)}
        standings = services.user_activity_events.standings([stream_of(first) for first in firsts.values()])
        checked = max(0, *(one.table_version for one in standings.values()))
        for topic_partition, first in firsts.items():
            try:
                _require_turn(services, first)
                position = complete_until(services, first, standings[stream_of(first)], stored.recovered)
                ready.append((now[topic_partition], position))
            except TransientError as error:
                trouble = trouble or error
                waiting = [interval for interval in waiting if interval[0].offsets.topic_partition != topic_partition]
        with services.range_reader.opened() as ranges, prefetch(_parts(services, ranges, ready, checked)) as parts:
            for part in parts:
                _commit(services, part, stored)
    if trouble is not None:
        raise trouble


def _intervals(records: Sequence[RangeRecord]) -> list[list[RangeRecord]]:
    """Ranges that follow one another."""
    found: list[list[RangeRecord]] = []
    for record in records:
        if found and _follows(record.offsets, found[-1][-1].offsets):
            found[-1].append(record)
        else:
            found.append([record])
    return found


def _parts(
    services: UserActivityResources,
    ranges: OpenRanges,
    ready: Sequence[tuple[Sequence[RangeRecord], int | None]],
    checked: int,
) -> Generator[_Part, None, None]:
    """The commits that are to be made, in order."""
    for interval, position in ready:
        reached = position
        for record in interval:
            for part in _parts_of_range(services, ranges, record, reached, checked):
                yield part
                reached = max(part.next_offset, reached or 0)


def _parts_of_range(
    services: UserActivityResources, ranges: OpenRanges, record: RangeRecord, reached: int | None, checked: int
) -> Iterator[_Part]:
    offsets = record.offsets
    first = max(offsets.first, reached or 0)
    if first > offsets.first:
        # A run was killed between its commit and the ledger, or somebody else was quicker.
        yield _Part(record, reached, min(first, offsets.end), checked)
    part = _Part(record, reached, first, checked)
    for chunk in _read(ranges, offsets, first):
        _add(services, part, chunk, offsets.topic_id)
        if part.is_full or part.ends_range:
            yield part
            part = _Part(record, part.next_offset, part.next_offset, checked)


def _follows(offsets: OffsetRange, before: OffsetRange) -> bool:
    return (*before.topic_partition, before.end) == (*offsets.topic_partition, offsets.first)


def _require_turn(services: UserActivityResources, offsets: OffsetRange) -> None:
    """Refuse a range that comes before its turn: committed now, the ranges before it would count as stored.

    Raises:
        TransactionConflictError: the one before it in its partition is not finished.
    """
    before = services.stream_ranges.before(offsets)
    if before is not None and before.state not in {RangeState.DONE, RangeState.LOST}:
        raise TransactionConflictError(services.user_activity_events.url, f"{offsets} must wait for {before.offsets}")


def _read(ranges: OpenRanges, offsets: OffsetRange, first: int) -> Iterator[Chunk]:
    return ranges.read(*offsets.topic_partition, first, offsets.end, CHUNK_MESSAGES, CHUNK_BYTES)


def _add(services: UserActivityResources, part: _Part, chunk: Chunk, topic_id: str) -> None:
    from ingest_project.streams.user_activity.event_table import event_rows  # noqa: PLC0415 - brings pyarrow

    rows = event_rows(chunk.messages, topic_id)
    dead_letter_message(services, services.settings.topics.user_activity_events_dlq, rows.refused, topic_id)
    part.tables.append(rows.table)
    part.dead_letters += len(rows.refused)
    part.lost += chunk.lost
    part.next_offset = chunk.next_offset


def _commit(services: UserActivityResources, part: _Part, stored: Stored) -> None:
    """Commit rows and tell the ledger; in this order, so that nothing is told that is not there."""
    key, now, rows = part.record.range_key, datetime.now(UTC), part.rows
    outcome = Counter(lost=part.lost)
    if part.tables:
        decoded = part.dead_letters
        hours, of_rows = _append(services, part, stored)
        outcome[of_rows] += rows - (part.dead_letters - decoded)
    else:
        # The table is there already; what its rows are of can be seen in it alone.
        found = Offsets(*part.record.offsets.topic_partition, part.record.offsets.first, part.next_offset)
        hours = rows_by_hour(services.user_activity_events, found)
        outcome[FOUND_STORED] += sum(hours.values())
    outcome["dead_letters"] += part.dead_letters
    services.activity_hours.mark_changed(key, stored.add(key, hours, outcome), now)
    if part.ends_range:
        _finish(services, part.record, stored)


def _append(services: UserActivityResources, part: _Part, stored: Stored) -> tuple[dict[datetime, int], str]:
    """Commit the rows of a part; their hours, and as what they are counted."""
    import pyarrow as pa  # noqa: PLC0415 - heavy

    from ingest_project.streams.user_activity.event_table import hours_in, with_few_days  # noqa: PLC0415 - brings pyarrow

    table = with_few_days(pa.concat_tables(part.tables))
    offsets = part.record.offsets

    def position_at(row: int) -> int:
        return part.next_offset if row == table.num_rows else int(table["kafka_offset"][row].as_py())

    place = Place(offsets, stream_of(offsets), part.after, position_at, part.checked)
    done = append_bisecting(services, table, place)
    part.dead_letters += len(done.refused)
    logger.info("events_committed", range=str(part.record.offsets), to=part.next_offset, rows=table.num_rows)
    if done.table_version is None:
        return hours_in(table), FOUND_STORED
    stored.table_version = done.table_version
    return hours_in(done.rows), EVENTS


def _finish(services: UserActivityResources, record: RangeRecord, stored: Stored) -> None:
    outcome = stored.by_range[record.range_key]
    messages = outcome[EVENTS] + outcome[FOUND_STORED] + outcome["dead_letters"]
    services.stream_ranges.finish(record.range_key, messages, outcome["lost"], outcome, datetime.now(UTC))
    stored.done.append(record)
