"""The sensor on `user-activity-events`: plans offset ranges and requests runs over them.

Killed before Dagster has saved its requests, the next tick finds the ranges planned and asks for them again; killed
after that, Dagster starts the runs itself. What a dead run left is due again after a pause.
"""

from __future__ import annotations

from datetime import datetime

import dagster as dg

from ingest_project.platform.work_queue.sensor import queue_sensor
from ingest_project.streams import ticks
from ingest_project.streams.runs import Batch
from ingest_project.streams.user_activity.range_batches import batches_of, ready
from ingest_project.streams.user_activity.resources import UserActivityResources
from ingest_project.streams.user_activity.stream import EVENTS_OP, MOST_UNFINISHED, NO_LAST_ATTEMPT

USER_ACTIVITY = "user_activity"
# With so many planned the topic itself is the better place to wait in.
MOST_PLANNED = 1_000


def user_activity_events_sensor(job_name: str) -> dg.SensorDefinition:
    """The sensor that stores user activity.

    Args:
        job_name: of the job that stores a batch of ranges.
    """
    return queue_sensor(
        "user_activity_events_sensor",
        job_name,
        "Asks for runs over the events that arrive on user-activity-events.",
        tick,
    )


def tick(context: dg.SensorEvaluationContext, services: UserActivityResources) -> dg.SensorResult | dg.SkipReason:
    """Plan what waits, and ask for runs over what is due."""
    retries, settings = services.settings.retries, services.settings.user_activity
    topic, ledger = services.settings.topics.user_activity_events, services.stream_ranges

    def batches(now: datetime) -> list[Batch]:
        due = frozenset(entry.key for entry in ledger.due(topic, MOST_UNFINISHED, now))
        topic_partitions = ready(ledger.unfinished(topic, MOST_UNFINISHED), due)
        return batches_of(topic_partitions, settings.batch_messages, settings.max_parallel_batches)

    intake = ticks.StreamConfig(
        topic=topic,
        what=USER_ACTIVITY,
        op=EVENTS_OP,
        range_messages=settings.range_messages,
        most_ranges=max(0, MOST_PLANNED - len(ledger.unfinished(topic, MOST_PLANNED))),
        retries=retries.model_copy(update={"max_attempts": NO_LAST_ATTEMPT}),
        most_batches=settings.max_parallel_batches,
        batches=batches,
    )
    return ticks.tick(context, services, intake)
