"""Ratio of the costs of a run over a few new events with ten times the history and with little.

Two systems store user activity in tables of their own, the larger one from ten times the partitions, with ten times the
events, commits and hours; all of it got there by runs. Then both store the same number of new events, in turns, and the
best of each counts. Positions and marks of hours are in an embedded PostgreSQL.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from confluent_kafka import Producer

from benchmarks.activity import PATIENCE_SECONDS, _is_exact, _messages
from benchmarks.measurement import Result, say
from benchmarks.system import connect
from ingest_project.core.settings import load_settings
from ingest_project.devstack.postgres import start_postgres, wait_for_postgres
from ingest_project.operations import SystemResources
from ingest_project.platform.database import migrate
from ingest_project.streams.delta.sink import DeltaSink
from ingest_project.streams.engine import settle, store_stream
from ingest_project_tests.services.kafka import Server, start_server

GROWTH = 10
EVENTS = 10_000
PARTITIONS, HOURS = 2, 24
ROUNDS = 5
# In both systems alike.
NEW_EVENTS, NEW_PARTITIONS, TURNS = 1_000, 2, 5
FIRST = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class _Activity:
    """One table of events, its topic and its positions.

    Args:
        folder: of the table.
        sent: number of events.
        seconds: by the clock, of each measured run.
        cpu_seconds: of this process, likewise.
    """

    server: Server
    services: SystemResources
    folder: Path
    sent: int = 0
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    def send(self, events: int, partitions: int, hours: int) -> None:
        """Send events with unique ids, evenly over partitions and hours."""
        topic = self.services.settings.topics.user_activity_events
        producer = Producer({"bootstrap.servers": self.server.bootstrap_servers, "linger.ms": 20})
        for number, message in enumerate(_events(self.sent, events, hours)):
            producer.produce(topic, message, partition=number % partitions)
            producer.poll(0)
        assert not producer.flush(PATIENCE_SECONDS)
        self.sent += events

    def run(self) -> None:
        """Store the new events."""
        began, used = time.perf_counter(), time.process_time()
        stream = self.services.user_activity
        done = store_stream(self.services, stream.positions, DeltaSink(stream), run_id="benchmark")
        settle(self.services, stream.positions, done)
        self.seconds.append(time.perf_counter() - began)
        self.cpu_seconds.append(time.process_time() - used)
        assert not done.failures

    def best(self) -> tuple[float, float]:
        """Return the least of the measured runs: by the clock, and of processor time."""
        return min(self.seconds[-TURNS:]), min(self.cpu_seconds[-TURNS:])


def measure_growth_streams(options: argparse.Namespace, folder: Path) -> Result:
    """Measure runs of a stream over a few new events, with ten times as much on record."""
    # The server's user must reach its data.
    folder.chmod(0o755)
    for name in ("state", "log"):
        (folder / name).mkdir()
    postgres = start_postgres(folder / "state", folder / "log")
    server = start_server()
    try:
        wait_for_postgres(postgres)
        with closing(connect(postgres.url("warehouse"))) as connection:
            connection.cursor().execute("CREATE DATABASE grown")
        small = _on_record(server, folder / "small", postgres.url("warehouse"), options.events, 1)
        large = _on_record(server, folder / "large", postgres.url("grown"), options.events, GROWTH)
        for _ in range(TURNS):
            for one in (small, large):
                one.send(NEW_EVENTS, NEW_PARTITIONS, 1)
                one.run()
    finally:
        server.stop()
        postgres.child.stop()
    (seconds, cpu), (seconds_grown, cpu_grown) = small.best(), large.best()
    return {
        "ratio": round(seconds_grown / seconds, 2),
        "ratio_cpu": round(cpu_grown / cpu, 2),
        "ms": round(seconds * 1e3, 1),
        "ms_grown": round(seconds_grown * 1e3, 1),
        "cpu_ms": round(cpu * 1e3, 1),
        "cpu_ms_grown": round(cpu_grown * 1e3, 1),
        "exact": all(_is_exact(one.folder / "delta" / "user_activity_events", one.sent) for one in (small, large)),
        "events": small.sent,
        "events_grown": large.sent,
        "partitions": PARTITIONS,
        "partitions_grown": PARTITIONS * GROWTH,
    }


def _on_record(server: Server, folder: Path, database_url: str, events: int, growth: int) -> _Activity:
    folder.mkdir()
    topic = f"user-activity-events-{growth}"
    server.create_topic(topic, PARTITIONS * growth)
    environ = {
        "KAFKA_BOOTSTRAP_SERVERS": server.bootstrap_servers,
        "KAFKA_TOPIC_USER_ACTIVITY_EVENTS": topic,
        "DATABASE_URL": database_url,
        "INGEST_STATE_DIR": str(folder),
    }
    made = _Activity(server, SystemResources(load_settings(environ, folder).settings), folder)
    migrate(made.services.engine)
    for number in range(1, ROUNDS + 1):
        made.send(events * growth // ROUNDS, PARTITIONS * growth, HOURS * growth)
        made.run()
        say(f"{made.sent} events in {PARTITIONS * growth * number} commits")
    return made


def _events(first: int, events: int, hours: int) -> Iterator[bytes]:
    for number, message in enumerate(_messages(events), first):
        moment = FIRST + timedelta(hours=number % hours, seconds=number % 3_600)
        own = {"event_id": f"event-{number}", "timestamp": moment.isoformat()}
        yield json.dumps(json.loads(message) | own).encode()
