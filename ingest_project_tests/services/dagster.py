"""Dagster instances for tests: on PostgreSQL with the bulk event log, and on Dagster's own SQLite storage."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dagster import DagsterInstance, instance_for_test
from dagster._core.instance_for_test import cleanup_test_instance
from pydantic import SecretStr

from ingest_project.core.settings import current_settings
from ingest_project.platform.dagster.instance import shared_engine
from ingest_project_tests.services.postgres import PostgresServer
from ingest_project_tests.services.shared import made_once

OVERRIDES = {
    "storage": {
        "custom": {"module": "ingest_project.platform.dagster.instance", "class": "InstanceStorage", "config": {}}
    },
    # Two processes for each run would follow its output.
    "compute_logs": {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"},
    "telemetry": {"enabled": False},
}
# Tables in which Dagster notes what it has done to the others, and whose instance they are.
WRITTEN_WITH_THE_TABLES = ("alembic_version", "instance_info", "secondary_indexes")


@contextmanager
def instance_on(
    postgres_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch, home: Path | None = None
) -> Iterator[DagsterInstance]:
    """Return an instance by dagster.yaml; an empty URL means SQLite in its home, by default a temporary folder."""
    with (
        _settings_of(postgres_url, folder, monkeypatch),
        instance_for_test(overrides=OVERRIDES, temp_dir=str(home) if home else None) as instance,
    ):
        yield instance


@contextmanager
def _settings_of(postgres_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", postgres_url)
    monkeypatch.setenv("INGEST_STATE_DIR", str(folder))
    current_settings.cache_clear()
    try:
        yield
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


@pytest.fixture(scope="session")
def sqlite_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of Dagster with its SQLite files, without rows, to be copied: making them takes 0.2 s."""
    home = tmp_path_factory.mktemp("sqlite_home")
    with pytest.MonkeyPatch.context() as patch, instance_on("", home, patch, home) as instance:
        instance.get_runs(limit=1)
    return home


@pytest.fixture(params=["postgresql", "sqlite"])
def any_instance(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DagsterInstance]:
    """An instance on each kind of storage in turn."""
    if request.param == "postgresql":
        url, home = request.getfixturevalue("dagster_postgres_url"), None
    else:
        url, home = "", shutil.copytree(request.getfixturevalue("sqlite_home"), tmp_path / "dagster_home")
    with instance_on(url, tmp_path, monkeypatch, home) as instance:
        yield instance


@pytest.fixture(scope="session")
def opened_instance(
    postgres_server: PostgresServer, dagster_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[DagsterInstance, Path]]:
    """An instance on PostgreSQL and its home, opened once for all tests of a process: opening takes 20 ms."""
    home = tmp_path_factory.mktemp("dagster_home")
    with (
        pytest.MonkeyPatch.context() as patch,
        _settings_of(postgres_server.url(dagster_database), home, patch),
        instance_for_test(overrides=OVERRIDES, set_dagster_home=False, temp_dir=str(home)) as instance,
    ):
        patch.undo()
        yield instance, home


@pytest.fixture
def dagster_instance(
    opened_instance: tuple[DagsterInstance, Path],
    dagster_postgres_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[DagsterInstance]:
    """An instance on PostgreSQL, as in production."""
    instance, home = opened_instance
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    with _settings_of(dagster_postgres_url, tmp_path, monkeypatch):
        yield instance
        # As at the end of an instance: runs that it launched write no more.
        cleanup_test_instance(instance)
