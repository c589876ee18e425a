"""One cell of a workbook as text, with its kind: a number stays one whatever marks a profile declares.

Imports no other module of the project: the confined process that opens a workbook uses it as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import NamedTuple

# The kinds of cells; a percentage is a number shown in per cent, a duration also a clock time without a day, and a
# formula one that was never calculated.
TEXT, NUMBER, PERCENT, DATE, DURATION, BOOLEAN, ERROR, FORMULA = "snpdtbef"
# A number with more digits than workbooks keep: the nearest one is known.
INEXACT = "i"
# Of JSON and Parquet only: an object or a list, as JSON.
NESTED = "j"

# Above this a float does not represent every integer.
EXACT_INTEGERS = 2.0**53
MICROSECONDS = 1_000_000
# Excel counts a 29 February 1900 that did not exist: in some programs earlier days are one day off.
FIRST_RELIABLE_DAY = datetime(1900, 3, 1)  # noqa: DTZ001 - cells of a workbook have no zone
BUILT_IN_PERCENT = frozenset({9, 10})
LAST_MOMENT = datetime(9999, 12, 31, 23, 59, 59, 999_000)  # noqa: DTZ001 - as above
# Literals of a number format: quoted and escaped text, colours and conditions.
LITERAL = re.compile(r'"[^"]*"|\\.|_.|\*.|\[[^\]]*\]')


class Cell(NamedTuple):
    """Kind, one of those above, and text of a cell; the text of a blank cell is empty."""

    kind: str
    text: str


BLANK = Cell(TEXT, "")


class Sheet(NamedTuple):
    """Name and rows of a sheet, from its first row on, blank ones included."""

    name: str
    rows: Iterator[list[Cell]]


class Style(NamedTuple):
    """Effect of a number format: shown in per cent, or padded with zeros to a number of digits."""

    percent: bool = False
    digits: int = 0


PLAIN = Style()


def style_of(format_id: int, code: str) -> Style:
    """Interpret a number format, for a number cell.

    Args:
        format_id: its number; the first few are built in, and may have no code.
        code: as in `0.0 %` or `00000`.
    """
    first = LITERAL.sub("", code).partition(";")[0]
    if format_id in BUILT_IN_PERCENT or "%" in first:
        return Style(percent=True)
    return Style(digits=len(first)) if first and not first.strip("0") else PLAIN


def cell_of(value: object, style: Style = PLAIN) -> Cell:
    """Make a cell of its value, as the reading library gives it."""
    if value is None:
        return BLANK
    if isinstance(value, bool):
        return Cell(BOOLEAN, "true" if value else "false")
    if isinstance(value, int | float):
        return _number(value, style)
    if isinstance(value, datetime):
        return _moment(value)
    if isinstance(value, date):
        # The library returns midnight as a date without time.
        return _moment(datetime(value.year, value.month, value.day))  # noqa: DTZ001 - as above
    if isinstance(value, timedelta):
        value, kind = duration_text(value // timedelta(microseconds=1), MICROSECONDS), DURATION
    else:
        kind = DURATION if isinstance(value, time) else TEXT
    return Cell(kind, str(value))


def duration_text(ticks: int, per_second: int) -> str:
    """Write a duration as spreadsheets show it: hours, of which there may be more than 24, minutes and seconds.

    Args:
        ticks: its length.
        per_second: how many are a second, a power of ten.
    """
    seconds, fraction = divmod(abs(ticks), per_second)
    digits = f".{fraction + per_second}".replace(".1", ".", 1).rstrip("0") if fraction else ""
    return f"{'-' if ticks < 0 else ''}{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{digits}"


def _number(value: float, style: Style) -> Cell:
    """Write every digit of a number, whole numbers without a fraction."""
    if style.percent:
        return Cell(PERCENT, format(Decimal(repr(value)), "f"))
    if float(value).is_integer() and abs(value) < EXACT_INTEGERS:
        whole = int(value)
        return Cell(NUMBER, f"{whole:0{style.digits + (whole < 0)}d}")
    return Cell(NUMBER if abs(value) < EXACT_INTEGERS else INEXACT, repr(value))


def _moment(value: datetime) -> Cell:
    """Write a date to the millisecond, the precision of a day count in a float and of Excel."""
    if not FIRST_RELIABLE_DAY <= value <= LAST_MOMENT:
        return Cell(DURATION, value.isoformat())
    rounded = value + timedelta(microseconds=500)
    rounded = rounded.replace(microsecond=rounded.microsecond // 1000 * 1000)
    return Cell(DATE, rounded.isoformat())
