"""Chunks of rows in the columns of their target, and the limits of reading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Protocol

import polars as pl

from ingest_project.core.errors import LimitExceededError, SettingsError
from ingest_project.core.settings import FileIngestSettings
from ingest_project.readers.casting import KIND_OF, without_null_numbers
from ingest_project.readers.cell_rules import converted, read_cells, without_skipped
from ingest_project.readers.matching import Layout, SameProfile, Surroundings, match_columns
from ingest_project.readers.reader_profile import ReaderProfile
from ingest_project.readers.target import READINGS, RESCUED, Target

__all__ = ["READINGS", "RESCUED", "Layout", "RawText", "ReadLimits", "RowsChunk", "Target"]

MAX_ROW_LIMIT_BYTES = 256 * 1024**2


def _default(name: str) -> Any:  # noqa: ANN401 - of any type
    return FileIngestSettings.model_fields[name].default


@dataclass(frozen=True)
class ReadLimits:
    """Limits of reading one file; names and defaults are those of the settings.

    Args:
        chunk_bytes: text that is read at a time. Reading needs about thirty times as much memory.
    """

    max_row_bytes: int = _default("max_row_bytes")
    max_columns: int = _default("max_columns")
    max_excel_bytes: int = _default("max_excel_bytes")
    max_excel_cells: int = _default("max_excel_cells")
    max_excel_memory_bytes: int = _default("max_excel_memory_bytes")
    max_excel_seconds: float = _default("max_excel_seconds")
    max_parquet_memory_bytes: int = _default("max_parquet_memory_bytes")
    max_parquet_seconds: float = _default("max_parquet_seconds")
    max_json_depth: int = _default("max_json_depth")
    max_expanded_bytes: int = _default("max_expanded_bytes")
    max_expansion_ratio: int = _default("max_expansion_ratio")
    max_archive_members: int = _default("max_archive_members")
    max_archive_depth: int = _default("max_archive_depth")
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
        left_out: files of the archive that the profile does not choose.
    """

    rows: pl.DataFrame
    malformed: pl.DataFrame
    text: RawText
    unknown_columns: tuple[str, ...] = ()
    missing_columns: tuple[str, ...] = ()
    reordered: bool = False
    left_out: tuple[str, ...] = ()

    def raw_text(self, line_numbers: Sequence[int]) -> list[str]:
        """Return the records that start on these lines of `rows`, in any order; see `RawText`."""
        return self.text.raw_text(line_numbers)


def to_rows(table: pl.DataFrame, layout: Layout) -> pl.DataFrame:
    """Convert a table's rows to those of the target: line_number and its columns, all of them text.

    In a wide file one row becomes as many readings as it has quantities that are not empty, in the profile's order.
    The kinds of cells, if the table has them, are kept.
    """
    if layout.rescued:
        table = table.with_columns(_rescued(layout.rescued))
    elif layout.target.keep_unknown and RESCUED not in table.columns:
        table = table.hstack([pl.Series(RESCUED, [None], pl.String).new_from_index(0, table.height)])
    if not layout.quantities:
        return _ordered(table, layout.constants, layout.target)
    parts = [
        _ordered(
            table.filter(pl.col(name).is_not_null()).rename(
                {name: "value", KIND_OF(name): KIND_OF("value")}, strict=False
            ),
            {**layout.constants, "sensor_type": quantity.sensor_type, "unit": quantity.to or quantity.unit},
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
    names: Sequence[str],
    profile: ReaderProfile,
    limits: ReadLimits,
    surroundings: Surroundings | str,
    target: Target = READINGS,
) -> Layout:
    """Match a header with the profile, within the limit of columns.

    Args:
        names: of the header.
        profile: of the file.
        limits: of the number of columns.
        surroundings: the file's location, and other texts around its rows.
        target: the columns wanted.
    """
    if len(names) > limits.max_columns:
        raise LimitExceededError("INGEST_MAX_COLUMNS", f"The file has {len(names)} columns, over {limits.max_columns}")
    around = Surroundings(surroundings) if isinstance(surroundings, str) else surroundings
    if profile.takes_texts:
        return match_columns(names, profile, around, target)
    return _layout_of_header(tuple(names), SameProfile(profile), target)


@lru_cache(maxsize=64)
def _layout_of_header(names: tuple[str, ...], same: SameProfile, target: Target) -> Layout:
    """Match the header that many files share once."""
    return match_columns(names, same.profile, Surroundings(""), target)


def rows_chunk(
    cells: pl.DataFrame, malformed: pl.DataFrame, text: RawText, layout: Layout, profile: ReaderProfile
) -> RowsChunk:
    """Return the rows of the target that some rows of a table are."""
    refused: Sequence[pl.DataFrame] = ()
    if layout.converts:
        cells, refused = read_cells(without_skipped(cells, layout), layout, profile)
    for bad in refused:
        raw_text = pl.Series("raw_text", text.raw_text(bad["line_number"].to_list()), pl.String)
        malformed = malformed.vstack(bad.with_columns(raw_text).select(malformed.columns))
    if refused:
        malformed = malformed.sort("line_number", maintain_order=True)
    cells = without_null_numbers(cells, layout.numbers, profile)
    if layout.converts:
        cells = converted(cells, layout, profile)
    rows = to_rows(cells, layout)
    return RowsChunk(rows, malformed, text, layout.unknown, layout.missing, layout.reordered)
