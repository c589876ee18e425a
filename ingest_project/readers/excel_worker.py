"""The process that opens one workbook: whatever a hostile one does, it does to this process.

Run by `excel_reader` as a script in a confined process, with little of the project imported, no secrets in its
environment, and limits of memory, CPU time and output in force. Writes the sheet's rows as tab-separated text, every
cell quoted, with the row's number and the kinds of its cells in front; or one JSON object with `rule` and `detail` that
gives the reason. A number stays one whatever marks a profile declares: its kind says so. Formulas are never evaluated:
the result that a spreadsheet program stored is taken, where it was calculated.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
import zipfile
from collections.abc import Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple, TextIO

# The kinds of cells; a percentage is a number shown in per cent, a duration also a clock time without a day, and a
# formula one that was never calculated.
TEXT, NUMBER, PERCENT, DATE, DURATION, BOOLEAN, ERROR, FORMULA = "snpdtbef"

MAX_PARTS = 10_000
# A sheet of repeated cells deflates to about a fiftieth; deflate itself cannot go beyond a thousandth.
MAX_RATIO = 300
SMALL_PART_BYTES = 4 * 1024**2
PROLOG_BYTES = 64 * 1024
# In front of each row: too long for a spelling of "missing", with the row's number at a fixed position.
ROW_MARK = "row {:>10} cells {}"
# Above this a float no longer holds every integer.
EXACT_INTEGERS = 2.0**53
# Excel counts a 29 February 1900 that never was: days before it are a day off, in some programs and not in others.
FIRST_SOUND_DAY = datetime(1900, 3, 1)  # noqa: DTZ001 - cells of a workbook have no zone
BUILT_IN_PERCENT = frozenset({9, 10})
END_OF_DAYS = datetime(9999, 12, 31)  # noqa: DTZ001 - as above
# What a number format shows as it is: quoted and escaped text, colours and conditions.
LITERAL = re.compile(r'"[^"]*"|\\.|_.|\*.|\[[^\]]*\]')


class WorkbookRejectedError(Exception):
    """The workbook is not read, and why."""

    def __init__(self, rule: str, detail: str, limit: str | None = None) -> None:
        self.reason = {"rule": rule, "detail": detail, "limit": limit}
        super().__init__(detail)


class Cell(NamedTuple):
    """What a cell holds: its kind, one of those above, and its text; a blank cell is an empty text."""

    kind: str
    text: str


BLANK = Cell(TEXT, "")


class Style(NamedTuple):
    """What a number format changes of a number: shown in per cent, or with leading zeros up to so many digits."""

    percent: bool = False
    digits: int = 0


PLAIN = Style()


def style_of(format_id: int, code: str) -> Style:
    """What a number format means for a number cell.

    Args:
        format_id: its number; the first few are built in, and may have no code.
        code: as in `0.0 %` or `00000`.
    """
    first = LITERAL.sub("", code).partition(";")[0]
    if format_id in BUILT_IN_PERCENT or "%" in first:
        return Style(percent=True)
    return Style(digits=len(first)) if first and not first.strip("0") else PLAIN


def cell_of(value: object, style: Style = PLAIN) -> Cell:
    """A cell by its value, as the reading library gives it."""
    if value is None or value != value:  # noqa: PLR0124 - only NaN is unlike itself
        return BLANK
    if isinstance(value, bool):
        return Cell(BOOLEAN, "true" if value else "false")
    if isinstance(value, int | float):
        return _number(value, style)
    if isinstance(value, datetime):
        return _moment(value)
    if isinstance(value, date):
        # A cell that holds midnight comes as a date alone.
        return _moment(datetime(value.year, value.month, value.day))  # noqa: DTZ001 - as above
    return Cell(DURATION if isinstance(value, time | timedelta) else TEXT, str(value))


def _number(value: float, style: Style) -> Cell:
    """Every digit a number has, whole numbers without a fraction."""
    if style.percent:
        return Cell(PERCENT, format(Decimal(repr(value)), "f"))
    if float(value).is_integer() and abs(value) < EXACT_INTEGERS:
        whole = int(value)
        return Cell(NUMBER, f"{whole:0{style.digits + (whole < 0)}d}")
    return Cell(NUMBER, repr(value))


def _moment(value: datetime) -> Cell:
    """A date to the millisecond, which is as much as a day count in a float holds and Excel shows."""
    if not FIRST_SOUND_DAY <= value < END_OF_DAYS:
        return Cell(DURATION, value.isoformat())
    rounded = value + timedelta(microseconds=500)
    rounded = rounded.replace(microsecond=rounded.microsecond // 1000 * 1000)
    return Cell(DATE, rounded.isoformat())


def main() -> int:
    """Read the workbook named on the command line.

    Returns:
        0 when the rows were written, 3 when the reason was.
    """
    options = _options()
    try:
        if options.kind == "xlsx":
            check_archive(options.workbook, options.memory_bytes)
        rows = _rows(options)
        with options.rows.open("w", encoding="utf-8", errors="replace", newline="") as file:
            _write(rows, options.skip_rows, file)
    except WorkbookRejectedError as refused:
        reason = refused.reason
    except MemoryError:
        reason = {"rule": "limit_exceeded", "detail": "Opening it needs more memory than allowed", "limit": "memory"}
    except Exception as error:  # noqa: BLE001 - the libraries raise anything at all on crafted files
        kind = type(error).__name__
        reason = {"rule": "unreadable_container", "detail": f"The workbook is damaged ({kind}).", "limit": None}
    else:
        return 0
    options.reason.write_text(json.dumps(reason), encoding="utf-8")
    return 3


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("workbook", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("reason", type=Path)
    parser.add_argument("--kind", choices=("xlsx", "xls"), required=True)
    parser.add_argument("--sheet", type=json.loads, required=True)
    parser.add_argument("--skip-rows", type=int, required=True)
    parser.add_argument("--max-cells", type=int, required=True)
    parser.add_argument("--memory-bytes", type=int, required=True)
    return parser.parse_args()


def check_archive(path: Path, memory_bytes: int) -> None:
    """Refuse archives that would grow out of proportion, and XML that declares entities, before anything is unpacked.

    Raises:
        Refused: says which.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise WorkbookRejectedError(
            "unreadable_container", "The file is not a workbook, or its end is missing."
        ) from error
    with archive:
        parts = archive.infolist()
        size = sum(part.file_size for part in parts)
        if len(parts) > MAX_PARTS:
            raise WorkbookRejectedError(
                "limit_exceeded", f"The workbook has {len(parts)} parts, over {MAX_PARTS}", "memory"
            )
        if size > memory_bytes:
            raise WorkbookRejectedError(
                "limit_exceeded", f"The workbook unpacks to {size} bytes, over {memory_bytes}", "memory"
            )
        for part in parts:
            if part.file_size > SMALL_PART_BYTES and part.file_size > MAX_RATIO * max(part.compress_size, 1):
                detail = (
                    f"A part of the workbook unpacks to {part.file_size // max(part.compress_size, 1)} times its size"
                )
                raise WorkbookRejectedError("limit_exceeded", detail, "memory")
            if part.filename.endswith((".xml", ".rels")):
                _check_prolog(archive, part)


def _check_prolog(archive: zipfile.ZipFile, part: zipfile.ZipInfo) -> None:
    with archive.open(part) as file:
        # Without the NUL bytes, UTF-16 reads like ASCII here.
        prolog = file.read(PROLOG_BYTES).replace(b"\0", b"")
    if b"<!DOCTYPE" in prolog or b"<!ENTITY" in prolog:
        raise WorkbookRejectedError(
            "unreadable_container", "The workbook declares XML entities, which no spreadsheet program does."
        )


def _rows(options: argparse.Namespace) -> Iterable[list[Cell]]:
    # After the limits are in force, which then hold for these libraries too.
    from ingest_project.readers.excel_sheets import xls_rows, xlsx_rows  # noqa: PLC0415

    sheet_rows = xlsx_rows if options.kind == "xlsx" else xls_rows
    return sheet_rows(options.workbook, options.sheet, options.max_cells)


def _write(rows: Iterable[list[Cell]], skip_rows: int, file: TextIO) -> None:
    writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")
    for number, row in enumerate(rows, start=1):
        if number > skip_rows and any(cell.text for cell in row):
            kinds = "".join(cell.kind for cell in row)
            writer.writerow([ROW_MARK.format(number, kinds), number, *(cell.text for cell in row)])


if __name__ == "__main__":
    # As the module that the readers of sheets import, so that there is one WorkbookRejectedError.
    from ingest_project.readers import excel_worker  # noqa: PLW0406

    sys.exit(excel_worker.main())
