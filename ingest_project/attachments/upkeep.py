"""Keeping the Delta table of results healthy, and the stores free of what killed uploads left."""

from datetime import timedelta

import dagster as dg

from ingest_project.connections import upkeep_limits
from ingest_project.resources import Services
from ingest_project.stores.delta_upkeep import keep_healthy, summary

# No upload takes a day.
ABANDONED_AFTER = timedelta(days=1)


@dg.op(description="Merges small files, writes a checkpoint, removes what is out of retention.")
def keep_results_healthy(context: dg.OpExecutionContext, services: dg.ResourceParam[Services]) -> None:
    """Look after the Delta table of results; the second time nothing is left to do."""
    upkeep = keep_healthy(services.attachment_results, upkeep_limits(services.settings.delta))
    context.log.info(summary(upkeep))


@dg.op(description="Removes temporary files of uploads that were killed.")
def remove_abandoned_uploads(context: dg.OpExecutionContext, services: dg.ResourceParam[Services]) -> None:
    """Look through every store that a domain has."""
    removed = sum(store.remove_abandoned(ABANDONED_AFTER) for store in services.attachment_stores())
    context.log.info("%d abandoned uploads were removed.", removed)


@dg.job(description="Keeps the Delta table of results and the attachment stores healthy.")
def attachments_upkeep() -> None:
    """Both parts of the upkeep."""
    keep_results_healthy()
    remove_abandoned_uploads()
