"""The sensor on `user-activity-events`: what waits becomes offset ranges in the ledger, and a few runs over them.

Killed before Dagster has saved its requests, the next tick finds the ranges planned and asks for them again; killed
after that, Dagster starts the runs itself. What a dead run left is due again after a pause.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg

from ingest_project.batches import release_abandoned
from ingest_project.kafka.positions import Positions
from ingest_project.streams.planning import plan_backlog
from ingest_project.streams.runs import run_request
from ingest_project.ticking import ticking_sensor
from ingest_project.user_activity.ranges import batches_of, ready
from ingest_project.user_activity.user_activity_events import EVENTS_OP, MOST_UNFINISHED, NO_LAST_ATTEMPT

if TYPE_CHECKING:
    from ingest_project.resources import Services

USER_ACTIVITY = "user_activity"
# With so many planned the topic itself is the better place to wait in.
MOST_PLANNED = 1_000


def user_activity_events_sensor(job_name: str) -> dg.SensorDefinition:
    """The sensor that stores user activity.

    Args:
        job_name: of the job that stores a batch of ranges.
    """
    return ticking_sensor(
        "user_activity_events_sensor",
        job_name,
        "Asks for runs over the events that arrive on user-activity-events.",
        tick,
    )


def tick(context: dg.SensorEvaluationContext, services: Services) -> dg.SensorResult | dg.SkipReason:
    """Plan what waits, and ask for runs over what is due."""
    settings, topic = services.settings, services.settings.topics.user_activity_events
    positions = plan_backlog(
        services,
        topic,
        Positions.from_cursor(context.cursor),
        size=settings.user_activity.range_messages,
        most=max(0, MOST_PLANNED - len(services.stream_ranges.unfinished(topic, MOST_PLANNED))),
        wait_seconds=settings.file_ingest.tick_wait_seconds,
    )
    if positions is None:
        return dg.SkipReason(f"Topic {topic} does not exist yet.")
    for_ever = settings.retries.model_copy(update={"max_attempts": NO_LAST_ATTEMPT})
    release_abandoned(context.instance, services.stream_ranges, topic, for_ever)
    most = settings.user_activity.max_parallel_batches
    room = services.room_beside(services.stream_ranges.in_flight_batches(topic), most)
    requests = request_due(services, topic, room.batches)
    skip_reason = None if requests else room.reason or f"Nothing new on {topic}."
    return dg.SensorResult(run_requests=requests, cursor=positions.to_cursor(), skip_reason=skip_reason)


def request_due(services: Services, topic: str, free: int) -> list[dg.RunRequest]:
    """Ask for runs over ranges that are due, at most so many."""
    if not free:
        return []
    settings, ledger = services.settings.user_activity, services.stream_ranges
    now = datetime.now(UTC)
    due = frozenset(entry.key for entry in ledger.due(topic, MOST_UNFINISHED, now))
    lanes = ready(ledger.unfinished(topic, MOST_UNFINISHED), due)
    batches = batches_of(lanes, settings.batch_messages, settings.max_parallel_batches)[:free]
    # All or none: whoever else looks after this topic can only have taken the whole batch.
    taken = [one for one in batches if len(ledger.request(one.batch_id, one.keys, now)) == len(one.keys)]
    return [run_request(USER_ACTIVITY, EVENTS_OP, one) for one in taken]
