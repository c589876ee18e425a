"""User activity as Dagster sees it: jobs, sensors, schedules, external assets, and the tables behind the assets."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg
from pydantic import Field

from ingest_project.core.errors import TransactionConflictError
from ingest_project.core.keys import digest_of, hour_key, parse_hour_key
from ingest_project.core.settings import Settings
from ingest_project.platform.dagster.catalog import HourlyDeltaTable, SqlTable, StoredTable, topic, topic_key
from ingest_project.platform.database.engine import exclusive
from ingest_project.platform.delta.maintenance import MaintenanceLimits, optimize_and_vacuum, summary
from ingest_project.platform.work_queue.batches import BATCH_ID_TAG, BATCH_SIZE_TAG, BATCH_TAG
from ingest_project.platform.work_queue.sensor import queue_sensor
from ingest_project.streams.sensor import UNFINISHED_RUNS, StreamRunConfig, StreamSensor, stream_sensor, tick
from ingest_project.streams.user_activity.assets import (
    compute_statistics,
    store_events,
    user_activity_events,
    user_activity_hourly,
)
from ingest_project.streams.user_activity.checks import CHECKS
from ingest_project.streams.user_activity.event_table import DAY, SCHEMA
from ingest_project.streams.user_activity.hours import StaleHour
from ingest_project.streams.user_activity.recovery import complete_all
from ingest_project.streams.user_activity.resources import UserActivityResources
from ingest_project.streams.user_activity.statistics import user_activity_hourly as hourly_table
from ingest_project.streams.user_activity.stream import (
    LOCK,
    LOCK_WAIT_SECONDS,
    USER_ACTIVITY_EVENTS,
    USER_ACTIVITY_HOURLY,
)

GROUP = "user_activity"
EVENTS_OP = "store_user_activity"
HOURLY_OP = "count_hours"
HOURLY = "user_activity_hourly"
MOST_HOURS = 200
# Fewer events than this are stored sooner than a second run has started.
WORTH_SPLITTING = 100_000

STORED: dict[dg.AssetKey, StoredTable] = {
    USER_ACTIVITY_EVENTS: HourlyDeltaTable(
        "user_activity_events", lambda services: services.user_activity_events, lambda: SCHEMA, "timestamp", DAY
    ),
    USER_ACTIVITY_HOURLY: SqlTable(hourly_table, "hour", parse_hour_key),
}


def external_assets(settings: Settings) -> list[dg.AssetSpec]:
    """Describe the topic of events and its dead letters."""
    return [
        topic(settings, "user_activity_events", group=GROUP),
        topic(settings, "user_activity_events_dlq", group=GROUP, deps=[topic_key("user_activity_events")]),
    ]


@dg.op(name=EVENTS_OP, description="Stores events of user-activity-events up to the offsets in its configuration.")
def store_user_activity(
    context: dg.OpExecutionContext, config: StreamRunConfig, services: dg.ResourceParam[UserActivityResources]
) -> None:
    """Append events to the Delta table, each offset once."""
    store_events(context, services, config)


@dg.job(description="Stores events of user-activity-events.")
def user_activity_batch() -> None:
    """One step: the hours of the events are known only when it ends."""
    store_user_activity()


class HoursConfig(dg.Config):
    """The hours to count, as partition keys, e.g. `2026-01-15-10:00`."""

    hours: list[str] = Field(default_factory=list)


@dg.op(name=HOURLY_OP, description="Computes the statistics of some hours.")
def count_hours(
    context: dg.OpExecutionContext, config: HoursConfig, services: dg.ResourceParam[UserActivityResources]
) -> None:
    """Count the hours of this run."""
    compute_statistics(context, services, [parse_hour_key(hour) for hour in config.hours])


@dg.job(description="Computes the statistics of hours whose events changed.")
def user_activity_hourly_batch() -> None:
    """One step for all hours."""
    count_hours()


@dg.op(
    description="Reads missing rows again, merges small files, writes a checkpoint, removes what is out of retention."
)
def maintain_events(context: dg.OpExecutionContext, services: dg.ResourceParam[UserActivityResources]) -> None:
    """Maintain the Delta table of events. Idempotent."""
    limits = MaintenanceLimits(retention=timedelta(hours=services.settings.user_activity.retention_hours))
    with exclusive(services.engine, LOCK, LOCK_WAIT_SECONDS):
        try:
            context.log.info("Rows recovered: %s", complete_all(services).metadata() or "none")
        except TransactionConflictError as conflict:
            context.log.info("Events are being stored, the next maintenance looks for missing rows: %s", conflict)
        maintenance = optimize_and_vacuum(services.user_activity_events, limits)
    context.log.info(summary(maintenance))


@dg.job(description="Maintains the Delta table of user activity.")
def user_activity_maintenance() -> None:
    """The maintenance has one step."""
    maintain_events()


user_activity_checks = dg.define_asset_job(
    "user_activity_checks",
    selection=dg.AssetSelection.checks(*CHECKS),
    description="Checks whether every offset is stored once, and the events' times are possible.",
)


def events_tick(
    context: dg.SensorEvaluationContext, services: UserActivityResources
) -> dg.SensorResult | dg.SkipReason:
    """Request runs over new events."""
    settings = services.settings.user_activity
    stream = StreamSensor(
        user_activity_batch.name,
        EVENTS_OP,
        settings.batch_messages,
        settings.max_parallel_batches,
        WORTH_SPLITTING,
    )
    return tick(context, services, services.activity_positions, stream)


def hourly_tick(
    context: dg.SensorEvaluationContext, services: UserActivityResources
) -> dg.SensorResult | dg.SkipReason:
    """Request one run over the hours whose events changed, while none is under way.

    An hour that was never counted, or not for a while, is counted now; one that goes on changing is counted again after
    a pause, as each time costs a read of all of its events.
    """
    under_way = dg.RunsFilter(job_name=user_activity_hourly_batch.name, statuses=UNFINISHED_RUNS)
    if context.instance.get_runs_count(under_way):
        return dg.SkipReason("Hours are being counted.")
    pause = timedelta(seconds=services.settings.user_activity.hourly_refresh_seconds)
    hours = services.activity_hours.due(datetime.now(UTC), pause, MOST_HOURS)
    if not hours:
        return dg.SkipReason("No hour has to be counted.")
    return dg.SensorResult(run_requests=[_hourly_request(hours)])


def _hourly_request(hours: Sequence[StaleHour]) -> dg.RunRequest:
    partitions = [hour_key(one.hour) for one in hours]
    # Without a run key: an hour whose counting failed is requested again.
    return dg.RunRequest(
        run_config={"ops": {HOURLY_OP: {"config": {"hours": partitions}}}},
        tags={BATCH_TAG: HOURLY, BATCH_ID_TAG: digest_of(repr(hours)), BATCH_SIZE_TAG: str(len(hours))},
    )


user_activity = dg.Definitions(
    assets=[user_activity_events, user_activity_hourly],
    asset_checks=CHECKS,
    jobs=[user_activity_batch, user_activity_hourly_batch, user_activity_checks, user_activity_maintenance],
    schedules=[
        dg.ScheduleDefinition(
            name="user_activity_checks_every_quarter_hour",
            job=user_activity_checks,
            cron_schedule="11,26,41,56 * * * *",
            default_status=dg.DefaultScheduleStatus.RUNNING,
        ),
        dg.ScheduleDefinition(
            name="user_activity_maintenance_every_ten_minutes",
            job=user_activity_maintenance,
            cron_schedule="4-59/10 * * * *",
            default_status=dg.DefaultScheduleStatus.RUNNING,
        ),
    ],
    sensors=[
        stream_sensor("user_activity_events_sensor", user_activity_batch.name, events_tick),
        queue_sensor(
            "user_activity_hourly_sensor",
            user_activity_hourly_batch.name,
            "Requests the statistics of hours whose events changed.",
            hourly_tick,
            every_seconds=5,
        ),
    ],
)
