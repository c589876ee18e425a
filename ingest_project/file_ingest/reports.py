"""What the UI shows of one file: metadata of its assets and the result of its contract, from what became of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg

from ingest_project.file_ingest.odd_files import odd_metadata, odd_results
from ingest_project.file_ingest.partitions import (
    AGGREGATED_METRICS,
    QUARANTINED_FILES,
    RAW_FILES,
    VALIDATED_SENSOR_DATA,
)
from ingest_project.ledger.states import FileState
from ingest_project.partition_reports import CheckResult, PartitionReport

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ingest_project.file_ingest.outcome import Outcome

CONTRACT_HOLDS = "contract_holds"

# The aspects of the contract, each with the beginnings of its rules' names; what matches none is about the whole file.
ASPECTS = {
    "timestamps": ("timestamp_",),
    "ids": ("device_id_", "sensor_type_"),
    "ranges": ("value_out_of_range",),
    "numbers": ("value_", "unit_"),
    "columns": ("missing_column", "duplicate_column", "too_few_cells", "too_many_cells"),
}
WHOLE_FILE = "whole_file"
_MAX_RAW_TEXT_SHOWN = 200


def partition_report(outcome: Outcome) -> PartitionReport:
    """The events of one file."""
    materialized: dict[dg.AssetKey, Mapping[str, Any]] = {}
    if outcome.landed is not None:
        materialized[RAW_FILES] = raw_file_metadata(outcome)
    if outcome.state is FileState.INGESTED:
        materialized[VALIDATED_SENSOR_DATA] = {
            "dagster/row_count": outcome.rows_accepted,
            "rows_read": outcome.rows_read,
            "rows_quarantined": outcome.rows_quarantined,
            "profile": outcome.profile,
            "source": outcome.record.location,
            **odd_metadata(outcome),
            **_seconds_from_event(outcome),
        }
        materialized[AGGREGATED_METRICS] = {
            "dagster/row_count": outcome.summaries.rows,
            "devices": outcome.summaries.devices,
            "sensor_types": outcome.summaries.sensor_types,
        }
    if outcome.state is FileState.REPLACED:
        # What is shown of an earlier time must not look as if it still counted.
        nothing = {"dagster/row_count": 0, "replaced_by": outcome.replaced_by}
        materialized |= {VALIDATED_SENSOR_DATA: nothing, AGGREGATED_METRICS: nothing}
    if outcome.state is FileState.QUARANTINED or (outcome.state is FileState.INGESTED and outcome.rows_quarantined):
        materialized[QUARANTINED_FILES] = quarantine_metadata(outcome)
    judged = outcome.state is not FileState.DUPLICATE
    checks = [contract_result(outcome), *odd_results(outcome)] if judged else []
    return PartitionReport(outcome.record.file_key, materialized, checks)


def raw_file_metadata(outcome: Outcome) -> dict[str, Any]:
    """Where a file's bytes came from and what they are."""
    if outcome.landed is None:
        return {}
    record = outcome.record
    metadata: dict[str, Any] = {
        "size_bytes": outcome.landed.size_bytes,
        "sha256": outcome.landed.sha256,
        "source": record.location,
        "kafka_position": str(record.intake),
    }
    if record.event.trace_id:
        metadata["trace_id"] = record.event.trace_id
    if outcome.duplicate_of:
        metadata["duplicate_of"] = outcome.duplicate_of
    if outcome.landed.landed_before:
        metadata["source_gone"] = True
    return metadata


def quarantine_metadata(outcome: Outcome) -> dict[str, Any]:
    """What was refused and why, with a sample of the rows."""
    metadata: dict[str, Any] = {
        "dagster/row_count": outcome.rows_quarantined,
        "whole_file": outcome.state is FileState.QUARANTINED,
    }
    if outcome.reason:
        metadata["reason"] = outcome.reason
    metadata["rules"] = dict(outcome.rule_counts)
    if outcome.kept_at:
        metadata["location"] = outcome.kept_at
    if outcome.sample:
        metadata["sample"] = dg.MetadataValue.table([_sample_record(row) for row in outcome.sample])
    return metadata


def contract_result(outcome: Outcome) -> CheckResult:
    """Whether the file kept the contract: failed with a warning for single rows, with an error for the whole file.

    A version that was replaced owes nothing any more; of one that its source no longer has nothing is known.
    """
    if outcome.state is FileState.REPLACED:
        return CheckResult(VALIDATED_SENSOR_DATA, CONTRACT_HOLDS, passed=True, description=outcome.reason)
    whole = outcome.state is not FileState.INGESTED
    harmless = not whole or outcome.state is FileState.SUPERSEDED
    if not whole and not outcome.rule_counts:
        return CheckResult(VALIDATED_SENSOR_DATA, CONTRACT_HOLDS, passed=True)
    reason = outcome.reason or rows_refused(outcome.rows_quarantined, outcome.rows_read)
    key = outcome.record.file_key
    return CheckResult(
        VALIDATED_SENSOR_DATA,
        CONTRACT_HOLDS,
        passed=False,
        severity=dg.AssetCheckSeverity.WARN if harmless else dg.AssetCheckSeverity.ERROR,
        description=reason,
        metadata=broken_contract(key, reason, outcome.rule_counts, outcome.rows_read, outcome.rows_quarantined),
    )


def rows_refused(rows_rejected: int, rows_read: int) -> str:
    """The reason of a file that was accepted without some of its rows."""
    return f"{rows_rejected:,} of {rows_read:,} rows are in quarantine."


def broken_contract(
    file_key: str, reason: str, rule_counts: Mapping[str, int], rows_read: int, rows_rejected: int
) -> dict[str, Any]:
    """What a failed result tells: the file and why, how often each aspect and rule was broken, the share refused.

    Args:
        file_key: of the file.
        reason: one sentence.
        rule_counts: broken rule to how often.
        rows_read: readings found in the file; nothing is said of shares where there were none.
        rows_rejected: those of them that broke a rule.
    """
    share = {"rejected_share": round(rows_rejected / rows_read, 4)} if rows_read else {}
    return {
        "file": file_key,
        "reason": reason,
        **share,
        "rows_read": rows_read,
        "rows_rejected": rows_rejected,
        **dict.fromkeys((*ASPECTS, WHOLE_FILE), 0),
        **broken_by_aspect(rule_counts),
        "rules": dict(rule_counts),
    }


def broken_by_aspect(rule_counts: Mapping[str, int]) -> dict[str, int]:
    """How often each aspect of the contract was broken."""
    counts: dict[str, int] = {}
    for rule, count in rule_counts.items():
        aspect = next((name for name, beginnings in ASPECTS.items() if rule.startswith(beginnings)), WHOLE_FILE)
        counts[aspect] = counts.get(aspect, 0) + count
    return counts


def _seconds_from_event(outcome: Outcome) -> dict[str, float]:
    """From the Kafka message to now; less than nothing where the clock of its producer is ahead."""
    event_at = outcome.record.intake.at
    return {"seconds_from_event": round((datetime.now(UTC) - event_at).total_seconds(), 3)} if event_at else {}


def _sample_record(row: Mapping[str, Any]) -> dg.TableRecord:
    raw_text = str(row["raw_text"])
    shown = raw_text if len(raw_text) <= _MAX_RAW_TEXT_SHOWN else raw_text[:_MAX_RAW_TEXT_SHOWN] + " …"
    return dg.TableRecord(
        {"line_number": int(row["line_number"]), "raw_text": shown, "reasons": ", ".join(row["reasons"])}
    )
