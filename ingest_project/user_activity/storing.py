"""Offset ranges to commits of the Delta table, each offset exactly once.

Every commit carries how far it brings the table in its partition, and is made only where the table is just before that.
So a range that is read twice, by a run that goes on after a crash or by two runs at once, ends in the same rows: what
the table has is not written again, what is missing is. Dead letters go out before the commit of the offsets around them
and the ledger hears of a range after its last one, both of them idempotent: a run may be killed anywhere.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ingest_project.ahead import one_ahead
from ingest_project.errors import TransactionConflict
from ingest_project.intake import put_aside
from ingest_project.ledger.range_record import RangeState
from ingest_project.logs import get_logger
from ingest_project.stores.activity_events import Offsets, rows_by_hour
from ingest_project.stores.delta_tables import Committed

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    import pyarrow as pa

    from ingest_project.kafka.offset_ranges import Chunk, OpenRanges
    from ingest_project.ledger.range_record import OffsetRange, RangeRecord
    from ingest_project.resources import Services

logger = get_logger(__name__)

# What is decoded at a time: the events of a chunk live as objects, those of a commit as columns.
CHUNK_MESSAGES = 10_000
CHUNK_BYTES = 16 * 1024**2
COMMIT_ROWS = 50_000
COMMIT_BYTES = 64 * 1024**2

EVENTS, FOUND_STORED = "events", "found_stored"


@dataclass
class Stored:
    """What a run did.

    Args:
        done: ranges that are finished.
        hours: rows that were stored, by the hour of their events.
        by_range: events, dead letters, lost offsets and rows that were there before, name to number, by range key.
        table_version: of the last commit.
    """

    done: list[RangeRecord] = field(default_factory=list)
    hours: Counter[datetime] = field(default_factory=Counter)
    by_range: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
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


def stream_of(offsets: OffsetRange) -> str:
    """The name under which the table remembers how far it is in a partition; another one in each life of the topic."""
    return f"ingest_project/user_activity/{offsets.topic}/{offsets.generation}/{offsets.partition}"


def store_ranges(services: Services, records: Sequence[RangeRecord], stored: Stored) -> None:
    """Store ranges one after the other; while one commit is made, the rows of the next are decoded.

    Args:
        services: Kafka, the table and the ledger.
        records: in the order of their partitions and offsets.
        stored: is told what was done, also where this raises.

    Raises:
        TransientError: the ranges that are not done may be tried again.
    """
    with services.range_reader.opened() as ranges, one_ahead(_parts(services, ranges, records)) as parts:
        for part in parts:
            _commit(services, part, stored)


def _parts(services: Services, ranges: OpenRanges, records: Sequence[RangeRecord]) -> Generator[_Part, None, None]:
    """The commits that are to be made, in order."""
    reached: int | None = None
    before: OffsetRange | None = None
    for record in records:
        if not _follows(record.offsets, before):
            _require_turn(services, record.offsets)
            reached = services.user_activity_events.committed_version(stream_of(record.offsets))
        for part in _parts_of_range(services, ranges, record, reached):
            yield part
            reached = max(part.next_offset, reached or 0)
        before = record.offsets


def _parts_of_range(
    services: Services, ranges: OpenRanges, record: RangeRecord, reached: int | None
) -> Iterator[_Part]:
    offsets = record.offsets
    first = max(offsets.first, reached or 0)
    if first > offsets.first:
        # A run was killed between its commit and the ledger, or somebody else was quicker.
        yield _Part(record, reached, min(first, offsets.end))
    part = _Part(record, reached, first)
    for chunk in _read(ranges, offsets, first):
        _add(services, part, chunk, offsets.generation)
        if part.is_full or part.ends_range:
            yield part
            part = _Part(record, part.next_offset, part.next_offset)


def _follows(offsets: OffsetRange, before: OffsetRange | None) -> bool:
    return before is not None and (*before.lane, before.end) == (*offsets.lane, offsets.first)


def _require_turn(services: Services, offsets: OffsetRange) -> None:
    """Refuse a range that comes before its turn: committed now, the ranges before it would count as stored.

    Raises:
        TransactionConflict: the one before it in its partition is not finished.
    """
    before = services.stream_ranges.before(offsets)
    if before is not None and before.state not in {RangeState.DONE, RangeState.LOST}:
        raise TransactionConflict(services.user_activity_events.url, f"{offsets} must wait for {before.offsets}")


def _read(ranges: OpenRanges, offsets: OffsetRange, first: int) -> Iterator[Chunk]:
    return ranges.read(*offsets.lane, first, offsets.end, CHUNK_MESSAGES, CHUNK_BYTES)


def _add(services: Services, part: _Part, chunk: Chunk, generation: str) -> None:
    from ingest_project.user_activity.event_table import event_rows  # noqa: PLC0415 - brings pyarrow

    rows = event_rows(chunk.messages, generation)
    put_aside(services, services.settings.topics.user_activity_events_dlq, rows.refused, generation)
    part.tables.append(rows.table)
    part.dead_letters += len(rows.refused)
    part.lost += chunk.lost
    part.next_offset = chunk.next_offset


def _commit(services: Services, part: _Part, stored: Stored) -> None:
    """Commit rows and tell the ledger; in this order, so that nothing is told that is not there."""
    key, now = part.record.range_key, datetime.now(UTC)
    outcome = Counter(dead_letters=part.dead_letters, lost=part.lost)
    if part.tables:
        hours, of_rows = _append(services, part, stored)
        outcome[of_rows] += part.rows
    else:
        # The table is there already; what its rows are of can be seen in it alone.
        found = Offsets(*part.record.offsets.lane, part.record.offsets.first, part.next_offset)
        hours = rows_by_hour(services.user_activity_events, found)
        outcome[FOUND_STORED] += sum(hours.values())
    services.activity_hours.mark_changed(key, stored.add(key, hours, outcome), now)
    if part.ends_range:
        _finish(services, part.record, stored)


def _append(services: Services, part: _Part, stored: Stored) -> tuple[dict[datetime, int], str]:
    """Commit the rows of a part; their hours, and as what they are counted."""
    import pyarrow as pa  # noqa: PLC0415 - heavy

    from ingest_project.user_activity.event_table import hours_in, with_few_days  # noqa: PLC0415 - brings pyarrow

    table = with_few_days(pa.concat_tables(part.tables))
    committed = services.user_activity_events.append(
        table, app_id=stream_of(part.record.offsets), version=part.next_offset, after=part.after
    )
    logger.info("events_committed", range=str(part.record.offsets), to=part.next_offset, rows=table.num_rows)
    if not isinstance(committed, Committed):
        return hours_in(table), FOUND_STORED
    stored.table_version = committed.table_version
    return hours_in(table), EVENTS


def _finish(services: Services, record: RangeRecord, stored: Stored) -> None:
    outcome = stored.by_range[record.range_key]
    messages = outcome[EVENTS] + outcome[FOUND_STORED] + outcome["dead_letters"]
    services.stream_ranges.finish(record.range_key, messages, outcome["lost"], outcome, datetime.now(UTC))
    stored.done.append(record)
