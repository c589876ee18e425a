"""Dagster definitions of file ingest: the four assets of a file, written in one pass over a list of files, and jobs.

They are one computation because they are one transaction; each can still be selected alone. `raw_files` alone lands
the bytes again. Any of the others lands what is not landed, reads it and stores rows, metrics and quarantine together;
it reports everything that it wrote, even assets that were not selected.
"""

import logging
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import dagster as dg

from ingest_project.core.errors import SettingsError
from ingest_project.core.logging import bound, get_logger
from ingest_project.file_ingest.aggregation import aggregated_metrics
from ingest_project.file_ingest.catalog import AGGREGATED_METRICS, QUARANTINED_FILES, RAW_FILES, VALIDATED_SENSOR_DATA
from ingest_project.file_ingest.checks import CHECKS, CHECKS_OF_ALL_FILES
from ingest_project.file_ingest.load import quarantined_files
from ingest_project.file_ingest.pipeline import ingest, requeue_later
from ingest_project.file_ingest.raw_files import land, raw_files
from ingest_project.file_ingest.resources import FileIngestResources
from ingest_project.file_ingest.result import (
    FileResult,
    error_of,
    panics_as_errors,
    partition_report,
    raw_file_metadata,
    traceback_of,
)
from ingest_project.file_ingest.sensors import file_events_sensor
from ingest_project.file_ingest.tables import FileState
from ingest_project.file_ingest.validate_files import Contract, validated_sensor_data
from ingest_project.platform.dagster.asset_events import (
    PartitionEvents,
    keep_connections_open,
    outputs_without_events,
    report,
    report_bisecting,
)
from ingest_project.platform.work_queue.sensor import BATCH_ID_TAG, DATABASE_POOL, keys_of_run

logger = get_logger(__name__)

PARTITIONS_PER_BACKFILL_RUN = 500
# Any other state of a file needs an operator's attention.
SUCCESSFUL = frozenset({FileState.INGESTED, FileState.DUPLICATE, FileState.REPLACED, FileState.SUPERSEDED})


@dg.multi_asset(
    name="file_ingest",
    specs=[raw_files, validated_sensor_data, quarantined_files, aggregated_metrics],
    can_subset=True,
    pool=DATABASE_POOL,
    backfill_policy=dg.BackfillPolicy.multi_run(PARTITIONS_PER_BACKFILL_RUN),
)
def file_ingest_assets(
    context: dg.AssetExecutionContext, services: dg.ResourceParam[FileIngestResources]
) -> Iterator[dg.MaterializeResult[None]]:
    """Land, read, check and store every file of this run, and report each on its own partition."""
    keep_connections_open(context.instance)
    keys = keys_of_run(context, services.files.batch)
    with bound(run_id=context.run.run_id, batch_id=context.run.tags.get(BATCH_ID_TAG)):
        if context.selected_asset_keys == {RAW_FILES}:
            _land(context, services, keys)
        else:
            _ingest(context, services, keys)
    yield from outputs_without_events(context)


def _ingest(context: dg.AssetExecutionContext, services: FileIngestResources, keys: Sequence[str]) -> None:
    records = services.files.begin(keys, context.run.run_id, datetime.now(UTC))
    try:
        contract = Contract.from_settings(services.settings.file_ingest)
    except SettingsError as error:
        # The files wait until the configuration that all of them need is fixed; their reason names it.
        for record in records:
            requeue_later(
                FileResult(record, FileState.PENDING, reason=str(error), error_class=error.error_class), services
            )
        raise dg.Failure(description=str(error), allow_retries=False) from error
    unfinished: list[FileResult] = []
    for results in ingest(records, services, contract, context.run.run_id):
        _report(context, services, [result for result in results if result.state.finished])
        for result in results:
            _log(result)
        unfinished += [o for o in results if o.state in {FileState.FAILED, FileState.PENDING}]
    _fail_if_none_succeeded(keys, unfinished)


def _report(context: dg.AssetExecutionContext, services: FileIngestResources, finished: Sequence[FileResult]) -> None:
    """Report the files to Dagster; one that it rejects is logged, and reported again by a later run."""
    not_shown = {}
    for one, error in report_bisecting(context, [_partition_report(result) for result in finished]):
        not_shown[one.partition] = error
        trace = traceback_of(error)
        logger.error("file_not_reported", partition_key=one.partition, reason=str(error), traceback=trace)
    shown = [result.record.file_key for result in finished if result.record.file_key not in not_shown]
    services.files.mark_reported(shown, datetime.now(UTC))


def _partition_report(result: FileResult) -> PartitionEvents:
    try:
        return partition_report(result)
    except Exception as error:  # noqa: BLE001 - what cannot be described is still reported
        logger.warning("file_not_described", partition_key=result.record.file_key, traceback=traceback_of(error))
        return partition_report(FileResult(result.record, result.state, reason=str(error_of("Reporting", error))))


def _land(context: dg.AssetExecutionContext, services: FileIngestResources, keys: Sequence[str]) -> None:
    alert_conditions = []
    for record in services.files.get_many(keys):
        try:
            with panics_as_errors():
                landed = land(record, services).landed
        except Exception as error:  # noqa: BLE001 - one file's failure is its own, whatever it is
            alert_conditions.append(f"{record.file_key}: {error_of('Landing the file', error)}")
            continue
        metadata = raw_file_metadata(FileResult(record, record.state, landed))
        report(context, [PartitionEvents(record.file_key, {RAW_FILES: metadata})])
    # The queue entries of these files do not change: only this run shows the failures.
    if alert_conditions:
        raise dg.Failure(
            description=alert_conditions[0], metadata={"files": len(alert_conditions)}, allow_retries=False
        )


def _log(result: FileResult) -> None:
    record = result.record
    with bound(partition_key=record.file_key, job_id=record.event.job_id, trace_id=record.event.trace_id):
        level = logging.INFO if result.state in SUCCESSFUL and not result.rows_quarantined else logging.WARNING
        logger.log(
            level,
            "file_finished" if result.state.finished else "file_requeued",
            state=result.state.value,
            rows_accepted=result.rows_accepted,
            rows_quarantined=result.rows_quarantined,
            reason=result.reason,
        )


def _fail_if_none_succeeded(keys: Sequence[str], unfinished: Sequence[FileResult]) -> None:
    """Fail the run where none of its files succeeded; a batch in which some did succeeds."""
    if unfinished and len(unfinished) == len(keys):
        first = unfinished[0]
        raise dg.Failure(
            description=f"{first.record.file_key}: {first.reason}",
            metadata={"files": len(unfinished), "error_class": first.error_class or ""},
            allow_retries=False,
        )


# Without the checks: the batch reports the contract of each file itself, see `result`.
file_batch = dg.define_asset_job(
    "file_batch",
    selection=dg.AssetSelection.assets(
        RAW_FILES, VALIDATED_SENSOR_DATA, QUARANTINED_FILES, AGGREGATED_METRICS
    ).without_checks(),
    description="Lands, reads, checks and stores a batch of files.",
)
file_checks = dg.define_asset_job(
    "file_checks",
    selection=dg.AssetSelection.checks(*CHECKS_OF_ALL_FILES),
    description="Checks the stored rows of all files: counts, share in quarantine, files that wait too long.",
)

file_ingest = dg.Definitions(
    assets=[file_ingest_assets],
    asset_checks=CHECKS,
    jobs=[file_batch, file_checks],
    schedules=[
        dg.ScheduleDefinition(
            name="file_checks_every_quarter_hour",
            job=file_checks,
            cron_schedule="*/15 * * * *",
            default_status=dg.DefaultScheduleStatus.RUNNING,
        )
    ],
    sensors=[
        file_events_sensor("file_event_queue_sensor", lambda topics: topics.file_event_queue, file_batch),
        file_events_sensor("file_events_sensor", lambda topics: topics.file_events, file_batch),
    ],
)
