"""Rows that the Delta table has lost: read them from Kafka again, each offset once, and report where they belong.

The table owns its position in each partition. Where that is behind the position that was seen last, or where a commit
since the last look may have removed rows (a restore, a delete, an overwrite), the rows themselves are counted, in
pieces, and what a piece lacks is read again. Offsets without a row that Kafka still has are read and decided on once
more; a dead letter is published once nevertheless. Offsets that Kafka has removed are entered in `lost_offsets`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice

import pyarrow as pa

from ingest_project.core.errors import BrokerUnavailableError, TransactionConflictError
from ingest_project.core.items import hour_key
from ingest_project.core.logging import get_logger
from ingest_project.platform.delta.table import EVERY_STREAM, Standing, checked_by
from ingest_project.platform.kafka.dead_letters import message_id_prefix
from ingest_project.streams.delta.appending import AppendTarget, append_bisecting
from ingest_project.streams.delta.queries import count_offsets, stored_offsets
from ingest_project.streams.delta.rows import with_few_days
from ingest_project.streams.delta.stream import CHUNK_MESSAGES, DeltaStream
from ingest_project.streams.engine import CHUNK_BYTES, MAX_SHOWN
from ingest_project.streams.positions import LostOffsets, OffsetRange, SinkPosition

logger = get_logger(__name__)

PIECE_OFFSETS = 100_000
MAX_DOUBTS = 20
BEYOND = 2**63 - 1

Run = tuple[int, int]
"""Offsets that follow one another, from the first up to, not including, the end."""


@dataclass
class Recovered:
    """Rows that were missing in the table.

    Args:
        rows: number of rows that were read again from Kafka and stored.
        spans: their offsets; between the first and the last of a span there may be offsets that never had a row.
        hours: number of rows that were stored again, by the hour of their events.
        lost: offsets that Kafka has removed.
    """

    rows: int = 0
    spans: list[OffsetRange] = field(default_factory=list)
    hours: Counter[datetime] = field(default_factory=Counter)
    lost: list[LostOffsets] = field(default_factory=list)

    def add(self, other: Recovered) -> None:
        """Add what another partition lacked."""
        self.rows += other.rows
        self.spans += other.spans
        self.hours.update(other.hours)
        self.lost += other.lost

    def metadata(self) -> dict[str, str | int]:
        """Return the metadata for Dagster; empty if nothing was missing."""
        shown: dict[str, str | int] = {}
        if self.spans:
            shown |= {"rows_recovered": self.rows, "recovered": ", ".join(map(str, self.spans[:MAX_SHOWN]))}
        if self.lost:
            lost = (f"{one.offsets} ({one.messages} rows)" for one in self.lost[:MAX_SHOWN])
            shown["lost_from_table"] = ", ".join(lost)
        return shown


def is_in_doubt(standing: Standing, position: SinkPosition) -> bool:
    """Return whether the table may lack rows before a position."""
    behind = position.first_offset if standing.position is None else standing.position
    return bool(standing.doubts) or behind < position.next_offset


def complete_all(stream: DeltaStream) -> Recovered:
    """Read again every row that the table has lost; the caller holds LOCK.

    Raises:
        TransactionConflictError: events are being stored in between; the next time will do.
        TransientError: a service was away. What was recovered until then stays.
    """
    store, recovered = stream.store, Recovered()
    every, positions = checked_by(EVERY_STREAM), stream.positions.all()
    standings = store.standings([every, *(stream.app_id_of(one.topic_partition) for one in positions)])
    for position in positions:
        if is_in_doubt(standings[stream.app_id_of(position.topic_partition)], position):
            recovered.add(recover(stream, position))
    before = standings[every]
    if before.doubts or before.table_version - (before.position or 0) > MAX_DOUBTS:
        store.mark_checked(before.table_version)
    return recovered


def recover(stream: DeltaStream, position: SinkPosition) -> Recovered:
    """Read again the rows that the table lacks before a position, then move the table's own position there.

    Raises:
        TransactionConflictError: another process recovers them; try again later.
        TransientError: a service was away. What was recovered until then stays.
    """
    app_id, partition = stream.app_id_of(position.topic_partition), position.topic_partition
    standing = stream.store.standings([app_id])[app_id]
    end = max(position.next_offset, standing.position or 0)
    whole = OffsetRange(*partition, min(position.first_offset, end), end)
    logger.warning("table_in_doubt", offsets=str(whole), position=standing.position, commits=list(standing.doubts))
    recovered = Recovered()
    gone: list[Run] = []
    retained = _oldest_retained(stream, position)
    for piece, missing in missing_runs(stream, whole):
        gone += [(first, min(end, retained)) for first, end in missing if first < retained]
        _read_again(stream, piece, [run for run in missing if run[1] > retained], retained, recovered)
    why = "; ".join(standing.doubts) or "its position went back"
    recovered.lost = _enter_lost(stream, whole, gone, why)
    _finish(stream, whole, standing)
    for span in recovered.spans[:MAX_SHOWN]:
        hours = [f"{hour_key(hour)}: {rows}" for hour, rows in sorted(recovered.hours.items())[:MAX_SHOWN]]
        logger.warning("rows_recovered", offsets=str(span), rows=recovered.rows, hours=hours)
    for lost in recovered.lost[:MAX_SHOWN]:
        logger.error("rows_lost", offsets=str(lost.offsets), rows=lost.messages)
    return recovered


def missing_runs(stream: DeltaStream, whole: OffsetRange) -> Iterator[tuple[OffsetRange, list[Run]]]:
    """Yield the pieces of some offsets that have fewer rows than offsets, each with the offsets that have no row."""
    rows = count_offsets(stream.store, whole, PIECE_OFFSETS)
    start = whole.first - whole.first % PIECE_OFFSETS
    for aligned in OffsetRange(*whole.topic_partition, start, whole.end).pieces(PIECE_OFFSETS):
        piece = OffsetRange(*whole.topic_partition, max(aligned.first, whole.first), aligned.end)
        if rows.get(aligned.first, 0) < len(piece):
            present = stored_offsets(stream.store, piece)
            yield piece, runs_between(present, piece.first, piece.end)


def without_known(stream: DeltaStream, whole: OffsetRange, runs: Sequence[Run]) -> list[Run]:
    """Remove the offsets that never had a row from missing ones: dead letters, and offsets lost before."""
    if not runs:
        return []
    dlq, prefix = stream.dead_letter_topic, message_id_prefix(*whole.topic_partition)
    letters = (int(message_id.removeprefix(prefix)) for message_id in stream.services.outbox.ids(dlq, prefix))
    known = [(offset, offset + 1) for offset in letters]
    lost = (one.offsets for one in stream.positions.lost())
    known += [(one.first, one.end) for one in lost if one.topic_partition == whole.topic_partition]
    return subtract(runs, sorted(known))


def subtract(runs: Sequence[Run], known: Sequence[Run]) -> list[Run]:
    """Return the parts of `runs` that are not in `known`; both are in order."""
    found, index = [], 0
    for begin, end in runs:
        first = begin
        while index < len(known) and known[index][1] <= first:
            index += 1
        for known_first, known_end in islice(known, index, None):
            if known_first >= end:
                break
            if known_first > first:
                found.append((first, known_first))
            first = max(first, known_end)
        if first < end:
            found.append((first, end))
    return found


def runs_between(present: Sequence[int], first: int, end: int) -> list[Run]:
    """Return the runs of numbers from `first` up to, not including, `end` that are not among the present ones."""
    found = []
    for number in (*present, end):
        if number > first:
            found.append((first, number))
        first = max(first, number + 1)
    return found


def size_of(runs: Sequence[Run]) -> int:
    """Count the numbers in some runs of numbers."""
    return sum(end - first for first, end in runs)


def hours_text(stream: DeltaStream, offsets: OffsetRange) -> str:
    """Name the hours that may have events among some offsets."""
    return ", ".join(map(hour_key, stream.hours.hours_of(offsets)[:MAX_SHOWN]))


def _oldest_retained(stream: DeltaStream, position: SinkPosition) -> int:
    """Return the first offset that Kafka still has of a partition; beyond every offset where the topic is gone."""
    positions = stream.positions
    backlog = stream.services.range_reader.backlog(position.topic, positions.saved(), 0)
    current = positions.current().get(position.partition)
    if backlog is None or current is None or current.topic_id != position.topic_id:
        return BEYOND
    if backlog.topic_id and backlog.topic_id != position.topic_id:
        return BEYOND
    if backlog.ends.get(position.partition, 0) < position.next_offset:
        return BEYOND
    return backlog.log_starts[position.partition]


def _read_again(
    stream: DeltaStream, piece: OffsetRange, missing: Sequence[Run], retained: int, recovered: Recovered
) -> None:
    """Store the messages that Kafka has at the missing offsets of a piece."""
    if not missing:
        return
    first, end = max(missing[0][0], retained), missing[-1][1]
    ends = [run[1] for run in missing]
    for chunk in stream.services.range_reader.read(*piece.topic_partition, first, end, CHUNK_MESSAGES, CHUNK_BYTES):
        if chunk.lost:
            reason = f"retention removed part of {piece} while it was read"
            raise BrokerUnavailableError(stream.services.settings.kafka.bootstrap_servers, reason)
        wanted = []
        for message in chunk.messages:
            index = bisect_left(ends, message.offset + 1)
            if index < len(missing) and missing[index][0] <= message.offset:
                wanted.append(message)
        rows = stream.decode(wanted, piece.topic_id)
        stream.dead_letter(rows.refused, piece.topic_id)
        if rows.table.num_rows:
            stored = _append(stream, piece, rows.table)
            recovered.rows += stored.num_rows
            recovered.hours.update(stream.hours_of(stored))
            _extend(recovered, piece, stored["kafka_offset"].to_pylist(), missing)


def _append(stream: DeltaStream, piece: OffsetRange, table: pa.Table) -> pa.Table:
    """Commit rows; returns those that are in the table then."""
    store, app_id = stream.store, f"{stream.app_id_of(piece.topic_partition)}/recovered"
    hours, before = stream.hours_of(table), store.committed_version(app_id)
    # Mark the hours before and after the commit, so that they are counted again even after a kill in between.
    stream.hours.touch(hours, datetime.now(UTC))
    target = AppendTarget(piece.topic_partition, app_id, before, lambda row: (before or 0) + row)
    done = append_bisecting(stream, with_few_days(table), target)
    if done.table_version is None:
        raise TransactionConflictError(store.url, f"another process recovers {piece}")
    stream.hours.touch(hours, datetime.now(UTC))
    return done.rows


def _extend(recovered: Recovered, piece: OffsetRange, offsets: Sequence[int], missing: Sequence[Run]) -> None:
    """Add offsets that were stored again to the spans, one for each run that was missing."""
    for run_first, run_end in missing:
        some = offsets[bisect_left(offsets, run_first) : bisect_left(offsets, run_end)]
        if not some:
            continue
        last = recovered.spans[-1] if recovered.spans else None
        # A run may continue in the next chunk, and in the next piece.
        if last and last.topic_partition == piece.topic_partition and (last.end == some[0] or last.end > run_first):
            recovered.spans[-1] = OffsetRange(*piece.topic_partition, last.first, some[-1] + 1)
        else:
            recovered.spans.append(OffsetRange(*piece.topic_partition, some[0], some[-1] + 1))


def _enter_lost(stream: DeltaStream, whole: OffsetRange, gone: Sequence[Run], why: str) -> list[LostOffsets]:
    """Enter rows as lost that neither the table nor Kafka has."""
    runs = without_known(stream, whole, gone)
    if not runs:
        return []
    span, rows = OffsetRange(*whole.topic_partition, runs[0][0], runs[-1][1]), size_of(runs)
    missing = f"{rows} rows are missing in the table ({why}), and Kafka has them no more"
    reason = f"{missing}: {span}; hours {hours_text(stream, span)}."
    lost = [LostOffsets(offsets=span, messages=rows, reason=reason, found_at=datetime.now(UTC))]
    stream.positions.add_lost(lost)
    return lost


def _finish(stream: DeltaStream, whole: OffsetRange, standing: Standing) -> None:
    """Move the position to the end of the checked offsets, and mark them as checked."""
    store, app_id = stream.store, stream.app_id_of(whole.topic_partition)
    if standing.position is None or standing.position < whole.end:
        nothing = stream.no_rows()
        checked = max(standing.table_version, 0)
        store.append(nothing, app_id=app_id, version=whole.end, after=standing.position, checked=checked)
    else:
        store.mark_checked(standing.table_version, app_id)
