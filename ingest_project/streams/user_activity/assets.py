"""The hourly statistics of user activity.

They are computed again whenever events of the hour were stored, also late ones. Changes of an hour are counted before
its events are read. One that comes in meanwhile leaves the hour stale, and the next tick requests it again.
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
    partitions_of_run,
    report,
)
from ingest_project.platform.database import exclusive
from ingest_project.streams.delta.definitions import hourly_partitions
from ingest_project.streams.engine import as_ingest_error
from ingest_project.streams.resources import StreamResources
from ingest_project.streams.user_activity.hours import HourOfType, replace_hours, statistics_of_hour
from ingest_project.streams.user_activity.stream import TABLE

HOURLY_FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=3), warn_window=timedelta(hours=2))

logger = get_logger(__name__)

USER_ACTIVITY_EVENTS = dg.AssetKey(TABLE)
USER_ACTIVITY_HOURLY = dg.AssetKey("user_activity_hourly")

HOURLY_LOCK = "user_activity_hourly"
HOURLY_LOCK_WAIT_SECONDS = 900.0
MAX_TYPES_SHOWN = 20
MAX_STORE_FAILURES = 3


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
                # One file of the table may be gone or broken; of a store that is away all are.
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
