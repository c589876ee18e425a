"""One tick over a topic that is read in offset ranges: plan what waits, and ask for runs over what is due."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg

from ingest_project.core.settings import RetrySettings
from ingest_project.platform.kafka.offsets import Positions
from ingest_project.platform.work_queue.batches import requeue_orphaned
from ingest_project.streams.planning import plan_backlog
from ingest_project.streams.resources import StreamResources
from ingest_project.streams.runs import Batch, run_request


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
    taken = [one for one in batches if len(ledger.request(one.batch_id, one.keys, now)) == len(one.keys)]
    return [run_request(intake.what, intake.op, one) for one in taken]
