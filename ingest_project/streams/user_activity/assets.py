"""The assets of user activity: the Delta table of events, by the hour in which they happened, and hourly statistics.

`user_activity_events`: a run that a tick requests gets its offset ranges in its configuration and stores just these,
however often. A person who materialises hours rebuilds them from what Kafka still has of them; without hours and
ranges, a run stores what is due.

`user_activity_hourly`: computed again whenever events of the hour were stored, also late ones. Changes of an hour are
counted before its events are read. One that comes in meanwhile leaves the hour stale, and the next tick requests it
again.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from ingest_project.core.errors import IngestError, StoreUnavailableError, TransientError
from ingest_project.core.keys import hour_key, parse_hour_key
from ingest_project.core.logging import bound, get_logger
from ingest_project.platform.dagster.asset_events import (
    Context,
    PartitionEvents,
    keep_connections_open,
    outputs_without_events,
    report,
)
from ingest_project.platform.dagster.external_assets import topic_key
from ingest_project.platform.database.engine import exclusive
from ingest_project.platform.work_queue.batches import BATCH_ID_TAG, new_batch_id
from ingest_project.streams.range_record import OffsetRange, RangeRecord, RangeState
from ingest_project.streams.runs import claim, trouble_of
from ingest_project.streams.ticks import lag
from ingest_project.streams.user_activity.checks import EVENTS_FRESHNESS, HOURLY_FRESHNESS
from ingest_project.streams.user_activity.hourly_statistics import HourOfType, replace_hours, statistics_of_hour
from ingest_project.streams.user_activity.load import Stored, store_ranges
from ingest_project.streams.user_activity.range_batches import ready
from ingest_project.streams.user_activity.recompute_hours import rebuild_hour
from ingest_project.streams.user_activity.resources import UserActivityResources
from ingest_project.streams.user_activity.stream import (
    MOST_UNFINISHED,
    NO_LAST_ATTEMPT,
    USER_ACTIVITY_EVENTS,
    USER_ACTIVITY_HOURLY,
    hourly_partitions,
    hours_between,
)

logger = get_logger(__name__)


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
        rebuilt = rebuild_hour(services, parse_hour_key(partition))
        report(context, [PartitionEvents(partition, {USER_ACTIVITY_EVENTS: rebuilt.metadata()})])
    yield from outputs_without_events(context)


def store_batch(context: Context, services: UserActivityResources, ranges: Sequence[OffsetRange]) -> None:
    """Store ranges, or everything that is due where none is named, and report the hours.

    Raises:
        Failure: not all of it is stored; what is left will be asked for again.
    """
    keep_connections_open(context.instance)
    with bound(run_id=context.run.run_id, batch_id=context.run.tags.get(BATCH_ID_TAG)):
        keys = [one.key for one in ranges] or _claim_due(services)
        records = claim(context, services, keys)
        stored = Stored()
        trouble = _store(services, records, stored)
        _report(context, services, stored)
    if trouble is not None:
        raise dg.Failure(description=str(trouble), metadata={"error_class": trouble.error_class}, allow_retries=False)


def _claim_due(services: UserActivityResources) -> list[str]:
    """What a person who names no ranges gets."""
    ledger, topic, now = services.stream_ranges, services.settings.topics.user_activity_events, datetime.now(UTC)
    ledger.reopen(topic, [RangeState.FAILED], now)
    due = frozenset(entry.key for entry in ledger.due(topic, MOST_UNFINISHED, now))
    unfinished = ledger.unfinished(topic, MOST_UNFINISHED)
    keys = [record.range_key for topic_partition in ready(unfinished, due) for record in topic_partition]
    return list(ledger.claim(new_batch_id(), keys, now))


def _store(services: UserActivityResources, records: Sequence[RangeRecord], stored: Stored) -> IngestError | None:
    """Store what can be stored, and give back the rest with the reason."""
    try:
        store_ranges(services, records, stored)
    except Exception as error:  # noqa: BLE001 - whatever it is, the ledger must say so
        trouble = trouble_of(error, "Storing events")
        logger.warning("ranges_not_done", done=len(stored.done), ranges=len(records), reason=str(trouble))
        finished = {record.range_key for record in stored.done}
        _requeue(services, [record.range_key for record in records if record.range_key not in finished], trouble)
        return trouble
    return None


def _requeue(services: UserActivityResources, keys: Sequence[str], error: IngestError) -> None:
    retries = services.settings.retries.model_copy(update={"max_attempts": NO_LAST_ATTEMPT})
    try:
        services.stream_ranges.requeue_later(keys, str(error), error.error_class, retries, datetime.now(UTC))
    except TransientError as away:
        # The database itself is what is away: a tick takes back what this run holds once it is there again.
        logger.warning("ranges_not_given_back", reason=str(away))


def _report(context: Context, services: UserActivityResources, stored: Stored) -> None:
    recovered = stored.recovered
    if not stored.by_range and not recovered.rows:
        return
    common = {**stored.totals, "ranges": len(stored.done), **_state(services, stored), **recovered.metadata()}
    rows = stored.hours + recovered.hours
    report(
        context,
        [
            PartitionEvents(hour_key(hour), {USER_ACTIVITY_EVENTS: {"rows_added": rows[hour], **common}})
            for hour in hours_between(rows, datetime.now(UTC))
        ],
    )
    services.stream_ranges.mark_reported([record.range_key for record in stored.done], datetime.now(UTC))


def _state(services: UserActivityResources, stored: Stored) -> dict[str, Any]:
    shown: dict[str, Any] = {} if stored.table_version is None else {"table_version": stored.table_version}
    if stored.done:
        last = stored.done[-1].offsets
        waiting = lag(services, last.topic, last.topic_id)
        shown |= {"offsets": ", ".join(str(record.offsets) for record in stored.done[:20])}
        shown |= {} if waiting is None else {"consumer_lag": waiting}
    return shown


HOURLY_LOCK = "user_activity_hourly"
HOURLY_LOCK_WAIT_SECONDS = 900.0
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
    with bound(run_id=context.run.run_id), exclusive(services.engine, HOURLY_LOCK, HOURLY_LOCK_WAIT_SECONDS):
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
