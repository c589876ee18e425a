"""Dagster instances for tests: on PostgreSQL with the bulk event log, and on Dagster's own SQLite storage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dagster import DagsterInstance, instance_for_test

from ingest_project.core.settings import current_settings
from ingest_project_tests.services.postgres import PostgresServer


@contextmanager
def instance_on(postgres_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    """An instance as dagster.yaml makes it; an empty URL means SQLite in the folder."""
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", postgres_url)
    monkeypatch.setenv("INGEST_STATE_DIR", str(folder))
    current_settings.cache_clear()
    storage = {
        "custom": {
            "module": "ingest_project.platform.dagster.event_log_storage",
            "class": "InstanceStorage",
            "config": {},
        }
    }
    try:
        with instance_for_test(overrides={"storage": storage, "telemetry": {"enabled": False}}) as instance:
            yield instance
    finally:
        current_settings.cache_clear()


@pytest.fixture(scope="session")
def dagster_template(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Name of a database with Dagster's tables and no rows, to copy from."""
    name = postgres_server.create_database()
    with (
        pytest.MonkeyPatch.context() as patch,
        instance_on(postgres_server.url(name), tmp_path_factory.mktemp("template"), patch) as instance,
    ):
        instance.get_runs(limit=1)
    # The instance leaves its connections to the garbage collector, and a database that is in use cannot be copied.
    postgres_server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    return name


@pytest.fixture
def dagster_postgres_url(postgres_server: PostgresServer, dagster_template: str) -> Iterator[str]:
    """A database of one test with Dagster's tables."""
    name = postgres_server.create_database(dagster_template)
    yield postgres_server.url(name)
    postgres_server.drop_database(name)


@pytest.fixture(params=["postgresql", "sqlite"])
def any_instance(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DagsterInstance]:
    """An instance on each kind of storage in turn."""
    url = request.getfixturevalue("dagster_postgres_url") if request.param == "postgresql" else ""
    with instance_on(url, tmp_path, monkeypatch) as instance:
        yield instance


@pytest.fixture
def dagster_instance(
    dagster_postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DagsterInstance]:
    """An instance on PostgreSQL, as in production."""
    with instance_on(dagster_postgres_url, tmp_path, monkeypatch) as instance:
        yield instance
