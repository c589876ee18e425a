"""Avro messages to records, by the schema that each was written with.

The bytes are read by fastavro, as Confluent's own deserializer does; but every byte must be used, and what would take
unbounded memory or time is refused: a schema that contains itself, as the reader would end the process with a deep
value; a list whose items have no bytes, as a few bytes could announce any number of them; and a decimal of more than 16
bytes, as a long one costs minutes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import fastavro.read
from confluent_kafka.schema_registry import Schema
from fastavro import parse_schema, schemaless_reader
from fastavro.schema import SchemaParseException, UnknownType

from ingest_project.core.errors import UnreadableMessageError
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.streams.registry import Registry, framed, name_of
from ingest_project.streams.values import exact_decimal

EXACT_DECIMAL = "ingest-decimal"
REASONS: dict[type[Exception], str] = {
    EOFError: "it ends too early",
    UnicodeDecodeError: "a text is not UTF-8",
    OverflowError: "a time or a number is out of range",
    IndexError: "it has a value that its enum or union does not have",
    RecursionError: "it is nested too deeply",
}
# Types by the least number of bytes of a value.
PRIMITIVES = {"null": 0} | dict.fromkeys(("boolean", "int", "long", "bytes", "string"), 1) | {"float": 4, "double": 8}


class AvroRecords:
    """Reads Avro messages."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._parsed: dict[object, Any] = {}

    def record_of(self, message: ConsumerRecord) -> Mapping[str, Any]:
        """Return the record of a message.

        Raises:
            UnreadableMessageError: it is not of its schema.
            SchemaRegistryUnavailableError: the registry does not answer.
        """
        schema_id, payload = framed(message, "AVRO")
        named = name_of(schema_id)
        if named not in self._parsed:
            self._parsed[named] = self._schema(self._registry.schema_of(schema_id), named)
        schema, size = self._parsed[named], len(payload.getbuffer())
        if isinstance(schema, UnreadableMessageError):
            raise schema
        try:
            record = schemaless_reader(payload, schema, None)
        except MemoryError:
            raise
        except Exception as error:
            raise UnreadableMessageError(f"Not of its Avro schema {named}: {_reason(error)}.") from error
        if payload.tell() != size:
            left = size - payload.tell()
            raise UnreadableMessageError(f"Not of its Avro schema {named}: {left} bytes are left over.")
        if not isinstance(record, dict):
            raise UnreadableMessageError(f"Its Avro schema {named} is not a record.")
        return record

    def _schema(self, schema: Schema, named: object) -> Any:  # noqa: ANN401 - a parsed schema, or why there is none
        if schema.schema_type not in (None, "AVRO"):
            return UnreadableMessageError(f"Its schema {named} is {schema.schema_type}, not Avro.")
        try:
            named_schemas: dict[str, Any] = {}
            self._add_references(schema, named_schemas)
            parsed = parse_schema(_exact(json.loads(schema.schema_str or "")), named_schemas=named_schemas)
            _least_bytes(parsed, named_schemas, frozenset())
        except UnreadableMessageError as error:
            return error
        except (SchemaParseException, UnknownType, ValueError, RecursionError) as error:
            return UnreadableMessageError(f"Its Avro schema {named} cannot be read: {_reason(error)}.")
        return parsed

    def _add_references(self, schema: Schema, named_schemas: dict[str, Any]) -> None:
        for reference in schema.references or ():
            if reference.name not in named_schemas:
                found = self._registry.version_of(reference.subject or "", reference.version or 0)
                self._add_references(found, named_schemas)
                parse_schema(_exact(json.loads(found.schema_str or "")), named_schemas=named_schemas)


def _exact(schema: Any) -> Any:  # noqa: ANN401 - a schema is any JSON
    """Return a schema whose decimals are read by `_decimal`: fastavro's own are rounded, and unbounded in time."""
    if isinstance(schema, list):
        return [_exact(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {
        name: _exact(part) if name in {"type", "fields", "items", "values"} else part for name, part in schema.items()
    }
    return inner | {"logicalType": EXACT_DECIMAL} if schema.get("logicalType") == "decimal" else inner


def _decimal(data: Any, writer_schema: Any, _reader_schema: Any = None) -> Decimal:  # noqa: ANN401 - fastavro's types
    return exact_decimal(data, int(writer_schema.get("scale", 0)))


for _kind in ("bytes", "fixed"):
    fastavro.read.LOGICAL_READERS[f"{_kind}-{EXACT_DECIMAL}"] = _decimal


def _least_bytes(schema: Any, named: Mapping[str, Any], inside: frozenset[str]) -> int:  # noqa: ANN401, PLR0911 - a schema; one return for each of its kinds
    """Return the least number of bytes that a value takes.

    Raises:
        UnreadableMessageError: the schema contains itself, or a list of values without bytes.
    """
    if isinstance(schema, list):
        return 1 + min((_least_bytes(part, named, inside) for part in schema), default=0)
    if isinstance(schema, str) and schema in PRIMITIVES:
        return PRIMITIVES[schema]
    if isinstance(schema, str):
        if schema in inside:
            raise UnreadableMessageError(f"Its Avro schema contains itself ({schema}), which is not supported.")
        return _least_bytes(named[schema], named, inside)
    kind = schema["type"]
    if kind in {"record", "error"}:
        within = inside | {schema["name"]}
        return sum(_least_bytes(field["type"], named, within) for field in schema["fields"])
    if kind == "array":
        if _least_bytes(schema["items"], named, inside) == 0:
            raise UnreadableMessageError("Its Avro schema has a list of values without bytes, which is not supported.")
        return 1
    if kind == "map":
        _least_bytes(schema["values"], named, inside)
        return 1
    if kind == "fixed":
        return int(schema["size"])
    return 1 if kind == "enum" else _least_bytes(kind, named, inside)


def _reason(error: Exception) -> str:
    """Return why bytes or a schema cannot be read, in words: fastavro raises Python's own errors."""
    known = next((words for kind, words in REASONS.items() if isinstance(error, kind)), None)
    return known or " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
