"""What is odd about a file that kept its contract: columns that nobody reads, and many readings at one instant."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import dagster as dg
import polars as pl

from ingest_project.file_ingest.aggregation import NONE_SHARED, SharedInstants, aggregate_files, instants_by_file
from ingest_project.file_ingest.partitions import VALIDATED_SENSOR_DATA
from ingest_project.file_ingest.resources import FileIngestResources
from ingest_project.file_ingest.result import FileResult
from ingest_project.file_ingest.validate_files import Contract, open_file
from ingest_project.platform.dagster.asset_events import CheckResult
from ingest_project.platform.work_queue.states import FileState

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
