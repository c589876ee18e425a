"""A file's bytes to canonical readings as text, in chunks of bounded memory.

This is the first step of file ingest: `read_chunks` one file at a time, then `cast` the rows of many files at once,
then validation. A chunk keeps the text its rows came from, so that the few bad rows can be shown as they were written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import polars as pl

from ingest_project.core.errors import FileRejectedError, LimitExceededError, SettingsError
from ingest_project.core.settings import FileIngestSettings
from ingest_project.readers.casting import cast, without_null_numbers
from ingest_project.readers.csv.blocks import text_blocks
from ingest_project.readers.csv.header import Header, HeaderSearch, find_header
from ingest_project.readers.csv.rejects import Dialect
from ingest_project.readers.csv.table import TableChunk, split_blocks
from ingest_project.readers.layout import Layout, known_names, match_columns, to_readings
from ingest_project.readers.profiles import ReaderProfile

__all__ = ["ReadLimits", "ReadingsChunk", "cast", "read_chunks"]

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


def read_chunks(
    path: Path, file_type: str, profile: ReaderProfile, limits: ReadLimits, file_name: str | None = None
) -> Iterator[ReadingsChunk]:
    """Read one file.

    Args:
        path: where its bytes are; they do not change meanwhile.
        file_type: `csv`, `xlsx` or `xls`; what is inside must match.
        profile: its layout.
        limits: what it may cost.
        file_name: its own name, when `path` has another.

    Yields:
        chunks in the order of the file; a file of up to `limits.chunk_bytes` usually is one chunk.

    Raises:
        FileRejectedError: it breaks the contract as a whole. Rules: `empty_file`, `no_rows`, `encoding`,
            `unreadable_container`, `unreadable_header`, `missing_header`, `missing_column`,
            `duplicate_column`, `missing_sheet`, `file_name`.
        LimitExceededError: it is larger than a limit.
    """
    name = file_name or path.name
    if file_type == "csv":
        chunks = _read_text(text_blocks(path, profile.encoding, limits.chunk_bytes), profile, limits, name)
    else:
        from ingest_project.readers.excel.reader import read_workbook  # noqa: PLC0415 - most runs meet no workbook

        chunks = read_workbook(path, file_type, profile, limits, name)
    found = False
    for chunk in chunks:
        found = found or chunk.rows.height > 0 or chunk.malformed.height > 0
        yield chunk
    if not found:
        raise FileRejectedError("no_rows", "The file has a header and no readings.")


def _read_text(
    blocks: Iterator[tuple[bytes, bool]], profile: ReaderProfile, limits: ReadLimits, file_name: str
) -> Iterator[ReadingsChunk]:
    header, text, final = find_header(
        blocks, HeaderSearch(profile.delimiter, known_names(profile), profile.skip_lines, limits.max_row_bytes)
    )
    header = header.without_spare_columns() if profile.header else header.as_first_record()
    layout = layout_of(header, profile, limits, file_name)
    dialect = dialect_of(header, layout, profile, limits)
    rest = chain([(text[header.start :], final)], blocks)
    for table in split_blocks(rest, dialect, header.line_number):
        yield readings_chunk(table, layout, profile)


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
