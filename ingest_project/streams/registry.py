"""The schema registry that describes messages: any server with Confluent's API, through Confluent's own client.

A registry that is away fails the run, which is repeated. A message that names a schema the registry does not have, or
whose bytes are not of its schema, is that message's fault. Schemas never change: each is fetched once.
"""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from itertools import islice
from typing import Any, Generic, TypeVar

import msgspec
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient, dual_schema_id_deserializer
from confluent_kafka.schema_registry.common._httpx_compat import httpx
from confluent_kafka.schema_registry.error import SchemaRegistryError
from confluent_kafka.schema_registry.serde import SchemaId
from confluent_kafka.serialization import MessageField, SerializationContext, SerializationError
from jsonschema import validators as drafts
from jsonschema.exceptions import SchemaError as JsonSchemaError
from jsonschema.exceptions import ValidationError, best_match
from jsonschema_specifications import REGISTRY as STANDARD_SCHEMAS
from pydantic_core import SchemaError as PatternError
from pydantic_core import SchemaValidator, core_schema
from referencing import Resource
from referencing.jsonschema import DRAFT7

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
# A step of a check by a JSON schema is one keyword for one value, some parts of these, or a part of an error.
MAX_STEPS, PARTS_OF_STEP, STEPS_OF_ERROR = 1_000_000, 16, 50
# The best reason is among the first errors.
MAX_ERRORS, MAX_REASON = 1_000, 300
SIZED = {str, list, dict}
UNEVALUATED = ("unevaluatedItems", "unevaluatedProperties")
# Together they give names to Python's engine of regular expressions, which has no limit.
NOT_TOGETHER = ('"patternProperties":', '"unevaluatedProperties":')

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
    """What the messages of a stream are read with: made once of each schema that they name.

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
        """Return what a message is read with, the name of its schema for reasons, and its payload.

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
    said = error.message if isinstance(error, JsonSchemaError) else str(error)
    return " ".join(said.split())[:200].rstrip(".") or type(error).__name__


def json_payload_of(registry: Registry) -> Callable[[ConsumerRecord], bytes | None]:
    """Return a function that validates a message by its JSON schema, and returns its JSON."""
    schemas = Schemas(registry, "JSON", lambda schema, _indexes: _validator(registry, schema))

    def payload_of(message: ConsumerRecord) -> bytes | None:
        validator, named, text = schemas.of(message)
        try:
            wrong = _bounded(lambda: best_match(islice(validator.iter_errors(msgspec.json.decode(text)), MAX_ERRORS)))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise not_json(text, error) from error
        except (MemoryError, UnreadableMessageError):
            raise
        except Exception as error:  # a schema that cannot be applied, such as a reference to nothing
            raise UnreadableMessageError(f"Its {named} cannot be used: {reason_of(error)}.") from error
        if wrong is not None:
            raise UnreadableMessageError(f"Not of its {named}: {wrong.json_path} {wrong.message}.")
        return text

    return payload_of


class _Check(threading.local):
    """The check by a JSON schema that a thread makes; without one the validators are those of jsonschema.

    Args:
        steps: those that are left; None without a check.
        factor: how many times each counts.
    """

    steps: int | None = None
    factor = 1

    def spend(self, steps: int) -> None:
        self.steps = (self.steps or 0) - steps * self.factor
        if self.steps < 0:
            raise UnreadableMessageError(f"The check by its JSON schema takes more than {MAX_STEPS:,} steps.")


_check = _Check()


def _bounded(check: Callable[[], Parsed]) -> Parsed:
    _check.steps, _check.factor = MAX_STEPS, 1
    try:
        return check()
    finally:
        _check.steps = None


def _counting(keyword: Any, linear: Any, steps: int) -> Any:  # noqa: ANN401 - functions of jsonschema
    """Return the function of a keyword that counts its steps in a check, and calls another one there."""

    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:  # noqa: ANN401 - JSON
        if _check.steps is None:
            return keyword(validator, value, instance, schema) or iter(())
        parts = (len(value) if type(value) in SIZED else 0) + (len(instance) if type(instance) in SIZED else 0)
        _check.spend(steps + parts // PARTS_OF_STEP)
        return map(_counted, linear(validator, value, instance, schema) or ())

    return check


def _counted(error: ValidationError) -> ValidationError:
    _check.spend(STEPS_OF_ERROR + len(error.message) // PARTS_OF_STEP)
    error.message = error.message[:MAX_REASON]
    return error


@lru_cache(1_000)
def _search(pattern: str) -> Callable[[str], bool]:
    """Return a search for a regular expression by an engine of linear time; Python's may take hours for a short text.

    Raises:
        ValueError: the engine does not take it.
    """
    try:
        return SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex")).isinstance_python
    except PatternError as error:
        reason = str(error).rpartition("rror: ")[2].rstrip(".")
        raise ValueError(f"{pattern[:MAX_REASON]!r} is not a regular expression of linear time: {reason}") from None


def _pattern(validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[ValidationError]:  # noqa: ANN401 - JSON
    if validator.is_type(instance, "string") and not _search(pattern)(instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, _schema: Any) -> Iterator[ValidationError]:  # noqa: ANN401 - JSON
    if validator.is_type(instance, "object"):
        _check.spend(len(patterns) * len(instance) // PARTS_OF_STEP)
        for pattern, inner in patterns.items():
            for name in filter(_search(pattern), instance):
                yield from validator.descend(instance[name], inner, path=name, schema_path=pattern)


def _additional_properties(keyword: Any) -> Any:  # noqa: ANN401 - a function of jsonschema
    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:  # noqa: ANN401 - JSON
        if validator.is_type(instance, "object"):
            known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
            _check.spend(len(patterns) * len(instance) // PARTS_OF_STEP)
            searches = [_search(pattern) for pattern in patterns]
            others = [name for name in instance if name not in known and not any(one(name) for one in searches)]
            yield from keyword(validator, value, {name: instance[name] for name in others}, {})

    return check


def _unevaluated(keyword: Any) -> Any:  # noqa: ANN401 - a function of jsonschema
    """Count what looks for the evaluated parts in proportion to all parts: jsonschema compares each with each."""

    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:  # noqa: ANN401 - JSON
        before = _check.factor
        _check.factor *= 1 + (len(instance) // PARTS_OF_STEP if type(instance) in SIZED else 0)
        try:
            yield from keyword(validator, value, instance, schema) or ()
        finally:
            _check.factor = before

    return check


def _unique_items(validator: Any, unique: Any, instance: Any, _schema: Any) -> Iterator[ValidationError]:  # noqa: ANN401 - JSON
    if unique and validator.is_type(instance, "array") and len(set(map(_comparable, instance))) < len(instance):
        yield ValidationError("has non-unique elements")


def _comparable(value: Any) -> object:  # noqa: ANN401 - JSON
    """Return what is the same for equal values of JSON; numbers as text, as many could be made to have one hash."""
    _check.spend(1)
    if isinstance(value, dict):
        return frozenset((name, _comparable(part)) for name, part in value.items())
    if isinstance(value, list):
        return tuple(map(_comparable, value))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, str) else repr(value).encode()


def _counted_draft(draft: Any) -> Any:  # noqa: ANN401 - a class of jsonschema
    """Register a class of validators that count; schemas within schemas may name a draft."""
    keywords = draft.VALIDATORS
    linear = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties(keywords["additionalProperties"]),
        "uniqueItems": _unique_items,
    } | {name: _unevaluated(keywords[name]) for name in UNEVALUATED if name in keywords}
    # A reference, such as $ref, takes as long as several other keywords.
    checks = {
        name: _counting(keyword, linear.get(name, keyword), 8 if name.startswith("$") else 1)
        for name, keyword in keywords.items()
    }
    return drafts.validates(draft.__name__)(drafts.extend(draft, checks))


DRAFTS = [_counted_draft(getattr(drafts, f"Draft{one}Validator")) for one in (3, 4, 6, 7, 201909, 202012)]


def _validator(registry: Registry, schema: Schema) -> Any:  # noqa: ANN401 - jsonschema's
    references: dict[str, Any] = {}
    _enter_references(registry, schema, references)
    content = msgspec.json.decode(schema.schema_str or "")
    text = json.dumps([content, *references.values()])
    if all(name in text for name in NOT_TOGETHER):
        raise ValueError("patternProperties and unevaluatedProperties together may take hours for one message")
    draft = drafts.validator_for(content, default=DRAFTS[-1])
    _bounded(lambda: draft.check_schema(content))
    # References lead to other schemas of the registry only, never to an address that a schema names.
    resources = [(name, Resource.from_contents(one, default_specification=DRAFT7)) for name, one in references.items()]
    return draft(content, registry=STANDARD_SCHEMAS.with_resources(resources))


def _enter_references(registry: Registry, schema: Schema, known: dict[str, Any]) -> None:
    for one in schema.references or ():
        if one.name and one.name not in known and one.name not in STANDARD_SCHEMAS:
            found = registry.version_of(one.subject or "", one.version or 0)
            known[one.name] = msgspec.json.decode(found.schema_str or "")
            _enter_references(registry, found, known)


def _context(message: ConsumerRecord) -> SerializationContext:
    headers: list[tuple[str, str | bytes | None]] = [
        (name, value) for name, value in message.headers if len(value or b"") <= MAX_FRAME_BYTES
    ]
    return SerializationContext(message.topic, MessageField.VALUE, headers)
