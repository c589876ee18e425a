"""Read a file as ingestion would, by the same readers and the same contract, and store nothing."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from ingest_project.core.errors import FileRejectedError
from ingest_project.core.settings import FileIngestSettings
from ingest_project.file_ingest.sensor_readings import SensorTypes, ValidationRules, validate
from ingest_project.readers.layout import ReadLimits, RowsChunk
from ingest_project.readers.profiles import ReaderProfile
from ingest_project.readers.reading import READERS, cast, read_chunks


class RejectedRow(msgspec.Struct, frozen=True):
    """One row that would be quarantined.

    Args:
        line_number: of the file, or row of the sheet.
        reasons: every rule that it broke.
        raw_text: as written.
    """

    line_number: int
    reasons: tuple[str, ...]
    raw_text: str


class Trial(msgspec.Struct, kw_only=True):
    """What ingestion would do with a file.

    Args:
        file: its path.
        profile: name of the reader profile.
        dataset: whose contract applies.
        refusal: why the whole file would be quarantined; None if it would be stored.
        rows_read: malformed ones included.
        rows_accepted, rows_rejected: of these.
        rules: how often each rule was broken.
        unknown_columns: columns that the profile does not know.
        missing_columns: columns that the file leaves out.
        accepted, rejected: the first ones.
    """

    file: str
    profile: str
    dataset: str
    refusal: str | None = None
    rows_read: int = 0
    rows_accepted: int = 0
    rows_rejected: int = 0
    rules: dict[str, int] = {}
    unknown_columns: tuple[str, ...] = ()
    missing_columns: tuple[str, ...] = ()
    accepted: list[dict[str, Any]] = []
    rejected: list[RejectedRow] = []


def file_type_of(path: Path) -> str:
    """Return the type of reader for a file, by the ending of its name; anything that is no workbook is text."""
    ending = path.suffix.lower().removeprefix(".")
    return ending if ending in READERS else "csv"


def try_file(path: Path, profile: ReaderProfile, settings: FileIngestSettings, rows: int, file_name: str = "") -> Trial:
    """Read and check a whole file.

    Args:
        path: of its bytes.
        profile: that reads it.
        settings: the contract and its limits.
        rows: how many accepted and rejected rows to keep.
        file_name: its own name, when `path` has another.

    Raises:
        SettingsError: the file of sensor types is malformed.
    """
    trial = Trial(file=str(path), profile=profile.name, dataset="sensor_readings")
    types = SensorTypes.load(settings.sensor_types, settings.unknown_sensor_types)
    rules = ValidationRules(types, datetime.now(UTC), settings.future_tolerance, settings.earliest_time)
    limits = ReadLimits.from_settings(settings)
    try:
        for chunk in read_chunks(path, file_type_of(path), profile, limits, file_name or path.name):
            checked = validate(cast(chunk.rows, profile), rules)
            _add(trial, chunk, checked.accepted, checked.rejected, rows)
        _judge(trial, settings.max_rejected_share)
    except FileRejectedError as error:
        trial.refusal = str(error)
    return trial


def _add(trial: Trial, chunk: RowsChunk, accepted: pl.DataFrame, rejected: pl.DataFrame, rows: int) -> None:
    trial.rows_accepted += accepted.height
    trial.rows_rejected += rejected.height + chunk.malformed.height
    trial.rows_read += chunk.rows.height + chunk.malformed.height
    trial.unknown_columns, trial.missing_columns = chunk.unknown_columns, chunk.missing_columns
    counts = Counter(trial.rules)
    counts.update(rejected["reasons"].explode(empty_as_null=False).to_list())
    counts.update(chunk.malformed["reason"].to_list())
    trial.rules = dict(counts)
    trial.accepted += accepted.head(rows - len(trial.accepted)).to_dicts()
    trial.rejected += _first_rejected(chunk, rejected, rows - len(trial.rejected))


def _first_rejected(chunk: RowsChunk, rejected: pl.DataFrame, rows: int) -> list[RejectedRow]:
    first = rejected.head(rows)
    lines = first["line_number"].to_list()
    found = [
        RejectedRow(line, tuple(reasons), text)
        for line, reasons, text in zip(lines, first["reasons"], chunk.raw_text(lines), strict=True)
    ]
    malformed = chunk.malformed.head(rows).select("line_number", "reason", "raw_text").iter_rows()
    found += [RejectedRow(line, (reason,), text) for line, reason, text in malformed]
    return sorted(found, key=lambda row: row.line_number)[:rows]


def _judge(trial: Trial, max_rejected_share: float) -> None:
    """Reject the file as a whole where ingestion would."""
    share = trial.rows_rejected / trial.rows_read if trial.rows_read else 1.0
    if share > max_rejected_share:
        trial.refusal = (
            f"too_many_bad_rows: {trial.rows_rejected} of {trial.rows_read} rows are bad ({share:.0%}; "
            f"at most {max_rejected_share:.0%})."
        )
