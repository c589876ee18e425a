"""Build what the UI shows of one file from its result: metadata, its contract, and what is odd about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import polars as pl

from ingest_project.file_ingest.aggregation import NONE_SHARED, SharedInstants, aggregate_files, instants_by_file
from ingest_project.file_ingest.catalog import (
    AGGREGATED_METRICS,
    QUARANTINED_FILES,
    RAW_FILES,
    VALIDATED_SENSOR_DATA,
)
from ingest_project.file_ingest.resources import FileIngestResources
from ingest_project.file_ingest.result import FileResult
from ingest_project.file_ingest.tables import FileState
from ingest_project.file_ingest.validate_files import Contract, open_file
from ingest_project.platform.dagster.asset_events import CheckResult, PartitionEvents

EVERY_COLUMN_READ = "every_column_read"
ONE_READING_AN_INSTANT = "one_reading_an_instant"
MOST_COLUMNS_SHOWN = 50


def odd_metadata(outcome: FileResult) -> dict[str, Any]:
    """The same for the file's metadata: nothing where there is nothing odd."""
    metadata: dict[str, Any] = {}
    if outcome.unknown_columns:
        metadata["columns_left_out"] = list(outcome.unknown_columns[:MOST_COLUMNS_SHOWN])
    if outcome.instants.readings:
        metadata["readings_at_shared_instants"] = outcome.instants.readings
    return metadata


def odd_results(outcome: FileResult) -> list[CheckResult]:
    """The checks that find something odd in an ingested file; all of them where an earlier result may be in the way."""
    if outcome.state is not FileState.INGESTED:
        return []
    results = [columns_result(outcome.unknown_columns), instants_result(outcome.instants)]
    ingested_before = outcome.record.rows_read is not None
    return [result for result in results if ingested_before or not result.passed]


def columns_of_landed(services: FileIngestResources, file_key: str, contract: Contract) -> CheckResult:
    """The result of `every_column_read` for one file, by its header as it was landed."""
    record = services.files.get(file_key)
    landed = services.landing.find(record.sha256) if record and record.sha256 else None
    if record is None or landed is None or record.state is not FileState.INGESTED:
        return columns_result(())
    with ExitStack() as resources:
        file = open_file(record, landed, services.landing, contract)
        resources.push(file.resources)
        return columns_result(file.first.unknown_columns)


def instants_of_stored(services: FileIngestResources, file_key: str) -> CheckResult:
    """The result of `one_reading_an_instant` for one file, by its stored readings."""
    key = pl.lit(file_key).alias("file_key")
    parts = [aggregate_files(part.with_columns(key))[1] for part in services.warehouse.readings_of(file_key)]
    found = instants_by_file(pl.concat(parts)) if parts else {}
    return instants_result(found.get(file_key, NONE_SHARED))


def columns_result(unknown_columns: Sequence[str]) -> CheckResult:
    """Whether the profile knows every column of the file."""
    names = list(unknown_columns[:MOST_COLUMNS_SHOWN])
    count = len(unknown_columns)
    return CheckResult(
        VALIDATED_SENSOR_DATA,
        EVERY_COLUMN_READ,
        passed=not names,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{count} columns of the file are in no profile, and not stored: {', '.join(names)}."
        if names
        else None,
        metadata={"columns_left_out": count, "names": names},
    )


def instants_result(instants: SharedInstants) -> CheckResult:
    """Whether each device has one reading of each type at a time."""
    shared = instants.readings
    reason = (
        f"{shared:,} readings have the device, type and time of another, up to {instants.largest:,} at one instant."
    )
    return CheckResult(
        VALIDATED_SENSOR_DATA,
        ONE_READING_AN_INSTANT,
        passed=not shared,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{reason} Is a column with the day alone read as the time?" if shared else None,
        metadata={"readings": shared, "largest": instants.largest, "examples": list(instants.examples)},
    )


CONTRACT_HOLDS = "contract_holds"
FILE_ACCEPTED = "file_accepted"

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
PREVIEW_COLUMNS = {
    "line_number": "int",
    "timestamp": "string",
    "device_id": "string",
    "sensor_type": "string",
    "value": "float",
    "unit": "string",
}
METRIC_COLUMNS = {
    "device_id": "string",
    "sensor_type": "string",
    "min": "float",
    "max": "float",
    "mean": "float",
    "count": "int",
    "stddev": "float",
}


def partition_report(outcome: FileResult) -> PartitionEvents:
    """Return the events of one file.

    Every asset of a file that came to an end has a materialisation, also one without rows: Dagster counts a partition
    that was asked for and not reported as failed. A file that failed has none but what was landed of it. One whose rows
    stay because it cannot be had again keeps its materialisations; its check tells of the attempt.
    """
    if outcome.leaves_what_is_stored:
        return PartitionEvents(outcome.record.file_key, {}, [accepted_result(outcome)])
    ended = outcome.state.finished and outcome.state is not FileState.FAILED
    materialized: dict[dg.AssetKey, Mapping[str, Any]] = {}
    if outcome.landed is not None or ended:
        materialized[RAW_FILES] = raw_file_metadata(outcome)
    if ended:
        materialized |= {
            VALIDATED_SENSOR_DATA: validated_metadata(outcome),
            AGGREGATED_METRICS: metrics_metadata(outcome),
            QUARANTINED_FILES: quarantine_metadata(outcome),
        }
    checks = [accepted_result(outcome)]
    if outcome.state is not FileState.DUPLICATE:
        checks += [contract_result(outcome), *odd_results(outcome)]
    return PartitionEvents(outcome.record.file_key, materialized, checks)


def validated_metadata(outcome: FileResult) -> dict[str, Any]:
    """Return how many rows were accepted, and why where there are none."""
    return {
        "dagster/row_count": outcome.rows_accepted,
        "rows_read": outcome.rows_read,
        "rows_quarantined": outcome.rows_quarantined,
        "rejected_share": round(outcome.rows_quarantined / outcome.rows_read, 4) if outcome.rows_read else 0.0,
        "profile": outcome.profile,
        "source": outcome.record.location,
        **_reason(outcome),
        **({"replaced_by": outcome.replaced_by} if outcome.replaced_by else {}),
        **odd_metadata(outcome),
        **_seconds_from_event(outcome),
        **_table("first_rows", outcome.preview, PREVIEW_COLUMNS),
    }


def metrics_metadata(outcome: FileResult) -> dict[str, Any]:
    """Return how many summaries a file has: none where its rows are not stored."""
    stored = outcome.state is FileState.INGESTED
    return {
        "dagster/row_count": outcome.summaries.rows if stored else 0,
        "devices": outcome.summaries.devices if stored else 0,
        "sensor_types": outcome.summaries.sensor_types if stored else 0,
        **_reason(outcome),
        **(_table("metrics", outcome.metrics_shown, METRIC_COLUMNS) if stored else {}),
    }


def raw_file_metadata(outcome: FileResult) -> dict[str, Any]:
    """Return where a file's bytes came from and what they are, or why none of them was kept."""
    record = outcome.record
    metadata: dict[str, Any] = {"source": record.location, "kafka_position": str(record.intake)}
    if outcome.landed is None:
        return {**metadata, "size_bytes": 0, **_reason(outcome)}
    metadata |= {"size_bytes": outcome.landed.size_bytes, "sha256": outcome.landed.sha256}
    metadata["dagster/uri"] = outcome.landed.path
    if record.event.trace_id:
        metadata["trace_id"] = record.event.trace_id
    if outcome.duplicate_of:
        metadata["duplicate_of"] = outcome.duplicate_of
    if outcome.landed.landed_before:
        metadata["source_gone"] = True
    return metadata


def quarantine_metadata(outcome: FileResult) -> dict[str, Any]:
    """What was refused and why, with a sample of the rows."""
    metadata: dict[str, Any] = {
        "dagster/row_count": outcome.rows_quarantined,
        "whole_file": outcome.state is FileState.QUARANTINED,
        **_reason(outcome),
    }
    metadata["rules"] = dict(outcome.rule_counts)
    if outcome.kept_at:
        metadata["location"] = outcome.kept_at
    if outcome.sample:
        metadata["sample"] = dg.MetadataValue.table([_sample_record(row) for row in outcome.sample])
    return metadata


def contract_result(outcome: FileResult) -> CheckResult:
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


def accepted_result(outcome: FileResult) -> CheckResult:
    """Return whether the file's rows are stored: assets that are made of them wait for this."""
    if outcome.leaves_what_is_stored:
        note = f"What was stored of it stays. It could not be ingested again: {outcome.reason}"
        return file_accepted(outcome.record.file_key, FileState.INGESTED, note)
    return file_accepted(outcome.record.file_key, outcome.state, outcome.reason)


def file_accepted(file_key: str, state: FileState, reason: str | None) -> CheckResult:
    """Judge a file by where it ended: an error where it was refused or failed, a warning where others stand for it."""
    refused = state in {FileState.QUARANTINED, FileState.FAILED}
    return CheckResult(
        VALIDATED_SENSOR_DATA,
        FILE_ACCEPTED,
        passed=state is FileState.INGESTED,
        severity=dg.AssetCheckSeverity.ERROR if refused else dg.AssetCheckSeverity.WARN,
        description=reason if state is FileState.INGESTED else reason or f"The file is {state.value}.",
        metadata={"file": file_key, "state": state.value},
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


def _table(
    name: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]
) -> dict[str, dg.TableMetadataValue]:
    """Return rows as a table for the UI; nothing where there are none."""
    if not rows:
        return {}
    records = [dg.TableRecord({column: _shown(row[column]) for column in columns}) for row in rows]
    schema = dg.TableSchema([dg.TableColumn(column, kind) for column, kind in columns.items()])
    return {name: dg.TableMetadataValue(records, schema)}


def _shown(value: object) -> str | float | int:
    if isinstance(value, datetime):
        return value.isoformat()
    if value is None:
        return ""
    return value if isinstance(value, str | float | int) else str(value)


def _reason(outcome: FileResult) -> dict[str, str]:
    return {"reason": outcome.reason} if outcome.reason else {}


def _seconds_from_event(outcome: FileResult) -> dict[str, float]:
    """From the Kafka message to now; less than nothing where the clock of its producer is ahead."""
    event_at = outcome.record.intake.at
    return {"seconds_from_event": round((datetime.now(UTC) - event_at).total_seconds(), 3)} if event_at else {}


def _sample_record(row: Mapping[str, Any]) -> dg.TableRecord:
    raw_text = str(row["raw_text"])
    shown = raw_text if len(raw_text) <= _MAX_RAW_TEXT_SHOWN else raw_text[:_MAX_RAW_TEXT_SHOWN] + " …"
    return dg.TableRecord(
        {"line_number": int(row["line_number"]), "raw_text": shown, "reasons": ", ".join(row["reasons"])}
    )
