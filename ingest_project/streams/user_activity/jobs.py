"""Jobs of user activity: batches of offset ranges, batches of hours, and maintenance of the Delta table."""

from datetime import timedelta

import dagster as dg
from pydantic import Field

from ingest_project.core.errors import TransactionConflictError
from ingest_project.core.keys import parse_hour_key
from ingest_project.platform.database.engine import exclusive
from ingest_project.platform.delta.maintenance import MaintenanceLimits, optimize_and_vacuum, summary
from ingest_project.streams.runs import RangesConfig
from ingest_project.streams.user_activity.assets import make_statistics, store_batch
from ingest_project.streams.user_activity.recovery import complete_all
from ingest_project.streams.user_activity.resources import UserActivityResources
from ingest_project.streams.user_activity.stream import EVENTS_OP, LOCK, LOCK_WAIT_SECONDS


@dg.op(name=EVENTS_OP, description="Stores the events of offset ranges of user-activity-events.")
def store_ranges_of_batch(
    context: dg.OpExecutionContext, config: RangesConfig, services: dg.ResourceParam[UserActivityResources]
) -> None:
    """Read the ranges of this run and append their events to the Delta table, each offset once."""
    store_batch(context, services, config.offsets())


@dg.job(description="Stores the events of some offset ranges of user-activity-events.")
def user_activity_batch() -> None:
    """One step: what it makes is by hours that are known only when it ends."""
    store_ranges_of_batch()


HOURLY_OP = "count_hours"


class HoursConfig(dg.Config):
    """The hours to count, as partition keys, e.g. `2026-01-15-10:00`."""

    hours: list[str] = Field(default_factory=list)


@dg.op(name=HOURLY_OP, description="Makes the statistics of some hours again.")
def count_hours(
    context: dg.OpExecutionContext, config: HoursConfig, services: dg.ResourceParam[UserActivityResources]
) -> None:
    """Count the hours of this run."""
    make_statistics(context, services, [parse_hour_key(hour) for hour in config.hours])


@dg.job(description="Makes the statistics of hours again whose events changed.")
def user_activity_hourly_batch() -> None:
    """One step for all hours."""
    count_hours()


@dg.op(
    description="Reads missing rows again, merges small files, writes a checkpoint, removes what is out of retention."
)
def keep_events_healthy(context: dg.OpExecutionContext, services: dg.ResourceParam[UserActivityResources]) -> None:
    """Look after the Delta table of events; the second time nothing is left to do."""
    limits = MaintenanceLimits(retention=timedelta(hours=services.settings.user_activity.retention_hours))
    with exclusive(services.engine, LOCK, LOCK_WAIT_SECONDS):
        try:
            context.log.info("Rows recovered: %s", complete_all(services).metadata() or "none")
        except TransactionConflictError as conflict:
            context.log.info("Events are being stored, the next upkeep looks for missing rows: %s", conflict)
        maintenance = optimize_and_vacuum(services.user_activity_events, limits)
    context.log.info(summary(maintenance))


@dg.job(description="Keeps the Delta table of user activity healthy.")
def user_activity_maintenance() -> None:
    """The maintenance has one step."""
    keep_events_healthy()
