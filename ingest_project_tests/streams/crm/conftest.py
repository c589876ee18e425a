"""The crm capability in one test process, on a real broker, a real database and Dagster's own records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import DagsterInstance

from ingest_project.core.settings import load_settings
from ingest_project_tests.services.kafka import Server
from ingest_project_tests.streams.crm.system import CrmSystem, crm_environment


@pytest.fixture
def crm(kafka_server: Server, database_url: str, instance: DagsterInstance, tmp_path: Path) -> Iterator[CrmSystem]:
    """The capability with a topic and a database of its own, on each kind of database in turn."""
    environ = crm_environment(kafka_server.bootstrap_servers, database_url, tmp_path)
    kafka_server.create_topic(environ["KAFKA_TOPIC_SALES_EVENTS"], 2)
    system = CrmSystem(load_settings(environ, tmp_path).settings, instance, tmp_path)
    yield system
    system.close()
