"""Cells of workbooks and JSON as text. Workbook cells keep their kind: declared marks do not apply to numbers.

A number of JSON stays the text that it is: a float would change `0.10` and every integer above 2^53.

Imports no other module of the project: the confined process that opens a workbook uses it as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from math import isnan
from typing import Any, NamedTuple

# The kinds of cells: a percentage is a number that is shown in per cent, a duration includes clock times without a
# day, and a formula is one that was never calculated.
TEXT, NUMBER, PERCENT, DATE, DURATION, BOOLEAN, ERROR, FORMULA = "snpdtbef"
# A number with more digits than workbooks keep: the cell holds the nearest one.
INEXACT = "i"
# An object or a list, as JSON; only in JSON and Parquet files.
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


STRUCTURE = re.compile(r'"(?:[^"\\]++|\\.)*+"|[\[\]{}]', re.DOTALL)
# After an odd number of backslashes it would be the text `\u0000` itself.
NUL = re.compile(r"(?<!\\)(?:\\\\)*+\\u0000")
MAX_NUMBER_LENGTH = 400
# Where a number may be one that databases do not store.
HUGE = re.compile(r"[0-9][eE][+-]?[0-9]{3}|[0-9.]{300}")
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Number(str):
    """A number, as it is written."""

    __slots__ = ()


class JsonParser:
    """Parses JSON strictly by RFC 8259; Python's own parser accepts more.

    Args:
        max_depth: most objects and lists within each other.
    """

    def __init__(self, max_depth: int) -> None:
        self._max_depth = max_depth
        self._problem = ""
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_int=Number, parse_float=Number, parse_constant=self._constant
        )

    def value_at(self, text: str, start: int = 0) -> tuple[Any, int, str]:
        """Parse the value that begins at a position.

        Returns:
            the value; its end; and why it is not accepted, empty if it is: `not_json` (NaN or Infinity),
            `duplicate_key`, `nested_too_deep`, `nul_byte`, or `invalid_unicode` (half of a surrogate pair).

        Raises:
            json.JSONDecodeError: the syntax is wrong, or the text ends too early.
            RecursionError: it is nested far too deeply.
        """
        self._problem = ""
        value, end = self._decoder.raw_decode(text, start)
        return value, end, self._problem or self._unacceptable(text[start:end], value)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            self._problem = "duplicate_key"
        return found

    def _constant(self, _name: str) -> None:
        self._problem = "not_json"

    def _unacceptable(self, text: str, value: object) -> str:
        if text.count("[") + text.count("{") > self._max_depth and depth_of(text) > self._max_depth:
            return "nested_too_deep"
        if "\\u" not in text:
            return ""
        if NUL.search(text):
            return "nul_byte"
        return "invalid_unicode" if SURROGATE.search(text) and not _is_unicode(value) else ""


def depth_of(text: str) -> int:
    """Return the nesting depth of objects and lists of valid JSON."""
    depth = deepest = 0
    for token in STRUCTURE.finditer(text):
        sign = token[0]
        if sign in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif sign in "]}":
            depth -= 1
    return deepest


def _is_unicode(value: object) -> bool:
    try:
        json_of(value).encode()
    except UnicodeEncodeError:
        return False
    return True


def json_of(value: Any) -> str:  # noqa: ANN401 - whatever a file holds
    """Write a value as JSON: numbers as they were written, times in ISO 8601, bytes as text or hexadecimal digits.

    Args:
        value: of JSON or Arrow, as Python has it. A float that JSON cannot write is its name, as in streams.
    """
    if isinstance(value, Number | Decimal | bool | int) or value is None:
        return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json_of(str(name))}:{json_of(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(json_of, value)) + "]"
    if isinstance(value, float):
        if value - value == 0:
            return repr(value)
        return '"NaN"' if isnan(value) else '"Infinity"' if value > 0 else '"-Infinity"'
    if isinstance(value, date | datetime | time):
        value = value.isoformat()
    if isinstance(value, bytes):
        text = text_of(value)
        value = f"\\x{value.hex()}" if text is None else text
    return json.dumps(str(value), ensure_ascii=False)


def is_stored(number: str) -> bool:
    """Return False for a number of JSON with more digits, or another exponent, than databases store."""
    found = float(number)
    is_lost = found == 0 and re.match("[^eE]*[1-9]", number)
    return len(number) <= MAX_NUMBER_LENGTH and found - found == 0 and not is_lost


def text_of(value: bytes) -> str | None:
    """Return bytes as text if they are UTF-8, as many programs write texts; None if they are not."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None
