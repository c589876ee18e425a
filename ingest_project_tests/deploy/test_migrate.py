"""`ingest migrate` creates everything, is idempotent, and names an unreachable service."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
from confluent_kafka.admin import AdminClient

from ingest_project.cli.dev import make_missing_topics
from ingest_project.cli.main import run
from ingest_project.core.errors import BrokerUnavailableError
from ingest_project.core.settings import KafkaSettings
from ingest_project.devstack import free_port
from ingest_project.platform.database import HEAD, open_engine, schema_version
from ingest_project_tests.services.kafka import EmbeddedServer, Server
from ingest_project_tests.services.postgres import PostgresServer


@pytest.fixture
def addresses(
    postgres_server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, str]]:
    """Two empty databases: the warehouse's and Dagster's."""
    names = [postgres_server.create_database() for _ in range(2)]
    warehouse, dagster = map(postgres_server.url, names)
    monkeypatch.setenv("DATABASE_URL", warehouse)
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", dagster)
    monkeypatch.setenv("INGEST_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("INGEST_CONFIG_DIR", str(tmp_path))
    yield warehouse, dagster
    for name in names:
        postgres_server.drop_database(name)


def tables(url: str) -> set[str]:
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            return {name for (name,) in cursor}
    finally:
        connection.close()


def test_migrating_creates_all_tables_and_is_idempotent(
    addresses: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    warehouse, dagster = addresses
    assert run(["migrate"]) == 0
    assert {"files", "raw_sensor_data"} <= tables(warehouse)
    assert {"event_logs", "runs", "job_ticks"} <= tables(dagster)
    before = tables(warehouse), tables(dagster)
    engine = open_engine(warehouse)
    assert schema_version(engine) == HEAD
    engine.dispose()

    assert run(["migrate"]) == 0
    assert (tables(warehouse), tables(dagster)) == before
    assert HEAD in capsys.readouterr().out


def test_one_database_for_both_is_refused_before_anything_is_written(
    addresses: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    warehouse, _ = addresses
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", warehouse.replace("postgresql:", "postgresql+psycopg2:"))
    assert run(["migrate"]) == 2
    assert "the same database" in capsys.readouterr().err
    assert not tables(warehouse)


@pytest.mark.usefixtures("addresses")
def test_a_database_that_is_away_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgresql://ingest:canary@127.0.0.1:{free_port()}/warehouse")
    assert run(["migrate", "--wait", "1"]) == 1
    said = capsys.readouterr().err
    assert "does not answer" in said
    assert "canary" not in said


def test_only_topics_that_are_missing_are_made(kafka_server: Server) -> None:
    if isinstance(kafka_server, EmbeddedServer):
        pytest.skip("the embedded broker cannot make topics; Apache Kafka needs Java 17 and Maven")
    there, missing = (f"migrate{os.getpid()}.{name}" for name in ("there", "missing"))
    kafka_server.create_topic(there, partitions=2)

    assert make_missing_topics(kafka_server.settings, [there, missing], 3, 1) == (missing,)
    assert make_missing_topics(kafka_server.settings, [there, missing], 3, 1) == ()

    admin = AdminClient({"bootstrap.servers": kafka_server.bootstrap_servers})
    topics = admin.list_topics(timeout=5).topics
    assert [len(topics[name].partitions) for name in (there, missing)] == [2, 3]


def test_an_unreachable_broker_is_reported() -> None:
    nowhere = KafkaSettings(bootstrap_servers=f"127.0.0.1:{free_port()}", request_timeout_seconds=1.0)
    with pytest.raises(BrokerUnavailableError):
        make_missing_topics(nowhere, ["topic"], 1, 1)
