"""Replace the rows of an hour, or of all offsets, by the present messages of the topic.

What retention has removed from the topic stays in the table as it is. Only offsets that the table has passed already
are replaced, so that a run that stores new ones meanwhile writes no row twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from ingest_project.core.errors import BrokerUnavailableError
from ingest_project.core.items import end_of
from ingest_project.core.logging import get_logger
from ingest_project.platform.database import exclusive, writing
from ingest_project.streams.delta.queries import of_hours, of_offsets, replace
from ingest_project.streams.delta.rows import aligned, of_hour
from ingest_project.streams.delta.stream import CHUNK_MESSAGES, LOCK_WAIT_SECONDS, DeltaStream
from ingest_project.streams.engine import CHUNK_BYTES
from ingest_project.streams.hours import add_spans, count_changes
from ingest_project.streams.positions import OffsetRange

logger = get_logger(__name__)

OFFSETS_AT_A_TIME = 1_000_000


@dataclass(frozen=True)
class Rebuilt:
    """The result of rebuilding an hour.

    Args:
        read_again: offsets that were read from Kafka again.
        kept: offsets that Kafka does not have any more, whose rows stayed as they are.
    """

    read_again: int
    kept: int

    def metadata(self) -> dict[str, Any]:
        """Return the metadata for Dagster."""
        return {"offsets_read_again": self.read_again, "offsets_kept": self.kept}


def rebuild_hour(stream: DeltaStream, hour: datetime) -> Rebuilt:
    """Replace the rows of an hour's events by the messages that Kafka still has. Idempotent.

    Args:
        stream: the stream that the rows belong to.
        hour: its beginning.

    Raises:
        TransactionConflictError: events of that day are being stored; try again at a quieter time.
        TransientError: a service was away. What was replaced until then stays; the rest is as it was.
    """
    ranges = stream.hours.offsets_of(hour)
    read_again = 0
    with exclusive(stream.services.engine, stream.lock, LOCK_WAIT_SECONDS):
        retained = {one.topic_partition: one for one in _retained_ranges(stream)}
        for one in ranges:
            present = retained.get(one.topic_partition)
            if present is None:
                continue
            both = OffsetRange(*one.topic_partition, max(one.first, present.first), min(one.end, present.end))
            for piece in both.pieces(OFFSETS_AT_A_TIME):
                _replace(stream, piece, hour)
                read_again += len(piece)
    stream.hours.touch([hour], datetime.now(UTC))
    logger.info("hour_rebuilt", hour=hour.isoformat(), offsets_read_again=read_again)
    return Rebuilt(read_again, sum(len(one) for one in ranges) - read_again)


def read_again_from_beginning(stream: DeltaStream) -> dict[int, int]:
    """Store every message of the topic, also those before the first position that was read.

    Rows that are stored already are replaced now; the rest is left to the next run.

    Returns:
        number of offsets by partition.

    Raises:
        TransientError: a service was away; do it again.
    """
    positions, store, found = stream.positions, stream.store, {}
    with exclusive(stream.services.engine, stream.lock, LOCK_WAIT_SECONDS):
        backlog = stream.services.range_reader.backlog(positions.topic, positions.saved(), 0)
        if backlog is None:
            return {}
        for partition, one in positions.begin(backlog, datetime.now(UTC)).items():
            app_id, start = stream.app_id_of(one.topic_partition), backlog.log_starts[partition]
            reached = store.committed_version(app_id)
            if reached is None:
                # A run that is storing the partition conflicts with this position, and leaves the rest to the next run.
                store.append(stream.no_rows(), app_id=app_id, version=start, after=None)
            for piece in OffsetRange(*one.topic_partition, start, reached or start).pieces(OFFSETS_AT_A_TIME):
                hours = _replace(stream, piece, None)
                with writing(stream.services.engine) as connection:
                    count_changes(connection, stream.name, hours, datetime.now(UTC))
                    add_spans(connection, stream.name, piece, hours)
            # Replaced messages were counted when they were first stored.
            next_offset, outcome = (start, {}) if reached is None else (one.next_offset, one.outcome)
            positions.restart(one, min(start, one.first_offset), next_offset, outcome)
            found[partition] = backlog.ends[partition] - start
    return found


def _retained_ranges(stream: DeltaStream) -> Iterator[OffsetRange]:
    """Yield the offsets that Kafka still has of each partition, up to the table's position."""
    positions = stream.positions
    backlog = stream.services.range_reader.backlog(positions.topic, positions.saved(), 0)
    for partition, one in positions.current().items():
        if backlog is None or partition not in backlog.ends or backlog.topic_id not in {"", one.topic_id}:
            continue
        reached = stream.store.committed_version(stream.app_id_of(one.topic_partition)) or 0
        end = min(backlog.ends[partition], reached)
        yield OffsetRange(*one.topic_partition, min(backlog.log_starts[partition], end), end)


def _replace(stream: DeltaStream, offsets: OffsetRange, hour: datetime | None) -> set[datetime]:
    """Replace the rows of some offsets, or those of them that are of one hour; returns the hours of the rows."""
    condition = of_offsets(offsets)
    if hour is not None:
        condition = f"{condition} AND {of_hours(hour, end_of(hour), stream.time_column)}"
    hours: set[datetime] = set()

    def tables() -> Iterator[pa.Table]:
        for table in _read_rows(stream, offsets):
            hours.update(stream.hours_of(table))
            yield table if hour is None else of_hour(table, hour, stream.time_column)

    def rows() -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        schema = stream.schema_with_evolved()
        return schema, (batch for table in tables() for batch in aligned(table, schema, stream.store.url).to_batches())

    replace(stream.store, condition, rows)
    return hours


def _read_rows(stream: DeltaStream, offsets: OffsetRange) -> Iterator[pa.Table]:
    for chunk in stream.services.range_reader.read(
        *offsets.topic_partition, offsets.first, offsets.end, CHUNK_MESSAGES, CHUNK_BYTES
    ):
        if chunk.lost:
            reason = f"retention removed part of {offsets} while it was read"
            raise BrokerUnavailableError(stream.services.settings.kafka.bootstrap_servers, reason)
        rows = stream.decode(chunk.messages, offsets.topic_id)
        stream.dead_letter(rows.refused, offsets.topic_id)
        yield rows.table
