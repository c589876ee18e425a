"""Asset checks of file ingest. Each check reads the current state of the stores.

`contract_holds` is about one file and partitioned like it; a batch run reports it for each of its files as it stores
them (see `result`), and running the check alone queries the database again. The others are about all files at once.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import polars as pl

from ingest_project.file_ingest.aggregation import NONE_SHARED, aggregate_files, instants_by_file
from ingest_project.file_ingest.catalog import QUARANTINED_FILES, RAW_FILES, VALIDATED_SENSOR_DATA, files_partitions
from ingest_project.file_ingest.file_queue import FileRecord
from ingest_project.file_ingest.resources import FileIngestResources
from ingest_project.file_ingest.result import (
    CONTRACT_HOLDS,
    EVERY_COLUMN_READ,
    FILE_ACCEPTED,
    ONE_READING_AN_INSTANT,
    broken_contract,
    columns_result,
    file_accepted,
    instants_result,
    rows_quarantined_reason,
)
from ingest_project.file_ingest.sensor_readings import ValidationRules, validate
from ingest_project.file_ingest.tables import FileState
from ingest_project.file_ingest.validate_files import Contract, open_file
from ingest_project.file_ingest.warehouse import StoredCounts
from ingest_project.platform.dagster.asset_events import CheckResult, report_each

RECENT = timedelta(hours=24)


def contract_of_stored(services: FileIngestResources, file_key: str, rules: ValidationRules) -> CheckResult:
    """Return the result of `contract_holds` for one file: its stored rows follow the rules, and none is missing."""
    record = services.files.get(file_key)
    if record is None:
        reason = "The work queue does not know this file."
        return _broken(reason, broken_contract(file_key, reason, {"not_in_the_work_queue": 1}, 0, 0))
    if record.state in {FileState.DUPLICATE, FileState.REPLACED}:
        return CheckResult(VALIDATED_SENSOR_DATA, CONTRACT_HOLDS, passed=True, description=record.reason)
    if record.state is not FileState.INGESTED:
        counts = record.rule_counts or {"not_ingested": 1}
        severity = dg.AssetCheckSeverity.WARN if record.state is FileState.SUPERSEDED else dg.AssetCheckSeverity.ERROR
        return _broken_by(record, counts, record.reason or f"The file is {record.state.value}.", severity)
    stored = services.warehouse.file_counts([file_key])[file_key]
    wrong = stored_violations(services, file_key, rules) + missing_rows(record, stored)
    if wrong:
        return _broken_by(record, wrong, "The stored rows differ from the accepted ones.")
    if stored.quarantined:
        reason = rows_quarantined_reason(stored.quarantined, record.rows_read or 0)
        return _broken_by(record, record.rule_counts or {}, reason, dg.AssetCheckSeverity.WARN)
    return CheckResult(VALIDATED_SENSOR_DATA, CONTRACT_HOLDS, passed=True, metadata={"rows_stored": stored.readings})


def stored_violations(services: FileIngestResources, file_key: str, rules: ValidationRules) -> Counter[str]:
    """Count how often each rule is broken by a stored reading of the file; none should be."""
    broken: Counter[str] = Counter()
    for readings in services.warehouse.readings_of(file_key):
        # The rules read the text only where the typed value is null, which no stored value can be.
        text = readings.with_columns(pl.lit("").alias("timestamp_text"), pl.lit("").alias("value_text"))
        for (reason,) in validate(text, rules).rejected.select(pl.col("reasons").explode()).iter_rows():
            broken[reason] += 1
    return broken


def missing_rows(record: FileRecord, stored: StoredCounts) -> Counter[str]:
    """Count rows that are recorded as stored and are missing, or the other way round."""
    differences = {
        "accepted_rows_not_stored": abs((record.rows_accepted or 0) - stored.readings),
        "quarantined_rows_not_stored": abs((record.rows_quarantined or 0) - stored.quarantined),
    }
    return Counter({rule: count for rule, count in differences.items() if count})


def columns_of_landed(services: FileIngestResources, file_key: str, contract: Contract) -> CheckResult:
    """Return the result of `every_column_read` for one file, by its header as it was landed."""
    record = services.files.get(file_key)
    landed = services.landing.find(record.sha256) if record and record.sha256 else None
    if record is None or landed is None or record.state is not FileState.INGESTED:
        return columns_result(())
    with ExitStack() as resources:
        file = open_file(record, landed, services.landing, contract)
        resources.push(file.resources)
        return columns_result(file.first.unknown_columns)


def instants_of_stored(services: FileIngestResources, file_key: str) -> CheckResult:
    """Return the result of `one_reading_an_instant` for one file, by its stored readings."""
    key = pl.lit(file_key).alias("file_key")
    parts = [aggregate_files(part.with_columns(key))[1] for part in services.warehouse.readings_of(file_key)]
    found = instants_by_file(pl.concat(parts)) if parts else {}
    return instants_result(found.get(file_key, NONE_SHARED))


def _broken_by(
    record: FileRecord,
    rule_counts: Mapping[str, int],
    reason: str,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
) -> CheckResult:
    rows = (record.rows_read or 0, record.rows_quarantined or 0)
    return _broken(reason, broken_contract(record.file_key, reason, rule_counts, *rows), severity)


def _broken(
    reason: str, metadata: Mapping[str, Any], severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR
) -> CheckResult:
    return CheckResult(
        VALIDATED_SENSOR_DATA,
        CONTRACT_HOLDS,
        passed=False,
        severity=severity,
        description=reason,
        metadata=metadata,
    )


@dg.asset_check(
    asset=VALIDATED_SENSOR_DATA,
    name=CONTRACT_HOLDS,
    partitions_def=files_partitions,
    description="The stored rows of the file follow every rule of the contract, and none of its rows was rejected.",
)
def contract_holds(
    context: dg.AssetCheckExecutionContext, services: dg.ResourceParam[FileIngestResources]
) -> dg.AssetCheckResult:
    """Check the stored rows of each selected file against the contract."""
    rules = Contract.from_settings(services.settings.file_ingest).rules()
    return _of_each(context, lambda key: contract_of_stored(services, key, rules))


@dg.asset_check(
    asset=VALIDATED_SENSOR_DATA,
    name=EVERY_COLUMN_READ,
    partitions_def=files_partitions,
    description="The file has no column that its reader profile neither reads nor leaves out on purpose.",
)
def every_column_read(
    context: dg.AssetCheckExecutionContext, services: dg.ResourceParam[FileIngestResources]
) -> dg.AssetCheckResult:
    """Check the header of each selected file."""
    contract = Contract.from_settings(services.settings.file_ingest)
    return _of_each(context, lambda key: columns_of_landed(services, key, contract))


@dg.asset_check(
    asset=VALIDATED_SENSOR_DATA,
    name=ONE_READING_AN_INSTANT,
    partitions_def=files_partitions,
    description="No device has two readings of one sensor type at one time in the file.",
)
def one_reading_an_instant(
    context: dg.AssetCheckExecutionContext, services: dg.ResourceParam[FileIngestResources]
) -> dg.AssetCheckResult:
    """Count the stored readings of each selected file by device, type and time."""
    return _of_each(context, lambda key: instants_of_stored(services, key))


def _of_each(context: dg.AssetCheckExecutionContext, result_of: Callable[[str], CheckResult]) -> dg.AssetCheckResult:
    keys = list(context.partition_keys)
    results = {key: result_of(key) for key in keys}
    report_each(context, results)
    failed = [result for result in results.values() if not result.passed]
    first = failed[0] if failed else next(iter(results.values()))
    return dg.AssetCheckResult(
        passed=not failed,
        severity=first.severity,
        description=first.description,
        metadata=first.metadata if len(results) == 1 else {"partitions": len(results), "failed": len(failed)},
    )


@dg.asset_check(
    asset=VALIDATED_SENSOR_DATA,
    name=FILE_ACCEPTED,
    partitions_def=files_partitions,
    blocking=True,
    description="The file was ingested. Assets that depend on its rows wait for this.",
)
def file_was_accepted(
    context: dg.AssetCheckExecutionContext, services: dg.ResourceParam[FileIngestResources]
) -> dg.AssetCheckResult:
    """Check the state of each selected file."""
    records = {record.file_key: record for record in services.files.get_many(list(context.partition_keys))}

    def result_of(key: str) -> CheckResult:
        if key not in records:
            return file_accepted(key, FileState.FAILED, "The work queue does not know this file.")
        return file_accepted(key, records[key].state, records[key].reason)

    return _of_each(context, result_of)


@dg.asset_check(
    asset=VALIDATED_SENSOR_DATA,
    description="Of all ingested files: rows read are rows accepted and rows quarantined, and all of them are stored.",
)
def rows_add_up(services: dg.ResourceParam[FileIngestResources]) -> dg.AssetCheckResult:
    """Compare the recorded counts with the tables."""
    recorded, stored = services.files.row_totals(), services.warehouse.totals()
    metadata = {
        "rows_read": recorded.read,
        "rows_accepted": recorded.accepted,
        "rows_quarantined": recorded.quarantined,
        "rows_stored": stored.readings,
        "quarantined_rows_stored": stored.quarantined,
    }
    passed = (
        recorded.read == recorded.accepted + recorded.quarantined
        and recorded.accepted == stored.readings
        and recorded.quarantined == stored.quarantined
    )
    return dg.AssetCheckResult(passed=passed, metadata=metadata)


@dg.asset_check(
    asset=QUARANTINED_FILES,
    description="Of the files finished in the last day, the share in quarantine is below INGEST_MAX_QUARANTINE_SHARE.",
)
def quarantine_share_acceptable(services: dg.ResourceParam[FileIngestResources]) -> dg.AssetCheckResult:
    """Check the files of the last day."""
    recent = services.files.quarantine_share(datetime.now(UTC) - RECENT)
    limit = services.settings.file_ingest.max_quarantine_share
    return dg.AssetCheckResult(
        passed=recent.share <= limit,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "finished": recent.finished,
            "quarantined": recent.quarantined,
            "share": recent.share,
            "limit": limit,
        },
    )


@dg.asset_check(
    asset=RAW_FILES,
    description="No file has been unfinished for longer than INGEST_MAX_WAITING_SECONDS.",
)
def nothing_waits_too_long(services: dg.ResourceParam[FileIngestResources]) -> dg.AssetCheckResult:
    """Check the file that has waited longest."""
    limit_seconds = services.settings.file_ingest.max_waiting_seconds
    oldest = services.files.oldest_unfinished()
    metadata: dict[str, Any] = {"limit_seconds": limit_seconds}
    if oldest is None:
        return dg.AssetCheckResult(passed=True, metadata=metadata)
    waiting_seconds = (datetime.now(UTC) - oldest.created_at).total_seconds()
    metadata |= {
        "waiting_seconds": waiting_seconds,
        "file": oldest.file_key,
        "state": oldest.state.value,
        "reason": oldest.reason or "",
    }
    return dg.AssetCheckResult(passed=waiting_seconds <= limit_seconds, metadata=metadata)


CHECKS_OF_ALL_FILES = [rows_add_up, quarantine_share_acceptable, nothing_waits_too_long]
CHECKS = [contract_holds, file_was_accepted, every_column_read, one_reading_an_instant, *CHECKS_OF_ALL_FILES]
