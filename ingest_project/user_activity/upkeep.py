"""Keeping the Delta table of events healthy: a commit a second is eighty thousand small files a day."""

from datetime import timedelta

import dagster as dg

from ingest_project.database.locks import exclusive
from ingest_project.errors import TransactionConflict
from ingest_project.resources import Services
from ingest_project.stores.delta_upkeep import UpkeepLimits, keep_healthy, summary
from ingest_project.user_activity.recovering import complete_all
from ingest_project.user_activity.stream import LOCK, LOCK_WAIT_SECONDS


@dg.op(
    description="Reads missing rows again, merges small files, writes a checkpoint, removes what is out of retention."
)
def keep_events_healthy(context: dg.OpExecutionContext, services: dg.ResourceParam[Services]) -> None:
    """Look after the Delta table of events; the second time nothing is left to do."""
    limits = UpkeepLimits(retention=timedelta(hours=services.settings.user_activity.retention_hours))
    with exclusive(services.engine, LOCK, LOCK_WAIT_SECONDS):
        try:
            context.log.info("Rows recovered: %s", complete_all(services).metadata() or "none")
        except TransactionConflict as conflict:
            context.log.info("Events are being stored, the next upkeep looks for missing rows: %s", conflict)
        upkeep = keep_healthy(services.user_activity_events, limits)
    context.log.info(summary(upkeep))


@dg.job(description="Keeps the Delta table of user activity healthy.")
def user_activity_upkeep() -> None:
    """The upkeep has one step."""
    keep_events_healthy()
