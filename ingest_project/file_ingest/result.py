"""The result of one file, whichever step decided it, and how Dagster shows it: metadata and check results.

Every asset of a file that is finished has a materialization, also one without rows: Dagster counts a requested
partition that was not reported as failed.
"""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from ingest_project.core.errors import (
    FileRejectedError,
    IngestError,
    TransientError,
    UnexpectedError,
    VersionSupersededError,
    WorkerExhaustedError,
)
from ingest_project.file_ingest.aggregation import NO_SUMMARIES, NONE_SHARED, SharedInstants, SummaryCounts
from ingest_project.file_ingest.catalog import (
    AGGREGATED_METRICS,
    QUARANTINED_FILES,
    RAW_FILES,
    VALIDATED_SENSOR_DATA,
)
from ingest_project.file_ingest.file_queue import FileRecord
from ingest_project.file_ingest.sensor_readings import ASPECTS, METRIC_COLUMNS, READING_COLUMN_KINDS
from ingest_project.file_ingest.tables import FileState
from ingest_project.platform.dagster.asset_events import CheckResult, PartitionEvents
from ingest_project.platform.object_store.content_store import Landed

CONTRACT_HOLDS = "contract_holds"
FILE_ACCEPTED = "file_accepted"
EVERY_COLUMN_READ = "every_column_read"
ONE_READING_AN_INSTANT = "one_reading_an_instant"
WHOLE_FILE = "whole_file"
MOST_COLUMNS_SHOWN = 50
LONGEST_RAW_TEXT_SHOWN = 200
# Each library of Rust's has a class of its own of this name, which no `except Exception` catches.
PANIC = "PanicException"
TRACEBACK_FRAMES = 12
LONGEST_TRACEBACK = 4_000
# What a process runs out of over one file; another file, or the same one later, may find enough.
SHORTAGES = frozenset({errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE})


@dataclass(frozen=True)
class FileResult:
    """The result of one file.

    Args:
        record: its queue entry, as it was when work began.
        state: where it ends; pending where it will be tried again.
        landed: its bytes in the landing store, where they got that far.
        profile: name of the reader profile.
        meaning: hash of what determines, besides its bytes, which rows it holds.
        rows_read: readings found in the file, bad ones too.
        rows_quarantined: readings of it that broke a rule.
        summaries: how many its metrics are.
        rule_counts: how often each rule was broken.
        reason: one sentence, where it was not simply ingested.
        error_class: name of the error behind the reason.
        duplicate_of: key of the file with the same content whose rows stand for this one's.
        replaced_by: key of the newer version that counts instead of this one.
        sample: some quarantined rows, for the UI: line_number, raw_text, reasons.
        preview: the first accepted rows, for the UI: timestamp, device_id, sensor_type, value, unit, line_number.
        metrics_shown: the first summaries, for the UI: device_id, sensor_type, min, max, mean, count, stddev.
        unknown_columns: columns of the file that its profile does not know, and that were left out.
        instants: how many of its accepted readings share device, sensor type and time with another.
        kept_at: where the quarantine keeps the bytes of a file that was refused whole.
    """

    record: FileRecord
    state: FileState
    landed: Landed | None = None
    profile: str = ""
    meaning: str = ""
    rows_read: int = 0
    rows_quarantined: int = 0
    summaries: SummaryCounts = NO_SUMMARIES
    rule_counts: Mapping[str, int] = field(default_factory=dict)
    reason: str | None = None
    error_class: str | None = None
    duplicate_of: str | None = None
    replaced_by: str | None = None
    sample: Sequence[Mapping[str, Any]] = ()
    preview: Sequence[Mapping[str, Any]] = ()
    metrics_shown: Sequence[Mapping[str, Any]] = ()
    unknown_columns: Sequence[str] = ()
    instants: SharedInstants = NONE_SHARED
    kept_at: str | None = None

    @property
    def rows_accepted(self) -> int:
        """Readings that are stored: none, unless the file was ingested."""
        return self.rows_read - self.rows_quarantined if self.state is FileState.INGESTED else 0

    @property
    def leaves_what_is_stored(self) -> bool:
        """Whether the file was stored before and could not be had, or stored, again: its rows stay."""
        return self.record.stands and self.state in {FileState.FAILED, FileState.SUPERSEDED}


def error_of(doing: str, cause: BaseException) -> IngestError:
    """Name what one file brought to light, so that it ends that file's work and no other's.

    Args:
        doing: what was being done, e.g. "Reading the file".
        cause: what was raised; an error of ours is its own name.

    Raises:
        BaseException: the cause, where it is no failure but the end of this run.
    """
    if isinstance(cause, IngestError):
        return cause
    if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno in SHORTAGES):
        return WorkerExhaustedError(doing, cause)
    if isinstance(cause, Exception) or type(cause).__name__ == PANIC:
        return UnexpectedError(doing, cause)
    raise cause


def traceback_of(cause: BaseException) -> str:
    """Return the end of an exception's traceback, for the log: bisection raises it again and again."""
    return "".join(traceback.format_exception(cause, limit=-TRACEBACK_FRAMES, chain=False))[-LONGEST_TRACEBACK:]


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise what a library written in Rust panics with as an ordinary exception: Python's own it is not."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        raise error_of("It", error) from error


def outcome_of_error(record: FileRecord, error: IngestError, landed: Landed | None = None, **known: Any) -> FileResult:  # noqa: ANN401
    """Return the result of a file that an error stopped: retried, quarantined for its content, or failed.

    Args:
        record: the file.
        error: what stopped it.
        landed: its bytes, where they got that far.
        known: further fields of the outcome.
    """
    if isinstance(error, TransientError):
        state = FileState.PENDING
    elif isinstance(error, FileRejectedError):
        state = FileState.QUARANTINED
        known.setdefault("rule_counts", {error.rule: 1})
    elif isinstance(error, VersionSupersededError):
        state = FileState.SUPERSEDED
    else:
        state = FileState.FAILED
    return FileResult(record, state, landed, reason=str(error), error_class=error.error_class, **known)


def partition_report(outcome: FileResult) -> PartitionEvents:
    """Return the events of one file.

    Every asset of a finished file has a materialization, also one without rows: Dagster counts a partition that was
    requested and not reported as failed. A file that failed has only that of the bytes that were landed. One whose rows
    stay because it cannot be read again keeps its materializations; its check reports the attempt.
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
        **_table("first_rows", outcome.preview, READING_COLUMN_KINDS),
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
    """Return how much was refused and why, with a sample of the rows."""
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
    """Judge whether the file kept the contract: a warning for single rows, an error for the whole file.

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
    """Return the reason of a file that was accepted without some of its rows."""
    return f"{rows_rejected:,} of {rows_read:,} rows are in quarantine."


def broken_contract(
    file_key: str, reason: str, rule_counts: Mapping[str, int], rows_read: int, rows_rejected: int
) -> dict[str, Any]:
    """Return the metadata of a failed result: file, reason, counts by aspect and rule, and the share refused.

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
    """Count how often each aspect of the contract was broken."""
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
    """Return the seconds since the Kafka message; negative where the clock of its producer is ahead."""
    event_at = outcome.record.intake.at
    return {"seconds_from_event": round((datetime.now(UTC) - event_at).total_seconds(), 3)} if event_at else {}


def _sample_record(row: Mapping[str, Any]) -> dg.TableRecord:
    raw_text = str(row["raw_text"])
    shown = raw_text if len(raw_text) <= LONGEST_RAW_TEXT_SHOWN else raw_text[:LONGEST_RAW_TEXT_SHOWN] + " …"
    return dg.TableRecord(
        {"line_number": int(row["line_number"]), "raw_text": shown, "reasons": ", ".join(row["reasons"])}
    )


def odd_metadata(outcome: FileResult) -> dict[str, Any]:
    """Return metadata on columns that were not read and on readings at shared instants, where there are any."""
    metadata: dict[str, Any] = {}
    if outcome.unknown_columns:
        metadata["columns_left_out"] = list(outcome.unknown_columns[:MOST_COLUMNS_SHOWN])
    if outcome.instants.readings:
        metadata["readings_at_shared_instants"] = outcome.instants.readings
    return metadata


def odd_results(outcome: FileResult) -> list[CheckResult]:
    """Return the failed checks of columns and instants, and passed ones where an earlier result may differ."""
    if outcome.state is not FileState.INGESTED:
        return []
    results = [columns_result(outcome.unknown_columns), instants_result(outcome.instants)]
    ingested_before = outcome.record.rows_read is not None
    return [result for result in results if ingested_before or not result.passed]


def columns_result(unknown_columns: Sequence[str]) -> CheckResult:
    """Judge whether the profile knows every column of the file."""
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
    """Judge whether each device has one reading of each type at a time."""
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
