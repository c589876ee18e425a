"""The sensor behind `user_activity_hourly`: hours whose events changed get their statistics again.

An hour that was never counted, or not for a while, is counted now; one that goes on changing is counted again after a
pause, for each time costs a look at all of its events.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg
from dagster import DagsterRunStatus

from ingest_project.core.keys import digest_of, hour_key
from ingest_project.platform.work_queue.batches import BATCH_ID_TAG, BATCH_SIZE_TAG, BATCH_TAG
from ingest_project.platform.work_queue.sensor import queue_sensor
from ingest_project.streams.user_activity.changed_hours import StaleHour
from ingest_project.streams.user_activity.jobs import HOURLY_OP
from ingest_project.streams.user_activity.resources import UserActivityResources

HOURLY = "user_activity_hourly"
MOST_HOURS = 200
UNFINISHED = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
]


def user_activity_hourly_sensor(job_name: str) -> dg.SensorDefinition:
    """The sensor that has hours counted again.

    Args:
        job_name: of the job that counts them.
    """
    return queue_sensor(
        "user_activity_hourly_sensor",
        job_name,
        "Asks for the statistics of hours whose events changed.",
        lambda context, services: tick(context, services, job_name),
        every_seconds=5,
    )


def tick(
    context: dg.SensorEvaluationContext, services: UserActivityResources, job_name: str
) -> dg.SensorResult | dg.SkipReason:
    """Ask for one run over the hours that are to be counted, while none is under way."""
    under_way = dg.RunsFilter(job_name=job_name, statuses=UNFINISHED)
    if context.instance.get_runs_count(under_way):
        return dg.SkipReason("Hours are being counted.")
    pause = timedelta(seconds=services.settings.user_activity.hourly_refresh_seconds)
    hours = services.activity_hours.due(datetime.now(UTC), pause, MOST_HOURS)
    if not hours:
        return dg.SkipReason("No hour has to be counted.")
    return dg.SensorResult(run_requests=[_run_request(hours)])


def _run_request(hours: Sequence[StaleHour]) -> dg.RunRequest:
    partitions = [hour_key(one.hour) for one in hours]
    # Without a run key: an hour whose counting failed is asked for again.
    batch_id = digest_of(repr(hours))
    return dg.RunRequest(
        run_config={"ops": {HOURLY_OP: {"config": {"hours": partitions}}}},
        tags={BATCH_TAG: HOURLY, BATCH_ID_TAG: batch_id, BATCH_SIZE_TAG: str(len(hours))},
    )
