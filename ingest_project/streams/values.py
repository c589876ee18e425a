"""Values of decoded messages to columns, exactly: a value that is not of its column's type is reported, never changed.

A whole column is converted at once where all its values are of the expected Python types; otherwise value by value, to
find those that are not.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Context, Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from ingest_project.contracts.columns import StreamColumn

INSTANT = pa.timestamp("us", tz="UTC")
# What Arrow and msgspec read alike. Anything else, the ends of the calendar included, is left to msgspec.
PLAIN_INSTANT = r"^[1-8]\d{3}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)$"
PLAIN_DATE = r"^[1-9]\d{3}-\d\d-\d\d$"
WRITTEN = {"timestamp": (PLAIN_INSTANT, INSTANT), "date": (PLAIN_DATE, pa.date32())}
MAX_DECIMAL_BYTES = 16
EXACT = Context(prec=200)
NUMBER = re.compile(r"-?\d{1,60}(\.\d{1,60})?")
# msgspec would round them, and the last instant of a day be in the next one.
BEYOND_MICROSECONDS = re.compile(r"(\.\d{6})\d+")
WHOLE = re.compile(r"-?\d{1,19}")
MAX_SHOWN = 40
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
}

_encoder = msgspec.json.Encoder(decimal_format="number")

Unreadable = dict[int, str]
"""Texts of the values that cannot be read as the type of their column, by row."""


def array_of(column: StreamColumn, values: Sequence[Any], *, is_typed: bool = False) -> tuple[pa.Array, Unreadable]:
    """Convert the values of a column.

    Args:
        column: of the values.
        values: decoded; None for a missing one.
        is_typed: all are of the type that `decoders.JSON_TYPES` names: nothing is gained by looking at each.

    Returns:
        the column, null where a value is missing or unreadable, and the texts of the unreadable ones.
    """
    if column.kind == "json":
        return _json_texts(values), {}
    try:
        if (found := _in_bulk(column, values, is_typed=is_typed)) is not None:
            return found, {}
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        pass
    return _one_by_one(column, values)


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


def instants_of(texts: Sequence[str | None]) -> pa.Array | None:
    """Parse times that are all written plainly, with their zone; None where one is not."""
    return _plain(pa.array(texts, pa.string()), PLAIN_INSTANT, INSTANT)


def instant_of(text: str) -> datetime:
    """Parse a time to UTC, as everywhere in this system: one without zone is UTC, and no digit is rounded.

    Raises:
        ValueError: it is no time.
    """
    try:
        moment = msgspec.convert(BEYOND_MICROSECONDS.sub(r"\1", text), datetime)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (msgspec.ValidationError, OverflowError):
        raise ValueError(f"must be a time like 2024-01-15T10:30:45Z, not {text[:MAX_SHOWN]!r}") from None


def _in_bulk(column: StreamColumn, values: Sequence[Any], *, is_typed: bool) -> pa.Array | None:
    kinds = set() if is_typed else set(map(type, values))
    if column.epoch is None and column.kind in WRITTEN and kinds <= {str, NOTHING}:
        return _plain(pa.array(values, pa.string()), *WRITTEN[column.kind])
    if column.kind == "timestamp" or not kinds <= PLAIN[column.kind]:
        return None
    found = pa.array(values, column.arrow_type)
    if column.kind == "number" and pc.all(pc.is_finite(found)).as_py() is False:
        return None
    return found


def _plain(texts: pa.Array, pattern: str, to: pa.DataType) -> pa.Array | None:
    """Parse texts that are all written like a pattern; None where one is not."""
    return texts.cast(to) if pc.all(pc.match_substring_regex(texts, pattern)).as_py() is not False else None


def _one_by_one(column: StreamColumn, values: Sequence[Any]) -> tuple[pa.Array, Unreadable]:
    convert, unreadable = CONVERTERS[column.kind], Unreadable()
    converted: list[Any] = []
    for row, value in enumerate(values):
        try:
            one = None if value is None else convert(column, value)
            # Within the bounds of the column: 64 bits, the digits of a decimal.
            pa.scalar(one, column.arrow_type)
        except (ValueError, TypeError, OverflowError, InvalidOperation, pa.ArrowException):
            unreadable[row] = str(value)[:MAX_SHOWN]
            one = None
        converted.append(one)
    return pa.array(converted, column.arrow_type), unreadable


def _text(column: StreamColumn, value: object) -> str:
    del column
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, time):
        return value.isoformat()
    if not isinstance(value, str | UUID):
        raise TypeError
    return str(value)


def _integer(column: StreamColumn, value: object) -> int:
    del column
    if isinstance(value, str) and WHOLE.fullmatch(value):
        return int(value)
    if type(value) is not int:
        raise TypeError
    return value


def _number(column: StreamColumn, value: object) -> float:
    del column
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise TypeError
    found = float(value)
    if found - found != 0 or (isinstance(value, int) and found != value):
        raise ValueError
    return found


def _decimal(column: StreamColumn, value: object) -> Decimal:
    del column
    if isinstance(value, str) and NUMBER.fullmatch(value):
        return Decimal(value)
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise TypeError
    return Decimal(value)


def _boolean(column: StreamColumn, value: object) -> bool:
    del column
    if not isinstance(value, bool):
        raise TypeError
    return value


def _date(column: StreamColumn, value: object) -> date:
    del column
    if isinstance(value, datetime):
        raise TypeError
    return value if isinstance(value, date) else msgspec.convert(value, date, strict=True)


def _timestamp(column: StreamColumn, value: object) -> datetime:
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    if column.epoch is not None and type(value) is int:
        return BEGINNING + timedelta(**{column.epoch: value})
    if not isinstance(value, str):
        raise TypeError
    return instant_of(value)


def _json_texts(values: Sequence[Any]) -> pa.Array:
    if set(map(type, values)) <= {msgspec.Raw}:
        return raw_texts(values).cast(pa.string())
    return pa.array([None if value is None else _encoder.encode(value).decode() for value in values], pa.string())


CONVERTERS: dict[str, Callable[[StreamColumn, Any], Any]] = {
    "text": _text,
    "integer": _integer,
    "number": _number,
    "decimal": _decimal,
    "boolean": _boolean,
    "date": _date,
    "timestamp": _timestamp,
}


def exact_decimal(digits: bytes, scale: int) -> Decimal:
    """Return the decimal that Avro and Protobuf write as a big-endian integer and its scale.

    Raises:
        ValueError: it has more bytes than any column takes; reading many more takes minutes.
    """
    if len(digits) > MAX_DECIMAL_BYTES:
        raise ValueError(f"a decimal has {len(digits)} bytes; at most {MAX_DECIMAL_BYTES} are read")
    return Decimal(int.from_bytes(digits, "big", signed=True)).scaleb(-scale, EXACT)
