"""The processes of the compose file, run separately: they ingest a file together and stop cleanly."""

from __future__ import annotations

import itertools
import json
import os
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from ingest_project.platform.kafka.producer import ProducerRecord, TopicWriter
from ingest_project_tests.deploy.separate_processes import Deployment
from ingest_project_tests.journeys.system import readings
from ingest_project_tests.services.kafka import EmbeddedServer, Server
from ingest_project_tests.services.postgres import PostgresServer

pytestmark = pytest.mark.long

DONE_SECONDS = 60.0
# Much less than the grace periods of the compose file.
PROMPT_SECONDS = 15.0
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def deployment(kafka_server: Server, postgres_server: PostgresServer) -> Iterator[Deployment]:
    warehouse, dagster = postgres_server.create_database(), postgres_server.create_database()
    deployment = Deployment(
        {
            "DATABASE_URL": postgres_server.url(warehouse),
            "DAGSTER_POSTGRES_URL": postgres_server.url(dagster),
            "KAFKA_BOOTSTRAP_SERVERS": kafka_server.bootstrap_servers,
        },
        topics=f"deploy{os.getpid()}-{next(_numbers)}",
    )
    if isinstance(kafka_server, EmbeddedServer):
        pytest.skip("the embedded broker cannot make topics; Apache Kafka needs Java 17 and Maven")
    yield deployment
    deployment.close()
    for name in (warehouse, dagster):
        postgres_server.drop_database(name)


@pytest.mark.timeout(180)
def test_the_processes_of_the_compose_file_ingest_a_file_and_end_when_asked_to(
    deployment: Deployment, kafka_server: Server
) -> None:
    assert "topics made with 12 partitions; 0 were there" in deployment.run("migrate")
    assert "0 topics made" in deployment.run("migrate")
    for service in ("code-server", "webserver"):
        deployment.start(service)
    deployment.wait_until_healthy("code-server")
    deployment.start("daemon")

    (deployment.inbox / "hall.csv").write_text(readings(25), encoding="utf-8")
    os.utime(deployment.inbox / "hall.csv", (1, 1))
    _send_job(kafka_server, deployment.environment("daemon")["KAFKA_TOPIC_POLLING_QUEUE"], deployment.inbox)
    _wait_for_rows(deployment, 25)

    for service in ("webserver", "daemon"):
        deployment.wait_until_healthy(service)
    assert _locations(deployment.ports["webserver"]) == ["ingest_project"]
    for service in ("daemon", "webserver", "code-server"):
        assert deployment.stop(service) < PROMPT_SECONDS, service
    _require_nothing_written(deployment.home)


def _require_nothing_written(home: Path) -> None:
    """Beside the volume: the image is read-only."""
    added = {path.name for path in home.iterdir()} - {"dagster.yaml", "storage", "workspace.yaml"}
    # The webserver makes these two for a telemetry that is off; where it cannot, it goes on without a word.
    assert added <= {"logs", ".logs_queue"}
    assert not any(any((home / name).iterdir()) for name in added)


def _send_job(server: Server, topic: str, folder: Path) -> None:
    job = {"job_id": "inbox", "source_config": {"source_type": "local", "path": str(folder)}, "file_pattern": "*.csv"}
    writer = TopicWriter(server.settings)
    writer.send_all(topic, [ProducerRecord(json.dumps(job).encode())])
    writer.close()


def _wait_for_rows(deployment: Deployment, rows: int) -> None:
    give_up_at = time.monotonic() + DONE_SECONDS
    while _stored(deployment) != rows:
        said = deployment.log("daemon") + deployment.log("code-server")
        assert time.monotonic() < give_up_at, said
        time.sleep(0.3)


def _stored(deployment: Deployment) -> int:
    connection = psycopg2.connect(deployment.addresses["DATABASE_URL"])
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM raw_sensor_data")
            (count,) = cursor.fetchone() or (0,)
    finally:
        connection.close()
    return int(count)


def _locations(port: int) -> list[str]:
    query = {"query": "{ workspaceOrError { ... on Workspace { locationEntries { name loadStatus } } } }"}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql", json.dumps(query).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - a fixed address of this machine
        entries = json.load(answer)["data"]["workspaceOrError"]["locationEntries"]
    return [entry["name"] for entry in entries if entry["loadStatus"] == "LOADED"]
