"""Asset checks of file ingest. Each check reads the current state of the stores.

`contract_holds` is about one file and partitioned like it; a batch run reports it for each of its files as it stores
them (see `result`), and running the check alone queries the database again. The others are about all files at once.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from ingest_project.contracts.files import SENSOR_READINGS
from ingest_project.file_ingest.aggregation import NONE_SHARED, instants_by_file
from ingest_project.file_ingest.catalog import QUARANTINED_FILES, RAW_FILES, SENSOR_ASSETS, DatasetAssets, assets_of
from ingest_project.file_ingest.contract import NO_DRIFT, Contract, drift_of
from ingest_project.file_ingest.declared import contract_of
from ingest_project.file_ingest.file_queue import FileRecord
from ingest_project.file_ingest.resources import FileIngestResources
from ingest_project.file_ingest.result import (
    CONTRACT_HOLDS,
    FILE_ACCEPTED,
    ONE_READING_AN_INSTANT,
    baseline_result,
    broken_contract,
    drift_result,
    file_accepted,
    instants_result,
    rows_quarantined_reason,
)
from ingest_project.file_ingest.tables import FileState
from ingest_project.file_ingest.validate_files import open_file
from ingest_project.file_ingest.warehouse import StoredCounts
from ingest_project.file_ingest.warehouse.baselines import WITHIN_BASELINE, read_baselines, read_statistics
from ingest_project.file_ingest.warehouse.sql import SqlWarehouse
from ingest_project.platform.dagster.asset_events import CheckResult, WholeAssetResult, partitions_of_run, report_each
from ingest_project.platform.database import reading

RECENT = timedelta(hours=24)
# Returns the results of a check for some files of a dataset, by their keys.
ResultsOf = Callable[[FileIngestResources, DatasetAssets, Sequence[str]], Mapping[str, CheckResult]]


def contract_of_stored(services: FileIngestResources, file_key: str, contract: Contract) -> CheckResult:
    """Return the result of `contract_holds` for one file: its stored rows follow the rules, and none is missing."""
    assets = assets_of(contract.name)
    record = services.files.get(file_key)
    if record is None:
        reason = "The work queue does not know this file."
        return _failure(assets, reason, broken_contract(assets, file_key, reason, {"not_in_the_work_queue": 1}, 0, 0))
    if record.state in {FileState.DUPLICATE, FileState.REPLACED}:
        return CheckResult(assets.validated, CONTRACT_HOLDS, passed=True, description=record.reason)
    if record.state is not FileState.INGESTED:
        counts = record.rule_counts or {"not_ingested": 1}
        severity = dg.AssetCheckSeverity.WARN if record.state is FileState.SUPERSEDED else dg.AssetCheckSeverity.ERROR
        return _failure_of(record, counts, record.reason or f"The file is {record.state.value}.", severity)
    warehouse = services.warehouse.of(contract.tables)
    stored = warehouse.file_counts([file_key])[file_key]
    wrong = stored_violations(warehouse, file_key, contract) + missing_rows(record, stored)
    if wrong:
        return _failure_of(record, wrong, "The stored rows differ from the accepted ones.")
    if stored.quarantined:
        reason = rows_quarantined_reason(stored.quarantined, record.rows_read or 0, record.rule_counts or {})
        return _failure_of(record, record.rule_counts or {}, reason, dg.AssetCheckSeverity.WARN)
    return CheckResult(assets.validated, CONTRACT_HOLDS, passed=True, metadata={"rows_stored": stored.rows})


def stored_violations(warehouse: SqlWarehouse, file_key: str, contract: Contract) -> Counter[str]:
    """Count how often each rule is broken by a stored row of the file; none should be."""
    broken: Counter[str] = Counter()
    for rows in warehouse.rows_of(file_key):
        broken.update(contract.broken_by_stored(rows))
    return broken


def missing_rows(record: FileRecord, stored: StoredCounts) -> Counter[str]:
    """Count rows that are recorded as stored but missing, or stored but not recorded."""
    differences = {
        "accepted_rows_not_stored": abs((record.rows_accepted or 0) - stored.rows),
        "quarantined_rows_not_stored": abs((record.rows_quarantined or 0) - stored.quarantined),
    }
    return Counter({rule: count for rule, count in differences.items() if count})


def columns_of_landed(services: FileIngestResources, file_key: str, contract: Contract) -> CheckResult:
    """Return the result of `every_column_read` or `schema_unchanged` for one file, by its header as it was landed."""
    assets, drift = assets_of(contract.name), NO_DRIFT
    record = services.files.get(file_key)
    landed = services.landing.find(record.sha256) if record and record.sha256 else None
    if record is not None and landed is not None and record.state is FileState.INGESTED:
        with ExitStack() as resources:
            file = open_file(record, landed, services.landing, contract)
            resources.push(file.resources)
            counts, rows_read = record.rule_counts or {}, record.rows_read or 0
            rescued = contract.rescued(file.first.unknown_columns)
            drift = drift_of(file.first, contract.target, counts, rows_read, rescued)
    return drift_result(drift, assets, contract.drift)


def instants_of_stored(services: FileIngestResources, file_key: str) -> CheckResult:
    """Return the result of `one_reading_an_instant` for one file, by its stored readings."""
    found = instants_by_file(services.warehouse.shared_instants(file_key))
    return instants_result(found.get(file_key, NONE_SHARED), SENSOR_ASSETS)


def _failure_of(
    record: FileRecord,
    rule_counts: Mapping[str, int],
    reason: str,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
) -> CheckResult:
    assets, rows = assets_of(record.dataset), (record.rows_read or 0, record.rows_quarantined or 0)
    return _failure(assets, reason, broken_contract(assets, record.file_key, reason, rule_counts, *rows), severity)


def _failure(
    assets: DatasetAssets,
    reason: str,
    metadata: Mapping[str, Any],
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
) -> CheckResult:
    return CheckResult(
        assets.validated, CONTRACT_HOLDS, passed=False, severity=severity, description=reason, metadata=metadata
    )


def _file_check(
    assets: DatasetAssets, name: str, description: str, results_of: ResultsOf, *, blocking: bool = False
) -> dg.AssetChecksDefinition:
    """Return a check of each file of a dataset."""

    @dg.asset_check(
        asset=assets.validated, name=name, partitions_def=assets.partitions, blocking=blocking, description=description
    )
    def check(
        context: dg.AssetCheckExecutionContext, services: dg.ResourceParam[FileIngestResources]
    ) -> dg.AssetCheckResult:
        return report_each(context, results_of(services, assets, partitions_of_run(context)))

    return check


def _each(result_of: Callable[[FileIngestResources, str, Contract], CheckResult]) -> ResultsOf:
    """Return a function that checks files one by one, under the contract of their dataset."""

    def results_of(
        services: FileIngestResources, assets: DatasetAssets, keys: Sequence[str]
    ) -> Mapping[str, CheckResult]:
        contract = contract_of(services, assets.dataset)
        return {key: result_of(services, key, contract) for key in keys}

    return results_of


def _accepted(services: FileIngestResources, assets: DatasetAssets, keys: Sequence[str]) -> Mapping[str, CheckResult]:
    unknown = dict.fromkeys(keys, (FileState.FAILED, "The work queue does not know this file."))
    known = {record.file_key: (record.state, record.reason) for record in services.files.get_many(keys)}
    return {key: file_accepted(assets, key, *state) for key, state in {**unknown, **known}.items()}


def _within_baseline(
    services: FileIngestResources, assets: DatasetAssets, keys: Sequence[str]
) -> Mapping[str, CheckResult]:
    known = read_statistics(services.engine, keys)
    sources = {(file.dataset, file.source) for file in known.values()}
    with reading(services.engine) as connection:
        baselines = read_baselines(connection, sources, services.settings, datetime.now(UTC))
    reason = "Only ingested files of recent weeks are compared."
    others = CheckResult(assets.validated, WITHIN_BASELINE, passed=True, description=reason)
    judged = {
        key: baseline_result(baselines[file.dataset, file.source].judge(file), assets) for key, file in known.items()
    }
    return {key: judged.get(key, others) for key in keys}


def _rows_add_up(assets: DatasetAssets) -> dg.AssetChecksDefinition:
    """Return the check that compares the recorded counts of a dataset with its tables."""

    @dg.asset_check(
        asset=assets.validated,
        name="rows_add_up",
        description="Of all ingested files: rows read are rows accepted and rows quarantined, and all are stored.",
    )
    def check(services: dg.ResourceParam[FileIngestResources]) -> dg.AssetCheckResult:
        stored = services.warehouse.of(contract_of(services, assets.dataset).tables).totals()
        recorded = services.files.row_totals(assets.dataset)
        metadata = {
            "rows_read": recorded.read,
            "rows_accepted": recorded.accepted,
            "rows_quarantined": recorded.quarantined,
            "rows_stored": stored.rows,
            "quarantined_rows_stored": stored.quarantined,
        }
        counts = (recorded.read, recorded.accepted, recorded.quarantined)
        passed = counts == (stored.rows + stored.quarantined, stored.rows, stored.quarantined)
        return WholeAssetResult(passed=passed, metadata=metadata)

    return check


def checks_of_dataset(dataset: str) -> list[dg.AssetChecksDefinition]:
    """Return the checks of one dataset: one of all its rows, and four of each file."""
    assets = assets_of(dataset)
    of_files: dict[str, tuple[str, ResultsOf]] = {
        CONTRACT_HOLDS: (
            "The stored rows of the file follow every rule of the contract, and none of its rows was rejected.",
            _each(contract_of_stored),
        ),
        FILE_ACCEPTED: ("The file was ingested. Assets that depend on its rows wait for this.", _accepted),
        assets.columns_check: (
            "The file has the columns that its dataset or reader profile names, of their types, and no other.",
            _each(columns_of_landed),
        ),
        WITHIN_BASELINE: (
            "Rows, rejected share, nulls and lateness of the file are usual for its source in recent weeks.",
            _within_baseline,
        ),
    }
    checks = [_file_check(assets, name, *what, blocking=name == FILE_ACCEPTED) for name, what in of_files.items()]
    return [_rows_add_up(assets), *checks]


one_reading_an_instant = _file_check(
    SENSOR_ASSETS,
    ONE_READING_AN_INSTANT,
    "No device has two readings of one sensor type at one time in the file.",
    _each(lambda services, file_key, _contract: instants_of_stored(services, file_key)),
)


@dg.asset_check(
    asset=QUARANTINED_FILES,
    description="Of the files finished in the last day, the share in quarantine is below INGEST_MAX_QUARANTINE_SHARE.",
)
def quarantine_share_acceptable(services: dg.ResourceParam[FileIngestResources]) -> dg.AssetCheckResult:
    """Check the files of the last day."""
    recent = services.files.quarantine_share(datetime.now(UTC) - RECENT)
    limit = services.settings.file_ingest.max_quarantine_share
    return WholeAssetResult(
        passed=recent.share <= limit,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "finished": recent.finished,
            "quarantined": recent.quarantined,
            "share": recent.share,
            "limit": limit,
        },
    )


@dg.asset_check(asset=RAW_FILES, description="No file has been unfinished for longer than INGEST_MAX_WAITING_SECONDS.")
def nothing_waits_too_long(services: dg.ResourceParam[FileIngestResources]) -> dg.AssetCheckResult:
    """Check the file that has waited longest."""
    limit_seconds = services.settings.file_ingest.max_waiting_seconds
    oldest = services.files.oldest_unfinished()
    metadata: dict[str, Any] = {"limit_seconds": limit_seconds}
    if oldest is None:
        return WholeAssetResult(passed=True, metadata=metadata)
    waiting_seconds = (datetime.now(UTC) - oldest.created_at).total_seconds()
    metadata |= {
        "waiting_seconds": waiting_seconds,
        "file": oldest.file_key,
        "state": oldest.state.value,
        "reason": oldest.reason or "",
    }
    return WholeAssetResult(passed=waiting_seconds <= limit_seconds, metadata=metadata)


_rows_of_sensors, *_of_each_file = checks_of_dataset(SENSOR_READINGS)
CHECKS_OF_ALL_FILES = [_rows_of_sensors, quarantine_share_acceptable, nothing_waits_too_long]
CHECKS = [*_of_each_file, one_reading_an_instant, *CHECKS_OF_ALL_FILES]
