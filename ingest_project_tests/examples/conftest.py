"""The fixtures of tests of the examples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import DagsterInstance

from ingest_project_tests.examples.system import ExampleSystem, example_environment, opened
from ingest_project_tests.services.kafka import Server
from ingest_project_tests.services.schema_registry import SchemaRegistry


@pytest.fixture(scope="session")
def registry() -> Iterator[SchemaRegistry]:
    """A schema registry."""
    with SchemaRegistry() as server:
        yield server


@pytest.fixture
def environ(
    kafka_server: Server, postgres_url: str, registry: SchemaRegistry, instance: DagsterInstance, tmp_path: Path
) -> dict[str, str]:
    """Settings of a system with the examples' declarations."""
    del instance
    return example_environment(kafka_server, postgres_url, registry, tmp_path)


@pytest.fixture
def examples(environ: dict[str, str], instance: DagsterInstance, tmp_path: Path) -> Iterator[ExampleSystem]:
    """The system with the declared examples, and their files in its folder."""
    system = opened(environ, instance, tmp_path)
    yield system
    system.close()
