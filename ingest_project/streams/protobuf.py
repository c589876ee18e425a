"""Protobuf messages to records, without generated classes: the registry's descriptors make the class of a message."""

from __future__ import annotations

import base64
import importlib
import re
from collections.abc import Mapping
from datetime import UTC, date
from typing import Any

from confluent_kafka.schema_registry import Schema
from google.protobuf import descriptor_pb2, json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet

from ingest_project.core.errors import UnreadableMessageError
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.streams.registry import Registry, framed, name_of
from ingest_project.streams.values import exact_decimal

# Files that come with protobuf and Confluent's client, and the package that has each folder of them.
SHIPPED = re.compile(r"(google|confluent)(/[a-z_]+)+\.proto")
PACKAGES = {"google": "google", "confluent": "confluent_kafka.schema_registry.confluent"}
WRAPPERS = re.compile(r"google\.protobuf\.(\w+)Value")
JSON_LIKE = frozenset({"google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue"})


class ProtobufRecords:
    """Reads Protobuf messages."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._classes: dict[object, Any] = {}

    def record_of(self, message: ConsumerRecord) -> Mapping[str, Any]:
        """Return the record of a message.

        Raises:
            UnreadableMessageError: it is not of its schema.
            SchemaRegistryUnavailableError: the registry does not answer.
        """
        schema_id, payload = framed(message, "PROTOBUF")
        named = name_of(schema_id)
        key = named, tuple(schema_id.message_indexes or ())
        if key not in self._classes:
            self._classes[key] = self._class(self._registry.schema_of(schema_id, "serialized"), key)
        if isinstance(self._classes[key], UnreadableMessageError):
            raise self._classes[key]
        found = self._classes[key]()
        try:
            found.ParseFromString(payload.read())
            if not found.IsInitialized():
                raise ValueError(f"it lacks {', '.join(found.FindInitializationErrors())}")  # noqa: TRY301 - as others
            return _record(found)
        except (DecodeError, json_format.Error, ValueError, OverflowError, RecursionError) as error:
            raise UnreadableMessageError(
                f"Not of its Protobuf schema {named}: {str(error)[:200].rstrip('.')}."
            ) from error

    def _class(self, schema: Schema, key: tuple[object, tuple[int, ...]]) -> Any:  # noqa: ANN401 - a class, or why none
        named, indexes = key
        if schema.schema_type != "PROTOBUF":
            return UnreadableMessageError(f"Its schema {named} is {schema.schema_type or 'AVRO'}, not Protobuf.")
        try:
            pool = DescriptorPool()
            file = self._add(schema, f"schema-{named}.proto", pool, set())
            return GetMessageClass(pool.FindMessageTypeByName(_name_at(file, indexes)))
        except UnreadableMessageError as error:
            return error
        except (DecodeError, TypeError, KeyError, ValueError, ImportError) as error:
            return UnreadableMessageError(f"Its Protobuf schema {named} cannot be read: {str(error)[:200]}.")

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


def _record(message: Message) -> dict[str, Any]:
    if len(UnknownFieldSet(message)):
        raise ValueError(f"it has fields that {message.DESCRIPTOR.name} does not have, or such values of an enum")
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields}


def _field(message: Message, field: FieldDescriptor) -> Any:  # noqa: ANN401 - any value
    if field.has_presence and not message.HasField(field.name):
        return None
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        of_value = field.message_type.fields_by_name["value"]
        return {str(key): _value(one, of_value) for key, one in value.items()}
    if field.is_repeated:
        return [_value(one, field) for one in value]
    return _value(value, field)


def _value(value: Any, field: FieldDescriptor) -> Any:  # noqa: ANN401 - any value
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        if known is None:
            raise ValueError(f"{field.name} is {value}, which {field.enum_type.name} does not have")
        return known.name
    return value if field.message_type is None else _nested(value, field.message_type)


def _nested(value: Any, kind: Descriptor) -> Any:  # noqa: ANN401 - any value
    """Return a nested message: the well-known ones as the values that they stand for."""
    name = kind.full_name
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
        return json_format.MessageToDict(value)
    return value.value if WRAPPERS.fullmatch(name) else _record(value)
