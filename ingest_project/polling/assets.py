"""`discovered_files`: the files that a polling job found, each announced once on `file-event-queue`.

An announcement is published under its file key: the same version of a file found by another job, by the same job
delivered again, or after the run was killed half-way, is not announced a second time.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg

from ingest_project.core.errors import TransientError
from ingest_project.core.keys import key_of
from ingest_project.core.logging import bound, get_logger
from ingest_project.platform.dagster.asset_events import (
    PartitionEvents,
    keep_connections_open,
    outputs_without_events,
    report,
)
from ingest_project.platform.dagster.catalog import topic_key
from ingest_project.platform.work_queue.batches import BATCH_ID_TAG, keys_of_run
from ingest_project.platform.work_queue.item_errors import error_class_of, is_item_fault, reason_of, traceback_of
from ingest_project.polling.discovery import Discovery, discover
from ingest_project.polling.job_queue import JobRecord, PollingResources

logger = get_logger(__name__)

POLLING_FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=48), warn_window=timedelta(hours=30))
POLLING_JOBS = "polling_jobs"
polling_jobs_partitions = dg.DynamicPartitionsDefinition(name=POLLING_JOBS)

DISCOVERED_FILES = dg.AssetKey("discovered_files")
FILE_SOURCES = dg.AssetKey("file_sources")


def job_key(job_id: str, position: tuple[str, int, int, str]) -> str:
    """Return the partition key of one request: the job's id, readable, and a hash of the message's position.

    Args:
        job_id: chosen by the sender; a job sent again is another request and has another key.
        position: topic, partition, offset and topic id of the message.
    """
    return key_of(job_id, job_id, *position, keep_end=False)


@dg.multi_asset(
    name="polling",
    specs=[
        dg.AssetSpec(
            DISCOVERED_FILES,
            deps=[topic_key("polling_queue"), FILE_SOURCES],
            description="The files that a polling job found and announced.",
            group_name="polling",
            kinds={"kafka"},
            partitions_def=polling_jobs_partitions,
            freshness_policy=POLLING_FRESHNESS,
            skippable=True,
        )
    ],
    backfill_policy=dg.BackfillPolicy.multi_run(20),
)
def discovered_files(
    context: dg.AssetExecutionContext, services: dg.ResourceParam[PollingResources]
) -> Iterator[dg.MaterializeResult[None]]:
    """List the source of every job of this run and announce what is new."""
    keep_connections_open(context.instance)
    keys = services.polling_jobs.by_urgency(keys_of_run(context, services.polling_jobs.batch))
    failures = []
    for key in keys:
        # One by one: only the job whose source is being listed counts as running.
        with bound(run_id=context.run.run_id, partition_key=key):
            try:
                _begin_and_poll(context, services, key)
            except Exception as error:  # noqa: BLE001 - whatever one job causes is that job's
                failures.append(f"{key}: {reason_of(error)}")
                _record_failure(services, key, error)
    if failures and len(failures) == len(keys):
        raise dg.Failure(description=failures[0], allow_retries=False)
    yield from outputs_without_events(context)


def _begin_and_poll(context: dg.AssetExecutionContext, services: PollingResources, key: str) -> None:
    for record in services.polling_jobs.begin([key], context.run.run_id, datetime.now(UTC)):
        with bound(trace_id=record.job.trace_id):
            _poll(context, services, record)


def _poll(context: dg.AssetExecutionContext, services: PollingResources, record: JobRecord) -> None:
    discovery = discover(services, record)
    now, jobs = datetime.now(UTC), services.polling_jobs
    # A standing job's count is of all its intervals, and what an earlier one announced was announced before.
    earlier = 0 if record.standing else record.files_published or 0
    skipped = discovery.not_announced(earlier)
    if discovery.ready_at is not None and record.attempts < services.settings.retries.max_attempts:
        reason = f"{discovery.unsettled} of its files changed a moment ago; listed again once they have settled."
        jobs.look_again(record.job_key, discovery.found, skipped, reason, discovery.ready_at, now)
        logger.info("job_waits", unsettled=discovery.unsettled, until=discovery.ready_at.isoformat())
        return
    done = jobs.finish_listing(record.job_key, discovery.found, skipped, now)
    if discovery.announced or not record.standing or BATCH_ID_TAG not in context.run.tags:
        # A standing job that found nothing new leaves no event, unless a person ran it: there would be thousands a day.
        report(context, [PartitionEvents(record.job_key, {DISCOVERED_FILES: _metadata(done, discovery)})])
    jobs.mark_reported([record.job_key], now)
    logger.info("job_done", found=done.files_found, published=done.files_published, skipped=skipped)


def _record_failure(services: PollingResources, key: str, error: Exception) -> None:
    reason, error_class = reason_of(error), error_class_of(error)
    logger.warning("job_not_done", reason=reason, error_class=error_class, exc_info=traceback_of(error))
    now, retries = datetime.now(UTC), services.settings.retries
    if isinstance(error, TransientError) or not is_item_fault(error):
        reason = f"{reason} Retried automatically, {retries.max_attempts} times at most."
        services.polling_jobs.requeue_later([key], reason, error_class, retries, now)
    else:
        services.polling_jobs.fail([key], f"{reason} Not retried automatically.", error_class, now)
    services.polling_jobs.mark_reported([key], now)


def _metadata(record: JobRecord, discovery: Discovery) -> dict[str, object]:
    shown = [dg.TableRecord({"path": path, "outcome": result}) for path, result in discovery.shown]
    return {
        "files_found": record.files_found,
        "files_published": record.files_published,
        "files_skipped": record.files_skipped,
        "skipped": record.skipped or {},
        "source": record.job.path,
        "pattern": record.job.file_pattern,
        "asked_by": "its interval" if record.standing else str(record.intake),
        **({"files": dg.MetadataValue.table(shown)} if shown else {}),
    }
