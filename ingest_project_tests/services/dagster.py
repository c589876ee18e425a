"""Dagster instances for tests: on PostgreSQL with the bulk event log, and on Dagster's own SQLite storage."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from dagster import DagsterInstance, instance_for_test

from ingest_project.settings import current_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def instance_on(postgres_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    """An instance as dagster.yaml makes it; an empty URL means SQLite in the folder."""
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", postgres_url)
    monkeypatch.setenv("INGEST_STATE_DIR", str(folder))
    current_settings.cache_clear()
    storage = {"custom": {"module": "ingest_project.event_storage", "class": "InstanceStorage", "config": {}}}
    try:
        with instance_for_test(overrides={"storage": storage, "telemetry": {"enabled": False}}) as instance:
            yield instance
    finally:
        current_settings.cache_clear()


@pytest.fixture(params=["postgresql", "sqlite"])
def any_instance(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DagsterInstance]:
    """An instance on each kind of storage in turn."""
    url = request.getfixturevalue("empty_postgres_url") if request.param == "postgresql" else ""
    with instance_on(url, tmp_path, monkeypatch) as instance:
        yield instance


@pytest.fixture
def dagster_instance(
    empty_postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DagsterInstance]:
    """An instance on PostgreSQL, as in production."""
    with instance_on(empty_postgres_url, tmp_path, monkeypatch) as instance:
        yield instance
