"""Messages in every format, as producers write them, with Confluent's own serializers."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import fastavro
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.json_schema import JSONSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message_factory import GetMessageClass

from ingest_project.platform.kafka.consumer import ConsumerRecord

TOPIC = "orders"
SENT_MS = 1_768_473_045_000
_CONTEXT = SerializationContext(TOPIC, MessageField.VALUE)


def avro(url: str, schema: str, record: Mapping[str, Any]) -> bytes:
    """A record in Avro; its schema is registered."""
    with SchemaRegistryClient({"url": url}) as client:
        found: bytes | None = AvroSerializer(client, schema)(record, _CONTEXT)
    assert found is not None
    return found


def json_schema(url: str, schema: str, record: Mapping[str, Any]) -> bytes:
    """A record in JSON with a schema."""
    with SchemaRegistryClient({"url": url}) as client:
        found: bytes | None = JSONSerializer(schema, client)(record, _CONTEXT)
    assert found is not None
    return found


def protobuf(url: str, message: Any) -> bytes:  # noqa: ANN401 - a class that was made at run time
    """A Protobuf message; its schema and those that it imports are registered."""
    with SchemaRegistryClient({"url": url}) as client:
        found: bytes | None = ProtobufSerializer(type(message), client, {"use.deprecated.format": False})(
            message, _CONTEXT
        )
    assert found is not None
    return found


def framed(schema_id: int, payload: bytes) -> bytes:
    """Bytes that claim to be of a schema."""
    return struct.pack(">bI", 0, schema_id) + payload


def encoded_avro(schema: Mapping[str, Any], record: Mapping[str, Any]) -> bytes:
    """A record in Avro without a frame."""
    target = io.BytesIO()
    fastavro.schemaless_writer(target, fastavro.parse_schema(dict(schema)), record)
    return target.getvalue()


def message_class(name: str, fields: Sequence[tuple[str, int, str]], *imports: str, **more: Any) -> Any:  # noqa: ANN401
    """A class of Protobuf messages.

    Args:
        name: of the message, in the package `shop`.
        fields: name, type and type name of each.
        imports: files that it uses.
        more: `optional`, `repeated`: names of such fields; `enum`: names of the values of the enum Status; `messages`:
            fields of other messages in the same file, all of text, by the name of the message.
    """
    pool = descriptor_pool.DescriptorPool()
    for imported in imports:
        pool.AddSerializedFile(descriptor_pool.Default().FindFileByName(imported).serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{name.lower()}.proto", package="shop", syntax="proto3", dependency=imports
    )
    message = file.message_type.add(name=name)
    label = descriptor_pb2.FieldDescriptorProto
    for number, (field, kind, type_name) in enumerate(fields, 1):
        added = message.field.add(name=field, number=number, type=kind, label=label.LABEL_OPTIONAL)
        if type_name:
            added.type_name = type_name
        if field in more.get("repeated", ()):
            added.label = label.LABEL_REPEATED
        if field in more.get("optional", ()):
            added.proto3_optional = True
            added.oneof_index = len(message.oneof_decl)
            message.oneof_decl.add(name=f"_{field}")
    for other, texts in more.get("messages", {}).items():
        added = file.message_type.add(name=other)
        for number, text in enumerate(texts, 1):
            added.field.add(name=text, number=number, type=label.TYPE_STRING, label=label.LABEL_OPTIONAL)
    if "enum" in more:
        kinds = file.enum_type.add(name="Status")
        for number, value in enumerate(more["enum"]):
            kinds.value.add(name=value, number=number)
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName(f"shop.{name}"))


def received(*payloads: bytes | None, headers: tuple[tuple[str, bytes | None], ...] = ()) -> list[ConsumerRecord]:
    """As if read from the first offsets of a partition."""
    return [
        ConsumerRecord(TOPIC, 0, offset, SENT_MS, None, payload, headers) for offset, payload in enumerate(payloads)
    ]
