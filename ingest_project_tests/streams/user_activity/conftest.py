"""The user_activity capability in one test process, on a real broker, a real database and Dagster's own records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import DagsterInstance

from ingest_project.core.settings import load_settings
from ingest_project_tests.services.kafka import Server
from ingest_project_tests.streams.user_activity.system import ActivitySystem, activity_environment


@pytest.fixture
def environ(kafka_server: Server, postgres_url: str, tmp_path: Path) -> dict[str, str]:
    """The settings of the system: a topic, a table and a database of its own."""
    found = activity_environment(kafka_server.bootstrap_servers, postgres_url, tmp_path)
    kafka_server.create_topic(found["KAFKA_TOPIC_USER_ACTIVITY_EVENTS"], 2)
    return found


@pytest.fixture
def activity(environ: dict[str, str], instance: DagsterInstance, tmp_path: Path) -> Iterator[ActivitySystem]:
    """The capability in this process."""
    system = ActivitySystem(load_settings(environ, tmp_path).settings, instance, tmp_path)
    yield system
    system.close()
