"""One tick over a topic that is read in offset ranges: plan what waits, and request runs over what is due.

A tick reads no message. It plans from the ledger's last range, or from the saved cursor where there is none. Killed
before Dagster has saved its requests, the next tick finds the ranges planned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

import dagster as dg

from ingest_project.core.errors import BrokerUnavailableError
from ingest_project.core.logging import get_logger
from ingest_project.core.settings import RetrySettings
from ingest_project.platform.kafka.offset_ranges import Backlog
from ingest_project.platform.kafka.offsets import Positions
from ingest_project.platform.work_queue.sensor import requeue_orphaned
from ingest_project.streams.range_record import OffsetRange, cut
from ingest_project.streams.resources import StreamResources
from ingest_project.streams.runs import Batch, run_request

logger = get_logger(__name__)


class Plan(NamedTuple):
    """What to enter in the ledger, and the cursor to save then.

    Args:
        ranges: to be read.
        lost: offsets that retention removed before they were planned.
        next_offsets: where planning goes on, by partition.
    """

    ranges: list[OffsetRange]
    lost: list[OffsetRange]
    next_offsets: dict[int, int]


def plan(  # noqa: PLR0913, PLR0917 - what waits, and two bounds
    topic: str, topic_id: str, backlog: Backlog, planned_ends: Mapping[int, int], size: int, most: int
) -> Plan:
    """Decide what is read next.

    Args:
        topic: which.
        topic_id: of the topic, as the ledger knows it.
        backlog: what waits.
        planned_ends: where the ledger's last range of each partition ends; goes before the cursor, which a crash may
            have left behind.
        size: most offsets in a range.
        most: ranges to plan at most, shared by the partitions: a tick ends in time however far behind the topic is.
    """
    found = Plan([], [], {})
    share = -(-most // max(1, len(backlog.starts)))
    for partition, start in sorted(backlog.starts.items()):
        log_start, planned_end = backlog.log_starts[partition], planned_ends.get(partition)
        if planned_end is not None:
            if log_start > planned_end:
                found.lost.append(OffsetRange(topic, topic_id, partition, planned_end, log_start))
            start = max(planned_end, log_start)  # noqa: PLW2901 - a better start than the cursor's
        pieces = cut(topic, topic_id, partition, start, backlog.ends[partition], size)[:share]
        found.ranges.extend(pieces)
        found.next_offsets[partition] = pieces[-1].end if pieces else start
    return found


def plan_backlog(  # noqa: PLR0913 - two bounds and a pause
    services: StreamResources, topic: str, saved: Positions | None, *, size: int, most: int, wait_seconds: float
) -> Positions | None:
    """Enter in the ledger what is to be read; again, nothing is entered twice.

    Args:
        services: Kafka and the ledger.
        topic: which.
        saved: positions of the last saved cursor; None at the first tick.
        size: most offsets in a range.
        most: ranges to plan at most.
        wait_seconds: how long to wait for a first message on a quiet topic.

    Returns:
        the positions to save; None where there is no such topic.

    Raises:
        BrokerUnavailableError, DatabaseUnavailableError: nothing was planned.
    """
    backlog = services.range_reader.backlog(topic, saved, wait_seconds)
    if backlog is None:
        return None
    if saved is not None:
        # Only now that the broker has answered: a commit that meets one that was away ends the process from within.
        services.reader.commit(topic, saved)
    for notice in backlog.notices:
        logger.warning("topic_notice", topic=topic, notice=notice)
    ledger, now = services.stream_ranges, datetime.now(UTC)
    topic_id = backlog.topic_id or ledger.latest_life(topic, backlog.ends)
    same_life = saved is not None and saved.topic_id == backlog.topic_id
    ledger.recover_uncommitted(topic, topic_id, saved.next_offsets if saved and same_life else {}, now)
    planned = plan(topic, topic_id, backlog, ledger.planned_ends(topic, topic_id, backlog.starts), size, most)
    ledger.plan(planned.ranges, planned.lost, now)
    return Positions(backlog.topic_id, planned.next_offsets)


def lag(services: StreamResources, topic: str, topic_id: str) -> int | None:
    """How many offsets wait on the topic or in the ledger; None where the broker cannot be asked now."""
    ledger = services.stream_ranges
    try:
        partitions = services.reader.end_offsets(topic)
        # Without a generation: the ledger may have a name of its own for this life of the topic.
        planned = Positions("", ledger.planned_ends(topic, topic_id, partitions))
        backlog = services.range_reader.backlog(topic, planned, 0)
    except BrokerUnavailableError:
        return None
    return (backlog.waiting if backlog else 0) + ledger.unread(topic, topic_id)


@dataclass(frozen=True)
class StreamConfig:
    """What is particular to one topic.

    Args:
        topic: that is read.
        what: its batches are of, for people who look at runs.
        op: that reads ranges.
        range_messages: most offsets in a range.
        most_ranges: to plan in one tick.
        retries: when ranges that a run has left are read again.
        most_batches: asked for or running at a time.
        batches: puts ranges that are due at a moment together for runs.
    """

    topic: str
    what: str
    op: str
    range_messages: int
    most_ranges: int
    retries: RetrySettings
    most_batches: int
    batches: Callable[[datetime], Sequence[Batch]]


def tick(
    context: dg.SensorEvaluationContext, services: StreamResources, intake: StreamConfig
) -> dg.SensorResult | dg.SkipReason:
    """Plan what waits, and ask for runs over what is due."""
    positions = plan_backlog(
        services,
        intake.topic,
        Positions.from_cursor(context.cursor),
        size=intake.range_messages,
        most=intake.most_ranges,
        wait_seconds=services.settings.file_ingest.tick_wait_seconds,
    )
    if positions is None:
        return dg.SkipReason(f"Topic {intake.topic} does not exist yet.")
    requeue_orphaned(context.instance, services.stream_ranges, intake.topic, intake.retries)
    room = services.available_slots(services.stream_ranges.in_flight_batches(intake.topic), intake.most_batches)
    requests = _requests(services, intake, room.batches)
    skip_reason = None if requests else room.reason or f"Nothing new on {intake.topic}."
    return dg.SensorResult(run_requests=requests, cursor=positions.to_cursor(), skip_reason=skip_reason)


def _requests(services: StreamResources, intake: StreamConfig, free: int) -> list[dg.RunRequest]:
    """Ask for runs over ranges that are due, at most so many."""
    if not free:
        return []
    ledger, now = services.stream_ranges, datetime.now(UTC)
    batches = intake.batches(now)[:free]
    # All or none: whoever else looks after this topic can only have taken the whole batch.
    taken = [one for one in batches if len(ledger.claim(one.batch_id, one.keys, now)) == len(one.keys)]
    return [run_request(intake.what, intake.op, one) for one in taken]
