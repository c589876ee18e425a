"""Protobuf messages to records, without generated classes: the registry's descriptors make the class of a message.

Protobuf's own reader lets the last of several values win, and cuts a number to the bits of its field. What it would
not write in these very bytes is looked at again: a value is stored as it was sent, or its message refused.
"""

from __future__ import annotations

import base64
import importlib
import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, date
from typing import Any

from confluent_kafka.schema_registry import Schema
from google.protobuf import descriptor_pb2, json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet

from ingest_project.core.errors import UnreadableMessageError
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.streams.registry import Registry, Schemas, reason_of
from ingest_project.streams.values import exact_decimal, shortest

# Files that come with protobuf and Confluent's client, and the package that has each folder of them.
SHIPPED = re.compile(r"(google|confluent)(/[a-z_]+)+\.proto")
PACKAGES = {"google": "google", "confluent": "confluent_kafka.schema_registry.confluent"}
WRAPPERS = re.compile(r"google\.protobuf\.(\w+)Value")
# A file name that no import has.
OWN_FILE = "ingest/schema-of-message.proto"
MORE = 0x80
# A value of a record takes a hundred bytes of memory and more.
MAX_FIELDS = 1_000_000
# Values that 32-bit fields may have on the wire, where numbers have 64 bits; negative ones are sign-extended.
NOT_NEGATIVE, NEGATIVE = range(2**31), range(2**64 - 2**31, 2**64)
NUMBERS = {
    FieldDescriptor.TYPE_INT32: (NOT_NEGATIVE, NEGATIVE),
    FieldDescriptor.TYPE_ENUM: (NOT_NEGATIVE, NEGATIVE),
    FieldDescriptor.TYPE_UINT32: (range(2**32),),
    FieldDescriptor.TYPE_SINT32: (range(2**32),),
}
JSON_LIKE = frozenset({"google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue"})


class ProtobufRecords:
    """Reads Protobuf messages."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._schemas = Schemas(registry, "PROTOBUF", self._class, "serialized")

    def record_of(self, message: ConsumerRecord) -> Mapping[str, Any]:
        """Return the record of a message.

        Raises:
            UnreadableMessageError: it is not of its schema.
            SchemaRegistryUnavailableError: the registry does not answer.
        """
        kind, named, payload = self._schemas.of(message)
        found = kind()
        try:
            found.ParseFromString(payload)
            if not found.IsInitialized():
                raise ValueError(f"it lacks {', '.join(found.FindInitializationErrors())}")  # noqa: TRY301 - as others
            if found.SerializeToString(deterministic=True) != payload:
                _require_single(payload, found.DESCRIPTOR)
            # A struct at the top has the fields that it stands for; any other value needs a name.
            reading = _Reading()
            value = reading.nested(found, found.DESCRIPTOR)
            return value if isinstance(value, dict) else reading.record(found)
        except (DecodeError, json_format.Error, ValueError, OverflowError, RecursionError) as error:
            raise UnreadableMessageError(f"Not of its {named}: {reason_of(error)}.") from error

    def _class(self, schema: Schema, indexes: tuple[int, ...]) -> Any:  # noqa: ANN401 - a class of messages
        pool = DescriptorPool()
        file = self._add(schema, OWN_FILE, pool, set())
        return GetMessageClass(pool.FindMessageTypeByName(_name_at(file, indexes)))

    def _add(
        self, schema: Schema, name: str, pool: DescriptorPool, added: set[str]
    ) -> descriptor_pb2.FileDescriptorProto:
        """Add a file and everything that it imports to a pool."""
        file = descriptor_pb2.FileDescriptorProto()
        file.ParseFromString(base64.b64decode(schema.schema_str or "", validate=True))
        file.name = name
        added.add(name)
        references = {one.name: one for one in schema.references or ()}
        for imported in file.dependency:
            if imported in added:
                continue
            if imported not in references:
                _add_shipped(imported, pool, added)
                continue
            one = references[imported]
            found = self._registry.version_of(one.subject or "", one.version or 0, "serialized")
            self._add(found, imported, pool, added)
        pool.Add(file)
        return file


def _add_shipped(name: str, pool: DescriptorPool, added: set[str]) -> None:
    if not SHIPPED.fullmatch(name):
        raise ValueError(f"it imports {name}, which it does not refer to")
    folder, _, rest = name.removesuffix(".proto").partition("/")
    file = importlib.import_module(f"{PACKAGES[folder]}.{rest.replace('/', '.')}_pb2").DESCRIPTOR
    for one in file.dependencies:
        if one.name not in added:
            _add_shipped(one.name, pool, added)
    added.add(name)
    pool.AddSerializedFile(file.serialized_pb)


def _name_at(file: descriptor_pb2.FileDescriptorProto, indexes: tuple[int, ...]) -> str:
    """Return the full name of the message that a message's indexes lead to."""
    names, among = [file.package] if file.package else [], file.message_type
    for index in indexes or (0,):
        if not 0 <= index < len(among):
            raise UnreadableMessageError("It names a message type that its Protobuf schema does not have.")
        names.append(among[index].name)
        among = among[index].nested_type
    return ".".join(names)


def _require_single(payload: bytes, kind: Descriptor) -> None:
    """Refuse bytes of a message, or of one inside of it, that set a field twice or have a number beyond its bits.

    Raises:
        ValueError: names the field.
    """
    places: dict[str, str] = {}
    keys: set[tuple[str, object]] = set()
    for one in _wire_fields(payload):
        field = kind.fields_by_number.get(one.field_number)
        if field is None:
            # `_Reading` refuses it.
            continue
        if not field.is_repeated:
            place = field.containing_oneof or field
            if place.name in places:
                raise ValueError(f"it sets {_both(places[place.name], field.name)}")
            places[place.name] = field.name
        _require_bits(one.data, field)
        if field.message_type is not None and isinstance(one.data, bytes):
            _require_single(one.data, field.message_type)
            if field.message_type.GetOptions().map_entry:
                # A missing key is the empty one.
                key = next((part.data for part in _wire_fields(one.data) if part.field_number == 1), None) or None
                if (field.name, key) in keys:
                    raise ValueError(f"{field.name} has a key twice")
                keys.add((field.name, key))


def _wire_fields(payload: bytes) -> UnknownFieldSet:
    """Return the fields of a message as on the wire, repeated ones included."""
    nothing = Empty()
    nothing.ParseFromString(payload)
    return UnknownFieldSet(nothing)


def _both(first: str, second: str) -> str:
    return f"{first} twice" if first == second else f"both {first} and {second}, of which one may be"


def _require_bits(data: Any, field: FieldDescriptor) -> None:  # noqa: ANN401 - a number, or packed ones
    if field.type not in NUMBERS:
        return
    for number in _varints(data) if isinstance(data, bytes) else [data]:
        if not any(number in numbers for numbers in NUMBERS[field.type]):
            raise ValueError(f"{field.name} has more than 32 bits")


def _varints(packed: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in packed:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < MORE:
            yield number
            number = shift = 0


def _require_known(message: Message) -> None:
    if len(UnknownFieldSet(message)):
        raise ValueError(f"it has fields that {message.DESCRIPTOR.name} does not have, or such values of an enum")


class _Reading:
    """The reading of one message, with the fields that count towards the limit.

    A message without a value has two bytes inside another one, and becomes a record of all its fields.
    """

    _fields = 0

    def record(self, message: Message) -> dict[str, Any]:
        _require_known(message)
        fields = message.DESCRIPTOR.fields
        self._fields += len(fields)
        if self._fields > MAX_FIELDS:
            raise ValueError(f"with the fields that it leaves out, it has more than {MAX_FIELDS:,}")
        return {field.name: self._field(message, field) for field in fields}

    def _field(self, message: Message, field: FieldDescriptor) -> Any:  # noqa: ANN401 - any value
        if field.has_presence and not message.HasField(field.name):
            return None
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            of_value = field.message_type.fields_by_name["value"]
            # Protobuf orders the entries differently in each process.
            return {str(key): self._value(one, of_value) for key, one in sorted(value.items())}
        if field.is_repeated:
            return [self._value(one, field) for one in value]
        return self._value(value, field)

    def _value(self, value: Any, field: FieldDescriptor) -> Any:  # noqa: ANN401 - any value
        if field.enum_type is not None:
            known = field.enum_type.values_by_number.get(value)
            if known is None:
                raise ValueError(f"{field.name} is {value}, which {field.enum_type.name} does not have")
            return known.name
        if field.type == FieldDescriptor.TYPE_FLOAT:
            return shortest(value)
        return value if field.message_type is None else self.nested(value, field.message_type)

    def nested(self, value: Any, kind: Descriptor) -> Any:  # noqa: ANN401 - any value
        """Return a nested message: the well-known ones as the values that they stand for."""
        name = kind.full_name
        _require_known(value)
        if name == "google.protobuf.Timestamp":
            # Nanoseconds are cut to microseconds, the finest that any table here has.
            return value.ToDatetime(tzinfo=UTC)
        if name == "google.protobuf.Duration":
            return value.ToJsonString()
        if name == "google.type.Date" and value.year and value.month and value.day:
            return date(value.year, value.month, value.day)
        if name == "confluent.type.Decimal":
            return exact_decimal(value.value, value.scale)
        if name in JSON_LIKE:
            return json.loads(json_format.MessageToJson(value, sort_keys=True, indent=None))
        is_wrapper = WRAPPERS.fullmatch(name)
        return self._value(value.value, kind.fields_by_name["value"]) if is_wrapper else self.record(value)
