"""Dagster definitions of file ingest: the four assets of a file, written in one pass over a list of files, and jobs.

They are one computation because they are one transaction; each can still be selected alone. `raw_files` alone lands
the bytes again. Any of the others lands what is not landed, reads it and stores rows, metrics and quarantine together;
it reports everything that it wrote, even assets that were not selected.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial

import dagster as dg
import polars as pl

from ingest_project.contracts.files import SENSOR_READINGS
from ingest_project.core.errors import SchemaConflictError, SettingsError, TransientError
from ingest_project.core.logging import bound, get_logger
from ingest_project.core.settings import Settings
from ingest_project.file_ingest.catalog import DatasetAssets, assets_of, external_assets, specs_of
from ingest_project.file_ingest.checks import CHECKS, CHECKS_OF_ALL_FILES, checks_of_dataset
from ingest_project.file_ingest.contract import Contract
from ingest_project.file_ingest.declared import contract_of, tables_of
from ingest_project.file_ingest.file_queue import AwaitingFiles, FileRecord
from ingest_project.file_ingest.pipeline import await_a_person, ingest
from ingest_project.file_ingest.raw_files import land
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
from ingest_project.file_ingest.tables import FileState, quarantined_rows
from ingest_project.file_ingest.warehouse.delta_rows import delta_store
from ingest_project.file_ingest.warehouse.sql import DatasetTables
from ingest_project.platform import tracing
from ingest_project.platform.dagster.asset_events import (
    PartitionEvents,
    keep_connections_open,
    outputs_without_events,
    report,
    report_bisecting,
)
from ingest_project.platform.dagster.catalog import DagsterParts, DeltaTable, SqlTable, StoredTable, running_schedule
from ingest_project.platform.delta.maintenance import optimize_and_vacuum, summary
from ingest_project.platform.http import redacted_url
from ingest_project.platform.tracing import Item
from ingest_project.platform.work_queue.sensor import BATCH_ID_TAG, DATABASE_POOL, keys_of_run
from ingest_project.readers.datasets import Declarations, load_declarations
from ingest_project.readers.declaration import DatasetDeclaration

logger = get_logger(__name__)

PARTITIONS_PER_BACKFILL_RUN = 500
# Any other state of a file needs an operator's attention.
SUCCESSFUL = frozenset({FileState.INGESTED, FileState.DUPLICATE, FileState.REPLACED, FileState.SUPERSEDED})


def assets_of_dataset(declaration: DatasetDeclaration) -> dg.AssetsDefinition:
    """Return the assets of one dataset, and the computation that they share."""
    assets = assets_of(declaration.name)

    @dg.multi_asset(
        name="file_ingest" if declaration.name == SENSOR_READINGS else f"{declaration.name}_ingest",
        specs=specs_of(declaration),
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
            if context.selected_asset_keys == {assets.raw_files}:
                _land(context, services, assets, keys)
            else:
                _ingest(context, services, assets, keys)
        yield from outputs_without_events(context)

    return file_ingest_assets


def _ingest(
    context: dg.AssetExecutionContext, services: FileIngestResources, assets: DatasetAssets, keys: Sequence[str]
) -> None:
    records = services.files.begin(keys, context.run.run_id, datetime.now(UTC))
    try:
        contract = contract_of(services, assets.dataset)
        contract.prepare_tables(services.engine)
    except (SettingsError, SchemaConflictError) as error:
        # The files wait until what all of them need is fixed; their reason names it.
        waiting = [
            FileResult(record, FileState.PENDING, reason=str(error), error_class=error.error_class)
            for record in records
        ]
        if waiting:
            await_a_person(waiting, services)
            # One run is enough to see whether it is fixed, however many files wait for that.
            with suppress(TransientError):
                pause = services.settings.retries.delay(max(record.begun for record in records))
                services.files.postpone(assets.dataset, pause, datetime.now(UTC))
        _report(context, services, assets, [result for result in waiting if result.is_news])
        raise _failure(waiting) if waiting else dg.Failure(str(error), allow_retries=False) from error
    try:
        unfinished = _ingest_all(context, services, assets, records, contract)
    finally:
        _undo_unrecorded(services, contract.tables)
    # A batch in which some files succeeded succeeds.
    if unfinished and len(unfinished) == len(keys):
        raise _failure(unfinished)


def _ingest_all(
    context: dg.AssetExecutionContext,
    services: FileIngestResources,
    assets: DatasetAssets,
    records: Sequence[FileRecord],
    contract: Contract,
) -> list[FileResult]:
    """Ingest and report the files; return the results of those that failed or are to be retried."""
    unfinished: list[FileResult] = []
    with tracing.items("ingest file", map(_item, records)):
        for results in ingest(records, services, contract, context.run.run_id):
            with tracing.step("report", (result.record.file_key for result in results)):
                _report(context, services, assets, [result for result in results if result.is_news])
            for result in results:
                _log(result)
            unfinished += [o for o in results if o.state in {FileState.FAILED, FileState.PENDING}]
    return unfinished


def _undo_unrecorded(services: FileIngestResources, tables: DatasetTables) -> None:
    """Undo unrecorded rows, see `SqlWarehouse.undo_unrecorded`; if a store is away, a later run or maintenance does."""
    try:
        services.warehouse.of(tables).undo_unrecorded()
    except TransientError as away:
        logger.warning("unrecorded_rows_not_deleted", dataset=tables.dataset, reason=str(away))


def _report(
    context: dg.AssetExecutionContext,
    services: FileIngestResources,
    assets: DatasetAssets,
    finished: Sequence[FileResult],
) -> None:
    """Report the files to Dagster; one that it rejects is logged, and reported again by a later run."""
    not_shown = {}
    for one, error in report_bisecting(context, [_partition_report(result, assets) for result in finished]):
        not_shown[one.partition] = error
        trace = traceback_of(error)
        logger.error("file_not_reported", partition_key=one.partition, reason=str(error), traceback=trace)
    shown = [result.record.file_key for result in finished if result.record.file_key not in not_shown]
    services.files.mark_reported(shown, datetime.now(UTC))


def _partition_report(result: FileResult, assets: DatasetAssets) -> PartitionEvents:
    try:
        return partition_report(result, assets)
    except Exception as error:  # noqa: BLE001 - what cannot be described is still reported
        logger.warning("file_not_described", partition_key=result.record.file_key, traceback=traceback_of(error))
        bare = FileResult(result.record, result.state, reason=str(error_of("Reporting", error)))
        return partition_report(bare, assets)


def _land(
    context: dg.AssetExecutionContext, services: FileIngestResources, assets: DatasetAssets, keys: Sequence[str]
) -> None:
    failures = []
    for record in services.files.get_many(keys):
        try:
            with panics_as_errors():
                landed = land(record, services).landed
        except Exception as error:  # noqa: BLE001 - one file's failure is its own, whatever it is
            failures.append(f"{record.file_key}: {error_of('Landing the file', error)}")
            continue
        metadata = raw_file_metadata(FileResult(record, record.state, landed))
        report(context, [PartitionEvents(record.file_key, {assets.raw_files: metadata})])
    # The queue entries of these files do not change: only this run shows the failures.
    if failures:
        raise dg.Failure(description=failures[0], metadata={"files": len(failures)}, allow_retries=False)


def _item(record: FileRecord) -> Item:
    known = {"trace_id": record.event.trace_id, "job_id": record.event.job_id, "dataset": record.dataset}
    return record.file_key, record.kafka_position.context, known


def _log(result: FileResult) -> None:
    record, traced = result.record, tracing.log_fields(result.record.file_key)
    with bound(partition_key=record.file_key, job_id=record.event.job_id, trace_id=record.event.trace_id, **traced):
        level = logging.INFO if result.state in SUCCESSFUL and not result.rows_quarantined else logging.WARNING
        logger.log(
            level,
            "file_finished" if result.state.finished else "file_requeued",
            state=result.state.value,
            rows_accepted=result.rows_accepted,
            rows_quarantined=result.rows_quarantined,
            reason=result.reason,
        )
    tracing.finish(
        record.file_key,
        None if result.state in SUCCESSFUL else (result.error_class or result.state.value, result.reason or ""),
        state=result.state.value,
        rows_accepted=result.rows_accepted,
        rows_quarantined=result.rows_quarantined,
    )


def _failure(unfinished: Sequence[FileResult]) -> dg.Failure:
    first = unfinished[0]
    description = f"{first.record.file_key}: {first.reason}"
    if all(result.awaits_a_person for result in unfinished):
        description = str(AwaitingFiles(first.record.dataset, len(unfinished), first.reason or ""))
    return dg.Failure(
        description=description,
        metadata={"files": len(unfinished), "error_class": first.error_class or ""},
        allow_retries=False,
    )


def batch_job(dataset: str) -> "dg.UnresolvedAssetJobDefinition":
    """Return the job of a batch of one dataset's files."""
    assets = assets_of(dataset)
    keys = (assets.raw_files, assets.validated, assets.quarantined_files, assets.metrics)
    return dg.define_asset_job(
        assets.job,
        # Without the checks: the batch reports the contract of each file itself, see `result`.
        selection=dg.AssetSelection.assets(*keys).without_checks(),
        description="Lands, reads, checks and stores a batch of files.",
    )


file_checks = dg.define_asset_job(
    "file_checks",
    selection=dg.AssetSelection.checks(*CHECKS_OF_ALL_FILES),
    description="Checks the stored rows of all files: counts, share in quarantine, files that wait too long.",
)


@dg.op(description="Merges small files, writes a checkpoint, removes what is out of retention.")
def maintain_dataset_tables(context: dg.OpExecutionContext, services: dg.ResourceParam[FileIngestResources]) -> None:
    """Maintain the Delta table of each declared dataset; the second time nothing is left to do."""
    for declaration in services.datasets.declared:
        if declaration.target.delta:
            _undo_unrecorded(services, tables_of(declaration, services.settings))
            store = delta_store(declaration, services.settings)
            context.log.info("%s: %s", declaration.name, summary(optimize_and_vacuum(store, services.settings.delta)))


@dg.job(description="Maintains the Delta tables of declared datasets.")
def dataset_maintenance() -> None:
    """The maintenance has one step."""
    maintain_dataset_tables()


HOURLY_MAINTENANCE = running_schedule("dataset_maintenance_every_hour", dataset_maintenance, "25 * * * *")


def definitions_of(declarations: Declarations) -> dg.Definitions:
    """Return the definitions of the shipped dataset and of all declared ones; two sensors serve them all."""
    jobs = {name: batch_job(name) for name in declarations}
    maintenance = [HOURLY_MAINTENANCE] if any(one.target.delta for one in declarations.declared) else []
    return dg.Definitions(
        assets=[*map(assets_of_dataset, declarations.values())],
        asset_checks=[*CHECKS, *(check for one in declarations.declared for check in checks_of_dataset(one.name))],
        jobs=[*jobs.values(), file_checks, *([dataset_maintenance] if maintenance else [])],
        schedules=[*maintenance, running_schedule("file_checks_every_quarter_hour", file_checks, "*/15 * * * *")],
        sensors=[
            file_events_sensor("file_event_queue_sensor", lambda topics: topics.file_event_queue, jobs),
            file_events_sensor("file_events_sensor", lambda topics: topics.file_events, jobs),
        ],
    )


file_ingest = definitions_of(Declarations())


def stored_of(declaration: DatasetDeclaration, settings: Settings) -> dict[dg.AssetKey, StoredTable]:
    """Return the tables of a dataset whose rows other assets can load."""
    assets, tables = assets_of(declaration.name), tables_of(declaration, settings)
    stored: dict[dg.AssetKey, StoredTable] = {assets.quarantined_files: SqlTable(quarantined_rows, "file_key")}
    if tables.metrics is not None:
        stored[assets.metrics] = SqlTable(tables.metrics, "file_key")
    if tables.rows is not None:
        return stored | {assets.validated: SqlTable(tables.rows, "file_key")}
    schema = pl.DataFrame(schema=tables.row_schema).to_arrow(compat_level=pl.CompatLevel.oldest()).schema
    name = str(declaration.target.delta)
    descriptions = {column.name: column.description for column in declaration.typed_columns}
    store = partial(delta_store, declaration, settings)
    return stored | {assets.validated: DeltaTable(name, store, schema, "file_key", descriptions)}


def with_services(services: FileIngestResources) -> dg.Definitions:
    """Return the definitions of all datasets with the resources of this process, for a backfill."""
    return dg.Definitions.merge(definitions_of(services.datasets), dg.Definitions(resources={"services": services}))


def dagster_parts(settings: Settings) -> dict[str, DagsterParts]:
    """Return the Dagster definitions of file ingest."""
    declarations = load_declarations(settings)
    stored = {key: table for one in declarations.values() for key, table in stored_of(one, settings).items()}
    landed = dict.fromkeys((assets_of(name).raw_files for name in declarations), redacted_url(settings.landing_url))
    return {"file_ingest": DagsterParts(definitions_of(declarations), external_assets, stored, landed)}
