"""Stored events once more from Kafka: the rows of an hour, or of all offsets, replaced by what the topic has now.

What retention has removed from the topic stays in the table as it is. Only offsets that the table has passed already
are touched, so that whoever stores new ones meanwhile writes no row twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pyarrow as pa

from ingest_project.core.errors import BrokerUnavailableError
from ingest_project.core.keys import end_of
from ingest_project.core.logging import get_logger
from ingest_project.platform.database.engine import exclusive
from ingest_project.platform.work_queue.consume import dead_letter_message
from ingest_project.streams.range_record import OffsetRange, cut
from ingest_project.streams.user_activity.events_schema import Offsets, of_hours, replace
from ingest_project.streams.user_activity.resources import UserActivityResources
from ingest_project.streams.user_activity.stream import CHUNK_BYTES, CHUNK_MESSAGES, LOCK, LOCK_WAIT_SECONDS, stream_of

logger = get_logger(__name__)

OFFSETS_AT_A_TIME = 1_000_000


@dataclass(frozen=True)
class Rebuilt:
    """What was done for an hour.

    Args:
        read_again: offsets that were read from Kafka again.
        kept: offsets that Kafka does not have any more, whose rows stayed as they are.
    """

    read_again: int
    kept: int

    def metadata(self) -> dict[str, Any]:
        """As Dagster shows it."""
        return {"offsets_read_again": self.read_again, "offsets_kept": self.kept}


class _Retained(NamedTuple):
    """What Kafka still has of a partition that the table has passed."""

    first: int
    end: int


def rebuild_hour(services: UserActivityResources, hour: datetime) -> Rebuilt:
    """Replace the rows of an hour's events by what Kafka has of them; the second time it is the same.

    Args:
        services: Kafka, the table and the ledger.
        hour: when it begins.

    Raises:
        TransactionConflictError: events of that day are being stored; try again at a quieter time.
        TransientError: something was away. What was replaced until then stays; the rest is as it was.
    """
    ranges = joined(services.activity_hours.ranges_of(hour))
    read_again = 0
    with exclusive(services.engine, LOCK, LOCK_WAIT_SECONDS):
        retained = {topic: _retained(services, topic) for topic in {one.topic for one in ranges}}
        for one in ranges:
            there = retained[one.topic].get((one.topic_id, one.partition))
            if there is None:
                continue
            first, end = max(one.first, there.first), min(one.end, there.end)
            for piece in cut(one.topic, one.topic_id, one.partition, first, end, OFFSETS_AT_A_TIME):
                _replace(services, piece, hour)
                read_again += len(piece)
    services.activity_hours.touch([hour], datetime.now(UTC))
    logger.info("hour_rebuilt", hour=hour.isoformat(), offsets_read_again=read_again)
    return Rebuilt(read_again, sum(len(one) for one in ranges) - read_again)


def read_again_from_beginning(services: UserActivityResources) -> dict[int, int]:
    """Store everything that the topic has, also what was there before the first position that was read.

    Rows that are stored already are replaced; no run may be storing events meanwhile.

    Returns:
        offsets that were read again or are planned to be read, by partition.

    Raises:
        TransientError: something was away; do it again.
    """
    topic, now = services.settings.topics.user_activity_events, datetime.now(UTC)
    found: dict[int, int] = {}
    with exclusive(services.engine, LOCK, LOCK_WAIT_SECONDS):
        topic_id, bounds = _bounds(services, topic)
        for partition, (start, end) in bounds.items():
            whole = OffsetRange(topic, topic_id, partition, start, end)
            reached = services.user_activity_events.committed_version(stream_of(whole))
            first_planned = services.stream_ranges.first_planned(topic, topic_id, partition)
            until = end if first_planned is None else first_planned
            size = services.settings.user_activity.range_messages
            early = cut(topic, topic_id, partition, start, until, size)
            services.stream_ranges.plan(early, [], now)
            for piece in cut(topic, topic_id, partition, start, reached or start, OFFSETS_AT_A_TIME):
                _replace(services, piece, None)
            if reached is not None:
                _enter_as_done(services, early)
            found[partition] = max(until, reached or 0) - start
    return found


def joined(ranges: Sequence[OffsetRange]) -> list[OffsetRange]:
    """Ranges that follow one another, or overlap, as one."""
    found: list[OffsetRange] = []
    for one in sorted(ranges):
        last = found[-1] if found else None
        if last and last.topic_partition == one.topic_partition and one.first <= last.end:
            found[-1] = OffsetRange(*one.topic_partition, last.first, max(last.end, one.end))
        else:
            found.append(one)
    return found


def _bounds(services: UserActivityResources, topic: str) -> tuple[str, dict[int, _Retained]]:
    """This life of a topic, as the ledger calls it, and what each partition has."""
    backlog = services.range_reader.backlog(topic, None, 0)
    if backlog is None:
        return "", {}
    topic_id = backlog.topic_id or services.stream_ranges.latest_life(topic, backlog.ends)
    return topic_id, {
        partition: _Retained(start, backlog.ends[partition]) for partition, start in backlog.log_starts.items()
    }


def _retained(services: UserActivityResources, topic: str) -> dict[tuple[str, int], _Retained]:
    topic_id, bounds = _bounds(services, topic)
    found = {}
    for partition, there in bounds.items():
        stream = stream_of(OffsetRange(topic, topic_id, partition, 0, 0))
        reached = services.user_activity_events.committed_version(stream) or 0
        found[topic_id, partition] = _Retained(there.first, min(there.end, reached))
    return found


def _replace(services: UserActivityResources, offsets: OffsetRange, hour: datetime | None) -> None:
    """Replace the rows of some offsets, or those of them that are of one hour."""
    place = Offsets(offsets.topic, offsets.topic_id, offsets.partition, offsets.first, offsets.end)
    condition = place.condition if hour is None else f"{place.condition} AND {of_hours(hour, end_of(hour))}"

    def rows() -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        from ingest_project.streams.user_activity.event_table import SCHEMA  # noqa: PLC0415 - brings pyarrow

        return SCHEMA, _batches(services, offsets, hour)

    replace(services.user_activity_events, condition, rows)


def _batches(services: UserActivityResources, offsets: OffsetRange, hour: datetime | None) -> Iterator[pa.RecordBatch]:
    from ingest_project.streams.user_activity.event_table import event_rows, hours_in, of_hour  # noqa: PLC0415 - brings pyarrow

    now = datetime.now(UTC)
    for chunk in services.range_reader.read(
        *offsets.topic_partition, offsets.first, offsets.end, CHUNK_MESSAGES, CHUNK_BYTES
    ):
        if chunk.lost:
            raise BrokerUnavailableError(
                services.settings.kafka.bootstrap_servers, f"retention removed part of {offsets} while it was read"
            )
        rows = event_rows(chunk.messages, offsets.topic_id)
        dead_letter_message(services, services.settings.topics.user_activity_events_dlq, rows.refused, offsets.topic_id)
        if hour is None:
            services.activity_hours.touch(hours_in(rows.table), now)
        yield from (rows.table if hour is None else of_hour(rows.table, hour)).to_batches()


def _enter_as_done(services: UserActivityResources, ranges: Sequence[OffsetRange]) -> None:
    """What was just read has not to be read by a run any more."""
    for one in ranges:
        services.stream_ranges.finish(one.key, len(one), 0, {"events": len(one)}, datetime.now(UTC))
    services.stream_ranges.mark_reported([one.key for one in ranges], datetime.now(UTC))
