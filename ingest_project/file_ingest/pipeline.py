"""Run a list of files through all steps: land, read and check, store, and report the result of each.

The next group of files is landed and checked in a second thread while this one is stored: reading is this process's
work and storing is mostly the database's. One file never affects another: an exception for one file, at any step,
ends that file's work only; an exception for many files is bisected down to the file that causes it.

A file too large for memory is checked and stored chunk by chunk, in one transaction too. Only its end shows whether it
is acceptable; a rejected one is rolled back, and no row of it was ever visible.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import polars as pl

from ingest_project.core.errors import FileRejectedError, TransientError
from ingest_project.core.items import prefetch, store_bisecting
from ingest_project.core.logging import get_logger
from ingest_project.file_ingest.aggregation import detached, merge
from ingest_project.file_ingest.contract import Contract
from ingest_project.file_ingest.file_queue import FileRecord
from ingest_project.file_ingest.load import (
    StoredKeyError,
    append_accepted,
    finish,
    leave_quarantine,
    lock_locations_of,
    rejected_for_stored_key,
    replaced_results,
    settle_versions,
    store,
    unstored_files,
    without_duplicates,
)
from ingest_project.file_ingest.raw_files import land
from ingest_project.file_ingest.resources import FileIngestResources
from ingest_project.file_ingest.result import FileResult, error_of, panics_as_errors, result_of_error, traceback_of
from ingest_project.file_ingest.tables import FileState
from ingest_project.file_ingest.validate_files import (
    SAMPLE_ROWS,
    CheckedGroup,
    CheckedRows,
    Findings,
    OpenedFile,
    check_group,
    check_rows,
    first_rows,
    joined,
    judge,
    nulls_by_file,
    open_file,
    with_metrics,
)
from ingest_project.file_ingest.warehouse import WarehouseTransaction
from ingest_project.file_ingest.warehouse.baselines import Baseline, Source, read_baselines, source_of
from ingest_project.platform import tracing
from ingest_project.platform.database import reading
from ingest_project.platform.object_store.content_store import Landed
from ingest_project.readers.layout import RowsChunk

logger = get_logger(__name__)

# Files in one transaction and one validation. Larger groups gain little and use more memory.
GROUP_FILES = 128
# Groups grow to that size by doubling: storing starts as soon as a few files are read, not after the first hundred.
FIRST_GROUP_FILES = 16
GROUP_BYTES = 16 * 1024**2
# Chunks of a large file to check and store in one call: with a single chunk, half the cost would be the call's own.
CHUNKS_AT_A_TIME, ROWS_AT_A_TIME = 4, 100_000


@dataclass(frozen=True)
class PreparedGroup:
    """A group after landing and checking.

    Args:
        group: the small files, and those that were rejected before any row was read.
        large: files to be read in chunks while they are stored.
        requeue_later: files whose source does not answer now.
    """

    group: CheckedGroup
    large: Sequence[OpenedFile]
    requeue_later: Sequence[FileResult]


def ingest(
    records: Sequence[FileRecord], services: FileIngestResources, contract: Contract, run_id: str
) -> Iterator[list[FileResult]]:
    """Run files through all steps.

    Args:
        records: queue entries, in the order to work in.
        services: sources, stores and the warehouse.
        contract: profiles, rules and limits.
        run_id: id of the Dagster run, for the queue entries and the quarantine.

    Yields:
        the results of each group of files, as soon as it is stored.
    """
    baselines = baselines_of(records, services)
    groups = (prepare(group, services, contract) for group in split_into_groups(records))
    with prefetch(groups) as prepared_groups:
        for prepared in prepared_groups:
            yield [_with_verdict(result, baselines) for result in finish_group(prepared, services, contract, run_id)]


def baselines_of(records: Sequence[FileRecord], services: FileIngestResources) -> Mapping[Source, Baseline]:
    """Read the baselines of a batch's sources; none if the database does not answer."""
    sources = {(record.dataset, source_of(record.location)) for record in records}
    try:
        with reading(services.engine) as connection:
            return read_baselines(connection, sources, services.settings, datetime.now(UTC))
    except TransientError as away:
        logger.warning("baselines_not_read", reason=str(away))
        return {}


def _with_verdict(result: FileResult, baselines: Mapping[Source, Baseline]) -> FileResult:
    """Compare an ingested file with others of its source."""
    if result.state is not FileState.INGESTED:
        return result
    file = result.statistics
    baseline = baselines.get((file.dataset, file.source))
    return result if baseline is None else replace(result, verdict=baseline.judge(file))


def split_into_groups(records: Sequence[FileRecord]) -> Iterator[list[FileRecord]]:
    """Cut a batch into groups of bounded count and size; a file of unknown size counts as nothing."""
    group: list[FileRecord] = []
    size_bytes, most_files = 0, FIRST_GROUP_FILES
    for record in records:
        if group and (len(group) == most_files or size_bytes + (record.event.size_bytes or 0) > GROUP_BYTES):
            yield group
            group, size_bytes, most_files = [], 0, min(2 * most_files, GROUP_FILES)
        group.append(record)
        size_bytes += record.event.size_bytes or 0
    if group:
        yield group


def prepare(records: Sequence[FileRecord], services: FileIngestResources, contract: Contract) -> PreparedGroup:
    """Land the files of a group, and read and check the small ones."""
    early: list[FileResult] = []
    opened: list[OpenedFile] = []
    for record in records:
        with tracing.step("read", [record.file_key]):
            read = _land_and_open(record, services, contract)
        if isinstance(read, FileResult):
            early.append(read)
        else:
            opened.append(read)
    small = [file for file in opened if file.second is None]
    with tracing.step("validate", (file.record.file_key for file in small)):
        group = check_each(small, contract)
    rejected = [result for result in early if result.state is not FileState.PENDING]
    return PreparedGroup(
        replace(group, results=[*rejected, *group.results]),
        [file for file in opened if file.second is not None],
        [result for result in early if result.state is FileState.PENDING],
    )


def check_each(files: Sequence[OpenedFile], contract: Contract) -> CheckedGroup:
    """Check many small files together; if that fails, bisect to find the files that fail, and check the others."""
    groups: list[CheckedGroup] = []

    def check(part: Sequence[OpenedFile]) -> None:
        with panics_as_errors():
            groups.append(check_group(part, contract))

    failures = store_bisecting(files, check, lambda _: True)
    failed = [_failed(file.record, "Checking the file", error, file.landed) for file, error in failures]
    if len(groups) == 1 and not failed:
        return groups[0]
    groups = groups or [check_group([], contract)]
    return CheckedGroup(
        [*failed, *(result for group in groups for result in group.results)],
        # Files with undeclared columns may have columns that others lack.
        pl.concat([group.accepted for group in groups], how="diagonal"),
        pl.concat([group.quarantined for group in groups]),
        pl.concat([group.metrics for group in groups]),
        contract.tables,
    )


def finish_group(
    prepared: PreparedGroup, services: FileIngestResources, contract: Contract, run_id: str
) -> list[FileResult]:
    """Store a prepared group, and finish the queue entry of each file."""
    with tracing.step("store", (result.record.file_key for result in prepared.group.results)):
        results = [*prepared.requeue_later, *store(prepared.group, services, contract, run_id)]
    for file in prepared.large:
        # A file that is larger than a chunk is validated while it is stored.
        with file.resources, tracing.step("validate and store", [file.record.file_key]):
            results += _store_large(file, services, contract, run_id)
    return [_update_unstored(result, services) for result in results]


def _land_and_open(record: FileRecord, services: FileIngestResources, contract: Contract) -> OpenedFile | FileResult:
    """Land a file and read its beginning; return its result if that fails."""
    landed = None
    try:
        with panics_as_errors():
            record, landed = land(record, services)
            file = open_file(record, landed, services.landing, contract)
            if file.second is None:
                file.resources.close()
            return file
    except Exception as error:  # noqa: BLE001 - one file's failure is its own, whatever it is
        return _failed(record, "Reading the file", error, landed)


def _failed(record: FileRecord, doing: str, cause: Exception, landed: Landed | None) -> FileResult:
    error = error_of(doing, cause)
    if error is not cause:
        key = record.file_key
        logger.warning("file_failed_unexpectedly", partition_key=key, reason=str(error), traceback=traceback_of(cause))
    return result_of_error(record, error, landed)


def _update_unstored(result: FileResult, services: FileIngestResources) -> FileResult:
    """Update the queue entry of a file that this run did not store."""
    if result.state is FileState.PENDING:
        result = requeue_later(result, services)
    if result.keeps_stored_rows:
        reason = f"It could not be ingested again: {result.reason}"
        services.files.keep(result.record.file_key, reason, datetime.now(UTC))
    return result


def requeue_later(result: FileResult, services: FileIngestResources) -> FileResult:
    """Requeue a file for a later attempt; one with no attempt left is failed, unless it waits for a person."""
    retries = services.settings.retries
    if result.awaits_a_person:
        await_a_person([result], services)
        return result
    released = services.files.requeue_later(
        [result.record.file_key], result.reason or "", result.error_class or "", retries, datetime.now(UTC)
    )
    return replace(result, state=FileState.FAILED) if released.failed else result


def await_a_person(results: Sequence[FileResult], services: FileIngestResources) -> None:
    """Requeue files that one error stops until a person has fixed its cause."""
    first = results[0]
    why = (first.reason or "", first.error_class or "")
    services.files.await_a_person([one.record for one in results], *why, services.settings.retries, datetime.now(UTC))


def _store_large(file: OpenedFile, services: FileIngestResources, contract: Contract, run_id: str) -> list[FileResult]:
    try:
        with panics_as_errors():
            results = store_large_file(file, services, contract, run_id)
    except StoredKeyError as error:
        read = FileResult(file.record, FileState.INGESTED, file.landed, file.profile.name)
        results = [rejected_for_stored_key(read, error, services)]
    except Exception as error:  # noqa: BLE001 - one file's failure is its own, whatever it is
        failed = _failed(file.record, "Storing the file", error, file.landed)
        results = [replace(failed, profile=file.profile.name)]
    if results[0].state in {FileState.QUARANTINED, FileState.FAILED}:
        return store(group_of_rejected(results[0], contract), services, contract, run_id)
    return results


class _RejectedError(Exception):
    def __init__(self, result: FileResult) -> None:
        self.result = result


def store_large_file(
    file: OpenedFile, services: FileIngestResources, contract: Contract, run_id: str
) -> list[FileResult]:
    """Check and store one large file.

    Returns:
        its result, and that of a version that it replaced; a file that is ingested, a duplicate or replaced is
        finished in the queue, any other is still to be stored.
    """
    try:
        unknown, rescued = file.first.unknown_columns, contract.rescued(file.first.unknown_columns)
        tables = contract.widened(services.engine, [name for name in unknown if name not in rescued])
        with services.warehouse.of(tables).transaction() as transaction:
            result, replaced = _store(transaction, file, services, contract, run_id)
        return [result, *replaced_results(services, replaced)]
    except _RejectedError as rejected:
        return [rejected.result]
    except FileRejectedError as error:
        return [result_of_error(file.record, error, file.landed, profile=file.profile.name)]


def group_of_rejected(result: FileResult, contract: Contract) -> CheckedGroup:
    """Return a group of one file without rows, to store its result only."""
    return replace(check_group([], contract), results=[result])


def _store(
    transaction: WarehouseTransaction, file: OpenedFile, services: FileIngestResources, contract: Contract, run_id: str
) -> tuple[FileResult, tuple[str, ...]]:
    key = file.record.file_key
    read = FileResult(file.record, FileState.INGESTED, file.landed, file.profile.name, file.meaning)
    # Only its end shows whether it is accepted; if not, the rollback restores a version that it replaces.
    settled, replaced = settle_versions(transaction, lock_locations_of(transaction, [read], wait=True), run_id)
    (result,) = without_duplicates(transaction, settled)
    transaction.replace_files([key, *replaced], unstored_files([read], set()))
    if result.state is FileState.INGESTED:
        result = _append_chunks(transaction, file, contract)
    if result.state is FileState.QUARANTINED:
        raise _RejectedError(result)
    leave_quarantine(result, services.quarantine)
    finish(transaction, [result], run_id)
    return result, replaced


def _append_chunks(transaction: WarehouseTransaction, file: OpenedFile, contract: Contract) -> FileResult:
    key = file.record.file_key
    found = Findings()
    preview: dict[str, list[dict[str, object]]] = {}
    metrics: list[pl.DataFrame] = []
    shared: list[pl.DataFrame] = []
    nulls = Counter[str]()
    with prefetch(_check_chunks(file, contract)) as chunks:
        for checked in chunks:
            append_accepted(transaction, checked.accepted, contract.tables.rows)
            transaction.append_quarantined(checked.quarantined)
            summaries, instants = map(detached, contract.summarised(checked.accepted))
            metrics.append(summaries)
            shared.append(instants)
            nulls.update(nulls_by_file(checked.accepted).get(key, {}))
            found += checked.findings_by_file()[key]
            preview = preview or first_rows(checked.accepted, SAMPLE_ROWS)
    merged = merge(metrics)
    transaction.put_metrics(merged)
    result = judge(file, found, contract)
    if result.state is not FileState.INGESTED:
        return result
    return replace(with_metrics([result], preview, merged, pl.concat(shared))[0], null_counts=nulls)


def _check_chunks(file: OpenedFile, contract: Contract) -> Generator[CheckedRows, None, None]:
    for chunk in _in_larger_chunks(file.chunks):
        yield check_rows([(file.record.file_key, file.profile, chunk)], contract, [file.first.unknown_columns])


def _in_larger_chunks(chunks: Iterator[RowsChunk]) -> Iterator[RowsChunk]:
    held: list[RowsChunk] = []
    rows = 0
    for chunk in chunks:
        held.append(chunk)
        rows += chunk.rows.height
        if len(held) == CHUNKS_AT_A_TIME or rows >= ROWS_AT_A_TIME:
            yield joined(held)
            held, rows = [], 0
    if held:
        yield joined(held)
