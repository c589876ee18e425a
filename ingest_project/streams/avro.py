"""Avro messages to records, by the schema that each was written with.

fastavro reads the schemas. The bytes are read here: its reader takes what is not of a schema for another value, such as
2 for true, the last branch of a union or the last symbol of an enum for the index -1, or the last value of a key that a
map has twice. Here every byte must be used, and each value be of its type.

What would take unbounded memory or time is refused: a schema that contains itself, as a few bytes could nest it
deeply; records and lists of more values than bytes, as a few could announce any number of them; and a decimal of more
than 16 bytes, as a long one costs minutes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, time, timedelta
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from confluent_kafka.schema_registry import Schema
from fastavro import parse_schema

from ingest_project.core.errors import UnreadableMessageError
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.streams.registry import Registry, Schemas, reason_of
from ingest_project.streams.values import exact_decimal, shortest

# Takes bytes and the position of a value; returns the value and the position of the next one.
Read = Callable[[bytes, int], tuple[Any, int]]

REASONS: dict[type[Exception], str] = {
    IndexError: "it ends too early",
    struct.error: "it ends too early",
    UnicodeDecodeError: "a text is not UTF-8",
    OverflowError: "a time or a number is out of range",
}
LONGEST_SHIFT = 63
MORE = 0x80
# Bits of a number's first byte: further bytes follow, or the number is negative.
BEYOND_ONE_BYTE = MORE | 1
INT = 2**31
SINGLE, DOUBLE = struct.Struct("<f"), struct.Struct("<d")
# Limits of the values without bytes of one record, and of an item of a list for each of its bytes.
MAX_FREE, MAX_FREE_PER_BYTE = 10_000, 8
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LOCAL_EPOCH = EPOCH.replace(tzinfo=None)
DAY = timedelta(days=1)


class _Type(NamedTuple):
    """How values of a type are read.

    Args:
        read: function that reads one.
        least_bytes: the least number of bytes that one takes.
        free: how many values one may have beyond one for each of its bytes; items of lists and maps are left out.
    """

    read: Read
    least_bytes: int
    free: int = 0


class AvroRecords:
    """Reads Avro messages."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._schemas = Schemas(registry, "AVRO", self._type)

    def record_of(self, message: ConsumerRecord) -> Mapping[str, Any]:
        """Return the record of a message.

        Raises:
            UnreadableMessageError: it is not of its schema.
            SchemaRegistryUnavailableError: the registry does not answer.
        """
        found, named, payload = self._schemas.of(message)
        try:
            record, end = found.read(payload, 0)
        except (ValueError, ArithmeticError, LookupError, struct.error, RecursionError) as error:
            known = next((words for kind, words in REASONS.items() if isinstance(error, kind)), None)
            raise UnreadableMessageError(f"Not of its {named}: {known or reason_of(error)}.") from error
        if end < len(payload):
            raise UnreadableMessageError(f"Not of its {named}: {len(payload) - end} bytes are left over.")
        if not isinstance(record, dict):
            raise UnreadableMessageError(f"Its {named} is not a record.")
        return record

    def _type(self, schema: Schema, indexes: tuple[int, ...]) -> _Type:
        del indexes
        named: dict[str, Any] = {}
        return _Types(named).of(self._parsed(schema, named))

    def _parsed(self, schema: Schema, named: dict[str, Any]) -> Any:  # noqa: ANN401 - a schema is any JSON
        """Return a schema as fastavro reads it, and enter the types that it names, those of its references included."""
        for reference in schema.references or ():
            if reference.name not in named:
                self._parsed(self._registry.version_of(reference.subject or "", reference.version or 0), named)
        return parse_schema(json.loads(schema.schema_str or ""), named_schemas=named)


class _Types:
    """The types of one schema.

    Args:
        named: the schemas that have names, as fastavro reads them.
    """

    def __init__(self, named: Mapping[str, Any]) -> None:
        self._named = named
        # None while the type itself is being read.
        self._known: dict[str, _Type | None] = {}

    def of(self, schema: Any) -> _Type:  # noqa: ANN401 - a schema is any JSON
        """Return a type.

        Raises:
            UnreadableMessageError: it contains itself, or a list of values without bytes.
        """
        if isinstance(schema, list):
            return _union([self.of(branch) for branch in schema])
        if isinstance(schema, str):
            return PRIMITIVES[schema] if schema in PRIMITIVES else self._of_name(schema)
        if "name" in schema:
            return self._of_name(schema["name"])
        kind = schema["type"]
        if kind == "array":
            return _array(self.of(schema["items"]))
        if kind == "map":
            return _map(self.of(schema["values"]))
        return _converted(schema, self.of(kind)) if isinstance(kind, str) else self.of(kind)

    def _of_name(self, name: str) -> _Type:
        if name not in self._known:
            self._known[name] = None
            self._known[name] = self._defined(self._named[name])
        found = self._known[name]
        if found is None:
            raise UnreadableMessageError(f"Its Avro schema contains itself ({name}), which is not supported.")
        return found

    def _defined(self, schema: Mapping[str, Any]) -> _Type:
        if schema["type"] == "enum":
            return _Type(partial(_enum, symbols=schema["symbols"]), 1)
        if schema["type"] == "fixed":
            return _converted(schema, _Type(partial(_fixed, size=schema["size"]), schema["size"], not schema["size"]))
        return _record([(field["name"], self.of(field["type"])) for field in schema["fields"]])


def _long(data: bytes, at: int) -> tuple[int, int]:
    byte = data[at]
    if byte < MORE:
        return (byte >> 1) ^ -(byte & 1), at + 1
    number, shift = byte & 0x7F, 7
    while byte >= MORE:
        at += 1
        byte = data[at]
        number |= (byte & 0x7F) << shift
        if shift == LONGEST_SHIFT and byte > 1:
            raise ValueError("a number has more than 64 bits")
        shift += 7
    return (number >> 1) ^ -(number & 1), at + 1


def _int(data: bytes, at: int) -> tuple[int, int]:
    number, at = _long(data, at)
    if not -INT <= number < INT:
        raise ValueError(f"{number} has more than the 32 bits of an int")
    return number, at


def _bytes(data: bytes, at: int) -> tuple[bytes, int]:
    size, at = _long(data, at)
    return _fixed(data, at, size)


def _fixed(data: bytes, at: int, size: int) -> tuple[bytes, int]:
    end = at + size
    if size < 0:
        raise ValueError("a length is negative")
    if end > len(data):
        raise IndexError
    return data[at:end], end


def _string(data: bytes, at: int) -> tuple[str, int]:
    byte = data[at]
    if byte & BEYOND_ONE_BYTE:
        found, at = _bytes(data, at)
        return found.decode(), at
    # Most texts are short, and each call of a function costs as much as all of this.
    begin = at + 1
    end = begin + (byte >> 1)
    if end > len(data):
        raise IndexError
    return data[begin:end].decode(), end


def _boolean(data: bytes, at: int) -> tuple[bool, int]:
    if data[at] > 1:
        raise ValueError(f"a boolean is {data[at]}, neither 0 nor 1")
    return data[at] == 1, at + 1


def _float(data: bytes, at: int) -> tuple[float, int]:
    return shortest(SINGLE.unpack_from(data, at)[0]), at + SINGLE.size


def _double(data: bytes, at: int) -> tuple[float, int]:
    return DOUBLE.unpack_from(data, at)[0], at + DOUBLE.size


def _enum(data: bytes, at: int, symbols: Sequence[str]) -> tuple[str, int]:
    index, at = _long(data, at)
    if not 0 <= index < len(symbols):
        raise ValueError(f"{index} is no index of an enum of {len(symbols)} symbols")
    return symbols[index], at


def _union(branches: Sequence[_Type]) -> _Type:
    reads = [branch.read for branch in branches]
    # Branches by the single byte of their index; an index may also be written with more bytes.
    by_byte = {2 * index: read for index, read in enumerate(reads[: MORE // 2])}

    def read(data: bytes, at: int) -> tuple[Any, int]:
        read_branch = by_byte.get(data[at])
        if read_branch is not None:
            return read_branch(data, at + 1)
        index, at = _long(data, at)
        if not 0 <= index < len(reads):
            raise ValueError(f"{index} is no index of a union of {len(reads)} types")
        return reads[index](data, at)

    free = max((branch.free for branch in branches), default=0)
    return _Type(read, 1 + min((branch.least_bytes for branch in branches), default=0), max(0, free - 1))


def _record(fields: Sequence[tuple[str, _Type]]) -> _Type:
    if len(dict(fields)) < len(fields):
        raise UnreadableMessageError("Its Avro schema has a record with a field twice.")
    reads = [(name, kind.read) for name, kind in fields]
    free = 1 + sum(kind.free for _, kind in fields)
    if free > MAX_FREE:
        raise UnreadableMessageError(f"Its Avro schema has a record of more than {MAX_FREE:,} values without bytes.")

    def read(data: bytes, at: int) -> tuple[dict[str, Any], int]:
        record = {}
        for name, read_field in reads:
            record[name], at = read_field(data, at)
        return record, at

    return _Type(read, sum(kind.least_bytes for _, kind in fields), free)


def _array(items: _Type) -> _Type:
    _require_bytes(items.free, items.least_bytes)

    def read(data: bytes, at: int) -> tuple[list[Any], int]:
        found: list[Any] = []

        def read_item(at: int) -> int:
            item, at = items.read(data, at)
            found.append(item)
            return at

        return found, _blocks(data, at, read_item)

    return _Type(read, 1)


def _require_bytes(free: int, least_bytes: int) -> None:
    if free > MAX_FREE_PER_BYTE * least_bytes:
        raise UnreadableMessageError(
            "Its Avro schema has a list or map of values without bytes, which is not supported."
        )


def _map(values: _Type) -> _Type:
    # A key takes a byte.
    _require_bytes(values.free, values.least_bytes + 1)

    def read(data: bytes, at: int) -> tuple[dict[str, Any], int]:
        found: dict[str, Any] = {}

        def read_item(at: int) -> int:
            key, at = _string(data, at)
            if key in found:
                raise ValueError(f"a map has the key {key[:40]!r} twice")
            found[key], at = values.read(data, at)
            return at

        return found, _blocks(data, at, read_item)

    return _Type(read, 1)


def _blocks(data: bytes, at: int, read_item: Callable[[int], int]) -> int:
    """Read the items of a list or a map, which come in blocks; returns where they end."""
    while True:
        count, at = _long(data, at)
        if not count:
            return at
        end = None
        if count < 0:
            size, at = _long(data, at)
            end, count = at + size, -count
        for _ in range(count):
            at = read_item(at)
        if end not in (None, at):
            raise ValueError("a block of a list or map has another length than it says")


def _converted(schema: Mapping[str, Any], kind: _Type) -> _Type:
    """Return the type of a schema with a logical type; one that is not known is left as it is."""
    found = schema["type"], schema.get("logicalType")
    if found in {("bytes", "decimal"), ("fixed", "decimal")}:
        convert: Callable[[Any], Any] = partial(exact_decimal, scale=int(schema.get("scale", 0)))
    elif found in LOGICAL:
        convert = LOGICAL[found]
    else:
        return kind

    def read(data: bytes, at: int) -> tuple[Any, int]:
        value, at = kind.read(data, at)
        return convert(value), at

    return kind._replace(read=read)


def _clock(after_midnight: timedelta) -> time:
    if not timedelta(0) <= after_midnight < DAY:
        raise ValueError(f"a time of day is {after_midnight} after midnight")
    return (EPOCH + after_midnight).time()


def _uuid(text: str) -> UUID:
    found = UUID(text)
    # Python also takes braces and other places of the dashes.
    if str(found) != text.lower():
        raise ValueError(f"{text[:40]!r} is no UUID")
    return found


PRIMITIVES = {
    "null": _Type(lambda _data, at: (None, at), 0, 1),
    "boolean": _Type(_boolean, 1),
    "int": _Type(_int, 1),
    "long": _Type(_long, 1),
    "float": _Type(_float, SINGLE.size),
    "double": _Type(_double, DOUBLE.size),
    "bytes": _Type(_bytes, 1),
    "string": _Type(_string, 1),
}
LOGICAL: dict[tuple[str, Any], Callable[[Any], Any]] = {
    ("int", "date"): lambda days: (EPOCH + timedelta(days=days)).date(),
    ("int", "time-millis"): lambda number: _clock(timedelta(milliseconds=number)),
    ("long", "time-micros"): lambda number: _clock(timedelta(microseconds=number)),
    ("long", "timestamp-millis"): lambda number: EPOCH + timedelta(milliseconds=number),
    ("long", "timestamp-micros"): lambda number: EPOCH + timedelta(microseconds=number),
    ("long", "local-timestamp-millis"): lambda number: LOCAL_EPOCH + timedelta(milliseconds=number),
    ("long", "local-timestamp-micros"): lambda number: LOCAL_EPOCH + timedelta(microseconds=number),
    ("string", "uuid"): _uuid,
    ("fixed", "uuid"): lambda raw: UUID(bytes=raw),
}
