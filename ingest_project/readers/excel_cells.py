"""One cell of a workbook as text, with its kind: a number stays one whatever marks a profile declares.

Imports nothing else of the project: it is used in the confined process that opens a workbook, too.
"""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import NamedTuple

# The kinds of cells; a percentage is a number shown in per cent, a duration also a clock time without a day, and a
# formula one that was never calculated.
TEXT, NUMBER, PERCENT, DATE, DURATION, BOOLEAN, ERROR, FORMULA = "snpdtbef"

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
    """Write every digit a number has, whole numbers without a fraction."""
    if style.percent:
        return Cell(PERCENT, format(Decimal(repr(value)), "f"))
    if float(value).is_integer() and abs(value) < EXACT_INTEGERS:
        whole = int(value)
        return Cell(NUMBER, f"{whole:0{style.digits + (whole < 0)}d}")
    return Cell(NUMBER, repr(value))


def _moment(value: datetime) -> Cell:
    """Write a date to the millisecond, which is as much as a day count in a float holds and Excel shows."""
    if not FIRST_SOUND_DAY <= value < END_OF_DAYS:
        return Cell(DURATION, value.isoformat())
    rounded = value + timedelta(microseconds=500)
    rounded = rounded.replace(microsecond=rounded.microsecond // 1000 * 1000)
    return Cell(DATE, rounded.isoformat())
