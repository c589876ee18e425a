"""Keeping the Delta table of results healthy, and the stores free of what killed uploads left."""

import contextlib
import time
from datetime import timedelta
from pathlib import Path

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


@dg.op(description="Removes downloaded files of runs that were killed before they were stored.")
def remove_abandoned_downloads(context: dg.OpExecutionContext, services: dg.ResourceParam[Services]) -> None:
    """Look through the cache of this machine; the second time nothing is left to do."""
    removed = remove_old_files(services.settings.cache_dir, ABANDONED_AFTER)
    context.log.info("%d abandoned downloads were removed.", removed)


def remove_old_files(folder: Path, older_than: timedelta) -> int:
    """Remove the files of a folder that nobody has changed for so long, and return how many."""
    oldest = time.time() - older_than.total_seconds()
    removed = 0
    for path in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ctime < oldest:
                path.unlink()
                removed += 1
    return removed


@dg.job(description="Keeps the Delta table of results and the attachment stores healthy.")
def attachments_upkeep() -> None:
    """All parts of the upkeep."""
    keep_results_healthy()
    remove_abandoned_uploads()
    remove_abandoned_downloads()
