"""Cast the text of declared columns to their types, by the notation of a reader profile.

A value is exact or rejected: nothing is rounded, cut off or guessed. A decimal never passes through a float.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import NamedTuple

import msgspec
import polars as pl

from ingest_project.contracts.columns import FAULT_OF, TEXT_OF, Column, number_fault
from ingest_project.readers.casting import (
    ALIKE,
    KIND_OF,
    PERCENT_UNIT,
    clock_faults,
    kept,
    moments_of_cells,
    numbers_of_cells,
    plain_numbers,
    text_cells,
)
from ingest_project.readers.cells import (
    DATE,
    ERROR,
    FORMULA,
    INEXACT,
    MAX_NUMBER_LENGTH,
    NUL,
    NUMBER,
    PERCENT,
    JsonParser,
    depth_of,
    is_stored,
)
from ingest_project.readers.profile_parts import NAMED_TIME_FORMATS, NumberLayout
from ingest_project.readers.profiles import ReaderProfile
from ingest_project.readers.time_formats import moments, time_format

BOOLEANS = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)
PLAIN_NUMBERS = NumberLayout()
PLAIN_FRACTION = r"(?:\.[0-9]*)?"
# Databases and spreadsheets often write a date as midnight of that day.
ISO_DATE = r"^([0-9]{4}-[0-9]{2}-[0-9]{2})(?:[T ]00:00(?::00(?:\.0+)?)?)?$"
# Databases limit the digits of numbers and the nesting of documents in JSON columns; so do we, well below.
MAX_JSON_DEPTH = 100


class Cells(NamedTuple):
    """One column of a file.

    Args:
        texts: trimmed, null where missing.
        kinds: of workbook cells, see `cells`; None if all are text.
    """

    texts: pl.Series
    kinds: pl.Series | None

    def of_kind(self, *kinds: str) -> pl.Series:
        """Return a mask of the cells of these kinds; text cells are of none."""
        if self.kinds is None:
            return pl.Series([False]).new_from_index(0, len(self.texts))
        return self.kinds.is_in(kinds).fill_null(value=False)

    @property
    def written(self) -> pl.Series:
        """The texts of text cells, null for the others."""
        return self.texts if self.kinds is None else text_cells(self.texts, self.kinds)


def cast_columns(rows: pl.DataFrame, columns: Sequence[Column], profile: ReaderProfile) -> pl.DataFrame:
    """Give the declared columns their types.

    Args:
        rows: the columns as text, of any number of files; a column that is absent is missing in every row. Other
            columns pass through. With the kinds of workbook cells, the profile's notation applies to text cells only.
        columns: declared.
        profile: the one all these files share.

    Returns:
        the rows without kinds of cells. A column that has unreadable values is followed by `TEXT_OF(name)` at the end,
        the texts of those values, null elsewhere; `contracts.validation` makes a reason of it. `FAULT_OF(name)` says
        which of them are numbers that do not fit, or times that their zone passes twice or skips.
    """
    names = {column.name for column in columns}
    cast: list[pl.Series] = []
    for column in columns:
        cells = _cells(rows, column.name, names)
        values = PARSERS[column.kind](cells, column, profile).alias(column.name)
        cast.append(values)
        if values.null_count() > cells.texts.null_count():
            cast.append(kept(cells.texts, values.is_null()).alias(TEXT_OF(column.name)))
            faults = _faults(cells, values, column, profile)
            cast += [] if faults is None else [faults.alias(FAULT_OF(column.name))]
    kinds = {KIND_OF(name) for name in names} - names
    return rows.drop(kinds, strict=False).with_columns(cast)


def _faults(cells: Cells, values: pl.Series, column: Column, profile: ReaderProfile) -> pl.Series | None:
    """Name the fault of values that have the column's type but do not fit in it; None if all fit."""
    if column.kind == "timestamp":
        return clock_faults(*cells, values, profile.timestamps)
    if column.kind not in {"integer", "number", "decimal"}:
        return None
    written = _plain(_scaled_percentages(cells, column), profile.numbers, _fraction(profile))
    unread = kept(written, values.is_null())
    faults = {text: number_fault(text, column) for text in unread.unique().drop_nulls()}
    return unread.replace_strict(faults, default=None, return_dtype=pl.String) if any(faults.values()) else None


def _cells(rows: pl.DataFrame, name: str, names: set[str]) -> Cells:
    if name not in rows.columns:
        return Cells(pl.Series(name, [None], pl.String).new_from_index(0, rows.height), None)
    has_kinds = KIND_OF(name) in rows.columns and KIND_OF(name) not in names
    return Cells(rows[name], rows[KIND_OF(name)] if has_kinds else None)


def _texts(cells: Cells, _column: Column, _profile: ReaderProfile) -> pl.Series:
    """Return texts that every database stores: without NUL characters, and no cell that shows an error."""
    unfit = cells.texts.str.contains("\0", literal=True).fill_null(value=False) | cells.of_kind(ERROR, FORMULA, INEXACT)
    return kept(cells.texts, ~unfit) if unfit.any() else cells.texts


def _numbers(cells: Cells, column: Column, profile: ReaderProfile) -> pl.Series:
    scaled = _scaled_percentages(cells, column)
    numbers = numbers_of_cells(scaled.texts, scaled.kinds, profile.numbers)
    finite = numbers.is_finite()
    return numbers if finite.all() else kept(numbers, finite)


def _integers(cells: Cells, column: Column, profile: ReaderProfile) -> pl.Series:
    """Return whole numbers of up to 64 bits, in text written without a fraction; the number 5.0 of JSON is whole."""
    cells = _scaled_percentages(cells, column)
    # Without marks Polars reads exactly digits with a sign, and detects an overflow.
    is_plain = cells.kinds is None and profile.numbers.thousands is None
    plain = cells.texts if is_plain else _plain(cells, profile.numbers, "")
    if plain.null_count() > cells.texts.null_count():
        numbers = _shaped(kept(cells.texts, cells.of_kind(NUMBER, PERCENT)), PLAIN_NUMBERS, PLAIN_FRACTION)
        plain = plain.fill_null(_without_exponents(numbers).str.replace(r"\.0*$", ""))
    return plain.cast(pl.Int64, strict=False)


def _decimals(cells: Cells, column: Column, profile: ReaderProfile) -> pl.Series:
    """Return exact decimal numbers; one with more digits than the type has is unreadable, not rounded."""
    digits, places = column.digits or (0, 0)
    plain = _without_exponents(_plain(_scaled_percentages(cells, column), profile.numbers, _fraction(profile)))
    fits = plain.str.contains(rf"^[+-]?0*[0-9]{{0,{digits - places}}}(?:\.[0-9]{{0,{places}}}0*)?$")
    return kept(plain, fits).cast(pl.Decimal(digits, places), strict=False)


def _fraction(profile: ReaderProfile) -> str:
    return rf"(?:{re.escape(profile.numbers.decimal)}[0-9]*)?"


def _plain(cells: Cells, layout: NumberLayout, fraction: str) -> pl.Series:
    """Return numbers as digits with a decimal point, null for what is not of the shape."""
    written = _shaped(cells.written, layout, fraction)
    if cells.kinds is None:
        return written
    is_number = cells.of_kind(NUMBER, PERCENT)
    # The worker writes number cells in the notation of Python.
    of_numbers = _shaped(kept(cells.texts, is_number), PLAIN_NUMBERS, fraction.replace(",", r"\."))
    return of_numbers.zip_with(is_number, written)


def _shaped(texts: pl.Series, layout: NumberLayout, fraction: str) -> pl.Series:
    marks = ALIKE.get(layout.thousands or "", layout.thousands or "")
    exponent = "(?:[eE][+-]?[0-9]{1,3})?" if fraction else ""
    # No group is longer or shorter than three digits, no grouped number begins with a zero, and one mark is used.
    shapes = [f"[0-9]*{fraction}{exponent}"]
    shapes += [f"[1-9][0-9]{{0,2}}(?:{re.escape(mark)}[0-9]{{3}})+{fraction}" for mark in marks]
    return plain_numbers(kept(texts, texts.str.contains(f"^[+-]?(?:{'|'.join(shapes)})$")), None, layout)


def _without_exponents(numbers: pl.Series) -> pl.Series:
    """Write numbers such as 1.5e3 with all their digits."""
    positions = numbers.str.contains("[eE]").fill_null(value=False).arg_true()
    if not len(positions):
        return numbers
    written = [_all_digits(text) for text in numbers.gather(positions)]
    return numbers.scatter(positions, pl.Series(written, dtype=pl.String))


def _all_digits(text: str) -> str | None:
    try:
        return format(Decimal(text), "f") if len(text) <= MAX_NUMBER_LENGTH else None
    except ArithmeticError:
        return None


def _scaled_percentages(cells: Cells, column: Column) -> Cells:
    """Convert cells of 0.45 shown as 45 % to 45, if the unit of the column is per cent."""
    percent = cells.of_kind(PERCENT)
    if not (column.unit and re.match(PERCENT_UNIT, column.unit) and percent.any()):
        return cells
    # The decimal point is moved in the text: a hundred times 0.07 is not 7.
    return Cells((cells.texts + "e2").zip_with(percent, cells.texts), cells.kinds)


def _booleans(cells: Cells, _column: Column, _profile: ReaderProfile) -> pl.Series:
    texts = kept(cells.texts, ~cells.of_kind(DATE, PERCENT, ERROR, FORMULA)).str.to_lowercase()
    return texts.replace_strict(BOOLEANS, default=None, return_dtype=pl.Boolean)


def _dates(cells: Cells, _column: Column, profile: ReaderProfile) -> pl.Series:
    """Return dates in ISO's notation, or in a format of the profile; a clock time is midnight, without an offset."""
    texts, formats = cells.written, [name for name in profile.timestamps.formats if name not in NAMED_TIME_FORMATS]
    found = pl.Series([None], dtype=pl.Date).new_from_index(0, len(texts))
    for name in formats:
        parts = moments(texts, time_format(name))
        midnight = (parts["clock"] == parts["clock"].dt.truncate("1d")) & parts["offset"].is_null()
        found = found.fill_null(kept(parts["clock"].dt.date(), midnight))
    has_own_dates = any(not time_format(name).parts & {"hour", "half_day_hour"} for name in formats)
    is_iso = cells.of_kind(DATE) if has_own_dates else found.is_null()
    found = _iso_dates(cells).zip_with(is_iso, found) if is_iso.any() else found
    # Python has no year 0.
    return kept(found, found.dt.year() > 0)


def _iso_dates(cells: Cells) -> pl.Series:
    texts = cells.written.fill_null(kept(cells.texts, cells.of_kind(DATE)))
    return texts.str.extract(ISO_DATE).str.to_date("%Y-%m-%d", strict=False)


def _json(cells: Cells, _column: Column, _profile: ReaderProfile) -> pl.Series:
    # Cells that are not texts have been parsed before.
    pairs = zip(cells.texts, cells.written, strict=True)
    valid = [text is None or (_is_json(text) and _has_single_names(written or "")) for text, written in pairs]
    return cells.texts if all(valid) else kept(cells.texts, pl.Series(valid))


def _is_json(text: str) -> bool:
    """Return True for strict JSON that every database stores."""
    try:
        JSON.decode(text)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return False
    if "\\u0000" in text and NUL.search(text):
        return False
    openings = text.count("[") + text.count("{")
    return openings <= MAX_JSON_DEPTH or depth_of(text) <= MAX_JSON_DEPTH


def _has_single_names(text: str) -> bool:
    """Return True for JSON without an object that has a name twice: databases keep one of the two values."""
    return text.count(":") <= 1 or JsonParser(MAX_JSON_DEPTH).value_at(text.strip())[2] != "duplicate_key"


def _finite(text: str) -> float:
    """Parse a number of a document.

    Raises:
        ValueError: it has more digits or a greater exponent than databases store.
    """
    if not is_stored(text):
        raise ValueError(text)
    return float(text)


JSON = msgspec.json.Decoder(float_hook=_finite)
PARSERS: dict[str, Callable[[Cells, Column, ReaderProfile], pl.Series]] = {
    "text": _texts,
    "integer": _integers,
    "number": _numbers,
    "decimal": _decimals,
    "boolean": _booleans,
    "date": _dates,
    "timestamp": lambda cells, _column, profile: moments_of_cells(*cells, profile.timestamps),
    "json": _json,
}
