"""A file too large to be held in memory: checked and stored chunk by chunk, in one transaction all the same.

Whether it is acceptable is known only at its end; then a refused one is rolled back, and no row of it was ever seen.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import polars as pl

from ingest_project.core.errors import FileRejectedError
from ingest_project.core.prefetch import prefetch
from ingest_project.file_ingest.aggregation import (
    NO_SUMMARIES,
    NONE_SHARED,
    aggregate_files,
    counts_by_file,
    instants_by_file,
    merge,
    standing_alone,
)
from ingest_project.file_ingest.load import (
    finish,
    hold_locations,
    replaced_outcomes,
    settle_versions,
    without_duplicates,
)
from ingest_project.file_ingest.quarantine import leave_quarantine
from ingest_project.file_ingest.resources import FileIngestResources
from ingest_project.file_ingest.result import FileResult, outcome_of_error
from ingest_project.file_ingest.validate_files import (
    METRICS_SHOWN,
    SAMPLE_ROWS,
    CheckedGroup,
    CheckedRows,
    Contract,
    OpenedFile,
    check_group,
    check_rows,
    first_rows,
    verdict,
)
from ingest_project.file_ingest.warehouse.protocol import WarehouseTransaction
from ingest_project.platform.work_queue.states import FileState


class _RejectedError(Exception):
    def __init__(self, outcome: FileResult) -> None:
        self.outcome = outcome


def store_large_file(
    file: OpenedFile, services: FileIngestResources, contract: Contract, run_id: str
) -> list[FileResult]:
    """Check and store one large file.

    Returns:
        what became of it, and of a version that it replaced; a file that is ingested, a duplicate or replaced is in the
        ledger already, anything else is still to be stored.
    """
    try:
        with services.warehouse.transaction() as transaction:
            outcome, replaced = _store(transaction, file, services, contract, run_id)
        return [outcome, *replaced_outcomes(services, replaced)]
    except _RejectedError as refused:
        return [refused.outcome]
    except FileRejectedError as error:
        return [outcome_of_error(file.record, error, file.landed, profile=file.profile.name)]


def refused_group(outcome: FileResult, contract: Contract) -> CheckedGroup:
    """A group of one file of which nothing is stored but its outcome."""
    return replace(check_group([], contract), outcomes=[outcome])


def _store(
    transaction: WarehouseTransaction, file: OpenedFile, services: FileIngestResources, contract: Contract, run_id: str
) -> tuple[FileResult, tuple[str, ...]]:
    key = file.record.file_key
    read = FileResult(file.record, FileState.INGESTED, file.landed, file.profile.name, file.meaning)
    # Whether it is accepted shows at its end; a version that it replaces comes back with everything else if it is not.
    settled, replaced = settle_versions(transaction, hold_locations(transaction, [read], wait=True), run_id)
    (outcome,) = without_duplicates(transaction, settled)
    transaction.replace_files([key, *replaced])
    if outcome.state is FileState.INGESTED:
        outcome = _append_chunks(transaction, file, contract)
    if outcome.state is FileState.QUARANTINED:
        raise _RejectedError(outcome)
    leave_quarantine(outcome, services.quarantine)
    finish(transaction, [outcome], run_id)
    return outcome, replaced


def _append_chunks(transaction: WarehouseTransaction, file: OpenedFile, contract: Contract) -> FileResult:
    key = file.record.file_key
    rows_read = rows_bad = 0
    rule_counts: dict[str, int] = {}
    sample: list[dict[str, object]] = []
    preview: list[dict[str, object]] = []
    metrics: list[pl.DataFrame] = []
    shared: list[pl.DataFrame] = []
    with prefetch(_checked(file, contract)) as chunks:
        for checked in chunks:
            transaction.append_readings(checked.accepted)
            transaction.append_quarantined(checked.quarantined)
            summaries, instants = map(standing_alone, aggregate_files(checked.accepted))
            metrics.append(summaries)
            shared.append(instants)
            rows_read += checked.rows_read[key]
            rows_bad += checked.quarantined.height
            for rule, count in checked.broken_rules_by_file().get(key, {}).items():
                rule_counts[rule] = rule_counts.get(rule, 0) + count
            preview = preview or first_rows(checked.accepted, SAMPLE_ROWS).get(key, [])
            if len(sample) < SAMPLE_ROWS:
                sample += checked.sample_by_file().get(key, [])
    merged = merge(metrics)
    transaction.put_metrics(merged)
    return verdict(
        FileResult(
            file.record,
            FileState.INGESTED,
            file.landed,
            file.profile.name,
            file.meaning,
            rows_read=rows_read,
            rows_quarantined=rows_bad,
            summaries=counts_by_file(merged).get(key, NO_SUMMARIES),
            rule_counts=rule_counts,
            sample=sample[:SAMPLE_ROWS],
            preview=preview,
            metrics_shown=first_rows(merged, METRICS_SHOWN).get(key, []),
            unknown_columns=file.first.unknown_columns,
            instants=instants_by_file(pl.concat(shared)).get(key, NONE_SHARED),
        ),
        contract,
    )


def _checked(file: OpenedFile, contract: Contract) -> Generator[CheckedRows, None, None]:
    for chunk in file.chunks:
        yield check_rows([(file.record.file_key, file.profile, chunk)], contract)
