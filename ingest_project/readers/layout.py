"""The columns of one file matched with the columns of a reading, chunks of readings, and the limits of reading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import polars as pl

from ingest_project.core.errors import FileRejectedError, LimitExceededError, SettingsError
from ingest_project.core.settings import FileIngestSettings
from ingest_project.readers.casting import KIND_OF, matched_name, without_null_numbers
from ingest_project.readers.profiles import READING_COLUMNS, Quantity, ReaderProfile, first_group

NAMES_SHOWN = 12
MAX_ROW_LIMIT_BYTES = 256 * 1024**2


@dataclass(frozen=True)
class ReadLimits:
    """Limits of reading one file; the names are those of the settings.

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
        if self.max_row_bytes > MAX_ROW_LIMIT_BYTES:
            raise SettingsError(
                f"INGEST_MAX_ROW_BYTES can be at most {MAX_ROW_LIMIT_BYTES}: a whole row is kept in memory."
            )

    @classmethod
    def from_settings(cls, settings: FileIngestSettings) -> ReadLimits:
        """Return the limits that are in force."""
        names = (field.name for field in fields(cls) if field.name != "chunk_bytes")
        return cls(**{name: getattr(settings, name) for name in names})


class RawText(Protocol):
    """The text that the rows of a chunk came from."""

    def raw_text(self, line_numbers: Sequence[int]) -> list[str]:
        """Return the records that start on these lines, as they were written, shortened visibly when over 64 KiB."""


@dataclass(frozen=True)
class ReadingsChunk:
    """Some consecutive readings of a file.

    Args:
        rows: line_number (physical line, or row of the sheet, on which the record starts), timestamp, device_id,
            sensor_type, value, unit; all but the first are text, trimmed, and null where missing. Of a workbook also
            the kind of each of these cells, see `excel_cells.Cell`.
        malformed: line_number, raw_text and reason of records that are no rows, see `csv_reader.Malformed`.
        text: what the rows came from.
        unknown_columns: columns of the file that its profile does not know, and that were left out.
    """

    rows: pl.DataFrame
    malformed: pl.DataFrame
    text: RawText
    unknown_columns: tuple[str, ...] = ()

    def raw_text(self, line_numbers: Sequence[int]) -> list[str]:
        """Return the records that start on these lines of `rows`, in any order; see `RawText`."""
        return self.text.raw_text(line_numbers)


@dataclass(frozen=True)
class Layout:
    """Source of each column of a reading in one file.

    Args:
        wanted: name in the table that is read, to index in the file.
        constants: column of a reading to its text, the same for all rows; None for a column the file leaves out.
        quantities: wide files: name in the table to what it measures.
        unknown: columns of the file that the profile does not know, as they are called there.
    """

    wanted: Mapping[str, int]
    constants: Mapping[str, str | None]
    quantities: Mapping[str, Quantity]
    unknown: tuple[str, ...] = ()

    @property
    def numbers(self) -> Sequence[str]:
        """The names in the table of the columns with numbers."""
        return [*self.quantities] or [name for name in self.wanted if name == "value"]


def known_names(profile: ReaderProfile) -> frozenset[str]:
    """Return every column name the profile knows, to recognise the delimiter of a header."""
    return frozenset(matched_name(name) for name in (*profile.columns, *profile.quantities))


def unknown_columns(names: Sequence[str], profile: ReaderProfile) -> tuple[str, ...]:
    """Return the columns that a profile neither reads nor leaves out on purpose, in the file's order."""
    known = known_names(profile) | {matched_name(name) for name in profile.ignored}
    shown = ((matched_name(name), name or f"column {number}, without a name") for number, name in enumerate(names, 1))
    return tuple(name for matched, name in shown if matched not in known)


def match_columns(names: Sequence[str], profile: ReaderProfile, file_name: str) -> Layout:
    """Find the profile's columns in a header.

    Raises:
        FileRejectedError: `missing_column`, `duplicate_column` or `file_name` (it does not match the
            pattern of the profile).
    """
    positions: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        positions.setdefault(matched_name(name), []).append(index)
    wanted: dict[str, int] = {}
    for source, column in profile.columns.items():
        for index in positions.get(matched_name(source), []):
            if column in wanted:
                raise FileRejectedError("duplicate_column", f"More than one column of the file is {column}.")
            wanted[column] = index
    quantities = _match_quantities(positions, profile)
    constants: dict[str, str | None] = {}
    constants.update(profile.constants.items())
    constants |= {column: _from_file_name(file_name, p, column) for column, p in profile.from_file_name.items()}
    from_quantities = {"sensor_type", "value", "unit"} if profile.quantities else set()
    missing = [column for column in READING_COLUMNS if column not in {*wanted, *constants, *from_quantities}]
    required = [column for column in missing if column not in profile.optional]
    if required:
        raise FileRejectedError("missing_column", _missing(required, names, profile))
    return Layout(
        wanted | quantities[0], constants | dict.fromkeys(missing), quantities[1], unknown_columns(names, profile)
    )


def _match_quantities(
    positions: Mapping[str, list[int]], profile: ReaderProfile
) -> tuple[dict[str, int], dict[str, Quantity]]:
    indexes: dict[str, int] = {}
    found: dict[str, Quantity] = {}
    for number, (source, quantity) in enumerate(profile.quantities.items()):
        indices = positions.get(matched_name(source), [])
        if not indices:
            raise FileRejectedError("missing_column", f"The header has no column {source!r} (profile {profile.name}).")
        if len(indices) > 1:
            raise FileRejectedError("duplicate_column", f"More than one column of the file is called {source!r}.")
        indexes[f"quantity_{number}"], found[f"quantity_{number}"] = indices[0], quantity
    return indexes, found


def _from_file_name(file_name: str, pattern: str, column: str) -> str:
    found = first_group(file_name, pattern)
    if not found:
        raise FileRejectedError("file_name", f"The file's name, {file_name!r}, does not contain its {column}.")
    return found


def _missing(columns: Sequence[str], names: Sequence[str], profile: ReaderProfile) -> str:
    expected = [_named(column, profile) for column in columns]
    found = ", ".join(repr(name[:40]) for name in names[:NAMES_SHOWN]) + (", …" if len(names) > NAMES_SHOWN else "")
    return f"The header has no column {', '.join(expected)} (profile {profile.name}). It has {found}."


def _named(column: str, profile: ReaderProfile) -> str:
    source = next((source for source, target in profile.columns.items() if target == column), column)
    return repr(source) if source == column else f"{source!r} ({column})"


def to_readings(table: pl.DataFrame, layout: Layout) -> pl.DataFrame:
    """Convert a table's rows to readings: line_number and the columns of a reading, all of them text.

    In a wide file one row becomes as many readings as it has quantities that are not empty, in the profile's order.
    The kinds of cells, if the table has them, are kept.
    """
    if not layout.quantities:
        return _ordered(table, layout.constants)
    parts = [
        _ordered(
            table.filter(pl.col(name).is_not_null()).rename(
                {name: "value", KIND_OF(name): KIND_OF("value")}, strict=False
            ),
            {**layout.constants, "sensor_type": quantity.sensor_type, "unit": quantity.unit},
        )
        for name, quantity in layout.quantities.items()
    ]
    return pl.concat(parts).sort("line_number", maintain_order=True)


def _ordered(table: pl.DataFrame, constants: Mapping[str, str | None]) -> pl.DataFrame:
    columns = ["line_number", *READING_COLUMNS]
    if table.columns == columns:
        return table
    if any(KIND_OF(name) in table.columns for name in READING_COLUMNS):
        columns += [KIND_OF(name) for name in READING_COLUMNS]
        constants = dict.fromkeys(map(KIND_OF, constants)) | dict(constants)
    return table.select(
        pl.lit(constants[name], pl.String).alias(name) if name in constants else pl.col(name) for name in columns
    )


def layout_of(names: Sequence[str], profile: ReaderProfile, limits: ReadLimits, file_name: str) -> Layout:
    """Match a header with the profile, within the limit of columns."""
    if len(names) > limits.max_columns:
        raise LimitExceededError("INGEST_MAX_COLUMNS", f"The file has {len(names)} columns, over {limits.max_columns}")
    return match_columns(names, profile, file_name)


def readings_chunk(
    cells: pl.DataFrame, malformed: pl.DataFrame, text: RawText, layout: Layout, profile: ReaderProfile
) -> ReadingsChunk:
    """Return the readings of some rows of a table."""
    present = without_null_numbers(cells, layout.numbers, profile)
    return ReadingsChunk(to_readings(present, layout), malformed, text, layout.unknown)
