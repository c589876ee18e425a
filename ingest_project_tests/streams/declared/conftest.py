"""A declared stream in one test process, on a real broker, a real database and Dagster's own records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from dagster import DagsterInstance

from ingest_project.core.settings import load_settings
from ingest_project.streams import registry as registries
from ingest_project_tests.services.kafka import Server
from ingest_project_tests.services.schema_registry import SchemaRegistry
from ingest_project_tests.streams.declared.system import DeclaredSystem, declare, declared_environment

Declare = Callable[[Mapping[str, Any]], DeclaredSystem]


@pytest.fixture(autouse=True)
def closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the connections to a test's registries: a process keeps one for each."""
    opened = list[SchemaRegistryClient]()

    def remembered(conf: dict[str, Any]) -> SchemaRegistryClient:
        opened.append(SchemaRegistryClient(conf))
        return opened[-1]

    monkeypatch.setattr(registries, "SchemaRegistryClient", remembered)
    yield
    registries._registry.cache_clear()
    for client in opened:
        client.close()


@pytest.fixture
def registry() -> Iterator[SchemaRegistry]:
    """A registry without a schema."""
    with SchemaRegistry() as made:
        yield made


@pytest.fixture
def declared(
    kafka_server: Server, postgres_url: str, instance: DagsterInstance, tmp_path: Path, registry: SchemaRegistry
) -> Iterator[Declare]:
    """Declare the one stream of a test, on a topic and a database of its own."""
    environ = declared_environment(kafka_server.bootstrap_servers, postgres_url, tmp_path)
    topic = f"{environ['KAFKA_GROUP_ID']}.orders"
    kafka_server.create_topic(topic, 2)
    systems: list[DeclaredSystem] = []

    def made(attributes: Mapping[str, Any]) -> DeclaredSystem:
        declare(tmp_path, {"topic": topic, **attributes})
        settings = load_settings(environ | {"INGEST_SCHEMA_REGISTRY_URL": registry.url}, tmp_path).settings
        for earlier in systems:
            earlier.close()
        systems.append(DeclaredSystem(settings, instance, tmp_path, systems[-1].cursors if systems else {}))
        return systems[-1]

    yield made
    for system in systems:
        system.close()
