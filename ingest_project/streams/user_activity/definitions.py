"""User activity as Dagster sees it: the declared stream, and its hourly statistics.

They are computed again whenever events of the hour were stored, also late ones. Changes of an hour are counted before
its events are read. One that comes in meanwhile leaves the hour stale, and the next tick requests it again.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg
from pydantic import Field

from ingest_project.core.errors import IngestError, StoreUnavailableError, TransientError
from ingest_project.core.items import digest_of, hour_key, parse_hour_key
from ingest_project.core.logging import bound, get_logger
from ingest_project.platform.dagster.asset_events import (
    Context,
    PartitionEvents,
    keep_connections_open,
    outputs_without_events,
    partitions_of_run,
    report,
)
from ingest_project.platform.dagster.catalog import SqlTable, StoredTable
from ingest_project.platform.database import exclusive
from ingest_project.platform.work_queue.sensor import batch_tags, queue_sensor
from ingest_project.streams.delta.definitions import DeltaParts, delta_definitions, hourly_partitions
from ingest_project.streams.engine import as_ingest_error
from ingest_project.streams.hours import HOURLY_SENSOR, StaleHour
from ingest_project.streams.resources import StreamResources
from ingest_project.streams.sensor import UNFINISHED_RUNS
from ingest_project.streams.user_activity.event_table import TABLE
from ingest_project.streams.user_activity.hours import HourOfType, replace_hours, statistics_of_hour
from ingest_project.streams.user_activity.hours import user_activity_hourly as hourly_table

HOURLY_FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=3), warn_window=timedelta(hours=2))

logger = get_logger(__name__)

USER_ACTIVITY_EVENTS = dg.AssetKey(TABLE)
USER_ACTIVITY_HOURLY = dg.AssetKey("user_activity_hourly")

HOURLY_LOCK = "user_activity_hourly"
HOURLY_LOCK_WAIT_SECONDS = 900.0
MAX_TYPES_SHOWN = 20
SHOWN = ("event_type", "events", "users", "sessions", "processing_ms_p50", "processing_ms_p95")
MAX_STORE_FAILURES = 3
HOURLY_OP = "count_hours"
HOURLY = "user_activity_hourly"
MAX_HOURS = 200
STORED: dict[dg.AssetKey, StoredTable] = {USER_ACTIVITY_HOURLY: SqlTable(hourly_table, "hour", parse_hour_key)}


@dg.multi_asset(
    name="user_activity_statistics",
    specs=[
        dg.AssetSpec(
            USER_ACTIVITY_HOURLY,
            deps=[USER_ACTIVITY_EVENTS],
            description="Events, users, sessions and processing times of an hour, by type of event.",
            group_name="user_activity",
            kinds={"table"},
            partitions_def=hourly_partitions,
            freshness_policy=HOURLY_FRESHNESS,
            skippable=True,
        )
    ],
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def user_activity_hourly(
    context: dg.AssetExecutionContext, services: dg.ResourceParam[StreamResources]
) -> Iterator[dg.MaterializeResult[None]]:
    """Compute the statistics of the selected hours from the Delta table."""
    compute_statistics(context, services, [parse_hour_key(partition) for partition in partitions_of_run(context)])
    yield from outputs_without_events(context)


def compute_statistics(context: Context, services: StreamResources, hours: Sequence[datetime]) -> None:
    """Compute the statistics of some hours and report them. Idempotent.

    An hour that cannot be counted, for whatever reason, keeps none of the others from being counted.

    Raises:
        TransientError: the hours that are not done stay stale, and are requested again.
        Failure: names the hours that are not done and why; they stay stale as well.
    """
    keep_connections_open(context.instance)
    failures: dict[str, IngestError] = {}
    with bound(run_id=context.run.run_id), exclusive(services.engine, HOURLY_LOCK, HOURLY_LOCK_WAIT_SECONDS):
        for hour in hours:
            try:
                _count_hour(context, services, hour)
            except Exception as error:
                # A single failure may be a missing or damaged file; an unavailable store fails all hours.
                many = len(failures) >= MAX_STORE_FAILURES
                if isinstance(error, TransientError) and (many or not isinstance(error, StoreUnavailableError)):
                    raise
                failures[hour_key(hour)] = as_ingest_error(error, f"Counting {hour_key(hour)}")
    if failures:
        raise dg.Failure("; ".join(f"{hour}: {failure}" for hour, failure in failures.items()), allow_retries=False)


def _count_hour(context: Context, services: StreamResources, hour: datetime) -> None:
    changes = services.user_activity.hours.changes([hour])
    found = statistics_of_hour(services.user_activity.store, hour)
    replace_hours(services.engine, {hour: found}, changes, datetime.now(UTC))
    logger.info("hour_counted", hour=hour.isoformat(), events=sum(one.events for one in found))
    report(context, [PartitionEvents(hour_key(hour), {USER_ACTIVITY_HOURLY: _metadata(found)})])


def _metadata(found: Sequence[HourOfType]) -> dict[str, object]:
    most = sorted(found, key=lambda one: one.events, reverse=True)[:MAX_TYPES_SHOWN]
    return {
        "events": sum(one.events for one in found),
        "deliveries": sum(one.deliveries for one in found),
        "event_types": len(found),
        **({"by_type": _by_type(most)} if most else {}),
    }


def _by_type(found: Sequence[HourOfType]) -> dg.TableMetadataValue:
    columns = [dg.TableColumn(name, "string" if name == "event_type" else "number") for name in SHOWN]
    rows = [{name: "" if (value := getattr(one, name)) is None else value for name in SHOWN} for one in found]
    return dg.TableMetadataValue([dg.TableRecord(row) for row in rows], schema=dg.TableSchema(columns))


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
    # Use no run key, so that an hour whose counting failed is requested again.
    tags = batch_tags(HOURLY, digest_of(repr(hours)), len(hours))
    return dg.RunRequest(run_config={"ops": {HOURLY_OP: {"config": {"hours": partitions}}}}, tags=tags)


def definitions_of(parts: DeltaParts) -> dg.Definitions:
    """Return the Dagster definitions of the stream and of its hourly statistics."""
    job, described = user_activity_hourly_batch, "Requests the statistics of hours whose events changed."
    sensor = queue_sensor(HOURLY_SENSOR, job.name, described, hourly_tick, every_seconds=5)
    hourly = dg.Definitions(jobs=[job], sensors=[sensor])
    return dg.Definitions.merge(delta_definitions(parts, user_activity_hourly), hourly)
