"""`user_activity_hourly`: what happened in an hour, made again whenever events of the hour were stored, also late ones.

Changes of an hour are counted before its events are read. One that comes in meanwhile leaves the hour stale, and the
next tick asks for it again.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import dagster as dg

from ingest_project.core.errors import IngestError, StoreUnavailableError, TransientError
from ingest_project.core.hours import hour_key, parse_hour_key
from ingest_project.core.logging import bound, get_logger
from ingest_project.platform.dagster.asset_events import (
    Context,
    PartitionEvents,
    keep_connections_open,
    outputs_without_events,
    report,
)
from ingest_project.platform.database.locks import exclusive
from ingest_project.streams.runs import trouble_of
from ingest_project.streams.user_activity.checks import HOURLY_FRESHNESS
from ingest_project.streams.user_activity.hourly_statistics import HourOfType, replace_hours, statistics_of_hour
from ingest_project.streams.user_activity.resources import UserActivityResources
from ingest_project.streams.user_activity.stream import (
    USER_ACTIVITY_EVENTS,
    USER_ACTIVITY_HOURLY,
    hourly_partitions,
)

logger = get_logger(__name__)

LOCK = "user_activity_hourly"
LOCK_WAIT_SECONDS = 900.0
MOST_TYPES_SHOWN = 20
MOST_STORE_TROUBLES = 3


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
    """Make the statistics of the selected hours again from the Delta table."""
    make_statistics(context, services, [parse_hour_key(partition) for partition in context.partition_keys])
    yield from outputs_without_events(context)


def make_statistics(context: Context, services: UserActivityResources, hours: Sequence[datetime]) -> None:
    """Make the statistics of some hours again and report them; the second time they are the same.

    An hour that cannot be counted, for whatever reason, keeps none of the others from being counted.

    Raises:
        TransientError: the hours that are not done stay stale, and are asked for again.
        Failure: names the hours that are not done and why; they stay stale as well.
    """
    keep_connections_open(context.instance)
    alert_conditions: dict[str, IngestError] = {}
    with bound(run_id=context.run.run_id), exclusive(services.engine, LOCK, LOCK_WAIT_SECONDS):
        for hour in hours:
            try:
                _count_hour(context, services, hour)
            except Exception as error:
                # One file of the table may be gone or broken; of a store that is away all are.
                many = len(alert_conditions) >= MOST_STORE_TROUBLES
                if isinstance(error, TransientError) and (many or not isinstance(error, StoreUnavailableError)):
                    raise
                alert_conditions[hour_key(hour)] = trouble_of(error, f"Counting {hour_key(hour)}")
    if alert_conditions:
        raise dg.Failure(
            "; ".join(f"{hour}: {trouble}" for hour, trouble in alert_conditions.items()), allow_retries=False
        )


def _count_hour(context: Context, services: UserActivityResources, hour: datetime) -> None:
    changes = services.activity_hours.changes([hour])
    found = statistics_of_hour(services.user_activity_events, hour)
    replace_hours(services.engine, {hour: found}, changes, datetime.now(UTC))
    logger.info("hour_counted", hour=hour.isoformat(), events=sum(one.events for one in found))
    report(context, [PartitionEvents(hour_key(hour), {USER_ACTIVITY_HOURLY: _metadata(found)})])


def _metadata(found: Sequence[HourOfType]) -> dict[str, object]:
    most = sorted(found, key=lambda one: one.events, reverse=True)[:MOST_TYPES_SHOWN]
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
