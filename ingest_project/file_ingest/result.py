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

from ingest_project.contracts.columns import remedies_of
from ingest_project.contracts.files import SENSOR_READINGS
from ingest_project.core.console import data_text
from ingest_project.core.errors import (
    FileRejectedError,
    IngestError,
    SchemaConflictError,
    TableUnusableError,
    TransientError,
    UnexpectedError,
    VersionSupersededError,
    WorkerExhaustedError,
)
from ingest_project.file_ingest.aggregation import NO_SUMMARIES, NONE_SHARED, SharedInstants, SummaryCounts
from ingest_project.file_ingest.catalog import DatasetAssets
from ingest_project.file_ingest.contract import FATES, NO_DRIFT, Drift, Policy
from ingest_project.file_ingest.file_queue import FileRecord
from ingest_project.file_ingest.sensor_readings import ASPECTS
from ingest_project.file_ingest.tables import FIXED_BY_A_PERSON, FileState
from ingest_project.file_ingest.warehouse.baselines import (
    WITHIN_BASELINE,
    FileStatistics,
    Verdict,
    lateness_of,
    source_of,
)
from ingest_project.platform.dagster.asset_events import CheckResult, PartitionEvents
from ingest_project.platform.errors import first_line_of, sqlstate
from ingest_project.platform.http import without_query
from ingest_project.platform.object_store.content_store import Landed

CONTRACT_HOLDS = "contract_holds"
FILE_ACCEPTED = "file_accepted"
ONE_READING_AN_INSTANT = "one_reading_an_instant"
WHOLE_FILE = "whole_file"
MAX_RAW_TEXT_SHOWN = 200
# Each Rust library has its own class of this name, which `except Exception` does not catch.
PANIC = "PanicException"
TRACEBACK_FRAMES = 12
MAX_TRACEBACK_LENGTH = 4_000
# PostgreSQL's error codes about tables and privileges, never about rows: no table, no permission, a further NOT NULL
# column.
SCHEMA_ERRORS = ("42", "3D", "3F", "0A", "25", "26", "23502")
# PostgreSQL's error classes of constraints and triggers. Except for declared keys, people have added these.
REFUSED_BY_A_RULE = ("23", "P0")
# Shortages that one file may cause; another file, or the same one later, may succeed.
SHORTAGES = frozenset({errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE})


@dataclass(frozen=True)
class FileResult:
    """The result of one file.

    Args:
        record: its queue entry, as it was when work began.
        state: final state; pending if it will be retried.
        landed: its bytes in the landing store, if they were landed.
        profile: name of the reader profile.
        meaning: hash of everything but its bytes that determines its rows.
        rows_read: readings found in the file, bad ones too.
        rows_quarantined: readings of it that broke a rule.
        summaries: counts of its metrics.
        rule_counts: how often each rule was broken.
        reason: one sentence, unless it was ingested without remarks.
        error_class: name of the error behind the reason.
        duplicate_of: key of the file with the same content whose rows represent this one's.
        replaced_by: key of the newer version that counts instead of this one.
        sample: some quarantined rows, for the UI: line_number, raw_text, reasons.
        preview: the first accepted rows, for the UI.
        metrics_shown: the first summaries, for the UI.
        drift: how its columns differ from the declared ones.
        policy: the drift policy of its dataset.
        instants: how many of its accepted readings share device, sensor type and time with another.
        kept_at: location in the quarantine of the bytes of a file that was rejected as a whole.
        null_counts: nulls in the accepted rows by column, where there are any.
        verdict: how it compares with other files of its source; None where it was not compared.
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
    drift: Drift = NO_DRIFT
    policy: Policy = "rescue"
    instants: SharedInstants = NONE_SHARED
    kept_at: str | None = None
    null_counts: Mapping[str, int] = field(default_factory=dict)
    verdict: Verdict | None = None

    @property
    def statistics(self) -> FileStatistics:
        """What baselines compare of an ingested file."""
        record = self.record
        return FileStatistics(
            file_key=record.file_key,
            dataset=record.dataset,
            source=source_of(record.location),
            arrived_at=record.created_at,
            rows_read=self.rows_read,
            rows_quarantined=self.rows_quarantined,
            null_counts=dict(self.null_counts),
            lateness_seconds=lateness_of(record),
        )

    @property
    def rows_accepted(self) -> int:
        """Readings that are stored: none, unless the file was ingested."""
        return self.rows_read - self.rows_quarantined if self.state is FileState.INGESTED else 0

    @property
    def awaits_a_person(self) -> bool:
        """True if it continues only once a person has fixed its declaration, its table or a setting."""
        return self.state is FileState.PENDING and self.error_class in FIXED_BY_A_PERSON

    @property
    def is_news(self) -> bool:
        """True if Dagster is to show it: it is finished, or now waits for a person."""
        return self.state.finished or (self.awaits_a_person and self.reason != self.record.reason)

    @property
    def keeps_stored_rows(self) -> bool:
        """True if the file was stored before and could not be read or stored again: its rows stay."""
        return self.record.stands and self.state in {FileState.FAILED, FileState.SUPERSEDED}


def error_of(doing: str, cause: BaseException) -> IngestError:
    """Convert an exception of one file to an error that ends the work on that file only.

    Args:
        doing: the step, e.g. "Reading the file".
        cause: the exception; an `IngestError` is returned unchanged.

    Raises:
        BaseException: the cause, if it ends this run, such as an interrupt.
    """
    if isinstance(cause, IngestError):
        return cause
    if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno in SHORTAGES):
        return WorkerExhaustedError(doing, cause)
    if is_schema_error(cause) or sqlstate(cause).startswith(REFUSED_BY_A_RULE):
        return TableUnusableError(first_line_of(cause))
    if isinstance(cause, Exception) or type(cause).__name__ == PANIC:
        return UnexpectedError(doing, cause)
    raise cause


def is_schema_error(error: BaseException) -> bool:
    """Return True for an error of tables or rights, for which bisecting would fail every file of the batch."""
    return sqlstate(error).startswith(SCHEMA_ERRORS)


def traceback_of(cause: BaseException) -> str:
    """Return the end of an exception's traceback, for the log: bisection raises it again and again."""
    return "".join(traceback.format_exception(cause, limit=-TRACEBACK_FRAMES, chain=False))[-MAX_TRACEBACK_LENGTH:]


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise a panic of a Rust library, which is no `Exception`, as `UnexpectedError`."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        raise error_of("It", error) from error


def result_of_error(record: FileRecord, error: IngestError, landed: Landed | None = None, **known: Any) -> FileResult:  # noqa: ANN401
    """Return the result of a file that an error stopped: retried, quarantined for its content, or failed.

    A file whose table refuses its declaration is retried until one of the two is fixed.

    Args:
        record: the file.
        error: the failure that stopped it.
        landed: its bytes, if they were landed.
        known: further fields of the result.
    """
    if isinstance(error, TransientError | SchemaConflictError | TableUnusableError):
        state = FileState.PENDING
    elif isinstance(error, FileRejectedError):
        state = FileState.QUARANTINED
        known.setdefault("rule_counts", {error.rule: 1})
    elif isinstance(error, VersionSupersededError):
        state = FileState.SUPERSEDED
    else:
        state = FileState.FAILED
    return FileResult(record, state, landed, reason=str(error), error_class=error.error_class, **known)


def partition_report(result: FileResult, assets: DatasetAssets) -> PartitionEvents:
    """Return the events of one file.

    Every asset of a finished file has a materialization, also one without rows: Dagster counts a partition that was
    requested and not reported as failed. A file that failed has only that of the bytes that were landed. One whose rows
    stay because it cannot be read again, and one that waits for a person, keep their materializations; the check
    reports the attempt.
    """
    if result.keeps_stored_rows or result.awaits_a_person:
        return PartitionEvents(result.record.file_key, {}, [accepted_result(result, assets)])
    ended = result.state.finished and result.state is not FileState.FAILED
    materialized: dict[dg.AssetKey, Mapping[str, Any]] = {}
    if result.landed is not None or ended:
        materialized[assets.raw_files] = raw_file_metadata(result)
    if ended:
        materialized |= {
            assets.validated: validated_metadata(result),
            assets.metrics: metrics_metadata(result),
            assets.quarantined_files: quarantine_metadata(result),
        }
    checks = [accepted_result(result, assets)]
    if result.state is not FileState.DUPLICATE:
        checks += [contract_result(result, assets), *warning_results(result, assets)]
    return PartitionEvents(result.record.file_key, materialized, checks)


def validated_metadata(result: FileResult) -> dict[str, Any]:
    """Return the counts of rows, and the reason if none was accepted."""
    return {
        **_row_count(result, result.rows_accepted),
        "rows_read": result.rows_read,
        "rows_quarantined": result.rows_quarantined,
        "rejected_share": round(result.rows_quarantined / result.rows_read, 4) if result.rows_read else 0.0,
        "profile": result.profile,
        "source": without_query(result.record.location),
        **_reason(result),
        **({"replaced_by": result.replaced_by} if result.replaced_by else {}),
        **warning_metadata(result),
        **_seconds_from_event(result),
        **_table("first_rows", result.preview),
    }


def _row_count(result: FileResult, rows: int) -> dict[str, int]:
    """Return the count that the page of an asset shows; a duplicate as its last file would make it 0."""
    return {} if result.state is FileState.DUPLICATE else {"dagster/row_count": rows}


def metrics_metadata(result: FileResult) -> dict[str, Any]:
    """Return the counts of summaries: zero if the rows of the file are not stored."""
    stored = result.state is FileState.INGESTED
    return {
        **_row_count(result, result.summaries.rows if stored else 0),
        **{name: number if stored else 0 for name, number in result.summaries.distinct.items()},
        **_reason(result),
        **(_table("metrics", result.metrics_shown) if stored else {}),
    }


def raw_file_metadata(result: FileResult) -> dict[str, Any]:
    """Return source, size and digest of a file's bytes, or why they were not landed."""
    record = result.record
    metadata: dict[str, Any] = {"source": without_query(record.location), "kafka_position": str(record.kafka_position)}
    if result.landed is None:
        return {**metadata, "size_bytes": 0, **_reason(result)}
    metadata |= {"size_bytes": result.landed.size_bytes, "sha256": result.landed.sha256}
    metadata["dagster/uri"] = result.landed.path
    if record.event.trace_id:
        metadata["trace_id"] = record.event.trace_id
    if result.duplicate_of:
        metadata["duplicate_of"] = result.duplicate_of
    if result.landed.landed_before:
        metadata["source_gone"] = True
    return metadata


def quarantine_metadata(result: FileResult) -> dict[str, Any]:
    """Return the counts of rejected rows and the reasons, with a sample of the rows."""
    metadata: dict[str, Any] = {
        **_row_count(result, result.rows_quarantined),
        "whole_file": result.state is FileState.QUARANTINED,
        **_reason(result),
    }
    metadata["rules"] = dict(result.rule_counts)
    if result.kept_at:
        metadata["location"] = result.kept_at
    if result.sample:
        metadata["sample"] = dg.MetadataValue.table([_sample_record(row) for row in result.sample])
    return metadata


def contract_result(result: FileResult, assets: DatasetAssets) -> CheckResult:
    """Return the result of `contract_holds`: a warning for single rows, an error for the whole file.

    A version that was replaced passes; one that its source no longer has is a warning.
    """
    if result.state is FileState.REPLACED:
        return CheckResult(assets.validated, CONTRACT_HOLDS, passed=True, description=result.reason)
    whole = result.state is not FileState.INGESTED
    harmless = not whole or result.state is FileState.SUPERSEDED
    if not whole and not result.rule_counts:
        return CheckResult(assets.validated, CONTRACT_HOLDS, passed=True)
    reason = result.reason or rows_quarantined_reason(result.rows_quarantined, result.rows_read, result.rule_counts)
    key = result.record.file_key
    return CheckResult(
        assets.validated,
        CONTRACT_HOLDS,
        passed=False,
        severity=dg.AssetCheckSeverity.WARN if harmless else dg.AssetCheckSeverity.ERROR,
        description=reason,
        metadata=broken_contract(assets, key, reason, result.rule_counts, result.rows_read, result.rows_quarantined),
    )


def accepted_result(result: FileResult, assets: DatasetAssets) -> CheckResult:
    """Return the result of `file_accepted`, on which downstream assets wait."""
    if result.keeps_stored_rows or (result.awaits_a_person and result.record.stands):
        note = f"Its stored rows stay. It could not be ingested again: {result.reason}"
        return file_accepted(assets, result.record.file_key, FileState.INGESTED, note)
    return file_accepted(assets, result.record.file_key, result.state, result.reason)


def file_accepted(assets: DatasetAssets, file_key: str, state: FileState, reason: str | None) -> CheckResult:
    """Judge a file by its state: an error if it was rejected or failed, a warning if another file represents it."""
    is_error = state in {FileState.QUARANTINED, FileState.FAILED}
    return CheckResult(
        assets.validated,
        FILE_ACCEPTED,
        passed=state is FileState.INGESTED,
        severity=dg.AssetCheckSeverity.ERROR if is_error else dg.AssetCheckSeverity.WARN,
        description=reason if state is FileState.INGESTED else reason or f"The file is {state.value}.",
        metadata={"file": file_key, "state": state.value},
    )


def rows_quarantined_reason(rows_rejected: int, rows_read: int, rules: Mapping[str, int]) -> str:
    """Return the reason of a file that was accepted without some of its rows, which broke these rules."""
    return " ".join([f"{rows_rejected:,} of {rows_read:,} rows are in quarantine.", *remedies_of(rules)])


def broken_contract(  # noqa: PLR0913, PLR0917 - the counts of one file
    assets: DatasetAssets,
    file_key: str,
    reason: str,
    rule_counts: Mapping[str, int],
    rows_read: int,
    rows_rejected: int,
) -> dict[str, Any]:
    """Return the metadata of a failed result: file, reason, counts by aspect and rule, and the share of rejected rows.

    Args:
        assets: assets of the dataset; only sensor readings have aspects, any other has its rules alone.
        file_key: key of the file.
        reason: one sentence.
        rule_counts: broken rule to how often.
        rows_read: readings found in the file; without any, no share is given.
        rows_rejected: those of them that broke a rule.
    """
    has_aspects = assets.dataset == SENSOR_READINGS
    aspects = dict.fromkeys((*ASPECTS, WHOLE_FILE), 0) | broken_by_aspect(rule_counts) if has_aspects else {}
    share = {"rejected_share": round(rows_rejected / rows_read, 4)} if rows_read else {}
    return {
        "file": file_key,
        "reason": reason,
        **share,
        "rows_read": rows_read,
        "rows_rejected": rows_rejected,
        **aspects,
        "rules": dict(rule_counts),
    }


def broken_by_aspect(rule_counts: Mapping[str, int]) -> dict[str, int]:
    """Count how often each aspect of the contract was broken."""
    counts: dict[str, int] = {}
    for rule, count in rule_counts.items():
        aspect = next((name for name, beginnings in ASPECTS.items() if rule.startswith(beginnings)), WHOLE_FILE)
        counts[aspect] = counts.get(aspect, 0) + count
    return counts


def _table(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, dg.TableMetadataValue]:
    """Return rows as a table for the UI; empty without rows."""
    if not rows:
        return {}
    records = [dg.TableRecord({column: _cell_value(value) for column, value in row.items()}) for row in rows]
    schema = dg.TableSchema([dg.TableColumn(column, _kind([row[column] for row in rows])) for column in rows[0]])
    return {name: dg.TableMetadataValue(records, schema)}


def _kind(values: Sequence[object]) -> str:
    """Return the type of a column as Dagster's UI calls it."""
    present = next((value for value in values if value is not None), None)
    return {bool: "bool", int: "int", float: "float"}.get(type(present), "string")


def _cell_value(value: object) -> str | float | int:
    if isinstance(value, datetime):
        return data_text(value)
    if value is None:
        return ""
    return value if isinstance(value, str | float | int) else str(value)


def _reason(result: FileResult) -> dict[str, str]:
    return {"reason": result.reason} if result.reason else {}


def _seconds_from_event(result: FileResult) -> dict[str, float]:
    """Return the seconds since the Kafka message; negative where the clock of its producer is ahead."""
    event_at = result.record.kafka_position.at
    return {"seconds_from_event": round((datetime.now(UTC) - event_at).total_seconds(), 3)} if event_at else {}


def _sample_record(row: Mapping[str, Any]) -> dg.TableRecord:
    raw_text = str(row["raw_text"])
    shown = raw_text if len(raw_text) <= MAX_RAW_TEXT_SHOWN else raw_text[:MAX_RAW_TEXT_SHOWN] + " …"
    return dg.TableRecord(
        {"line_number": int(row["line_number"]), "raw_text": shown, "reasons": ", ".join(row["reasons"])}
    )


def warning_metadata(result: FileResult) -> dict[str, Any]:
    """Return metadata on columns that differ and on readings at shared instants, if any."""
    metadata: dict[str, Any] = result.drift.metadata()
    if result.instants.readings:
        metadata["readings_at_shared_instants"] = result.instants.readings
    if result.verdict is not None:
        metadata["baseline"] = str(result.verdict)
    return metadata


def warning_results(result: FileResult, assets: DatasetAssets) -> list[CheckResult]:
    """Return the failed checks of columns and instants, and passed ones where an earlier result may differ."""
    results = [drift_result(result.drift, assets, result.policy)]
    if assets.dataset == SENSOR_READINGS:
        results.append(instants_result(result.instants, assets))
    if result.verdict is not None:
        results.append(baseline_result(result.verdict, assets))
    ingested_before = result.record.rows_read is not None
    return [result for result in results if ingested_before or not result.passed]


def baseline_result(verdict: Verdict, assets: DatasetAssets) -> CheckResult:
    """Compare a file with the baseline of its source; without a baseline it passes with a note."""
    return CheckResult(
        assets.validated,
        WITHIN_BASELINE,
        passed=not verdict.outside,
        severity=dg.AssetCheckSeverity.WARN,
        description=str(verdict),
        metadata=verdict.metadata(),
    )


def drift_result(drift: Drift, assets: DatasetAssets, policy: Policy) -> CheckResult:
    """Judge whether a file has the columns that its dataset declares."""
    fate = f" Unknown columns are {FATES[policy]}." if drift.unknown else ""
    return CheckResult(
        assets.validated,
        assets.columns_check,
        passed=not drift.found,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"The columns of the file differ from the declared ones. {drift}.{fate}" if drift.found else None,
        metadata=drift.metadata(),
    )


def instants_result(instants: SharedInstants, assets: DatasetAssets) -> CheckResult:
    """Judge whether each device has one reading of each type at a time."""
    shared = instants.readings
    reason = (
        f"{shared:,} readings have the device, type and time of another, up to {instants.largest:,} at one instant."
    )
    return CheckResult(
        assets.validated,
        ONE_READING_AN_INSTANT,
        passed=not shared,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{reason} Is a column with the day alone read as the time?" if shared else None,
        metadata={"readings": shared, "largest": instants.largest, "examples": list(instants.examples)},
    )
