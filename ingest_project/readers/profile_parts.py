"""The parts of a reader profile: notations of times and numbers, conversions of cells, scales, rows to leave out."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Context, Decimal
from encodings.aliases import aliases
from fractions import Fraction
from functools import cached_property
from math import lcm
from typing import Annotated, Literal, NamedTuple, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import polars as pl
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ingest_project.contracts.columns import linear
from ingest_project.core.yaml_models import Declared, nearest
from ingest_project.readers.time_formats import time_format

EXACT_INTEGERS = 2**53


class Scale(NamedTuple):
    """The conversion (x * factor + addend) / divisor: one rounding where the numbers are short."""

    factor: Fraction = Fraction(1)
    addend: Fraction = Fraction(0)

    def then(self, other: Scale) -> Scale:
        """Return this conversion, followed by another."""
        return Scale(self.factor * other.factor, self.addend * other.factor + other.addend)

    @property
    def keeps_decimals(self) -> bool:
        """True if the result of every decimal number is a decimal number: no third or ninth of it."""
        return all(10**18 % part.denominator == 0 for part in (self.factor, self.addend))

    def exactly(self, numbers: Iterable[str]) -> dict[str, str]:
        """Convert decimal numbers without rounding, where that keeps decimals; returns all digits of each result."""
        context = Context(prec=1_000)
        factor, addend = (context.divide(part.numerator, part.denominator) for part in (self.factor, self.addend))
        return {number: format(context.fma(Decimal(number), factor, addend), "f") for number in numbers}

    def apply(self, numbers: pl.Series, places: pl.Series | None = None) -> pl.Series:
        """Convert a column of floats.

        Args:
            numbers: the nearest floats to decimal numbers.
            places: how many decimal places each has; null where that is unknown.

        Returns:
            the nearest floats to the exact results, where the numbers are short.
        """
        factor, addend = self.factor, self.addend
        divisor = lcm(factor.denominator, addend.denominator)
        parts = [int(factor * divisor), int(addend * divisor), divisor]
        if max(map(abs, parts)) > EXACT_INTEGERS:
            return numbers * float(factor) + float(addend)
        # Polars multiplies by the inverse of a scalar divisor: 3 / 10 would be 0.30000000000000004.
        divisors = pl.Series([float(divisor)]).new_from_index(0, len(numbers))
        rounded = (numbers * float(parts[0]) + float(parts[1])) / divisors
        if places is None:
            return rounded
        # In whole numbers only the division rounds: a tenth of 0.7, which no float is, would be 0.06999999999999999.
        powers = pl.Series([10.0]).new_from_index(0, len(numbers)) ** places.cast(pl.Float64)
        dividends = (numbers * powers).round() * float(parts[0]) + powers * float(parts[1])
        is_exact = (dividends.abs() <= EXACT_INTEGERS) & (divisors * powers <= EXACT_INTEGERS)
        return (dividends / (divisors * powers)).zip_with(is_exact.fill_null(value=False), rounded)


NAMED_TIME_FORMATS = ("iso8601", "unix_seconds", "unix_milliseconds")
MAX_NULL_BYTES = 12
WHITESPACE = "whitespace"
FIXED_OFFSET = re.compile(r"(?:UTC|GMT)?([+-])([0-9]{1,2})(?::?([0-5][0-9]))?")
MAX_OFFSET_SECONDS = 14 * 3600
FRACTION = re.compile(r"[+-]?[0-9]{1,15}(?:\.[0-9]{1,15})?(?:[eE][+-]?[0-9]{1,2}|/[1-9][0-9]{0,14})?")
DOTTED = re.compile(r"[A-Za-z_][\w-]*(?:\[[0-9]{1,4}\])*(?:\.[A-Za-z_][\w-]*(?:\[[0-9]{1,4}\])*){0,15}", re.ASCII)


def known_encoding(name: str) -> str:
    """Reject an unknown encoding."""
    try:
        codecs.getincrementaldecoder(codecs.lookup(name).name)
    except LookupError:
        guess = nearest(name.lower(), (known.replace("_", "-") for pair in aliases.items() for known in pair))
        raise ValueError(f"{name!r} is no known text encoding{guess}") from None
    return name


def offset_of(zone: str) -> int | None:
    """Return the seconds east of Greenwich of a fixed offset such as `UTC+01:00`; None for the name of a zone.

    `Etc/GMT-1` is a name, one hour east of Greenwich in spite of its sign.
    """
    match = FIXED_OFFSET.fullmatch(zone)
    if match is None:
        return None
    seconds = int(match[2]) * 3600 + int(match[3] or 0) * 60
    return -seconds if match[1] == "-" else seconds


def changes_clocks(zone: str) -> bool:
    """Return True if the clocks of a zone change in the course of this year."""
    if zone == "UTC" or offset_of(zone) is not None:
        return False
    months = (datetime(datetime.now(UTC).year, month, 1, tzinfo=ZoneInfo(zone)) for month in range(1, 13))
    return len({moment.utcoffset() for moment in months}) > 1


def _text_zone(zone: object) -> object:
    if isinstance(zone, int | float):
        raise ValueError("YAML reads this as a number; write the offset in quotes, '+10:00'")  # noqa: TRY004 - reported
    return zone


def _known_zone(name: str) -> str:
    offset = offset_of(name)
    if offset is not None:
        if abs(offset) > MAX_OFFSET_SECONDS:
            raise ValueError(f"{name!r} is further from Greenwich than any zone")
        return name
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        guess = nearest(name, available_timezones())
        raise ValueError(f"{name!r} is no known time zone; write it like Europe/Berlin or UTC+01:00{guess}") from None
    return name


def _one_group(pattern: str) -> str:
    if len(pl.Series([""]).str.extract_groups(linear(pattern)).struct.fields) != 1:
        raise ValueError("the regular expression needs exactly one group, which is the text to read")
    return pattern


def first_group(text: str, pattern: str) -> str | None:
    """Return the text of a regular expression's one group, in linear time: file names are untrusted."""
    found: str | None = pl.Series([text]).str.extract(pattern, 1).item()
    return found


def plain_delimiter(delimiter: str) -> str:
    """Reject what cannot be between cells."""
    if delimiter != WHITESPACE and (len(delimiter) != 1 or not delimiter.isascii() or delimiter in '"\r\n\0 '):
        raise ValueError(
            f"a delimiter is one ASCII character, not a quote, space or line end, or {WHITESPACE!r}"
            + nearest(delimiter, [WHITESPACE])
        )
    return delimiter


def short_nulls(spellings: tuple[str, ...]) -> tuple[str, ...]:
    """Reject long spellings of "missing"."""
    for spelling in spellings:
        if len(spelling.encode()) > MAX_NULL_BYTES:
            raise ValueError(f"{spelling!r} is longer than {MAX_NULL_BYTES} bytes")
    return spellings


def _time_formats(formats: tuple[str, ...]) -> tuple[str, ...]:
    for name in formats:
        if name not in NAMED_TIME_FORMATS:
            if "%" not in name:
                raise ValueError(
                    f"{name!r} is not a time format: it has no directive such as %Y; other formats are"
                    f" {', '.join(NAMED_TIME_FORMATS)}" + nearest(name, NAMED_TIME_FORMATS)
                )
            time_format(name)
    return formats


def _dotted(path: str) -> str:
    if not DOTTED.fullmatch(path):
        raise ValueError("write the path like payload.temperature or samples[0].value")
    return path


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _fraction(text: str) -> str:
    if not FRACTION.fullmatch(text):
        raise ValueError(f"{text!r} is neither a number nor a fraction of two; write 0.1 or 5/9")
    Fraction(text)
    return text


Pattern = Annotated[str, AfterValidator(linear)]
OneGroup = Annotated[str, AfterValidator(_one_group)]
Text = Annotated[str, BeforeValidator(_as_text)]
Number = Annotated[str, BeforeValidator(_as_text), AfterValidator(_fraction)]


class CellRule(Declared):
    """Conversion of the cells of one column, in this order; a cell that one of them cannot read rejects its row.

    Args:
        json_path: path to a value in cells that are JSON: `payload.temperature`, `samples[0].value`.
        extract: a regular expression with one group, the part of the cell to read.
        words: meaning of texts in any case: `{on: 1, off: 0}`.
        others: whether texts that are not among `words` are kept or rejected.
        number_in_text: True reads the one number in a text such as `12.5 °C`; a text with two is rejected.
        nulls: further texts that mean "missing" in this column.
        append: text to append, such as the `m` that `10:30a` lacks.
        append_from_header: or a regular expression with one group, which finds the text to append, after a space, in
            the column's own name.
        scale: factor of the numbers, as `0.1` or `5/9`.
        offset: added to the scaled numbers.
        unit: unit of the numbers.
        to: unit to convert them to.
    """

    json_path: Annotated[str, AfterValidator(_dotted)] | None = None
    extract: OneGroup | None = None
    words: dict[str, Text] = Field(default_factory=dict)
    others: Literal["keep", "reject"] = "keep"
    number_in_text: bool = False
    nulls: tuple[Text, ...] = ()
    append: str = ""
    append_from_header: OneGroup | None = None
    scale: Number = "1"
    offset: Number = "0"
    unit: str | None = None
    to: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.others == "reject" and not self.words:
            raise ValueError("others: reject without words would reject every row")
        if Fraction(self.scale) == 0:
            raise ValueError("scale is 0: every number would be the same")
        if self.to is not None and self.unit is None:
            raise ValueError(f"to: {self.to} needs the unit to convert from")
        self.conversion  # noqa: B018 - fails where the units do
        return self

    @cached_property
    def conversion(self) -> Scale | None:
        """The conversion of its numbers; None where they stay as they are."""
        scale, offset = Fraction(self.scale), Fraction(self.offset)
        if self.to is None and (scale, offset) == (Fraction(1), Fraction(0)):
            return None
        own = Scale(scale, offset)
        if not (self.unit and self.to):
            return own
        from ingest_project.readers.units import conversion  # loads pint

        return own.then(conversion(self.unit, self.to))

    @property
    def reads_text(self) -> bool:
        """True if it takes cells apart before their numbers are read."""
        return bool(self.json_path or self.extract or self.words or self.number_in_text or self.nulls or self.append)


class Quantity(CellRule):
    """Quantity that one column of a wide file, or one sensor type of a long file, measures.

    Args:
        sensor_type: type of its readings.
        unit: unit of its readings, if known; with `to`, the unit in the file.
        required: whether a file must have its column.
    """

    sensor_type: str = Field(min_length=1)
    required: bool = True


class SkippedRows(Declared):
    """Rows to leave out.

    Args:
        column: column of the file.
        equals: texts of its cells.
        matches: or a regular expression that finds them.
    """

    column: str = Field(min_length=1)
    equals: tuple[Text, ...] = ()
    matches: Pattern | None = None

    @model_validator(mode="after")
    def _one_condition(self) -> Self:
        if bool(self.equals) == (self.matches is not None):
            raise ValueError("write either equals or matches")
        return self


class Footer(Declared):
    """Rows at the end of a file that are not data.

    Args:
        rows: how many there are.
        begins: or a regular expression that finds the first cell of the first of them.
    """

    rows: int = Field(0, ge=0, le=1_000)
    begins: Pattern | None = None


class TimestampLayout(Declared):
    """Notation of times.

    Args:
        formats: `iso8601`, `unix_seconds`, `unix_milliseconds`, or strptime patterns; the first that fits a text wins.
        zone: zone of times that carry no offset: an IANA name, or a fixed offset such as `UTC+01:00`.
        ambiguous: which of the two times a clock time means that occurs twice, when clocks go back.
        hour_24: whether 24:00 is rejected, or is the midnight at the end of its day.
    """

    formats: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_time_formats)] = ("iso8601",)
    zone: Annotated[str, BeforeValidator(_text_zone), AfterValidator(_known_zone)] = "UTC"
    ambiguous: Literal["reject", "earliest", "latest"] = "reject"
    hour_24: Literal["reject", "midnight"] = "reject"


class NumberLayout(Declared):
    """Notation of numbers.

    Args:
        decimal: the decimal mark.
        thousands: the mark between groups of three digits, if any.
    """

    decimal: Literal[".", ","] = "."
    thousands: Literal[".", ",", " ", "'", "_"] | None = None

    @model_validator(mode="after")
    def _marks_differ(self) -> Self:
        if self.decimal == self.thousands:
            raise ValueError("decimal and thousands must be different marks")
        return self
