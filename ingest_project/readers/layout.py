"""The columns of one file matched with those of its target, chunks of rows, and the limits of reading."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Protocol

import polars as pl

from ingest_project.core.errors import FileRejectedError, LimitExceededError, SettingsError
from ingest_project.core.settings import FileIngestSettings
from ingest_project.readers.casting import KIND_OF, matched_name, without_null_numbers
from ingest_project.readers.profiles import Quantity, ReaderProfile, first_group
from ingest_project.readers.target import READINGS, RESCUED, Target

__all__ = ["READINGS", "RESCUED", "Layout", "RawText", "ReadLimits", "RowsChunk", "Target"]

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
    max_parquet_memory_bytes: int = 2 * 1024**3
    max_parquet_seconds: float = 600.0
    max_json_depth: int = 32
    max_expanded_bytes: int = 4 * 1024**3
    max_expansion_ratio: int = 300
    max_archive_members: int = 1_000
    max_archive_depth: int = 2
    chunk_bytes: int = 1024**2

    def __post_init__(self) -> None:
        if self.max_row_bytes > MAX_ROW_LIMIT_BYTES:
            raise SettingsError(
                f"INGEST_MAX_ROW_BYTES can be at most {MAX_ROW_LIMIT_BYTES}: a whole row is kept in memory."
            )

    @classmethod
    def from_settings(cls, settings: FileIngestSettings) -> ReadLimits:
        """Return the limits that are in force."""
        names = (each.name for each in fields(cls) if each.name != "chunk_bytes")
        return cls(**{name: getattr(settings, name) for name in names})


class RawText(Protocol):
    """The text that the rows of a chunk came from."""

    def raw_text(self, line_numbers: Sequence[int]) -> list[str]:
        """Return the records that start on these lines, as they were written, shortened visibly when over 64 KiB."""


@dataclass(frozen=True)
class RowsChunk:
    """Some consecutive rows of a file.

    Args:
        rows: line_number (physical line, or row of the sheet, on which the record starts) and the columns of the
            target; all but the first are text, trimmed, and null where missing. Of a workbook also the kind of each of
            these cells, see `excel_cells.Cell`. With `Target.keep_unknown` also `rescued_data`, the text of the file's
            other cells by column name, as a JSON object; null where all are missing.
        malformed: line_number, raw_text and reason of records that are no rows, see `csv_reader.Malformed`.
        text: source of the rows.
        unknown_columns: columns of the file that are neither wanted nor left out on purpose; the second of a name is
            called `name [2]`.
        missing_columns: columns of the target that the file leaves out.
        reordered: True if the columns that are found by their own name have another order than the target's.
    """

    rows: pl.DataFrame
    malformed: pl.DataFrame
    text: RawText
    unknown_columns: tuple[str, ...] = ()
    missing_columns: tuple[str, ...] = ()
    reordered: bool = False

    def raw_text(self, line_numbers: Sequence[int]) -> list[str]:
        """Return the records that start on these lines of `rows`, in any order; see `RawText`."""
        return self.text.raw_text(line_numbers)


@dataclass(frozen=True)
class Layout:
    """Source of each column of the target in one file.

    Args:
        target: the columns wanted.
        wanted: name in the table that is read, to index in the file.
        constants: column of the target to its text, the same for all rows; None for a column the file leaves out.
        quantities: wide files: name in the table to what it measures.
        unknown: columns of the file that the profile does not know, as they are called there.
        rescued: those that are kept: name in the table, to the column's name in the file.
        missing, reordered: see `RowsChunk`.
    """

    target: Target
    wanted: Mapping[str, int]
    constants: Mapping[str, str | None]
    quantities: Mapping[str, Quantity]
    unknown: tuple[str, ...] = ()
    rescued: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    reordered: bool = False

    @property
    def numbers(self) -> Sequence[str]:
        """The names in the table of the columns with numbers."""
        return [*self.quantities, *(name for name in self.wanted if name in self.target.numbers)]


def known_names(profile: ReaderProfile, target: Target) -> frozenset[str]:
    """Return every column name that may be read, to recognise the delimiter of a header."""
    by_name = target.columns if target.by_name else ()
    return frozenset(matched_name(name) for name in (*profile.columns, *profile.quantities, *by_name))


def match_columns(names: Sequence[str], profile: ReaderProfile, file_name: str, target: Target) -> Layout:
    """Find the columns of a target in a header.

    Raises:
        FileRejectedError: `missing_column`, `duplicate_column` or `file_name` (it does not match the
            pattern of the profile).
    """
    positions: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        positions.setdefault(matched_name(name), []).append(index)
    wanted = _match_declared(positions, profile, target)
    indexes, quantities = _match_quantities(positions, profile)
    constants: dict[str, str | None] = {}
    constants.update(profile.constants.items())
    constants |= {column: _from_file_name(file_name, p, column) for column, p in profile.from_file_name.items()}
    known = {*profile.sources}
    by_name = _match_by_name(positions, profile, [c for c in target.columns if c not in known], {*wanted.values()})
    if target.by_name:
        wanted |= by_name
    found = {*wanted, *constants, *(profile.columns_of_quantities if profile.quantities else ())}
    missing = tuple(column for column in target.columns if column not in found)
    required = [column for column in missing if column in profile.required_of(target)]
    if required:
        raise FileRejectedError("missing_column", _missing(required, names, profile))
    unknown = _unknown(names, profile, {*wanted.values(), *indexes.values()})
    return Layout(
        target,
        wanted | indexes | ({f"unknown {index}": index for index in unknown} if target.keep_unknown else {}),
        {column: text for column, text in constants.items() if column in target.columns} | dict.fromkeys(missing),
        quantities,
        tuple(unknown.values()),
        {f"unknown {index}": name for index, name in unknown.items()} if target.keep_unknown else {},
        missing,
        target.by_name and list(by_name.values()) != sorted(by_name.values()),
    )


def _match_declared(positions: Mapping[str, list[int]], profile: ReaderProfile, target: Target) -> dict[str, int]:
    wanted: dict[str, int] = {}
    for source, column in profile.columns.items():
        for index in positions.get(matched_name(source), []) if column in target.columns else []:
            if column in wanted:
                raise FileRejectedError("duplicate_column", f"More than one column of the file is {column}.")
            wanted[column] = index
    return wanted


def _match_by_name(
    positions: Mapping[str, list[int]], profile: ReaderProfile, columns: Sequence[str], taken: set[int]
) -> dict[str, int]:
    """Find the columns of which the profile says nothing under their own names."""
    ignored = {matched_name(name) for name in profile.ignored}
    found: dict[str, int] = {}
    for column in columns:
        indexes = [index for index in positions.get(matched_name(column), ()) if index not in taken]
        if not indexes or matched_name(column) in ignored:
            continue
        if len(indexes) > 1:
            raise FileRejectedError("duplicate_column", f"More than one column of the file is called {column!r}.")
        found[column] = indexes[0]
    return found


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
        # No column of a target has a space in its name.
        indexes[f"quantity {number}"], found[f"quantity {number}"] = indices[0], quantity
    return indexes, found


def _unknown(names: Sequence[str], profile: ReaderProfile, known: set[int]) -> dict[int, str]:
    """Return the columns that are neither read nor left out on purpose: index to name, no name twice."""
    ignored = {matched_name(name) for name in profile.ignored}
    found: dict[int, str] = {}
    occurrences = Counter[str]()
    for index, name in enumerate(names):
        matched = matched_name(name)
        occurrences[matched] += 1
        if index in known or matched in ignored:
            continue
        unique = name or f"column {index + 1}, without a name"
        if name and occurrences[matched] > 1:
            unique = f"{name} [{occurrences[matched]}]"
        while unique in found.values():
            unique += "'"
        found[index] = unique
    return found


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


def to_rows(table: pl.DataFrame, layout: Layout) -> pl.DataFrame:
    """Convert a table's rows to those of the target: line_number and its columns, all of them text.

    In a wide file one row becomes as many readings as it has quantities that are not empty, in the profile's order.
    The kinds of cells, if the table has them, are kept.
    """
    if layout.rescued:
        table = table.with_columns(_rescued(layout.rescued))
    elif layout.target.keep_unknown and RESCUED not in table.columns:
        table = table.with_columns(pl.lit(None, pl.String).alias(RESCUED))
    if not layout.quantities:
        return _ordered(table, layout.constants, layout.target)
    parts = [
        _ordered(
            table.filter(pl.col(name).is_not_null()).rename(
                {name: "value", KIND_OF(name): KIND_OF("value")}, strict=False
            ),
            {**layout.constants, "sensor_type": quantity.sensor_type, "unit": quantity.unit},
            layout.target,
        )
        for name, quantity in layout.quantities.items()
    ]
    return pl.concat(parts).sort("line_number", maintain_order=True)


def _rescued(columns: Mapping[str, str]) -> pl.Expr:
    """Return the cells of unknown columns as the text of one JSON object, without the missing ones."""
    members = [
        # A missing cell makes its member null, which is then left out.
        pl.when(pl.col(cell).is_not_null()).then(
            pl.struct(pl.col(cell).alias(name)).struct.json_encode().str.strip_prefix("{").str.strip_suffix("}")
        )
        for cell, name in columns.items()
    ]
    joined = pl.concat_str(members, separator=",", ignore_nulls=True)
    return pl.when(joined != "").then("{" + joined + "}").alias(RESCUED)


def _ordered(table: pl.DataFrame, constants: Mapping[str, str | None], target: Target) -> pl.DataFrame:
    columns = ["line_number", *target.columns, *([RESCUED] if target.keep_unknown else [])]
    if table.columns == columns:
        return table
    if any(KIND_OF(name) in table.columns for name in target.columns):
        columns += [KIND_OF(name) for name in target.columns]
        constants = dict.fromkeys(map(KIND_OF, constants)) | dict(constants)
    return table.select(
        pl.lit(constants[name], pl.String).alias(name) if name in constants else pl.col(name) for name in columns
    )


def layout_of(
    names: Sequence[str], profile: ReaderProfile, limits: ReadLimits, file_name: str, target: Target = READINGS
) -> Layout:
    """Match a header with the profile, within the limit of columns."""
    if len(names) > limits.max_columns:
        raise LimitExceededError("INGEST_MAX_COLUMNS", f"The file has {len(names)} columns, over {limits.max_columns}")
    return match_columns(names, profile, file_name, target)


def rows_chunk(
    cells: pl.DataFrame, malformed: pl.DataFrame, text: RawText, layout: Layout, profile: ReaderProfile
) -> RowsChunk:
    """Return the rows of the target that some rows of a table are."""
    present = without_null_numbers(cells, layout.numbers, profile)
    rows = to_rows(present, layout)
    return RowsChunk(rows, malformed, text, layout.unknown, layout.missing, layout.reordered)
