"""User activity as Dagster sees it: checks, jobs, sensors, schedules, external assets, and the tables of the assets.

Each check reads what is stored now.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg
from pydantic import Field

from ingest_project.core.errors import TransactionConflictError
from ingest_project.core.items import digest_of, hour_key, parse_hour_key
from ingest_project.core.settings import Settings
from ingest_project.platform.dagster.catalog import HourlyDeltaTable, SqlTable, StoredTable, topic, topic_key
from ingest_project.platform.database import exclusive
from ingest_project.platform.delta.maintenance import MaintenanceLimits, optimize_and_vacuum, summary
from ingest_project.platform.delta.table import query_events
from ingest_project.platform.work_queue.sensor import BATCH_ID_TAG, BATCH_SIZE_TAG, BATCH_TAG, queue_sensor
from ingest_project.streams.engine import MAX_SHOWN, RECENT, health_of
from ingest_project.streams.positions import OffsetRange
from ingest_project.streams.sensor import UNFINISHED_RUNS, StreamRunConfig, StreamSensor, stream_sensor, tick
from ingest_project.streams.user_activity.assets import (
    USER_ACTIVITY_EVENTS,
    USER_ACTIVITY_HOURLY,
    compute_statistics,
    store_events,
    user_activity_events,
    user_activity_hourly,
)
from ingest_project.streams.user_activity.event_queries import of_offsets
from ingest_project.streams.user_activity.event_table import DAY, SCHEMA
from ingest_project.streams.user_activity.hours import StaleHour
from ingest_project.streams.user_activity.hours import user_activity_hourly as hourly_table
from ingest_project.streams.user_activity.recovery import (
    complete_all,
    hours_text,
    is_in_doubt,
    missing_runs,
    size_of,
    without_known,
)
from ingest_project.streams.user_activity.resources import (
    FIRST_HOUR,
    LOCK,
    LOCK_WAIT_SECONDS,
    UserActivityResources,
    app_id_of,
)

AHEAD = timedelta(minutes=5)
# Going through all that were ever stored would take longer each time.
LAST_OFFSETS = 1_000_000


@dg.asset_check(
    asset=USER_ACTIVITY_EVENTS,
    description="No partition waits too long or keeps failing, the table has all rows, and no offset got lost of late.",
)
def no_gap_in_offsets(services: dg.ResourceParam[UserActivityResources]) -> dg.AssetCheckResult:
    """Find partitions that do not progress, and rows that the table lacks."""
    patience = services.settings.user_activity.max_unfinished_seconds
    health = health_of(services, services.activity_positions, patience)
    rows, missing, behind = _missing_rows(services)
    wrong = bool(health.failing or health.late or rows or behind)
    return dg.AssetCheckResult(
        passed=not (wrong or health.lost),
        # What retention has removed cannot be recovered: it is worth a warning only.
        severity=dg.AssetCheckSeverity.ERROR if wrong else dg.AssetCheckSeverity.WARN,
        metadata={
            **health.metadata(),
            "rows_missing": rows,
            "missing": missing[:MAX_SHOWN],
            "table_behind": behind[:MAX_SHOWN],
        },
    )


@dg.asset_check(asset=USER_ACTIVITY_EVENTS, description="No offset is in the table twice.")
def no_duplicate_offsets(services: dg.ResourceParam[UserActivityResources]) -> dg.AssetCheckResult:
    """Find rows of the same offset among those that were stored last."""
    rows = offsets = 0
    for position in services.activity_positions.current().values():
        end = position.next_offset
        last = OffsetRange(*position.topic_partition, max(position.first_offset, end - LAST_OFFSETS), end)
        counted = "count(*) AS rows, count(DISTINCT kafka_offset) AS offsets"
        query = f"SELECT {counted} FROM events WHERE {of_offsets(last)}"
        found = _counts(services, query, "rows", "offsets") if len(last) else (0, 0)
        rows, offsets = rows + found[0], offsets + found[1]
    return dg.AssetCheckResult(passed=rows == offsets, metadata={"rows": rows, "duplicates": rows - offsets})


@dg.asset_check(
    asset=USER_ACTIVITY_EVENTS,
    description="Hardly any event says that it happened before user activity began, or after it arrived.",
)
def event_time_plausible(services: dg.ResourceParam[UserActivityResources]) -> dg.AssetCheckResult:
    """Count the recently arrived events with an impossible time."""
    too_early = f"\"timestamp\" < TIMESTAMP '{FIRST_HOUR.isoformat()}'"
    too_late = f"\"timestamp\" > kafka_timestamp + INTERVAL '{AHEAD.seconds} seconds'"
    counted = f"count(*) AS rows, count(*) FILTER (WHERE {too_early} OR {too_late}) AS implausible"
    arrived_recently = f"kafka_timestamp >= TIMESTAMP '{(datetime.now(UTC) - RECENT).isoformat()}'"
    query = f"SELECT {counted} FROM events WHERE {arrived_recently}"
    rows, implausible = _counts(services, query, "rows", "implausible")
    return dg.AssetCheckResult(
        passed=implausible <= rows * services.settings.user_activity.max_implausible_share,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"rows": rows, "implausible": implausible},
    )


CHECKS = [no_gap_in_offsets, no_duplicate_offsets, event_time_plausible]


def _missing_rows(services: UserActivityResources) -> tuple[int, list[str], list[str]]:
    """Count rows that were stored and are not in the table any more; name their offsets and hours.

    Only a commit that may have removed rows, or a table that is behind, is a reason to count.

    Returns:
        number of rows, a line for each partition that lacks some, and one for each whose position went back.
    """
    positions, rows = services.activity_positions.all(), 0
    missing, behind = [], []
    standings = services.user_activity_events.standings([app_id_of(one.topic_partition) for one in positions])
    for position in positions:
        standing = standings[app_id_of(position.topic_partition)]
        if not is_in_doubt(standing, position):
            continue
        whole = OffsetRange(*position.topic_partition, position.first_offset, position.next_offset)
        found = [run for _, piece in missing_runs(services, whole) for run in piece]
        runs = without_known(services, whole, found)
        if runs:
            rows += size_of(runs)
            lacks = OffsetRange(*position.topic_partition, runs[0][0], runs[-1][1])
            missing.append(f"{size_of(runs)} rows of {lacks}; hours {hours_text(services, lacks)}")
        reached = position.first_offset if standing.position is None else standing.position
        if reached < position.next_offset:
            lacks = OffsetRange(*position.topic_partition, reached, position.next_offset)
            hours = hours_text(services, lacks)
            behind.append(f"the table is at {reached} and lacks {lacks}; hours {hours}")
    return rows, missing, behind


def _counts(services: UserActivityResources, query: str, *names: str) -> list[int]:
    found = [row for batch in query_events(services.user_activity_events, query) for row in batch.to_pylist()]
    return [sum(row[name] for row in found) for name in names]


GROUP = "user_activity"
EVENTS_OP = "store_user_activity"
HOURLY_OP = "count_hours"
HOURLY = "user_activity_hourly"
MAX_HOURS = 200
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

    An hour that was never counted, or not for a while, is counted now; one that keeps changing is counted again after
    a pause, as each time costs a read of all of its events.
    """
    under_way = dg.RunsFilter(job_name=user_activity_hourly_batch.name, statuses=UNFINISHED_RUNS)
    if context.instance.get_runs_count(under_way):
        return dg.SkipReason("Hours are being counted.")
    pause = timedelta(seconds=services.settings.user_activity.hourly_refresh_seconds)
    hours = services.activity_hours.due(datetime.now(UTC), pause, MAX_HOURS)
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
