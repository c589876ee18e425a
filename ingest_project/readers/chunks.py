"""Chunks of readings, the limits of reading, and how a header and its profile determine both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from ingest_project.core.errors import LimitExceededError, SettingsError
from ingest_project.core.settings import FileIngestSettings
from ingest_project.readers.casting import without_null_numbers
from ingest_project.readers.csv.header import Header
from ingest_project.readers.csv.rejects import Dialect
from ingest_project.readers.csv.table import TableChunk
from ingest_project.readers.layout import Layout, match_columns, to_readings
from ingest_project.readers.profiles import ReaderProfile

LARGEST_ROW_LIMIT_BYTES = 256 * 1024**2


@dataclass(frozen=True)
class ReadLimits:
    """How much of one file is held or computed at most; the names are those of the settings.

    Args:
        chunk_bytes: text that is read at a time. Reading needs about thirty times as much memory.
    """

    max_row_bytes: int = 1024**2
    max_columns: int = 2_000
    max_excel_bytes: int = 100 * 1024**2
    max_excel_cells: int = 20_000_000
    max_excel_memory_bytes: int = 1536 * 1024**2
    max_excel_seconds: float = 60.0
    chunk_bytes: int = 1024**2

    def __post_init__(self) -> None:
        if self.max_row_bytes > LARGEST_ROW_LIMIT_BYTES:
            raise SettingsError(f"INGEST_MAX_ROW_BYTES can be at most {LARGEST_ROW_LIMIT_BYTES}: a row is held whole.")

    @classmethod
    def from_settings(cls, settings: FileIngestSettings) -> ReadLimits:
        """The limits that are in force."""
        return cls(
            max_row_bytes=settings.max_row_bytes,
            max_columns=settings.max_columns,
            max_excel_bytes=settings.max_excel_bytes,
            max_excel_cells=settings.max_excel_cells,
            max_excel_memory_bytes=settings.max_excel_memory_bytes,
            max_excel_seconds=settings.max_excel_seconds,
        )


@dataclass(frozen=True)
class ReadingsChunk:
    """Some consecutive readings of a file.

    Args:
        rows: line_number (physical line, or row of the sheet, on which the record starts), timestamp, device_id,
            sensor_type, value, unit; all but the first are text, trimmed, and null where missing. Of a workbook also
            the kind of each of these cells, see `cell_kinds`.
        malformed: line_number, raw_text and reason of records that are no rows, see `malformed.Malformed`.
        unknown_columns: columns of the file that its profile does not know, and that were left out.
    """

    rows: pl.DataFrame
    malformed: pl.DataFrame
    table: TableChunk
    unknown_columns: tuple[str, ...] = ()

    def raw_text(self, line_numbers: Sequence[int]) -> list[str]:
        """The records that start on these lines, as they were written, shortened visibly when over 64 KiB.

        Args:
            line_numbers: of `rows`, in any order.
        """
        return self.table.raw_text(line_numbers)


def readings_chunk(table: TableChunk, layout: Layout, profile: ReaderProfile) -> ReadingsChunk:
    """The readings of a chunk of a table."""
    cells = without_null_numbers(table.columns, layout.numbers, profile)
    return ReadingsChunk(to_readings(cells, layout), table.malformed, table, layout.unknown)


def layout_of(header: Header, profile: ReaderProfile, limits: ReadLimits, file_name: str) -> Layout:
    """Match a header with the profile, within the limit of columns."""
    if len(header.names) > limits.max_columns:
        raise LimitExceededError(
            "INGEST_MAX_COLUMNS", f"The file has {len(header.names)} columns, over {limits.max_columns}"
        )
    return match_columns(header.names, profile, file_name)


def dialect_of(header: Header, layout: Layout, profile: ReaderProfile, limits: ReadLimits) -> Dialect:
    """How to split the records below this header."""
    return Dialect(
        delimiter=header.delimiter,
        width=len(header.names),
        wanted=layout.wanted,
        null_spellings=frozenset(profile.nulls),
        max_row_bytes=limits.max_row_bytes,
        spare=header.spare,
    )
