"""Two hosts share PostgreSQL, Kafka and the inbox: one is cut off, the other goes on, nothing is lost or doubled."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from ingest_project.devstack import free_port
from ingest_project.platform.kafka.producer import ProducerRecord, TopicWriter
from ingest_project_tests.deploy.network_hosts import TwoHosts, why_not
from ingest_project_tests.deploy.separate_processes import Deployment
from ingest_project_tests.journeys.system import readings
from ingest_project_tests.services.kafka import EmbeddedServer, Server
from ingest_project_tests.services.postgres import PostgresServer

REASON = why_not()
FILES, ROWS = 60, 200
DONE_SECONDS = 150.0
RUNS_LEFT = "SELECT count(*) FROM runs WHERE status IN ('STARTED', 'STARTING')"


@pytest.mark.timeout(400)
@pytest.mark.skipif(REASON is not None, reason=str(REASON))
@pytest.mark.long
def test_a_host_that_is_cut_off_in_the_middle_loses_and_doubles_nothing(
    kafka_server: Server, postgres_server: PostgresServer
) -> None:
    if isinstance(kafka_server, EmbeddedServer):
        pytest.skip("the embedded broker advertises no fixed port; Apache Kafka needs Java 17 and Maven")
    names = [postgres_server.create_database() for _ in range(2)]
    warehouse, dagster = map(postgres_server.url, names)
    with TwoHosts([kafka_server.port, postgres_server.port]) as hosts:
        first, second = _deployments(hosts, kafka_server, warehouse, dagster)
        try:
            _start(hosts, first, second)
            _announce(kafka_server, first, "before", range(FILES))
            _wait(lambda: _one(dagster, RUNS_LEFT) > 0, "no run started", first, second)

            hosts.cut_off("b")
            hosts.give_address_to("a")
            _announce(kafka_server, first, "after", range(FILES, 2 * FILES))
            expected = 2 * FILES * ROWS
            _wait(lambda: _one(warehouse, "SELECT count(*) FROM raw_sensor_data") == expected, "rows", first, second)

            hosts.reconnect("b")
            _wait(
                lambda: _one(warehouse, "SELECT count(*) FROM files WHERE reported_at IS NULL") == 0, "reports", first
            )
            # What the lost host still had in hand has time to arrive.
            time.sleep(3)
            assert _one(warehouse, "SELECT count(*) FROM raw_sensor_data") == expected
            assert _one(warehouse, "SELECT count(DISTINCT (file_key, line_number)) FROM raw_sensor_data") == expected
            assert _one(warehouse, "SELECT count(*) FROM files WHERE state = 'ingested'") == 2 * FILES
        finally:
            for deployment in (first, second):
                deployment.close()
            shutil.rmtree(first.inbox.parent)
    for name in names:
        postgres_server.drop_database(name)


def _deployments(hosts: TwoHosts, kafka: Server, warehouse: str, dagster: str) -> tuple[Deployment, Deployment]:
    share = Path(tempfile.mkdtemp(prefix="ingest-share-"))
    share.chmod(0o755)
    ports = {name: free_port() for name in ("code-server", "webserver", "monitor")}
    addresses = {
        "DATABASE_URL": warehouse,
        "DAGSTER_POSTGRES_URL": dagster,
        "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "INGEST_LAUNCH_GRACE_SECONDS": "10",
        "RETRY_DELAY": "1",
    }
    first, second = (
        Deployment(
            addresses,
            topics=f"hosts{os.getpid()}",
            prefix=hosts.on(name),
            code_server=hosts.floating,
            bind="0.0.0.0",  # noqa: S104 - of a namespace that only this machine reaches
            share=share,
            ports=ports,
            configuration={"run_monitoring": {"poll_interval_seconds": 2}},
        )
        for name in ("a", "b")
    )
    return first, second


def _start(hosts: TwoHosts, first: Deployment, second: Deployment) -> None:
    """Code servers on both, the second one in use; the daemon on the first."""
    first.run("migrate")
    hosts.give_address_to("b")
    for deployment in (first, second):
        deployment.start("code-server")
    for deployment in (first, second):
        deployment.wait_until_healthy("code-server")
    first.start("daemon")


def _announce(server: Server, deployment: Deployment, name: str, numbers: range) -> None:
    folder = deployment.inbox / name
    folder.mkdir()
    for number in numbers:
        path = folder / f"{number}.csv"
        path.write_text(readings(ROWS, device=f"device-{number}"), encoding="utf-8")
        os.utime(path, (1, 1))
    job: dict[str, Any] = {"source_type": "local", "path": str(folder)}
    message = json.dumps({"job_id": name, "source_config": job, "file_pattern": "*.csv"}).encode()
    writer = TopicWriter(server.settings)
    writer.send_all(deployment.environment("daemon")["KAFKA_TOPIC_POLLING_QUEUE"], [ProducerRecord(message)])
    writer.close()


def _wait(holds: Callable[[], bool], what: str, *deployments: Deployment) -> None:
    give_up_at = time.monotonic() + DONE_SECONDS
    while not holds():
        if time.monotonic() > give_up_at:
            said = [deployment.log(service) for deployment in deployments for service in deployment.running]
            pytest.fail("\n".join([what, *said]))
        time.sleep(0.05)


def _one(url: str, query: str) -> int:
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(query)
            (value,) = cursor.fetchone() or (0,)
    finally:
        connection.close()
    return int(value)
