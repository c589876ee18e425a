"""Dagster instances for tests: on PostgreSQL with the bulk event log, and on Dagster's own SQLite storage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dagster import DagsterInstance, instance_for_test
from pydantic import SecretStr

from ingest_project.core.settings import current_settings
from ingest_project.platform.dagster.instance import shared_engine
from ingest_project_tests.services.postgres import PostgresServer
from ingest_project_tests.services.shared import made_once

OVERRIDES = {
    "storage": {
        "custom": {
            "module": "ingest_project.platform.dagster.instance",
            "class": "InstanceStorage",
            "config": {},
        }
    },
    # Two processes for each run would follow its output.
    "compute_logs": {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"},
    "telemetry": {"enabled": False},
}
# Tables in which Dagster notes what it has done to the others, and whose instance they are.
WRITTEN_WITH_THE_TABLES = ("alembic_version", "instance_info", "secondary_indexes")


@contextmanager
def instance_on(postgres_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    """An instance as dagster.yaml makes it; an empty URL means SQLite in the folder."""
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", postgres_url)
    monkeypatch.setenv("INGEST_STATE_DIR", str(folder))
    current_settings.cache_clear()
    try:
        with instance_for_test(overrides=OVERRIDES) as instance:
            yield instance
    finally:
        current_settings.cache_clear()


@pytest.fixture(scope="session")
def dagster_database(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Name of a database with Dagster's tables, without rows.

    One for all tests of a process: for each new address the storage looks for its tables and opens connections that
    stay.
    """

    def make() -> str:
        name = postgres_server.create_database()
        url = postgres_server.url(name)
        with (
            pytest.MonkeyPatch.context() as patch,
            instance_on(url, tmp_path_factory.mktemp("template"), patch) as instance,
        ):
            instance.get_runs(limit=1)
        shared_engine(SecretStr(url)).dispose()
        return name

    return postgres_server.create_database(made_once("dagster", tmp_path_factory, make))


@pytest.fixture
def dagster_postgres_url(postgres_server: PostgresServer, dagster_database: str) -> Iterator[str]:
    """A database with Dagster's tables, which are empty."""
    yield postgres_server.url(dagster_database)
    postgres_server.empty_database(dagster_database, kept=WRITTEN_WITH_THE_TABLES)


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
