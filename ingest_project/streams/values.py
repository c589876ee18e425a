"""Values of decoded messages to columns, exactly: a value that is not of its column's type is reported, never changed.

A whole column is converted at once where all its values are of the expected Python types; otherwise value by value, to
find those that are not.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from decimal import ROUND_FLOOR, Context, Decimal, InvalidOperation
from functools import partial
from math import isfinite
from typing import Any
from uuid import UUID

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest_project.contracts.columns import Column, StreamColumn

INSTANT = pa.timestamp("us", tz="UTC")
# Texts that Arrow and msgspec read alike. msgspec reads all others, including those at the ends of the calendar.
PLAIN_INSTANT = r"^[1-8]\d{3}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)$"
PLAIN_DATE = r"^[1-9]\d{3}-\d\d-\d\d$"
ARROW_TYPES = {
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "date": pa.date32(),
    "timestamp": INSTANT,
}
WRITTEN = {"timestamp": (PLAIN_INSTANT, INSTANT), "date": (PLAIN_DATE, pa.date32())}
MAX_DECIMAL_BYTES = 16
EXACT = Context(prec=200)
# Numbers as in files; texts of numbers have the same form.
NUMBER = re.compile(r"[+-]?([0-9]{1,60}(\.[0-9]{0,60})?|\.[0-9]{1,60})([eE][+-]?[0-9]{1,4})?")
# msgspec would round these digits, which moves the last instant of a day to the next day.
BEYOND_MICROSECONDS = re.compile(r"(\.\d{6})\d+")
# msgspec requires seconds and the minutes of an offset, which times in files may omit.
NO_SECONDS = re.compile(r"^([0-9-]{10}[Tt ][0-9]{2}:[0-9]{2})(?=[Zz+-]|$)")
NO_OFFSET_MINUTES = re.compile(r"(:[0-9]{2}(?:\.[0-9]+)?[+-][0-9]{2})$")
# Numbers, and texts of numbers, that Arrow reads without a conversion.
PLAIN_DIGITS = 19
PLAIN_DECIMAL = rf"-?\d{{1,{PLAIN_DIGITS}}}(\.\d{{1,{PLAIN_DIGITS - 1}}})?"
PLAIN_NUMBER = rf'^({PLAIN_DECIMAL}|"{PLAIN_DECIMAL}")$'
# Digits by which the decimal point moves to convert to microseconds.
EPOCHS = {"seconds": 6, "milliseconds": 3, "microseconds": 0, "nanoseconds": -3}
MAX_EPOCH_DIGITS = 30
FIRST_MICROSECOND, LAST_MICROSECOND = -62_135_596_800_000_000, 253_402_300_799_999_999
WHOLE = re.compile(r"[+-]?[0-9]{1,19}")
MAX_SHOWN = 40
# Signs of a number too close to zero for a float, rare in other messages: a small exponent, or many zeros. A search is
# many times faster for a pattern that begins with one certain byte.
SMALL_EXPONENT = re.compile(rb"-(?<=[eE]-)0*[1-9][0-9]{2}")
MANY_ZEROS = b"." + b"0" * 300
NOT_ZERO = re.compile(r"-?[0.]*[1-9]")
# From here on, a float may stand for several whole numbers.
INEXACT_FROM = 2**53
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
NOTHING = type(None)
NO_JSON = (b"", b"null")
SHORTEST = 5
# Python types that are converted in bulk.
PLAIN: dict[str, frozenset[type]] = {
    "text": frozenset({str, NOTHING}),
    "integer": frozenset({int, NOTHING}),
    "number": frozenset({float, int, NOTHING}),
    "decimal": frozenset({Decimal, int, NOTHING}),
    "boolean": frozenset({bool, NOTHING}),
    "date": frozenset({date, NOTHING}),
    "timestamp": frozenset({datetime, NOTHING}),
}
# Zones of times that Arrow converts to the same moment as `_timestamp`.
PLAIN_ZONES = (UTC, None)

_encoder = msgspec.json.Encoder(decimal_format="number")

Unreadable = dict[int, str]
"""Texts of the values that cannot be read as the type of their column, by row."""


def arrow_type(column: Column) -> pa.DataType:
    """Return the type of a column in Arrow and Delta."""
    if isinstance(column, StreamColumn) and column.fields:
        return pa.struct([(one.name, arrow_type(one)) for one in column.fields])
    return pa.decimal128(*column.digits) if column.digits else ARROW_TYPES.get(column.kind, pa.string())


def array_of(column: StreamColumn, values: Sequence[Any], *, is_typed: bool = False) -> tuple[pa.Array, Unreadable]:
    """Convert the values of a column.

    Args:
        column: of the values.
        values: decoded; None for a missing one.
        is_typed: all are of the type that `decoders.JSON_TYPES` names: nothing is gained by looking at each.

    Returns:
        the column, null where a value is missing or unreadable, and the texts of the unreadable ones. Of a struct, true
        where it is there.
    """
    if column.fields:
        return pa.array([None if value is None else True for value in values], pa.bool_()), {}
    if column.kind == "json":
        return _json_texts(values), {}
    with suppress(pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        if is_typed and (column.epoch or column.kind == "decimal"):
            found = _written_numbers(column, values)
        else:
            found = _in_bulk(column, values, is_typed=is_typed)
        if found is not None:
            return found, {}
    return _one_by_one(column, values)


def shortest(single: float) -> float:
    """Return a 32-bit float as the number with the fewest digits that identify it; a whole one has all its digits."""
    return single if single.is_integer() or not isfinite(single) else float(str(np.float32(single)))


def raw_texts(values: Sequence[msgspec.Raw]) -> pa.LargeBinaryArray:
    """Return JSON values as they were written; null where there is nothing or null."""
    sizes = np.fromiter(map(len, values), np.int64, len(values))
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes)))
    # Most are long, and hashing or comparing them would take longer than looking at their length.
    missing = [row for row in np.flatnonzero(sizes < SHORTEST).tolist() if bytes(values[row]) in NO_JSON]
    is_there = np.ones(len(values), np.bool_)
    is_there[missing] = False
    # One copy of all bytes; an object for each value would take three times as long.
    buffers = [pa.array(is_there).buffers()[1], pa.py_buffer(offsets), pa.py_buffer(b"".join(values))]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(values), buffers, len(missing))


def vanished_numbers(payloads: Sequence[bytes], zeros: Iterable[int]) -> dict[int, str]:
    """Find the messages with a number, such as 1e-400, that reading makes zero, and return the number of each.

    Args:
        payloads: JSON.
        zeros: the messages of which a number was read as zero.
    """
    found: dict[int, str] = {}
    for row in zeros:
        if SMALL_EXPONENT.search(payloads[row]) or MANY_ZEROS in payloads[row]:
            numbers: list[str] = []
            json.loads(payloads[row], parse_float=numbers.append)
            vanished = (text for text in numbers if float(text) == 0 and NOT_ZERO.match(text))
            found.update((row, text) for text in vanished)
    return found


def instants(texts: Sequence[str | None], path: str, problems: dict[int, str]) -> pa.Array:
    """Parse times to UTC; what is wrong with the others is added to the problems, by row."""
    with suppress(pa.ArrowInvalid):
        if (found := _plain(pa.array(texts, pa.string()), PLAIN_INSTANT, INSTANT)) is not None:
            return found
    return converted(texts, instant_of, path, problems, INSTANT)


def converted(
    values: Iterable[Any], convert: Callable[[Any], Any], path: str, problems: dict[int, str], to: pa.DataType
) -> pa.Array:
    """Convert value by value; what is wrong with those that cannot be is added to the problems, by row."""
    found: list[Any] = []
    for row, value in enumerate(values):
        try:
            found.append(None if value is None else convert(value))
        except ValueError as error:
            problems.setdefault(row, f"{path} {error}")
            found.append(None)
    return pa.array(found, to)


def instant_of(text: str) -> datetime:
    """Parse a time to UTC, as everywhere in this system: one without zone is UTC, and no digit is rounded.

    Raises:
        ValueError: it is no time.
    """
    try:
        whole = NO_OFFSET_MINUTES.sub(r"\1:00", NO_SECONDS.sub(r"\1:00", text))
        moment = msgspec.convert(BEYOND_MICROSECONDS.sub(r"\1", whole), datetime)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (msgspec.ValidationError, OverflowError):
        raise ValueError(f"must be a time like 2024-01-15T10:30:45Z, not {text[:MAX_SHOWN]!r}") from None


def _in_bulk(column: StreamColumn, values: Sequence[Any], *, is_typed: bool) -> pa.Array | None:
    # Arrow would cut off the fraction of a number.
    kinds = set() if is_typed and column.kind != "integer" else set(map(type, values))
    if column.epoch is None and column.kind in WRITTEN and kinds <= {str, NOTHING}:
        return _plain(pa.array(values, pa.string()), *WRITTEN[column.kind])
    if not kinds <= PLAIN[column.kind]:
        return None
    if column.kind == "timestamp" and not all(one is None or one.tzinfo in PLAIN_ZONES for one in values):
        return None
    found = pa.array(values, arrow_type(column))
    if column.kind == "number" and pc.all(pc.is_finite(found)).as_py() is False:
        return None
    return found


def _written_numbers(column: StreamColumn, values: Sequence[msgspec.Raw]) -> pa.Array | None:
    """Convert numbers of JSON, or texts of them, by their digits; None where one is written otherwise."""
    texts = raw_texts(values).cast(pa.string())
    if pc.all(pc.match_substring_regex(texts, PLAIN_NUMBER)).as_py() is False:
        return None
    digits = pc.utf8_trim(texts, '"')
    if column.epoch is None:
        return digits.cast(arrow_type(column))
    shift = EPOCHS[column.epoch]
    if shift < 0:
        return None
    # The digits of a decimal with six places, taken as a whole number, are millionths.
    decimals = digits.cast(pa.decimal128(PLAIN_DIGITS * 2, shift))
    whole = pa.Array.from_buffers(pa.decimal128(PLAIN_DIGITS * 2, 0), len(decimals), decimals.buffers())
    moments = whole.cast(pa.int64())
    within = pc.and_(pc.greater_equal(moments, FIRST_MICROSECOND), pc.less_equal(moments, LAST_MICROSECOND))
    return None if pc.all(within).as_py() is False else moments.cast(INSTANT)


def _plain(texts: pa.Array, pattern: str, to: pa.DataType) -> pa.Array | None:
    """Parse texts that are all written like a pattern; None where one is not."""
    return texts.cast(to) if pc.all(pc.match_substring_regex(texts, pattern)).as_py() is not False else None


def _one_by_one(column: StreamColumn, values: Sequence[Any]) -> tuple[pa.Array, Unreadable]:
    convert = partial(_timestamp, epoch=column.epoch) if column.kind == "timestamp" else CONVERTERS[column.kind]
    unreadable = Unreadable()
    converted: list[Any] = []
    for row, value in enumerate(values):
        try:
            given = _value_of(value) if isinstance(value, msgspec.Raw) else value
            one = None if given is None else convert(given)
            # Within the bounds of the column: 64 bits, the digits of a decimal.
            pa.scalar(one, arrow_type(column))
        except (ValueError, TypeError, OverflowError, InvalidOperation, pa.ArrowException):
            text = bytes(value).decode(errors="replace") if isinstance(value, msgspec.Raw) else str(value)
            unreadable[row] = text[:MAX_SHOWN]
            one = None
        converted.append(one)
    return pa.array(converted, arrow_type(column)), unreadable


def _value_of(raw: msgspec.Raw) -> object:
    """Return a number of JSON exactly, or what else is there."""
    written = bytes(raw).strip()
    if written in NO_JSON:
        return None
    return Decimal(text) if NUMBER.fullmatch(text := written.decode()) else msgspec.json.decode(written)


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, time):
        return value.isoformat()
    if not isinstance(value, str | UUID):
        raise TypeError
    return str(value)


def _integer(value: object) -> int:
    if isinstance(value, str) and WHOLE.fullmatch(value):
        return int(value)
    if isinstance(value, Decimal) and value == value.to_integral_value():
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < INEXACT_FROM:
        return int(value)
    if type(value) is not int:
        raise TypeError
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise TypeError
    found = float(value)
    is_rounded_away = found - found != 0 or (found == 0 and value != 0)
    if is_rounded_away or (isinstance(value, int) and found != value):
        raise ValueError
    return found


def _decimal(value: object) -> Decimal:
    if isinstance(value, str) and NUMBER.fullmatch(value):
        return Decimal(value)
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise TypeError
    return Decimal(value)


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _date(value: object) -> date:
    if isinstance(value, datetime):
        raise TypeError
    return value if isinstance(value, date) else msgspec.convert(value, date, strict=True)


def _timestamp(value: object, epoch: str | None) -> datetime:
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    if epoch is not None and not isinstance(value, bool):
        return BEGINNING + timedelta(microseconds=_microseconds(value, EPOCHS[epoch]))
    if not isinstance(value, str):
        raise TypeError
    return instant_of(value)


def _microseconds(value: object, shift: int) -> int:
    """Return a number of seconds or parts of them as microseconds; further digits are left out, as those of texts."""
    if isinstance(value, str) and not NUMBER.fullmatch(value):
        raise ValueError
    if not isinstance(value, str | int | float | Decimal):
        raise TypeError
    # `str` gives the shortest digits of a float, which are those it was parsed from.
    number = Decimal(str(value))
    if not number.is_finite() or number.adjusted() > MAX_EPOCH_DIGITS:
        raise ValueError
    return int(number.scaleb(shift, EXACT).to_integral_value(ROUND_FLOOR))


def _json_texts(values: Sequence[Any]) -> pa.Array:
    if set(map(type, values)) <= {msgspec.Raw}:
        return raw_texts(values).cast(pa.string())
    return pa.array([None if value is None else json_of(value).decode() for value in values], pa.string())


def json_of(value: object) -> bytes:
    """Return a value as JSON; NaN and infinities become their names, as in Protobuf's JSON."""
    found = _encoder.encode(value)
    # The encoder writes such numbers as null.
    return _encoder.encode(_with_names(value)) if b"null" in found else found


def _with_names(value: Any) -> Any:  # noqa: ANN401 - any value
    if isinstance(value, float) and value - value != 0:
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"  # noqa: PLR0124 - it is not itself
    if isinstance(value, Mapping):
        return {name: _with_names(part) for name, part in value.items()}
    return [_with_names(part) for part in value] if isinstance(value, list | tuple) else value


CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "text": _text,
    "integer": _integer,
    "number": _number,
    "decimal": _decimal,
    "boolean": _boolean,
    "date": _date,
}


def exact_decimal(digits: bytes, scale: int) -> Decimal:
    """Return the decimal that Avro and Protobuf write as a big-endian integer and its scale.

    Raises:
        ValueError: it has more bytes than any column takes; reading many more takes minutes.
    """
    if len(digits) > MAX_DECIMAL_BYTES:
        raise ValueError(f"a decimal has {len(digits)} bytes; at most {MAX_DECIMAL_BYTES} are read")
    return Decimal(int.from_bytes(digits, "big", signed=True)).scaleb(-scale, EXACT)
