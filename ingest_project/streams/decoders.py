"""Decoders: the bytes of messages to the values of columns, found by the name that a declaration gives.

A decoder turns each message into values, or refuses it with its reason; which of the two depends on its own bytes
alone. Fields that no column names are kept as JSON. Values have the Python type of their column's kind as far as the
format has it; `values.arrays_of` makes the columns, and refuses what is of another type.

A new decoder is a class with `decode` and one entry in DECODERS; another package adds one by an entry point in the
group `ingest_project.decoders`, whose value is a `DecoderFactory`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import compress
from operator import attrgetter
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import numpy as np
from msgspec import UNSET, Raw, UnsetType
from sqlalchemy.exc import SQLAlchemyError

from ingest_project.contracts import MAX_MESSAGE_BYTES, not_json, plainly, require_readable_size
from ingest_project.contracts.columns import StreamColumn
from ingest_project.contracts.single_names import SingleNames
from ingest_project.core import plugins
from ingest_project.core.errors import (
    PermanentError,
    SettingsError,
    TransientError,
    UnexpectedError,
    UnreadableMessageError,
)
from ingest_project.core.items import store_bisecting
from ingest_project.core.logging import get_logger
from ingest_project.core.settings import Settings
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.streams.values import MAX_SHOWN, json_of, vanished_numbers

logger = get_logger(__name__)

TEXT = "text"
NO_JSON = Raw(b"")
# A number without a fraction may be one of either type.
JSON_TYPES: Mapping[str, Any] = {
    "text": str | None,
    "integer": int | None,
    "number": float | None,
    # The raw digits: Python would also read digits that are not valid JSON.
    "decimal": Raw,
    "boolean": bool | None,
    "date": str | None,
    "timestamp": str | None,
    "json": Raw,
}

_encoder = msgspec.json.Encoder(decimal_format="number")
_fields = msgspec.json.Decoder(dict[str, Raw])

VALUE: Callable[[ConsumerRecord], bytes | None] = attrgetter("value")
Refusal = PermanentError | UnreadableMessageError
Struct = TypeVar("Struct", bound=msgspec.Struct)


class Tree(dict[str, "int | Tree"]):
    """Columns by the names of their fields: the number of a column, or the tree below a field.

    Args:
        number: of the struct that is made of these.
    """

    number: int | None = None


@dataclass
class Decoded:
    """Messages as values.

    Args:
        kept: the messages that were decoded.
        columns: a list of values for each column; None for a missing one. Of a struct any value says that it is there.
        unknown: the fields of each that no column names, a JSON object; None without any.
        refused: the other messages, with the reason.
        is_typed: every value has the type that JSON_TYPES names for its column.
    """

    kept: list[ConsumerRecord] = field(default_factory=list)
    columns: list[list[Any]] = field(default_factory=list)
    unknown: list[bytes | None] = field(default_factory=list)
    refused: list[tuple[ConsumerRecord, Refusal]] = field(default_factory=list)
    is_typed: bool = False

    def without(self, wrong: Mapping[int, Refusal]) -> Decoded:
        """Return the same with some of the messages refused, by the numbers of their rows."""
        is_kept = [row not in wrong for row in range(len(self.kept))]
        refused = [*self.refused, *((self.kept[row], error) for row, error in wrong.items())]
        columns = [list(compress(column, is_kept)) for column in self.columns]
        kept, unknown = list(compress(self.kept, is_kept)), list(compress(self.unknown, is_kept))
        return Decoded(kept, columns, unknown, refused, self.is_typed)


@dataclass
class Structs(Generic[Struct]):
    """Messages as structs.

    Args:
        kept: the messages that were decoded.
        structs: one of each.
        unknown: the fields of each that the struct lacks, a JSON object; None without any.
        refused: the other messages, with the reason.
        payloads: what was decoded of each.
    """

    kept: list[ConsumerRecord]
    structs: list[Struct]
    unknown: list[bytes | None]
    refused: list[tuple[ConsumerRecord, Refusal]]
    payloads: list[bytes] = field(default_factory=list)


def structs_of(
    messages: Sequence[ConsumerRecord],
    decode: Callable[[bytes], Struct],
    decode_alone: Callable[[bytes], tuple[Struct, bytes | None]],
    payload_of: Callable[[ConsumerRecord], bytes | None] = VALUE,
) -> Structs[Struct]:
    """Decode many messages, each on its own: the outcome of one depends on its own bytes alone.

    Args:
        messages: to be decoded.
        decode: decodes what has no unknown fields; a method of msgspec's, called without a step of Python between.
        decode_alone: decodes what `decode` refuses, into a struct and its unknown fields, or raises
            UnreadableMessageError with the reason.
        payload_of: returns the bytes to decode.
    """
    found: list[Struct | None] = []
    unknown: list[bytes | None] = [None] * len(messages)
    refused: list[tuple[ConsumerRecord, Refusal]] = []
    payloads = _payloads(messages, payload_of)
    # A loop in Python would cost as much as the decoding. `extend` keeps what came before an exception, and `map` goes
    # on behind it, so that no message is decoded twice for another's sake.
    all_readable = UnreadableMessageError not in set(map(type, payloads))
    decoded = map(decode, payloads if all_readable else map(_readable, payloads))
    while len(found) < len(messages):
        try:
            found.extend(decoded)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, UnreadableMessageError):
            number = len(found)
            try:
                one, unknown[number] = decode_alone(_readable(payloads[number]))
                found.append(one)
            except UnreadableMessageError as error:
                refused.append((messages[number], error))
                found.append(None)
    if not refused:
        return Structs(list(messages), [one for one in found if one is not None], unknown, [], payloads)
    is_kept = [one is not None for one in found]
    structs = [one for one in found if one is not None]
    kept, others = list(compress(messages, is_kept)), list(compress(unknown, is_kept))
    return Structs(kept, structs, others, refused, list(compress(payloads, is_kept)))


def _payloads(messages: Sequence[ConsumerRecord], payload_of: Callable[[ConsumerRecord], bytes | None]) -> list[Any]:
    """Return the payload to decode, or for a message without one the error that explains why."""
    if payload_of is VALUE:
        values = [value for value in map(VALUE, messages) if value]
        if len(values) == len(messages) and max(map(len, values), default=0) <= MAX_MESSAGE_BYTES:
            return values
    found: list[Any] = []
    for message in messages:
        try:
            found.append(require_readable_size(payload_of(message)))
        except UnreadableMessageError as error:
            found.append(error)
    return found


def _readable(payload: Any) -> bytes:  # noqa: ANN401 - bytes, or an error
    if isinstance(payload, UnreadableMessageError):
        raise payload
    return bytes(payload)


def decode_apart(
    messages: Sequence[ConsumerRecord], decode: Callable[[Sequence[ConsumerRecord]], object]
) -> list[tuple[ConsumerRecord, Refusal]]:
    """Decode messages; those with an unexpected error are found by halving, and returned with it.

    Raises:
        SettingsError, TransientError, SQLAlchemyError, MemoryError: no message is to blame.
    """
    refused: list[tuple[ConsumerRecord, Refusal]] = []
    others = MemoryError | SettingsError | TransientError | SQLAlchemyError
    for message, error in store_bisecting(messages, decode, lambda error: not isinstance(error, others)):
        logger.error("decoding_failed_unexpectedly", exc_info=error)
        refused.append((message, UnexpectedError("Reading the message", error)))
    return refused


class Decoder(Protocol):
    """Turns the bytes of messages into the values of columns."""

    def decode(self, messages: Sequence[ConsumerRecord]) -> Decoded:
        """Decode messages that have a value.

        Raises:
            TransientError: a service that it needs is away; no message is to blame.
        """


class DecoderFactory(Protocol):
    """Makes the decoder of one stream."""

    def __call__(self, columns: Sequence[StreamColumn], settings: Settings) -> Decoder:
        """Return a decoder of some columns."""


class JsonDecoder:
    """JSON objects. A value of another type than its column's refuses the message.

    Args:
        columns: of the stream.
        payload_of: returns the JSON of a message.
    """

    def __init__(
        self, columns: Sequence[StreamColumn], payload_of: Callable[[ConsumerRecord], bytes | None] = VALUE
    ) -> None:
        self._tree = tree_of(columns)
        self._names = SingleNames(_objects(self._tree))
        self._kept = [number for number, column in enumerate(columns) if column.kind == "json"]
        self._numbers = [number for number, column in enumerate(columns) if column.kind in {"integer", "number"}]
        self._shape = _Shape(self._tree, columns)
        self._decoder = msgspec.json.Decoder(self._shape.struct)
        self._lenient_decoder = msgspec.json.Decoder(_Shape(self._tree, columns, forbid_unknown_fields=False).struct)
        # 5.0 is an integer in JSON Schema; `values` rejects numbers with a fraction.
        types = {**JSON_TYPES, "integer": int | float | None}
        self._number_decoder = msgspec.json.Decoder(
            _Shape(self._tree, columns, types, forbid_unknown_fields=False).struct
        )
        self._payload_of = payload_of

    def decode(self, messages: Sequence[ConsumerRecord]) -> Decoded:
        """Decode JSON."""
        found = structs_of(messages, self._decoder.decode, self._with_unknown, self._payload_of)
        columns, names = self._shape.values(found.structs)
        decoded = Decoded(found.kept, columns, found.unknown, found.refused, is_typed=True)
        wrong: dict[int, Refusal] = {
            row: UnreadableMessageError(f"Not a message of this stream: {number[:MAX_SHOWN]} is too close to zero.")
            for row, number in vanished_numbers(found.payloads, self._zeros(columns)).items()
        }
        wrong |= self._names.problems(found.payloads, names, [columns[number] for number in self._kept], found.unknown)
        return decoded.without(wrong) if wrong else decoded

    def _zeros(self, columns: Sequence[Sequence[Any]]) -> set[int]:
        """Return the messages with a number that is zero."""
        zeros = (columns[number] for number in self._numbers if 0 in columns[number])
        return {row for column in zeros for row, value in enumerate(column) if value == 0}

    def _with_unknown(self, raw: bytes) -> tuple[msgspec.Struct, bytes | None]:
        """Decode a message, and return the fields that no column names as JSON."""
        try:
            try:
                return self._lenient_decoder.decode(raw), _unknown(raw, self._tree)
            except msgspec.ValidationError:
                with suppress(msgspec.ValidationError):
                    return self._number_decoder.decode(raw), _unknown(raw, self._tree)
                raise
        except msgspec.ValidationError as error:
            raise UnreadableMessageError(f"Not a message of this stream: {plainly(error)}.") from error
        except (ValueError, OverflowError, RecursionError) as error:  # msgspec's about JSON, and Python's about numbers
            raise not_json(raw, error) from error


class RecordDecoder:
    """Messages of a format that is read into a mapping, record by record.

    Args:
        columns: of the stream.
        record_of: returns the record of a message.
    """

    def __init__(
        self, columns: Sequence[StreamColumn], record_of: Callable[[ConsumerRecord], Mapping[str, Any]]
    ) -> None:
        self._tree, self._count = tree_of(columns), len(columns)
        self._json = [number for number, column in enumerate(columns) if column.kind == "json"]
        self._record_of = record_of

    def decode(self, messages: Sequence[ConsumerRecord]) -> Decoded:
        """Read records, and take the values of the columns out of them."""
        found = Decoded(columns=[[] for _ in range(self._count)])
        for message in messages:
            values: list[Any] = [None] * self._count
            try:
                require_readable_size(message.value)
                unknown = _take(self._record_of(message), self._tree, values)
                encoded = json_of(unknown) if unknown else None
                # As text it takes a tenth of the memory.
                for number in self._json:
                    values[number] = None if values[number] is None else Raw(json_of(values[number]))
            except UnreadableMessageError as error:
                found.refused.append((message, error))
            else:
                found.kept.append(message)
                found.unknown.append(encoded)
                for column, value in zip(found.columns, values, strict=True):
                    column.append(value)
        return found


def _json(columns: Sequence[StreamColumn], settings: Settings) -> Decoder:
    del settings
    return JsonDecoder(columns)


def _text(columns: Sequence[StreamColumn], settings: Settings) -> Decoder:
    """Return the decoder of messages that are one text in UTF-8 each, whatever the path of its column."""
    del settings
    column = columns[0].model_copy(update={"path": ""})

    def record_of(message: ConsumerRecord) -> Mapping[str, Any]:
        try:
            return {column.name: (message.value or b"").decode()}
        except UnicodeDecodeError as error:
            raise UnreadableMessageError(f"Not UTF-8: {error.reason} at byte {error.start}.") from error

    return RecordDecoder([column], record_of)


def _json_schema(columns: Sequence[StreamColumn], settings: Settings) -> Decoder:
    from ingest_project.streams.registry import json_payload_of, registry_of  # heavy

    return JsonDecoder(columns, json_payload_of(registry_of(settings)))


def _avro(columns: Sequence[StreamColumn], settings: Settings) -> Decoder:
    from ingest_project.streams.avro import AvroRecords  # heavy
    from ingest_project.streams.registry import registry_of

    return RecordDecoder(columns, AvroRecords(registry_of(settings)).record_of)


def _protobuf(columns: Sequence[StreamColumn], settings: Settings) -> Decoder:
    from ingest_project.streams.protobuf import ProtobufRecords  # heavy
    from ingest_project.streams.registry import registry_of

    return RecordDecoder(columns, ProtobufRecords(registry_of(settings)).record_of)


DECODERS: plugins.Plugins[DecoderFactory] = plugins.Plugins(
    plugins.DECODERS,
    {
        "json": "ingest_project.streams.decoders:_json",
        "avro": "ingest_project.streams.decoders:_avro",
        "protobuf": "ingest_project.streams.decoders:_protobuf",
        "json_schema": "ingest_project.streams.decoders:_json_schema",
        TEXT: "ingest_project.streams.decoders:_text",
    },
)


def tree_of(columns: Sequence[StreamColumn]) -> Tree:
    """Arrange the numbers of columns by the fields that lead to their values."""
    tree = Tree()
    for number, column in enumerate(columns):
        inside = tree
        for step in column.steps if column.fields else column.steps[:-1]:
            found = inside.setdefault(step, Tree())
            assert isinstance(found, Tree)  # noqa: S101 - a declaration has no path into another column
            inside = found
        if column.fields:
            inside.number = number
        else:
            inside[column.steps[-1]] = number
    return tree


def _objects(tree: Tree) -> Iterator[str]:
    """Yield the names of the objects around the fields of columns."""
    for name, inside in tree.items():
        if isinstance(inside, Tree):
            yield name
            yield from _objects(inside)


class _Shape:
    """A msgspec struct made of a tree of columns."""

    def __init__(
        self,
        tree: Tree,
        columns: Sequence[StreamColumn],
        types: Mapping[str, Any] = JSON_TYPES,
        *,
        forbid_unknown_fields: bool = True,
    ) -> None:
        self._number = tree.number
        self._names = {f"f{index}": name for index, name in enumerate(tree)}
        self._inside = {
            f"f{i}": _Shape(part, columns, types, forbid_unknown_fields=forbid_unknown_fields)
            for i, part in enumerate(tree.values())
            if isinstance(part, Tree)
        }
        self._columns = {f"f{index}": part for index, part in enumerate(tree.values()) if isinstance(part, int)}
        fields: list[tuple[str, Any, Any]] = []
        for name in self._names:
            if name in self._inside:
                fields.append((name, self._inside[name].struct | UnsetType | None, UNSET))
            else:
                column = columns[self._columns[name]]
                kind = Raw if column.epoch else types[column.kind]
                fields.append((name, kind, NO_JSON) if kind is Raw else (name, kind | UnsetType, UNSET))
        self.struct: Any = msgspec.defstruct(
            "Message", fields, forbid_unknown_fields=forbid_unknown_fields, frozen=True, gc=False, rename=self._names
        )
        self._nothing = self.struct()
        self._nothing_of = {name: getattr(self._nothing, name) for name in self._columns}

    def values(self, structs: Sequence[Any]) -> tuple[list[list[Any]], Any]:
        """Return the values of each column, and how many of the fields each message has."""
        found, names = self._values(structs)
        columns = dict(found)
        return [columns[number] for number in sorted(columns)], names

    def _values(self, structs: Sequence[Any]) -> tuple[list[tuple[int, list[Any]]], Any]:
        found: list[tuple[int, list[Any]]] = []
        names: Any = 0
        for name, number in self._columns.items():
            values = list(map(attrgetter(name), structs))
            names = names + present(values, self._nothing_of[name])
            found.append((number, given(values)))
        for name, shape in self._inside.items():
            inner = list(map(attrgetter(name), structs))
            objects = given(inner)
            more, inside = shape._values([one or shape._nothing for one in objects])  # noqa: SLF001 - its own kind
            if shape._number is not None:  # noqa: SLF001 - the same
                found.append((shape._number, objects))  # noqa: SLF001 - the same
            names = names + present(inner) + inside
            found += more
        return found, names


def present(values: Sequence[Any], nothing: object = UNSET) -> Any:  # noqa: ANN401 - a number for all, or one for each
    """Return 1 for each message that has the field of some values, and 0 for the others."""
    return np.fromiter((value is not nothing for value in values), np.int64, len(values)) if nothing in values else 1


def given(values: list[Any]) -> list[Any]:
    """Return values with None for a field that is not there."""
    return [None if value is UNSET else value for value in values] if UNSET in values else values


def _unknown(raw: bytes | Raw, tree: Tree) -> bytes | None:
    """Return the fields of a JSON object that are not in the tree, at every level of the tree."""
    fields = _fields.decode(raw)
    unknown = {name: fields[name] for name in sorted(fields.keys() - tree.keys())}
    for name, inside in tree.items():
        if isinstance(inside, Tree) and bytes(fields.get(name, NO_JSON)).lstrip().startswith(b"{"):
            more = _unknown(fields[name], inside)
            if more is not None:
                unknown[name] = Raw(more)
    return _encoder.encode(unknown) if unknown else None


def _take(record: Mapping[str, Any], tree: Tree, values: list[Any]) -> dict[str, Any]:
    """Put the values of the tree's columns into a list; returns the fields that no column names."""
    unknown: dict[str, Any] = {}
    for name, value in record.items():
        inside = tree.get(name)
        if inside is None:
            unknown[name] = value
        elif isinstance(inside, int):
            values[inside] = value
        elif isinstance(value, Mapping):
            if inside.number is not None:
                values[inside.number] = True
            if more := _take(value, inside, values):
                unknown[name] = more
        elif value is not None:
            raise UnreadableMessageError(f"Not a message of this stream: {name} must be a record.")
    return unknown
