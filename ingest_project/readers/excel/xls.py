"""Cells of an xls workbook: values and formats by xlrd, and from its records which formula was never calculated."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import xlrd

from ingest_project.readers.casting import BOOLEAN, DURATION, ERROR, FORMULA
from ingest_project.readers.excel.cells import BLANK, PLAIN, Cell, Style, cell_of, style_of
from ingest_project.readers.excel.xlsx import chosen_sheet, require_cells

FORMULA_RECORDS = {0x0006, 0x0206, 0x0406}
BEGIN_RECORDS = {0x0009, 0x0209, 0x0409, 0x0809}
END_RECORD = 0x000A
# The whole sheet waits to be calculated.
UNCALCULATED_RECORD = 0x005E
FORMULA_START = struct.Struct("<HHH8sH")
RECORD_START = struct.Struct("<HH")
# The bit of a formula that asks for it to be calculated when the workbook is opened.
ON_LOAD = 0x0002
ELAPSED = re.compile(r"\[(?:h+|m+|s+)\]", re.IGNORECASE)
EPOCHS = (datetime(1899, 12, 30), datetime(1904, 1, 1))  # noqa: DTZ001 - cells of a workbook have no zone
DAY_MILLISECONDS = 86_400_000


def sheet_rows(path: Path, sheet: int | str, max_cells: int) -> Iterator[list[Cell]]:
    """The rows of one sheet from its first one on, blank ones too.

    Raises:
        Refused: there is no such sheet, or it has more cells than allowed.
    """
    with xlrd.open_workbook(str(path), on_demand=True, formatting_info=True) as book:
        name = chosen_sheet(book.sheet_names(), sheet)
        found = book.sheet_by_name(name)
        require_cells(found.nrows * found.ncols, max_cells)
        waiting = _never_calculated(book.mem, book._sh_abs_posn[found.number])  # noqa: SLF001 - has no other name
        formats = _Formats(book)
        for row in range(found.nrows):
            yield [
                Cell(FORMULA, "=") if (row, column) in waiting else _cell(found, row, column, formats)
                for column in range(found.ncols)
            ]


class _Formats:
    """Number formats by the index that cells have of them."""

    def __init__(self, book: Any) -> None:  # noqa: ANN401 - xlrd is not typed
        codes = [book.format_map.get(xf.format_key) for xf in book.xf_list]
        keys = [xf.format_key for xf in book.xf_list]
        self.codes = [code.format_str if code else "" for code in codes]
        self.styles = [style_of(key, code) for key, code in zip(keys, self.codes, strict=True)]
        self.epoch = EPOCHS[book.datemode]


def _cell(sheet: Any, row: int, column: int, formats: _Formats) -> Cell:  # noqa: ANN401 - as above
    kind, value = sheet.cell_type(row, column), sheet.cell_value(row, column)
    if kind in {xlrd.XL_CELL_EMPTY, xlrd.XL_CELL_BLANK}:
        return BLANK
    if kind == xlrd.XL_CELL_BOOLEAN:
        return Cell(BOOLEAN, "true" if value else "false")
    if kind == xlrd.XL_CELL_ERROR:
        return Cell(ERROR, xlrd.error_text_from_code.get(value, "#ERROR"))
    if kind == xlrd.XL_CELL_TEXT:
        return cell_of(value)
    index = sheet.cell_xf_index(row, column)
    if kind == xlrd.XL_CELL_DATE:
        return _date(value, formats.codes[index], formats.epoch)
    return cell_of(value, _style(formats, index))


def _style(formats: _Formats, index: int) -> Style:
    return formats.styles[index] if index < len(formats.styles) else PLAIN


def _date(days: float, code: str, epoch: datetime) -> Cell:
    """A count of days by its format: a length of time and a clock time are no date."""
    if ELAPSED.search(code) or not days >= 1:
        return Cell(DURATION, str(timedelta(days=days)) if abs(days) < timedelta.max.days else repr(days))
    try:
        return cell_of(epoch + timedelta(milliseconds=round(days * DAY_MILLISECONDS)))
    except OverflowError:
        return Cell(ERROR, repr(days))


def _never_calculated(stream: bytes, position: int) -> set[tuple[int, int]]:
    """The cells whose formula asks to be calculated when opened, and has the result zero until then."""
    asked: set[tuple[int, int]] = set()
    zeros: set[tuple[int, int]] = set()
    everything = False
    depth = 0
    while position + RECORD_START.size <= len(stream):
        code, length = RECORD_START.unpack_from(stream, position)
        start = position + RECORD_START.size
        position = start + length
        depth += code in BEGIN_RECORDS
        depth -= code == END_RECORD
        everything |= code == UNCALCULATED_RECORD
        if code in FORMULA_RECORDS and depth == 1 and length >= FORMULA_START.size:
            row, column, _, result, flags = FORMULA_START.unpack_from(stream, start)
            if result[6:8] != b"\xff\xff" and struct.unpack("<d", result)[0] == 0:
                zeros.add((row, column))
                if flags & ON_LOAD:
                    asked.add((row, column))
        if depth <= 0:
            break
    return zeros if everything else asked
