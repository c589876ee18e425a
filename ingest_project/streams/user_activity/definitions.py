"""User activity as Dagster sees it: the declared stream, and its hourly statistics."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg
from pydantic import Field

from ingest_project.core.items import digest_of, hour_key, parse_hour_key
from ingest_project.platform.dagster.catalog import SqlTable, StoredTable
from ingest_project.platform.work_queue.sensor import batch_tags, queue_sensor
from ingest_project.streams.delta.definitions import DeltaParts, delta_definitions
from ingest_project.streams.hours import HOURLY_SENSOR, StaleHour
from ingest_project.streams.resources import StreamResources
from ingest_project.streams.sensor import UNFINISHED_RUNS
from ingest_project.streams.user_activity.assets import (
    USER_ACTIVITY_HOURLY,
    compute_statistics,
    user_activity_hourly,
)
from ingest_project.streams.user_activity.hours import user_activity_hourly as hourly_table

HOURLY_OP = "count_hours"
HOURLY = "user_activity_hourly"
MAX_HOURS = 200

STORED: dict[dg.AssetKey, StoredTable] = {USER_ACTIVITY_HOURLY: SqlTable(hourly_table, "hour", parse_hour_key)}


class HoursConfig(dg.Config):
    """The hours to count, as partition keys, e.g. `2026-01-15-10:00`."""

    hours: list[str] = Field(default_factory=list)


@dg.op(name=HOURLY_OP, description="Computes the statistics of some hours.")
def count_hours(
    context: dg.OpExecutionContext, config: HoursConfig, services: dg.ResourceParam[StreamResources]
) -> None:
    """Count the hours of this run."""
    compute_statistics(context, services, [parse_hour_key(hour) for hour in config.hours])


@dg.job(description="Computes the statistics of hours whose events changed.")
def user_activity_hourly_batch() -> None:
    """One step for all hours."""
    count_hours()


def hourly_tick(context: dg.SensorEvaluationContext, services: StreamResources) -> dg.SensorResult | dg.SkipReason:
    """Request one run over the hours whose events changed, while none is under way.

    An hour that was never counted, or not for a while, is counted now; one that keeps changing is counted again after
    a pause, as each time costs a read of all of its events.
    """
    under_way = dg.RunsFilter(job_name=user_activity_hourly_batch.name, statuses=UNFINISHED_RUNS)
    if context.instance.get_runs_count(under_way):
        return dg.SkipReason("Hours are being counted.")
    pause = timedelta(seconds=services.settings.user_activity.hourly_refresh_seconds)
    hours = services.user_activity.hours.due(datetime.now(UTC), pause, MAX_HOURS)
    if not hours:
        return dg.SkipReason("No hour has to be counted.")
    return dg.SensorResult(run_requests=[_hourly_request(hours)])


def _hourly_request(hours: Sequence[StaleHour]) -> dg.RunRequest:
    partitions = [hour_key(one.hour) for one in hours]
    # Without a run key: an hour whose counting failed is requested again.
    return dg.RunRequest(
        run_config={"ops": {HOURLY_OP: {"config": {"hours": partitions}}}},
        tags=batch_tags(HOURLY, digest_of(repr(hours)), len(hours)),
    )


def definitions_of(parts: DeltaParts) -> dg.Definitions:
    """Return what Dagster loads of the stream, and of its hourly statistics."""
    hourly_sensor = queue_sensor(
        HOURLY_SENSOR,
        user_activity_hourly_batch.name,
        "Requests the statistics of hours whose events changed.",
        hourly_tick,
        every_seconds=5,
    )
    return dg.Definitions.merge(
        delta_definitions(parts, user_activity_hourly),
        dg.Definitions(jobs=[user_activity_hourly_batch], sensors=[hourly_sensor]),
    )
