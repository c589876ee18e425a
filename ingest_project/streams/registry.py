"""The schema registry that describes messages: any server with Confluent's API, through Confluent's own client.

A registry that is away fails the run, which is repeated. A message that names a schema the registry does not have, or
whose bytes are not of its schema, is that message's fault. Schemas never change: each is fetched once.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any, Generic, TypeVar

import msgspec
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient, dual_schema_id_deserializer
from confluent_kafka.schema_registry.common._httpx_compat import httpx
from confluent_kafka.schema_registry.error import SchemaRegistryError
from confluent_kafka.schema_registry.serde import SchemaId
from confluent_kafka.serialization import MessageField, SerializationContext, SerializationError
from jsonschema_rs import Draft7, ReferencingError, RegexOptions, Resolver, ValidationError, Validator, validator_for
from jsonschema_rs import Registry as JsonSchemas

from ingest_project.contracts import not_json
from ingest_project.core.errors import (
    SchemaRegistryUnavailableError,
    SettingsError,
    TransientError,
    UnreadableMessageError,
)
from ingest_project.core.settings import SchemaRegistrySettings, Settings
from ingest_project.platform.http import parse_url
from ingest_project.platform.http.host_policy import HostLists, host_lists
from ingest_project.platform.kafka.consumer import ConsumerRecord

NOT_FOUND = 404
# Error code of an answer that does not come from a registry.
NO_ERROR_CODE = -1
# Registries number schemas by signed 32-bit integers.
LAST_ID = 2**31 - 1
# Size limit of a schema id and the indexes of a nested Protobuf message.
MAX_FRAME_BYTES = 1024
RETRIES, FIRST_PAUSE_MS, LONGEST_PAUSE_MS = 2, 200, 1_000
# Parts of a JSON schema with all that it refers to, each as often as it is referred to.
MAX_PARTS = 100_000
# What a schema without a name of its own is called.
ROOT = "json-schema:///"
REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
# Characters of a message times those of its schema: the reason of a mismatch may repeat the one for each of the other.
MAX_EXPLAINED = 20_000_000
MAX_REASON = 300

# Schema types as people write them.
KINDS = {"AVRO": "Avro", "JSON": "JSON", "PROTOBUF": "Protobuf"}
Parsed = TypeVar("Parsed")


class Registry:
    """Schemas by their ids.

    Args:
        client: client of the registry.
        url: for messages.
    """

    def __init__(self, client: SchemaRegistryClient, url: str) -> None:
        self.client, self._url = client, url
        # A message may name any id: remember unknown ids, so that each is requested once.
        self._missing: set[object] = set()

    def schema_of(self, schema_id: SchemaId, form: str | None = None) -> Schema:
        """Return the schema that a message names.

        Raises:
            UnreadableMessageError: the registry does not have it.
            SchemaRegistryUnavailableError: the registry does not answer or refuses.
        """
        named = name_of(schema_id)
        if named not in self._missing:
            try:
                found = self.call(lambda: self._fetched(named, form))
            except UnreadableMessageError:
                self._missing.add(named)
            else:
                return found
        raise UnreadableMessageError(f"The schema registry has no schema {named}.")

    def call(self, fetch: Callable[[], Schema]) -> Schema:
        """Fetch a schema by the client, and map its errors.

        Raises:
            UnreadableMessageError: the registry does not have what is fetched.
            SchemaRegistryUnavailableError: the registry does not answer or refuses.
        """
        try:
            found = fetch()
        except SchemaRegistryError as error:
            # A proxy's own 404 says nothing about a schema: only the registry sends an error code.
            if error.http_status_code == NOT_FOUND and (error.error_code or NO_ERROR_CODE) != NO_ERROR_CODE:
                raise UnreadableMessageError(f"The schema registry: {error.error_message}.") from error
            raise SchemaRegistryUnavailableError(self._url, f"{error}") from error
        except (httpx.HTTPError, ValueError, TypeError, KeyError) as error:
            raise SchemaRegistryUnavailableError(self._url, f"{type(error).__name__}: {error}") from error
        if not found.schema_str:
            # The client would keep this answer in its cache.
            self.client.clear_caches()  # type: ignore[no-untyped-call]
            raise SchemaRegistryUnavailableError(self._url, "it answers without a schema")
        return found

    def version_of(self, subject: str, version: int, form: str | None = None) -> Schema:
        """Return the schema that another one refers to.

        Raises:
            UnreadableMessageError: the registry does not have it.
            SchemaRegistryUnavailableError: the registry does not answer or refuses.
        """
        return self.call(lambda: self.client.get_version(subject, version, True, form).schema)

    def _fetched(self, named: int | str, form: str | None) -> Schema:
        if isinstance(named, str):
            return self.client.get_schema_by_guid(named, form)
        return self.client.get_schema(named, None, form)


def registry_of(settings: Settings) -> Registry:
    """Return the registry of the settings: one per process, with its schemas kept.

    Raises:
        SettingsError: no registry is set, or its address cannot be used.
    """
    return _registry(settings.schema_registry, host_lists(settings))


@cache
def _registry(settings: SchemaRegistrySettings, hosts: HostLists) -> Registry:
    if not settings.url:
        raise SettingsError("INGEST_SCHEMA_REGISTRY_URL is not set, and a stream's decoder needs a schema registry.")
    address = parse_url(settings.url)
    # Redirects are not followed, so that credentials reach this host only.
    hosts.rules_for((address.host, address.port), internal_allowed=True).check(settings.url)
    secret = settings.token or settings.password
    if secret and address.scheme != "https" and not settings.plain_http:
        raise SettingsError(
            f"The credentials of the schema registry {address.redacted} would be sent without TLS. Use https, or set"
            " INGEST_SCHEMA_REGISTRY_PLAIN_HTTP."
        )
    return Registry(SchemaRegistryClient(_configuration(settings)), address.redacted)


def _configuration(settings: SchemaRegistrySettings) -> dict[str, Any]:
    conf: dict[str, Any] = {
        "url": settings.url,
        "timeout": settings.timeout_seconds,
        "max.retries": RETRIES,
        "retries.wait.ms": FIRST_PAUSE_MS,
        "retries.max.wait.ms": LONGEST_PAUSE_MS,
    }
    files = {
        "ssl.ca.location": settings.ca_file,
        "ssl.certificate.location": settings.certificate_file,
        "ssl.key.location": settings.key_file,
    }
    conf |= {name: str(path) for name, path in files.items() if path}
    if settings.key_password:
        conf["ssl.key.password"] = settings.key_password.get_secret_value()
    if settings.username and settings.password:
        conf["basic.auth.user.info"] = f"{settings.username}:{settings.password.get_secret_value()}"
    if settings.token:
        conf |= {
            "bearer.auth.credentials.source": "STATIC_TOKEN",
            "bearer.auth.token": settings.token.get_secret_value(),
            "bearer.auth.logical.cluster": settings.logical_cluster,
        }
    return conf


def name_of(schema_id: SchemaId) -> int | str:
    """Return the number of a schema, or its GUID."""
    return str(schema_id.guid) if schema_id.guid is not None else schema_id.id or 0


def framed(message: ConsumerRecord, schema_type: str) -> tuple[SchemaId, bytes]:
    """Return the id of a message's schema, from its header or its first bytes, and its payload.

    Raises:
        UnreadableMessageError: it names no schema.
    """
    schema_id, value = SchemaId(schema_type), message.value or b""
    try:
        # Parse only the beginning: an encoded number of a megabyte would take minutes.
        begun = dual_schema_id_deserializer(value[:MAX_FRAME_BYTES], _context(message), schema_id)
    except (SerializationError, struct.error, EOFError, ValueError, TypeError) as error:
        why = "it has too few bytes" if isinstance(error, struct.error | EOFError) else str(error)
        raise UnreadableMessageError(f"It names no schema: {why}.") from error
    if (schema_id.id or 0) > LAST_ID:
        raise UnreadableMessageError(f"It names no schema: {schema_id.id} is no id, which has 31 bits.")
    return schema_id, value[begun.tell() :]


class Schemas(Generic[Parsed]):
    """Decoders of a stream's messages, made once for each schema that they name.

    Args:
        registry: the registry that has the schemas.
        schema_type: type of these, `AVRO`, `JSON` or `PROTOBUF`.
        parse: makes it of a schema, and of the indexes of a nested message.
        form: format of the schemas, as the registry calls it.
    """

    def __init__(
        self,
        registry: Registry,
        schema_type: str,
        parse: Callable[[Schema, tuple[int, ...]], Parsed],
        form: str | None = None,
    ) -> None:
        self._registry, self._type, self._parse, self._form = registry, schema_type, parse, form
        self._known: dict[object, Parsed | UnreadableMessageError] = {}

    def of(self, message: ConsumerRecord) -> tuple[Parsed, str, bytes]:
        """Return a message's decoder, the name of its schema for reasons, and its payload.

        Raises:
            UnreadableMessageError: it names no schema, or one that cannot be used.
            SchemaRegistryUnavailableError: the registry does not answer.
        """
        schema_id, payload = framed(message, self._type)
        named, indexes = name_of(schema_id), tuple(schema_id.message_indexes or ())
        if (named, indexes) not in self._known:
            self._known[named, indexes] = self._parsed(self._registry.schema_of(schema_id, self._form), named, indexes)
        found = self._known[named, indexes]
        if isinstance(found, UnreadableMessageError):
            # Each raise of a cached exception would extend its traceback.
            raise found.with_traceback(None)
        return found, f"{KINDS[self._type]} schema {named}", payload

    def _parsed(self, schema: Schema, named: object, indexes: tuple[int, ...]) -> Parsed | UnreadableMessageError:
        kind = KINDS[self._type]
        if (found := schema.schema_type or "AVRO") != self._type:
            return UnreadableMessageError(f"Its schema {named} is {found}, not {kind}.")
        try:
            return self._parse(schema, indexes)
        except UnreadableMessageError as error:
            return error
        except (TransientError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a library says of a schema
            return UnreadableMessageError(f"Its {kind} schema {named} cannot be used: {reason_of(error)}.")


def reason_of(error: Exception) -> str:
    """Return why a schema or a message cannot be read, in one line: libraries raise Python's own errors."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    said = error.message if isinstance(error, ValidationError) else str(error)
    return " ".join(said.split())[:200].rstrip(".") or type(error).__name__


def json_payload_of(registry: Registry) -> Callable[[ConsumerRecord], bytes | None]:
    """Return a function that validates a message by its JSON schema, and returns its JSON."""
    schemas = Schemas(registry, "JSON", lambda schema, _indexes: _JsonSchema(registry, schema))

    def payload_of(message: ConsumerRecord) -> bytes | None:
        schema, named, text = schemas.of(message)
        try:
            value = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise not_json(text, error) from error
        if not schema.validator.is_valid(value):
            raise UnreadableMessageError(f"Not of its {named}{schema.mismatch(value, len(text))}.")
        return text

    return payload_of


class _JsonSchema:
    """A JSON schema, and what it refers to in the registry: never an address that it names.

    Regular expressions are matched in linear time, so that no text can make one take hours.

    Raises:
        ValueError: it is no schema, refers to nothing, or has too many parts.
    """

    def __init__(self, registry: Registry, schema: Schema) -> None:
        contents = {"": msgspec.json.decode(schema.schema_str or "")}
        self._size = len(schema.schema_str or "") + _enter_references(registry, schema, contents)
        known = JsonSchemas(list(contents.items())[1:], draft=Draft7)
        self.validator: Validator = validator_for(
            contents[""], registry=known, validate_formats=False, pattern_options=RegexOptions(), offline=True
        )
        _require_few_parts(contents)

    def mismatch(self, value: Any, length: int) -> str:  # noqa: ANN401 - JSON
        """Return where a value of some length, which is not of the schema, differs from it, and how."""
        if length * self._size > MAX_EXPLAINED:
            return ", and both are too large to say where"
        try:
            self.validator.validate(value)
        except ValidationError as error:
            path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.instance_path)
            said = (
                error.message if len(error.message) <= MAX_REASON else f"{error.message[:100]}…{error.message[-200:]}"
            )
            return f": ${path} {said}"
        return ""


def _enter_references(registry: Registry, schema: Schema, known: dict[str, Any]) -> int:
    """Add the contents of the schemas that a schema refers to, by their names; return their size in characters."""
    size = 0
    for one in schema.references or ():
        if one.name and one.name not in known:
            found = registry.version_of(one.subject or "", one.version or 0)
            known[one.name] = msgspec.json.decode(found.schema_str or "")
            size += len(found.schema_str or "") + _enter_references(registry, found, known)
    return size


def _require_few_parts(contents: Mapping[str, Any]) -> None:
    """Refuse a schema whose references multiply: forty that each name the next one twice would be checked for hours."""
    parts: dict[tuple[str, str], int] = {}
    root = JsonSchemas([(name or ROOT, content) for name, content in contents.items()], draft=Draft7).resolver(ROOT)

    def count(part: Any, resolver: Resolver) -> int:  # noqa: ANN401 - JSON
        if isinstance(part, list):
            return sum(count(one, resolver) for one in part)
        if not isinstance(part, dict):
            return 0
        if isinstance(own_id := part.get("$id"), str):
            with suppress(ReferencingError):
                resolver = resolver.lookup(own_id).resolver
        total = 1 + sum(count(one, resolver) for one in part.values())
        return total + sum(referred(resolver, part[name]) for name in REFERENCES if isinstance(part.get(name), str))

    def referred(resolver: Resolver, reference: str) -> int:
        place = resolver.base_uri, reference
        if place not in parts:
            # A part inside of itself ends with the value.
            parts[place] = 0
            # What is no reference, but the value of an enum, may lead to nothing.
            with suppress(ReferencingError):
                found = resolver.lookup(reference)
                parts[place] = count(found.contents, found.resolver)
        return parts[place]

    if count(contents[""], root) > MAX_PARTS:
        raise ValueError(f"with what it refers to, it has more than {MAX_PARTS:,} parts")


def _context(message: ConsumerRecord) -> SerializationContext:
    headers: list[tuple[str, str | bytes | None]] = [
        (name, value) for name, value in message.headers if len(value or b"") <= MAX_FRAME_BYTES
    ]
    return SerializationContext(message.topic, MessageField.VALUE, headers)
