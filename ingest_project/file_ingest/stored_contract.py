"""Whether one file keeps the contract, judged by what the database holds of it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from ingest_project.file_ingest.partitions import VALIDATED_SENSOR_DATA
from ingest_project.file_ingest.reports import CONTRACT_HOLDS, broken_contract, rows_refused
from ingest_project.file_ingest.validation import ValidationRules, validate
from ingest_project.ledger.states import FileState
from ingest_project.partition_reports import CheckResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ingest_project.ledger.file_record import FileRecord
    from ingest_project.resources import Services
    from ingest_project.stores.warehouse import StoredCounts


def contract_of_stored(services: Services, file_key: str, rules: ValidationRules) -> CheckResult:
    """The result of `contract_holds` for one file: its stored rows keep the rules, and none is missing or refused."""
    record = services.files.get(file_key)
    if record is None:
        reason = "The ledger does not know this file."
        return _broken(reason, broken_contract(file_key, reason, {"not_in_the_ledger": 1}, 0, 0))
    if record.state in {FileState.DUPLICATE, FileState.REPLACED}:
        return CheckResult(VALIDATED_SENSOR_DATA, CONTRACT_HOLDS, passed=True, description=record.reason)
    if record.state is not FileState.INGESTED:
        counts = record.rule_counts or {"not_ingested": 1}
        severity = dg.AssetCheckSeverity.WARN if record.state is FileState.SUPERSEDED else dg.AssetCheckSeverity.ERROR
        return _broken_by(record, counts, record.reason or f"The file is {record.state.value}.", severity)
    stored = services.warehouse.file_counts([file_key])[file_key]
    wrong = stored_violations(services, file_key, rules) + missing_rows(record, stored)
    if wrong:
        return _broken_by(record, wrong, "What is stored is not what was accepted.")
    if stored.quarantined:
        reason = rows_refused(stored.quarantined, record.rows_read or 0)
        return _broken_by(record, record.rule_counts or {}, reason, dg.AssetCheckSeverity.WARN)
    return CheckResult(VALIDATED_SENSOR_DATA, CONTRACT_HOLDS, passed=True, metadata={"rows_stored": stored.readings})


def stored_violations(services: Services, file_key: str, rules: ValidationRules) -> Counter[str]:
    """How often each rule is broken by a stored reading of the file; none should be."""
    broken: Counter[str] = Counter()
    for readings in services.warehouse.readings_of(file_key):
        # The rules ask the text only where the typed value is null, which no stored value can be.
        text = readings.with_columns(pl.lit("").alias("timestamp_text"), pl.lit("").alias("value_text"))
        for (reason,) in validate(text, rules).rejected.select(pl.col("reasons").explode()).iter_rows():
            broken[reason] += 1
    return broken


def missing_rows(record: FileRecord, stored: StoredCounts) -> Counter[str]:
    """Rows that the ledger says were stored and that are not there, or the other way round."""
    differences = {
        "accepted_rows_not_stored": abs((record.rows_accepted or 0) - stored.readings),
        "quarantined_rows_not_stored": abs((record.rows_quarantined or 0) - stored.quarantined),
    }
    return Counter({rule: count for rule, count in differences.items() if count})


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
