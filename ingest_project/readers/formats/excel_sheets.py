"""Rows of a sheet, by calamine for xlsx and xlrd for xls, and facts about single cells that these do not report.

The facts are, in xlsx: numbers shown in per cent, errors, and formulas that were never calculated;
most sheets have none of these, and are read once. In xls: formulas that were never calculated, from its records.
Imported in the confined process only.
"""

from __future__ import annotations

import io
import posixpath
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree as ET
from xml.parsers import expat

import xlrd
from python_calamine import CalamineError, CalamineWorkbook, SheetTypeEnum, SheetVisibleEnum

from ingest_project.platform.confined import ContentRejectedError
from ingest_project.readers.cells import (
    BLANK,
    BOOLEAN,
    DURATION,
    ERROR,
    FORMULA,
    PLAIN,
    Cell,
    Sheet,
    Style,
    cell_of,
    style_of,
)

BLOCK_BYTES = 1024**2
# Bytes that occur in sheets with formulas or errors, and rarely in others.
SIGNS = (b"<f", b":f", b'"e"', b"'e'", b"\0")
# The beginning of an error cell, up to its type.
ERROR_CELL = re.compile(rb"""(<(?:\w+:)?c\s[^<>]*?\bt=["'])e(?=["'])""")
# The last cell that a sheet declares.
DIMENSION = re.compile(rb"""<(?:\w+:)?dimension\s[^<>]*?\bref=["'][A-Z0-9]*:?([A-Z]{1,3})([0-9]{1,7})["']""")
REFERENCE = re.compile(r"^\$?([A-Z]{1,3})\$?([0-9]{1,7})$")
FORMULA_SHOWN = 200
MAX_RANGES = 1_000
MAX_SHEETS = 100
ZERO = re.compile(r"[+-]?(?:0+\.?0*|\.0+)(?:[eE][+-]?[0-9]+)?")
TRUE = {"1", "true"}
FALSE = {"0", "false"}

# Record types of xls.
FORMULA_RECORDS = {0x0006, 0x0206, 0x0406}
BEGIN_RECORDS = {0x0009, 0x0209, 0x0409, 0x0809}
END_RECORD = 0x000A
# Record of a sheet that has not been calculated.
UNCALCULATED_RECORD = 0x005E
FORMULA_START = struct.Struct("<HHH8sH")
RECORD_START = struct.Struct("<HH")
# Flag of a formula that must be calculated when the workbook is opened.
ON_LOAD = 0x0002
ELAPSED = re.compile(r"\[(?:h+|m+|s+)\]", re.IGNORECASE)
EPOCHS = (datetime(1899, 12, 30), datetime(1904, 1, 1))  # noqa: DTZ001 - cells of a workbook have no zone
DAY_MILLISECONDS = 86_400_000


def xlsx_sheets(path: Path, sheet: int | str, max_cells: int) -> Iterator[Sheet]:
    """Yield the chosen sheets, each to be read before the next.

    Raises:
        ContentRejectedError: a sheet does not exist, or they have more cells than allowed.
    """
    with CalamineWorkbook.from_path(path) as workbook:
        tables = [one for one in workbook.sheets_metadata if one.typ == SheetTypeEnum.WorkSheet]
        shown = {one.name: one.visible == SheetVisibleEnum.Visible for one in tables}
        for name in chosen_sheets(shown, sheet):
            with zipfile.ZipFile(path) as archive:
                marks = Marks(archive, name, max_cells)
            try:
                values = workbook.get_sheet_by_name(name)
            except CalamineError:
                values = CalamineWorkbook.from_filelike(_without_errors(path)).get_sheet_by_name(name)
            max_cells = require_cells(values.total_height * values.total_width, max_cells)
            rows = enumerate(values.to_python(skip_empty_area=False))
            yield Sheet(name, ([marks.cell(row, i, value) for i, value in enumerate(cells)] for row, cells in rows))


def _without_errors(path: Path) -> io.BytesIO:
    """Return a workbook with texts in place of errors: calamine refuses a sheet for one that it does not know."""
    copy = io.BytesIO()
    with zipfile.ZipFile(path) as given, zipfile.ZipFile(copy, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as made:
        for part in given.infolist():
            made.writestr(part.filename, ERROR_CELL.sub(rb"\1str", given.read(part)))
    copy.seek(0)
    return copy


def chosen_sheets(sheets: Mapping[str, bool], sheet: int | str) -> list[str]:
    """Return the names of the sheets that a profile selects, by name, by number, or by a pattern such as `*`.

    Args:
        sheets: name of each, in order, and whether people see it: a hidden one is read only by its name.
        sheet: the selection.

    Raises:
        ContentRejectedError: the workbook has no such sheet, or too many.
    """
    if not sheets:
        raise ContentRejectedError("unreadable_container", "The workbook has no sheet that can be read.")
    shown = [name for name, is_shown in sheets.items() if is_shown]
    if isinstance(sheet, int):
        chosen = shown[sheet : sheet + 1] if sheet >= 0 else []
    else:
        # No name of a sheet may contain the signs of a pattern.
        chosen = [sheet] if sheet in sheets else [name for name in shown if fnmatchcase(name, sheet)]
    if len(chosen) > MAX_SHEETS:
        raise ContentRejectedError("limit_exceeded", f"The workbook has more than {MAX_SHEETS} such sheets", "cells")
    if chosen:
        return chosen
    listed = [repr(str(name)[:40]) + ("" if is_shown else " (hidden)") for name, is_shown in sheets.items()]
    said = f"The workbook has no sheet {sheet!r}; it has {', '.join(listed[:12])}."
    raise ContentRejectedError("missing_sheet", said)


def require_cells(cells: int, limit: int) -> int:
    """Reject a sheet that is too large; return how many cells the next one may have.

    Raises:
        ContentRejectedError: it has more cells than that.
    """
    if cells > limit:
        raise ContentRejectedError("limit_exceeded", f"The sheet has {cells} cells, over {limit}", "cells")
    return limit - cells


class Marks:
    """Errors, uncalculated formulas and number styles of single cells of a sheet.

    Raises:
        ContentRejectedError: its cells span more than `max_cells`, which the reading library would reserve.
    """

    def __init__(self, archive: zipfile.ZipFile, sheet: str, max_cells: int) -> None:
        self._archive = archive
        self._parts = {name.lower(): name for name in archive.namelist()}
        self._special: dict[tuple[int, int], Cell] = {}
        self._styles: dict[tuple[int, int], Style] = {}
        workbook = self._target("", "officeDocument") or "xl/workbook.xml"
        root = self._tree(workbook)
        part = self._sheet_part(root, workbook, sheet)
        styles = self._number_styles(self._target(workbook, "styles"))
        if styles or self._has_signs(part) or self._may_span(part, max_cells):
            parser = _SheetParser(self._special, self._styles, styles, awaits_calculation=_awaits_calculation(root))
            with archive.open(part) as file:
                parser.parse(file)
            require_cells(parser.height * parser.width, max_cells)

    def cell(self, row: int, column: int, value: object) -> Cell:
        """Return the cell at this position, counted from 0."""
        return self._special.get((row, column)) or cell_of(value, self._styles.get((row, column), PLAIN))

    def _tree(self, part: str) -> ET.Element:
        try:
            with self._archive.open(self._parts[part.lower()]) as file:
                return ET.parse(file).getroot()  # noqa: S314 - checked to declare no entities, in a confined process
        except KeyError:
            raise ContentRejectedError("unreadable_container", f"The workbook has no part {part}.") from None

    def _target(self, part: str, kind: str) -> str | None:
        """Return the part that another one is related to in this way."""
        return next((target for _, ending, target in self._relations(part) if ending == kind), None)

    def _relations(self, part: str) -> Iterator[tuple[str, str, str]]:
        folder, name = posixpath.split(part)
        own = posixpath.join(folder, "_rels", f"{name}.rels")
        if own.lower() not in self._parts:
            return
        for relation in self._tree(own):
            target = posixpath.normpath(posixpath.join("/", folder, relation.get("Target", "")))
            yield relation.get("Id", ""), relation.get("Type", "").rpartition("/")[2], target.lstrip("/")

    def _sheet_part(self, root: ET.Element, workbook: str, sheet: str) -> str:
        parts = {identity: target for identity, _, target in self._relations(workbook)}
        for element in root.iter():
            if _local(element.tag) == "sheet" and element.get("name") == sheet:
                identity = next((value for name, value in element.items() if _local(name) == "id"), "")
                found = self._parts.get(parts.get(identity, "").lower())
                if found:
                    return found
        raise ContentRejectedError("unreadable_container", "The workbook does not name the part of its sheet.")

    def _number_styles(self, part: str | None) -> dict[str, Style]:
        """Return the styles of cells that change the meaning of a number, by their index as it is written in cells."""
        if part is None or part.lower() not in self._parts:
            return {}
        root = self._tree(part)
        codes = {e.get("numFmtId"): e.get("formatCode", "") for e in root.iter() if _local(e.tag) == "numFmt"}
        formats = next((element for element in root if _local(element.tag) == "cellXfs"), ())
        found = {}
        for index, element in enumerate(formats):
            identity = element.get("numFmtId", "0")
            style = style_of(int(identity) if identity.isdecimal() else 0, codes.get(identity, ""))
            if style != PLAIN:
                found[str(index)] = style
        return found

    def _may_span(self, part: str, max_cells: int) -> bool:
        """Return True unless a sheet says that it has fewer cells; those with a format and no value may count."""
        with self._archive.open(part) as file:
            corner = DIMENSION.search(file.read(BLOCK_BYTES))
        return corner is None or _column(corner[1].decode()) * int(corner[2]) >= max_cells

    def _has_signs(self, part: str) -> bool:
        tail = b""
        with self._archive.open(part) as file:
            while block := file.read(BLOCK_BYTES):
                if any(sign in tail + block for sign in SIGNS):
                    return True
                tail = block[-4:]
        return False


def _local(name: str) -> str:
    """Strip the namespace from a name."""
    return name.rpartition("}")[2]


def _awaits_calculation(root: ET.Element) -> bool:
    """Return True for a workbook to be calculated when opened, whose stored results are not reliable."""
    settings = next((element for element in root if _local(element.tag) == "calcPr"), None)
    if settings is None:
        return False
    return settings.get("fullCalcOnLoad") in TRUE or settings.get("calcCompleted") in FALSE


class _SheetParser:
    """Reads from a sheet's XML the facts that calamine omits."""

    def __init__(
        self,
        special: dict[tuple[int, int], Cell],
        styled: dict[tuple[int, int], Style],
        styles: Mapping[str, Style],
        *,
        awaits_calculation: bool,
    ) -> None:
        self._special, self._styled, self._styles = special, styled, styles
        self._awaits_calculation = awaits_calculation
        self._row, self._column = -1, -1
        self.height = self.width = 0
        self._type: str | None = None
        self._is_formula = self._has_value = False
        self._text: dict[str, str] = {}
        self._inside = ""
        self._ranges: list[tuple[int, int, int, int]] = []

    def parse(self, file: IO[bytes]) -> None:
        """Read the whole sheet."""
        parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        try:
            parser.ParseFile(file)
        except expat.ExpatError as error:
            raise ContentRejectedError("unreadable_container", f"The sheet is damaged: {error}.") from None

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        name = name.rpartition(":")[2]
        if name == "c":
            self._begin_cell(attributes)
        elif name == "f":
            self._inside, self._is_formula = name, True
            if attributes.get("t") in {"array", "dataTable"}:
                self._remember_range(attributes.get("ref", ""))
        elif name == "v":
            self._inside, self._has_value = name, True
        elif name == "is":
            self._has_value = True
        elif name == "row":
            number = attributes.get("r", "")
            self._row = int(number) - 1 if number.isdecimal() else self._row + 1
            self._column = -1

    def _begin_cell(self, attributes: dict[str, str]) -> None:
        match = REFERENCE.match(attributes.get("r", ""))
        self._column = _column(match[1]) if match else self._column + 1
        if match:
            self._row = int(match[2]) - 1
        self._type = attributes.get("t")
        self._is_formula = self._has_value = False
        self._text = {"f": "", "v": ""}
        style = self._styles.get(attributes.get("s", ""))
        if style:
            self._styled[self._row, self._column] = style

    def _characters(self, text: str) -> None:
        if self._inside and len(self._text[self._inside]) <= FORMULA_SHOWN:
            self._text[self._inside] += text

    def _end(self, name: str) -> None:
        name = name.rpartition(":")[2]
        if name == "c":
            self._finish_cell()
        if name == self._inside:
            self._inside = ""

    def _finish_cell(self) -> None:
        position = (self._row, self._column)
        if self._has_value:
            self.height, self.width = max(self.height, self._row + 1), max(self.width, self._column + 1)
        if self._type == "e":
            self._special[position] = Cell(ERROR, self._text["v"] or "#ERROR")
        elif (self._is_formula or (self._ranges and self._in_range())) and not self._is_calculated():
            self._special[position] = Cell(FORMULA, f"={self._text['f'][:FORMULA_SHOWN]}")

    def _is_calculated(self) -> bool:
        """Return True for a reliable result: writers that do not calculate omit it, or store a zero."""
        result = self._text["v"].strip()
        if not result:
            # An empty text is a valid result.
            return self._has_value and self._type == "str" and not self._awaits_calculation
        return not (self._awaits_calculation and self._type in {None, "n"} and ZERO.fullmatch(result))

    def _remember_range(self, reference: str) -> None:
        corners = [REFERENCE.match(corner) for corner in reference.split(":")]
        if len(corners) != 2 or None in corners:  # noqa: PLR2004 - the two corners of a range
            return
        if len(self._ranges) == MAX_RANGES:
            raise ContentRejectedError("limit_exceeded", f"Over {MAX_RANGES} ranges of one formula", "cells")
        (first, last) = ((int(match[2]) - 1, _column(match[1])) for match in corners if match)
        self._ranges.append((*first, *last))

    def _in_range(self) -> bool:
        return any(
            top <= self._row <= bottom and left <= self._column <= right for top, left, bottom, right in self._ranges
        )


def _column(letters: str) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + ord(letter) - ord("A") + 1
    return number - 1


def xls_sheets(path: Path, sheet: int | str, max_cells: int) -> Iterator[Sheet]:
    """Yield the chosen sheets; see `xlsx_sheets`."""
    with xlrd.open_workbook(str(path), on_demand=True, formatting_info=True) as book:
        formats = _Formats(book)
        visible = (one == 0 for one in book._sheet_visibility)  # noqa: SLF001 - else every sheet would be read
        for name in chosen_sheets(dict(zip(book.sheet_names(), visible, strict=True)), sheet):
            found = book.sheet_by_name(name)
            max_cells = require_cells(found.nrows * found.ncols, max_cells)
            yield Sheet(name, _xls_rows(book, found, formats))
            book.unload_sheet(name)


def _xls_rows(book: Any, sheet: Any, formats: _Formats) -> Iterator[list[Cell]]:  # noqa: ANN401 - xlrd is not typed
    waiting = _never_calculated(book.mem, book._sh_abs_posn[sheet.number])  # noqa: SLF001 - has no other name
    for row in range(sheet.nrows):
        yield [
            Cell(FORMULA, "=") if (row, column) in waiting else _cell(sheet, row, column, formats)
            for column in range(sheet.ncols)
        ]


class _Formats:
    """Number formats by the index that cells refer to."""

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
    return cell_of(value, formats.styles[index] if index < len(formats.styles) else PLAIN)


def _date(days: float, code: str, epoch: datetime) -> Cell:
    """Interpret a count of days by its format: a duration and a clock time are no date."""
    if ELAPSED.search(code) or not days >= 1:
        return cell_of(timedelta(days=days)) if abs(days) < timedelta.max.days else Cell(DURATION, repr(days))
    try:
        return cell_of(epoch + timedelta(milliseconds=round(days * DAY_MILLISECONDS)))
    except OverflowError:
        return Cell(ERROR, repr(days))


def _never_calculated(stream: bytes, position: int) -> set[tuple[int, int]]:
    """Find the cells whose formula is calculated only when opened, and has the result zero until then."""
    on_load: set[tuple[int, int]] = set()
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
                    on_load.add((row, column))
        if depth <= 0:
            break
    return zeros if everything else on_load
