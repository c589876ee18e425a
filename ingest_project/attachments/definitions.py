"""Attachments as Dagster sees them: jobs, schedules, sensors, assets and checks.

A batch of events runs from extraction to stored files. The jobs are made of operations and not of assets: one run of
assets cannot have partitions of two kinds, hours and attachments, and Dagster 1.13 refuses a run of a partitioned asset
without a partition once the asset before it, which is partitioned too, was ever materialised. Their results are
nevertheless reported on the partitions.
"""

import contextlib
import time
from datetime import timedelta
from pathlib import Path

import dagster as dg

from ingest_project.attachments import AttachmentResources, catalog
from ingest_project.attachments.assets import (
    attachment_events,
    attachment_results,
    download,
    extract,
    onelake_attachments,
)
from ingest_project.attachments.catalog import CHECKS, CHECKS_OF_ALL_ATTACHMENTS, ONELAKE_ATTACHMENTS
from ingest_project.attachments.queue import PENDING_QUEUE, RETRY_QUEUE
from ingest_project.attachments.results import commit_lost
from ingest_project.attachments.sensors import attachment_events_sensor, downloads_sensor, eventhouse_sensor
from ingest_project.core.settings import Settings
from ingest_project.platform.dagster.catalog import DagsterParts, running_schedule, topic_uri
from ingest_project.platform.delta.maintenance import optimize_and_vacuum, summary
from ingest_project.platform.http import redacted_url
from ingest_project.platform.work_queue.sensor import ONELAKE_POOL, batch_of_run

# No upload takes a day.
ABANDONED_AFTER = timedelta(days=1)


@dg.op(out=dg.Out(dg.Nothing), description="Extracts the addresses of the batch's events and announces the tasks.")
def extract_addresses(context: dg.OpExecutionContext, services: dg.ResourceParam[AttachmentResources]) -> None:
    """Extract the addresses of the batch's events."""
    batch = batch_of_run(context)
    extract(context, services, services.attachment_events.batch(batch), batch)


@dg.op(
    ins={"extracted": dg.In(dg.Nothing)},
    pool=ONELAKE_POOL,
    description="Downloads and stores the attachments of the batch's events.",
)
def download_and_store(context: dg.OpExecutionContext, services: dg.ResourceParam[AttachmentResources]) -> None:
    """Download and store the batch's attachments."""
    download(context, services, services.attachments.batch(batch_of_run(context)))


@dg.job(description="Extracts the addresses of a batch of events, downloads and stores.")
def attachment_events_batch() -> None:
    """Extract, then download and store."""
    download_and_store(extract_addresses())


@dg.job(description="Downloads and stores a batch of attachments.")
def attachments_batch() -> None:
    """Download and store tasks that came over Kafka or are due again."""
    download_and_store()


@dg.op(
    description="Commits lost rows again, merges small files, writes a checkpoint, removes what is out of retention."
)
def maintain_results(context: dg.OpExecutionContext, services: dg.ResourceParam[AttachmentResources]) -> None:
    """Maintain the Delta table of results; the second time nothing is left to do."""
    context.log.info("%d lost results were committed again.", commit_lost(services))
    maintenance = optimize_and_vacuum(services.attachment_results, services.settings.delta)
    context.log.info(summary(maintenance))


@dg.op(description="Removes temporary files of uploads that were killed.")
def remove_abandoned_uploads(context: dg.OpExecutionContext, services: dg.ResourceParam[AttachmentResources]) -> None:
    """Remove them from every store; the second time nothing is left to do."""
    removed = sum(store.remove_orphaned(ABANDONED_AFTER) for store in services.attachment_stores())
    context.log.info("%d abandoned uploads were removed.", removed)


@dg.op(description="Removes downloaded files of runs that were killed before they were stored.")
def remove_abandoned_downloads(context: dg.OpExecutionContext, services: dg.ResourceParam[AttachmentResources]) -> None:
    """Remove them from the cache of this machine; the second time nothing is left to do."""
    removed = remove_old_files(services.settings.cache_dir, ABANDONED_AFTER)
    context.log.info("%d abandoned downloads were removed.", removed)


def remove_old_files(folder: Path, older_than: timedelta) -> int:
    """Remove the files of a folder that have not changed for so long, and return how many."""
    oldest = time.time() - older_than.total_seconds()
    removed = 0
    for path in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ctime < oldest:
                path.unlink()
                removed += 1
    return removed


@dg.job(description="Maintains the Delta table of results and the attachment stores.")
def attachments_maintenance() -> None:
    """Run all parts of the maintenance."""
    maintain_results()
    remove_abandoned_uploads()
    remove_abandoned_downloads()


# Excludes the checks: a batch reports on each attachment itself, see `checks`.
downloads_batch = dg.define_asset_job(
    "downloads_batch",
    selection=dg.AssetSelection.assets(ONELAKE_ATTACHMENTS).without_checks(),
    description="Downloads and stores single attachments, or those that a person selects.",
)
attachment_checks = dg.define_asset_job(
    "attachment_checks",
    selection=dg.AssetSelection.checks(*CHECKS_OF_ALL_ATTACHMENTS),
    description="Checks all attachments: is each accounted for, does anything wait too long, is too much dead.",
)

attachments = dg.Definitions(
    assets=[attachment_events, onelake_attachments, attachment_results],
    asset_checks=CHECKS,
    jobs=[attachment_events_batch, attachments_batch, downloads_batch, attachment_checks, attachments_maintenance],
    schedules=[
        running_schedule("attachment_checks_every_quarter_hour", attachment_checks, "7,22,37,52 * * * *"),
        running_schedule("attachments_maintenance_every_night", attachments_maintenance, "20 3 * * *"),
    ],
    sensors=[
        eventhouse_sensor,
        attachment_events_sensor(attachment_events_batch.name),
        downloads_sensor("downloads_pending_sensor", PENDING_QUEUE, attachments_batch.name),
        downloads_sensor("downloads_retry_sensor", RETRY_QUEUE, attachments_batch.name),
    ],
)


def dagster_parts(settings: Settings) -> dict[str, DagsterParts]:
    """Return the Dagster definitions of attachments."""
    locations = {
        catalog.ATTACHMENT_EVENTS: topic_uri(settings, settings.topics.downloads_pending),
        catalog.ONELAKE_ATTACHMENTS: redacted_url(settings.attachments_url),
    }
    return {"attachments": DagsterParts(attachments, catalog.external_assets, catalog.STORED, locations)}
