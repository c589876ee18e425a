"""The assets of user activity: the Delta table of events, by the hour in which they happened, and hourly statistics.

`user_activity_events`: a run that a tick requests stores each partition up to the offsets in its configuration; one
that a person starts without them stores all. A person who materialises hours rebuilds them from what Kafka still has.

`user_activity_hourly`: computed again whenever events of the hour were stored, also late ones. Changes of an hour are
counted before its events are read. One that comes in meanwhile leaves the hour stale, and the next tick requests it
again.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg

from ingest_project.core.errors import IngestError, StoreUnavailableError, TransientError
from ingest_project.core.items import hour_key, parse_hour_key
from ingest_project.core.logging import bound, get_logger
from ingest_project.platform.dagster.asset_events import (
    Context,
    PartitionEvents,
    keep_connections_open,
    outputs_without_events,
    report,
)
from ingest_project.platform.dagster.catalog import topic_key
from ingest_project.platform.database import exclusive
from ingest_project.platform.work_queue.sensor import BATCH_ID_TAG
from ingest_project.streams.engine import StreamRun, as_ingest_error, settle, store_stream
from ingest_project.streams.sensor import StreamRunConfig
from ingest_project.streams.user_activity.hours import HourOfType, replace_hours, statistics_of_hour
from ingest_project.streams.user_activity.rebuild import rebuild_hour
from ingest_project.streams.user_activity.resources import FIRST_HOUR, UserActivityResources
from ingest_project.streams.user_activity.sink import ActivitySink

EVENTS_FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=2), warn_window=timedelta(hours=1))
HOURLY_FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=3), warn_window=timedelta(hours=2))

logger = get_logger(__name__)

# The present hour is a partition too, so that new arrivals are visible.
hourly_partitions = dg.HourlyPartitionsDefinition(start_date=FIRST_HOUR, end_offset=1)

USER_ACTIVITY_EVENTS = dg.AssetKey("user_activity_events")
USER_ACTIVITY_HOURLY = dg.AssetKey("user_activity_hourly")

HOURLY_LOCK = "user_activity_hourly"
HOURLY_LOCK_WAIT_SECONDS = 900.0
MAX_TYPES_SHOWN = 20
MAX_STORE_FAILURES = 3
MAX_HOURS = 10_000


@dg.multi_asset(
    name="user_activity_intake",
    specs=[
        dg.AssetSpec(
            USER_ACTIVITY_EVENTS,
            deps=[topic_key("user_activity_events")],
            description="The Delta table of what users did, by the hour in which they did it.",
            group_name="user_activity",
            kinds={"kafka", "deltalake"},
            partitions_def=hourly_partitions,
            freshness_policy=EVENTS_FRESHNESS,
            skippable=True,
        )
    ],
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def user_activity_events(
    context: dg.AssetExecutionContext, services: dg.ResourceParam[UserActivityResources]
) -> Iterator[dg.MaterializeResult[None]]:
    """Rebuild the selected hours, from Kafka as far as it has them."""
    keep_connections_open(context.instance)
    for partition in context.partition_keys:
        hour = parse_hour_key(partition)
        rebuilt = rebuild_hour(services, hour)
        changes = services.activity_hours.changes([hour])
        report(context, [PartitionEvents(partition, {USER_ACTIVITY_EVENTS: rebuilt.metadata()})])
        services.activity_hours.mark_reported(changes)
    yield from outputs_without_events(context)


def store_events(context: Context, services: UserActivityResources, config: StreamRunConfig) -> None:
    """Store events up to the offsets of the configuration, or all, and report the hours that changed.

    Raises:
        Failure: not all of them are stored; what is left is requested again.
    """
    keep_connections_open(context.instance)
    positions, sink = services.activity_positions, ActivitySink(services)
    with bound(run_id=context.run.run_id, batch_id=context.run.tags.get(BATCH_ID_TAG)):
        run = store_stream(services, positions, sink, run_id=context.run.run_id, ends=config.ends)
        _report(context, services, run, sink)
        settle(services, positions, run)
    if run.failure is not None:
        error_class = run.failure.error_class
        raise dg.Failure(description=str(run.failure), metadata={"error_class": error_class}, allow_retries=False)


def _report(context: Context, services: UserActivityResources, run: StreamRun, sink: ActivitySink) -> None:
    """Report each hour that changed since it was reported last: also those of a run that was killed before it did."""
    try:
        changes = services.activity_hours.unreported(FIRST_HOUR, datetime.now(UTC), MAX_HOURS)
    except TransientError as away:
        # The next run reports them.
        logger.warning("hours_not_reported", reason=str(away))
        return
    version = {} if sink.table_version is None else {"table_version": sink.table_version}
    common = {**run.outcome, **run.metadata(), **version, **sink.recovered.metadata()}
    rows = sink.hours + sink.recovered.hours
    report(
        context,
        [
            PartitionEvents(hour_key(hour), {USER_ACTIVITY_EVENTS: {"rows_added": rows[hour], **common}})
            for hour in changes
        ],
    )
    services.activity_hours.mark_reported(changes)


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
    context: dg.AssetExecutionContext, services: dg.ResourceParam[UserActivityResources]
) -> Iterator[dg.MaterializeResult[None]]:
    """Compute the statistics of the selected hours from the Delta table."""
    compute_statistics(context, services, [parse_hour_key(partition) for partition in context.partition_keys])
    yield from outputs_without_events(context)


def compute_statistics(context: Context, services: UserActivityResources, hours: Sequence[datetime]) -> None:
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
                # One file of the table may be gone or broken; of a store that is away all are.
                many = len(failures) >= MAX_STORE_FAILURES
                if isinstance(error, TransientError) and (many or not isinstance(error, StoreUnavailableError)):
                    raise
                failures[hour_key(hour)] = as_ingest_error(error, f"Counting {hour_key(hour)}")
    if failures:
        raise dg.Failure("; ".join(f"{hour}: {failure}" for hour, failure in failures.items()), allow_retries=False)


def _count_hour(context: Context, services: UserActivityResources, hour: datetime) -> None:
    changes = services.activity_hours.changes([hour])
    found = statistics_of_hour(services.user_activity_events, hour)
    replace_hours(services.engine, {hour: found}, changes, datetime.now(UTC))
    logger.info("hour_counted", hour=hour.isoformat(), events=sum(one.events for one in found))
    report(context, [PartitionEvents(hour_key(hour), {USER_ACTIVITY_HOURLY: _metadata(found)})])


def _metadata(found: Sequence[HourOfType]) -> dict[str, object]:
    most = sorted(found, key=lambda one: one.events, reverse=True)[:MAX_TYPES_SHOWN]
    shown = ("event_type", "events", "users", "sessions", "processing_ms_p50", "processing_ms_p95")
    return {
        "events": sum(one.events for one in found),
        "deliveries": sum(one.deliveries for one in found),
        "event_types": len(found),
        **(
            {"by_type": dg.TableMetadataValue([_record(one, shown) for one in most], schema=_schema(shown))}
            if most
            else {}
        ),
    }


def _record(one: HourOfType, shown: Sequence[str]) -> dg.TableRecord:
    return dg.TableRecord({name: getattr(one, name) if getattr(one, name) is not None else "" for name in shown})


def _schema(shown: Sequence[str]) -> dg.TableSchema:
    return dg.TableSchema([dg.TableColumn(name, "string" if name == "event_type" else "number") for name in shown])
