"""Whether one file keeps the contract, judged by what the database holds of it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import dagster as dg
import polars as pl

from ingest_project.batches import CheckResult
from ingest_project.file_ingest.partitions import VALIDATED_SENSOR_DATA
from ingest_project.file_ingest.reports import ASPECTS, CONTRACT_HOLDS, broken_by_aspect
from ingest_project.file_ingest.validation import ValidationRules, validate
from ingest_project.ledger.states import FileState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ingest_project.ledger.file_record import FileRecord
    from ingest_project.resources import Services
    from ingest_project.stores.warehouse import StoredCounts


def contract_of_stored(services: Services, file_key: str, rules: ValidationRules) -> CheckResult:
    """The result of `contract_holds` for one file: its stored rows keep the rules, and none is missing or refused."""
    record = services.files.get(file_key)
    if record is None:
        return _broken({"not_in_the_ledger": 1}, dg.AssetCheckSeverity.ERROR, "The ledger does not know this file.")
    if record.state is FileState.DUPLICATE:
        return CheckResult(VALIDATED_SENSOR_DATA, CONTRACT_HOLDS, passed=True, description=record.reason)
    if record.state is not FileState.INGESTED:
        counts = record.rule_counts or {"not_ingested": 1}
        return _broken(counts, dg.AssetCheckSeverity.ERROR, record.reason or f"The file is {record.state.value}.")
    stored = services.warehouse.file_counts([file_key])[file_key]
    wrong = stored_violations(services, file_key, rules) + missing_rows(record, stored)
    if wrong:
        return _broken(wrong, dg.AssetCheckSeverity.ERROR, "What is stored is not what was accepted.")
    if stored.quarantined:
        refused = record.rule_counts or {}
        return _broken(refused, dg.AssetCheckSeverity.WARN, f"{stored.quarantined} rows are in quarantine.")
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


def _broken(rule_counts: Mapping[str, int], severity: dg.AssetCheckSeverity, description: str | None) -> CheckResult:
    metadata = {
        **dict.fromkeys(ASPECTS, 0),
        **broken_by_aspect(rule_counts),
        "rules": dict(rule_counts),
    }
    return CheckResult(
        VALIDATED_SENSOR_DATA,
        CONTRACT_HOLDS,
        passed=False,
        severity=severity,
        description=description,
        metadata=metadata,
    )
