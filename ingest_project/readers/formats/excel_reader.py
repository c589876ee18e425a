"""Workbooks to rows, by a confined process that may crash (`excel_worker`)."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from ingest_project.core.errors import FileRejectedError, LimitExceededError
from ingest_project.platform.confined import Confinement
from ingest_project.readers import READINGS, Target
from ingest_project.readers.casting import KIND_OF
from ingest_project.readers.cells import json_of
from ingest_project.readers.formats import excel_worker
from ingest_project.readers.formats.csv_reader import dialect_of, split_blocks, without_headers
from ingest_project.readers.formats.csv_text import HeaderSearch, find_header, kind_of, text_blocks
from ingest_project.readers.formats.excel_worker import sheet_file, sheets_file
from ingest_project.readers.layout import (
    ReadLimits,
    RowsChunk,
    TableChunk,
    layout_of,
    rows_chunk,
    rows_of_data,
    shortened,
)
from ingest_project.readers.matching import Layout, Surroundings
from ingest_project.readers.profiles import ReaderProfile

ZIP_START = b"PK\x03\x04"
OLE_START = b"\xd0\xcf\x11\xe0"
CONFINEMENT = Confinement(
    excel_worker,
    "workbook",
    {
        "memory": "INGEST_MAX_EXCEL_MEMORY_BYTES",
        "seconds": "INGEST_MAX_EXCEL_SECONDS",
        "cells": "INGEST_MAX_EXCEL_CELLS",
    },
)
HEAD_BYTES = 512
OUTPUT_BYTES = 2 * 1024**3
ROW_MARK = "row_mark"
# The rows of each further sheet of a workbook are numbered from another ten million: 20000007 is row 7 of the third.
SHEET_ROWS = 10**7
# Where the number and the kinds of the cells are in the mark of a row, see `excel_worker`.
NUMBER_AT, KINDS_AT = (4, 10), 21


@dataclass(frozen=True)
class ExcelReader:
    """Reads one sheet of a workbook, or all that a pattern names; see `reading.Reader`.

    Line numbers are the sheet's row numbers, raw text is its cells as a JSON object by column name.
    """

    file_type: str

    def read(
        self, path: Path, profile: ReaderProfile, limits: ReadLimits, file_name: str, target: Target = READINGS
    ) -> Iterator[RowsChunk]:
        """Read one workbook."""
        _check_outside(path, self.file_type, limits, file_name)
        with tempfile.TemporaryDirectory(prefix="workbook-") as folder:
            rows = Path(folder, "rows.tsv")
            _convert(path, self.file_type, profile, limits, rows)
            yield from _Workbook(profile, limits, file_name, target).read(rows)


XLSX, XLS = ExcelReader("xlsx"), ExcelReader("xls")


def _check_outside(path: Path, file_type: str, limits: ReadLimits, file_name: str) -> None:
    size = path.stat().st_size
    if size == 0:
        raise FileRejectedError("empty_file", "The file has no bytes.")
    if size > limits.max_excel_bytes:
        raise LimitExceededError("INGEST_MAX_EXCEL_BYTES", f"The file has {size} bytes, over {limits.max_excel_bytes}")
    with path.open("rb") as file:
        beginning = file.read(HEAD_BYTES)
    start, kind = beginning[: len(ZIP_START)], kind_of(beginning)
    problem = ""
    if file_name.rpartition("/")[2].startswith("~$") and start not in {ZIP_START, OLE_START}:
        problem = "This is the lock file that Excel keeps next to an open workbook."
    elif file_type == "xlsx" and start == OLE_START:
        problem = "The workbook is protected by a password, or an xls file called xlsx."
    elif file_type == "xls" and start == ZIP_START:
        problem = "The file is an xlsx workbook or another archive called xls."
    elif start != (ZIP_START if file_type == "xlsx" else OLE_START) and (kind or file_type == "xlsx"):
        problem = f"The file is not an {file_type} workbook{f', but {kind}' if kind else ''}."
    if problem:
        raise FileRejectedError("unreadable_container", problem)


def _convert(path: Path, file_type: str, profile: ReaderProfile, limits: ReadLimits, rows: Path) -> None:
    CONFINEMENT.convert(
        rows,
        {
            "workbook": str(path.resolve()),
            "kind": file_type,
            "sheet": profile.sheet,
            "skip_rows": profile.skip_lines,
            "max_cells": limits.max_excel_cells,
            "memory_bytes": limits.max_excel_memory_bytes,
        },
        memory_bytes=limits.max_excel_memory_bytes,
        seconds=limits.max_excel_seconds,
        output_bytes=OUTPUT_BYTES,
    )


@dataclass(frozen=True)
class _Workbook:
    """Reads the rows that the worker wrote."""

    profile: ReaderProfile
    limits: ReadLimits
    location: str
    target: Target

    def read(self, rows: Path) -> Iterator[RowsChunk]:
        """Read the rows of all chosen sheets that have any."""
        sheets = json.loads(sheets_file(rows).read_text(encoding="utf-8"))
        if not any(sheet["rows"] for sheet in sheets):
            raise FileRejectedError("empty_file", "The sheet has no cell with a value.")
        for index, sheet in enumerate(sheets):
            if not sheet["rows"]:
                continue
            try:
                yield from self._read_sheet(sheet_file(rows, index), sheet, index * SHEET_ROWS)
            except FileRejectedError as error:
                if len(sheets) == 1 or isinstance(error, LimitExceededError):
                    raise
                raise FileRejectedError(error.rule, f"Sheet {sheet['name']!r}: {error.detail}") from None

    def _read_sheet(self, rows: Path, sheet: Mapping[str, Any], first: int) -> Iterator[RowsChunk]:
        profile, limits = self.profile, self.limits
        blocks = text_blocks(rows, "utf-8", limits.chunk_bytes)
        search = HeaderSearch(
            "\t", frozenset(), 0, limits.max_row_bytes, rows=profile.header_rows, separator=profile.header_separator
        )
        header, text, final = find_header(blocks, search)
        row = sheet["first_row"]
        header = header._replace(names=header.names[2:])
        if profile.header and row != profile.skip_lines + 1:
            detail = f"Row {profile.skip_lines + 1} of the sheet, where the header should be, is empty"
            raise FileRejectedError(
                "missing_header", f"{detail}. The first row with text is {row}: see skip_lines in the profile."
            )
        if not profile.header:
            header = header.as_first_record()
        surroundings = Surroundings(self.location, sheet["above"], sheet["name"])
        layout = layout_of(header.names, profile, limits, surroundings, self.target)
        dialect = dialect_of(header, layout, profile, limits)
        # The mark and the number of the row precede the sheet's own columns.
        wanted = {ROW_MARK: 0} | {name: index + 2 for name, index in layout.wanted.items()}
        dialect = replace(dialect, wanted=wanted, width=dialect.width + 2, comment=b"")
        tables = split_blocks(chain([(text[header.start :], final)], blocks), dialect, header.line_number)
        if profile.header:
            tables = without_headers(tables, header, layout)
        for table in rows_of_data(tables, profile):
            yield _chunk(table, layout, profile, first, header.names)


def _chunk(table: TableChunk, layout: Layout, profile: ReaderProfile, first: int, names: Sequence[str]) -> RowsChunk:
    """Turn the marks of rows into line numbers and the kinds of the wanted cells."""
    mark = pl.col(ROW_MARK)
    kinds = [mark.str.slice(KINDS_AT + index, 1).alias(KIND_OF(name)) for name, index in layout.wanted.items()]
    number = (mark.str.slice(*NUMBER_AT).str.strip_chars().cast(pl.Int64) + first).alias("line_number")
    cells = table.columns.with_columns(number, *kinds).drop(ROW_MARK)
    raw_text = pl.col("raw_text")
    row = raw_text.str.slice(NUMBER_AT[0] + 1, NUMBER_AT[1]).str.strip_chars().cast(pl.Int64, strict=False) + first
    malformed = table.malformed.with_columns(
        row.fill_null(0).alias("line_number"),
        raw_text.map_elements(lambda record: _json_of_record(record, names), return_dtype=pl.String),
    )

    def rows_as_json(numbers: Sequence[int]) -> list[str]:
        lines = dict(zip(cells["line_number"], table.columns["line_number"], strict=True))
        records = (table.raw(lines[number]) for number in numbers)
        return [shortened(_json_of_record(raw.decode(), names).encode()) for raw in records]

    return rows_chunk(cells, malformed, rows_as_json, layout, profile)


def _json_of_record(record: str, names: Sequence[str]) -> str:
    """Write a record of the worker as JSON without its empty cells; one that was shortened stays as it is."""
    try:
        _, _, *cells = next(csv.reader(io.StringIO(record, newline=""), delimiter="\t", strict=True))
    except (csv.Error, StopIteration, ValueError):
        return record
    named = dict[str, str]()
    for index, text in enumerate(cells):
        name = names[index] if index < len(names) else ""
        if text:
            named[name if name and name not in named else f"#{index + 1}"] = text
    return json_of(named)


class SheetRow(NamedTuple):
    """One row of a sheet that is not blank.

    Args:
        sheet: number of the sheet, from 0.
        number: of the row, from 1.
        kinds: of its cells, see `cells`.
        cells: their texts.
    """

    sheet: int
    number: int
    kinds: str
    cells: list[str]


def rows_of_all_sheets(path: Path, file_type: str, limits: ReadLimits, max_rows: int) -> Iterator[SheetRow]:
    """Yield the first rows of every sheet, as they are.

    Raises:
        FileRejectedError: the workbook cannot be read.
    """
    _check_outside(path, file_type, limits, path.name)
    with tempfile.TemporaryDirectory(prefix="workbook-") as folder:
        rows = Path(folder, "rows.tsv")
        _convert(path, file_type, ReaderProfile.model_construct(name="all", sheet="*"), limits, rows)
        for sheet in range(len(json.loads(sheets_file(rows).read_text(encoding="utf-8")))):
            with sheet_file(rows, sheet).open(encoding="utf-8", newline="") as file:
                for mark, number, *cells in islice(csv.reader(file, delimiter="\t"), max_rows):
                    yield SheetRow(sheet, int(number), mark[KINDS_AT:], cells)
