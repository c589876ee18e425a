"""The schema registry that describes messages: any server with Confluent's API, through Confluent's own client.

A registry that is away fails the run, which is repeated. A message that names a schema the registry does not have, or
whose bytes are not of its schema, is that message's fault. Schemas never change: each is fetched once.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache
from io import BytesIO
from typing import Any

from confluent_kafka.schema_registry import Schema, SchemaRegistryClient, dual_schema_id_deserializer
from confluent_kafka.schema_registry.common._httpx_compat import httpx
from confluent_kafka.schema_registry.error import SchemaRegistryError
from confluent_kafka.schema_registry.json_schema import JSONDeserializer
from confluent_kafka.schema_registry.serde import SchemaId
from confluent_kafka.serialization import MessageField, SerializationContext, SerializationError

from ingest_project.core.errors import SchemaRegistryUnavailableError, SettingsError, UnreadableMessageError
from ingest_project.core.settings import SchemaRegistrySettings, Settings
from ingest_project.platform.http import parse_url
from ingest_project.platform.http.host_policy import HostLists, host_lists
from ingest_project.platform.kafka.consumer import ConsumerRecord

NOT_FOUND = 404
RETRIES, FIRST_PAUSE_MS, LONGEST_PAUSE_MS = 2, 200, 1_000


class Registry:
    """Schemas by their ids.

    Args:
        client: of the registry.
        url: for messages.
    """

    def __init__(self, client: SchemaRegistryClient, url: str) -> None:
        self.client, self._url = client, url
        # A message may name any id: those that are not there are asked for once as well.
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
                found: Schema = self.call(lambda: self._fetched(named, form))
            except UnreadableMessageError:
                self._missing.add(named)
            else:
                return found
        raise UnreadableMessageError(f"The schema registry has no schema {named}.")

    def call(self, fetch: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever is fetched
        """Call the client, and map its errors.

        Raises:
            UnreadableMessageError: the registry does not have what is fetched.
            SchemaRegistryUnavailableError: the registry does not answer or refuses.
        """
        try:
            return fetch()
        except SchemaRegistryError as error:
            if error.http_status_code == NOT_FOUND:
                raise UnreadableMessageError(f"The schema registry: {error.error_message}.") from error
            raise SchemaRegistryUnavailableError(self._url, f"{error}") from error
        except (httpx.HTTPError, ValueError, TypeError, KeyError) as error:
            raise SchemaRegistryUnavailableError(self._url, f"{type(error).__name__}: {error}") from error

    def version_of(self, subject: str, version: int, form: str | None = None) -> Schema:
        """Return the schema that another one refers to.

        Raises:
            UnreadableMessageError: the registry does not have it.
            SchemaRegistryUnavailableError: the registry does not answer or refuses.
        """
        found: Schema = self.call(lambda: self.client.get_version(subject, version, True, form).schema)
        return found

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


def forget_registries() -> None:
    """Close the connections to all registries, and forget their schemas."""
    while _opened:
        _opened.pop().close()
    _registry.cache_clear()


_opened: list[SchemaRegistryClient] = []


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
            f"The credentials of the schema registry {address.printable} would be sent without TLS. Use https, or set"
            " INGEST_SCHEMA_REGISTRY_PLAIN_HTTP."
        )
    client = SchemaRegistryClient(_configuration(settings))
    _opened.append(client)
    return Registry(client, address.printable)


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


def framed(message: ConsumerRecord, schema_type: str) -> tuple[SchemaId, BytesIO]:
    """Return the id of a message's schema, from its header or its first bytes, and its payload.

    Raises:
        UnreadableMessageError: it names no schema.
    """
    schema_id = SchemaId(schema_type)
    try:
        return schema_id, dual_schema_id_deserializer(message.value or b"", _context(message), schema_id)
    except (SerializationError, struct.error, EOFError, ValueError, TypeError) as error:
        raise UnreadableMessageError(f"It names no schema: {error}.") from error


def json_payload_of(registry: Registry) -> Callable[[ConsumerRecord], bytes | None]:
    """Return a function that validates a message by its JSON schema, and returns its JSON."""
    known: set[int | str] = set()
    # Without a subject a schema is fetched by its id alone, as `schema_of` does.
    conf = {"subject.name.strategy": lambda _context, _record: None}
    deserialize = JSONDeserializer(None, schema_registry_client=registry.client, conf=conf)

    def validate(message: ConsumerRecord) -> None:
        try:
            deserialize(message.value, _context(message))
        except SerializationError as error:
            raise UnreadableMessageError(f"Not of its JSON schema: {str(error)[:300]}.") from error
        except (ValueError, RecursionError) as error:
            raise UnreadableMessageError(f"Not JSON: {str(error)[:200]}.") from error

    def payload_of(message: ConsumerRecord) -> bytes | None:
        schema_id, payload = framed(message, "JSON")
        if name_of(schema_id) not in known:
            # The deserializer's own errors do not say whose fault a missing schema is.
            registry.schema_of(schema_id)
            known.add(name_of(schema_id))
        registry.call(lambda: validate(message))
        return payload.read()

    return payload_of


def _context(message: ConsumerRecord) -> SerializationContext:
    return SerializationContext(message.topic, MessageField.VALUE, list(message.headers))
