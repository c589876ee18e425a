"""CRM messages from a topic to rows in PostgreSQL, by the whole product.

The clock starts as the sensors are turned on, with every message on the topic, and stops once every offset range is
stored and reported: it includes the daemon's wait for its next tick and the start of the run workers. What is in the
tables then is compared with what a plain loop over the same messages makes of them. The messages are in Apache Kafka,
or in the embedded broker where that cannot run, which may not keep as many: then nothing is measured, and it is said.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from confluent_kafka import Producer

from benchmarks.memory import PeakMemory
from benchmarks.sensors import switch_sensor
from benchmarks.system import System, connect, running_system
from ingest_project.core.settings import load_settings
from ingest_project.platform.kafka.offsets import TopicStates
from ingest_project_tests.services.kafka import Server, start_server

SENSOR = "sales_events_sensor"
MESSAGES = 100_000
PARTITIONS = 4
# Each record comes in this many versions, the older of each two last; one message in a hundred is neither kind.
VERSIONS = 2
UNREADABLE_EVERY = 100
NOTES = "Discussed the terms of the renewal with procurement; they ask for a longer period at the same price. " * 2
PATIENCE_SECONDS = 60.0
SLOWEST_MESSAGES_PER_SECOND = 1_000
POLL_SECONDS = 0.1
FAILED = (
    "SELECT reason FROM sink_positions WHERE attempts > 3 AND reason IS NOT NULL UNION SELECT reason FROM lost_offsets"
)
# Messages that are stored and reported, and whether a run has begun.
STORED = (
    "SELECT coalesce(sum(next_offset - first_offset) FILTER (WHERE run_id IS NULL), 0), count(run_id) > 0"
    " OR coalesce(sum(next_offset - first_offset), 0) > 0 FROM sink_positions WHERE stream = 'crm'"
)
FIRST = datetime(2024, 3, 24, tzinfo=UTC)


@dataclass(frozen=True)
class Expected:
    """Expected content of the tables: number of rows and sum of money of each, and number of unidentified messages."""

    opportunities: tuple[int, Decimal]
    projects: tuple[int, Decimal]
    unidentified: int


def measure_crm(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Measure CRM messages into PostgreSQL."""
    messages = list(_messages(options.messages))
    server = start_server()
    try:
        return _measured(server, messages, folder)
    finally:
        server.stop()


def _measured(server: Server, messages: list[bytes], folder: Path) -> dict[str, object]:
    topics = load_settings({}).settings.topics
    for topic in (topics.sales_events, topics.file_event_queue):
        server.create_topic(topic, PARTITIONS)
    with running_system(folder / "product", [folder], brokers=server.bootstrap_servers) as system:
        system.turn_off(SENSOR)
        _send(server, topics.sales_events, messages)
        with PeakMemory(system.processes, system.servers) as memory:
            began = time.monotonic()
            switch_sensor(system._stack.webserver_url, SENSOR, on=True)  # noqa: SLF001 - of our own package
            waited = _wait_until_stored(system, len(messages))
            seconds = time.monotonic() - began
        found = _found(system)
    expected = _expected(messages)
    return {
        "messages_per_s": round(len(messages) / seconds),
        "messages_per_s_once_started": round(len(messages) / max(seconds - waited, 0.001)),
        "exact": found == expected,
        "messages": len(messages),
        "seconds": round(seconds, 2),
        "seconds_to_start": round(waited, 2),
        "peak_rss_mb": memory.megabytes,
        "cpu_s": memory.cpu_seconds,
    }


def _messages(number: int) -> Iterator[bytes]:
    for index in range(number):
        if index % UNREADABLE_EVERY == 0:
            yield b"neither %d" % index
            continue
        record, version = divmod(index, VERSIONS)
        yield json.dumps(_message(record, version)).encode()


def _message(record: int, version: int) -> dict[str, object]:
    # The newest version comes first.
    moment = FIRST + timedelta(seconds=record % 1_000, hours=VERSIONS - version)
    noise = hashlib.sha256(b"%d %d" % (record, version)).hexdigest()
    meta = {
        "source": "Salesforce",
        "last_modified": moment.isoformat(),
        "tags": [noise[:8]],
        "notes": NOTES + noise[:16],
    }
    common: dict[str, object] = {"account_id": f"acc_{noise[:9]}", "owner_id": f"usr_{noise[9:18]}", "meta_data": meta}
    money = (record * 7 + version) % 100_000 / 4
    if record % 2:
        own = {"status": "In Progress", "start_date": "2024-03-01", "end_date": "2024-08-15", "budget": money}
        return {"event_id": f"proj_{record}", "name": f"Project {record}", **own, **common}
    own = {"stage": "Negotiation", "amount": money, "probability": 75, "expected_close_date": "2024-06-30"}
    return {"event_id": f"opp_{record}", "name": f"Deal {record}", **own, **common}


def _send(server: Server, topic: str, messages: list[bytes]) -> None:
    # Compressed: the embedded broker keeps 5 MiB of each partition as it is sent.
    producer = Producer({"bootstrap.servers": server.bootstrap_servers, "linger.ms": 50, "compression.type": "lz4"})
    for index, message in enumerate(messages):
        producer.produce(topic, message, key=str(index))
        if index % 1_000 == 0:
            producer.poll(0)
    if producer.flush(PATIENCE_SECONDS):
        raise TimeoutError("The broker did not confirm all messages.")
    state = TopicStates(server.settings).look_up(topic)
    kept = sum(one.end - one.start for one in state.bounds.values()) if state else 0
    if kept < len(messages):
        raise SystemExit(
            f"The broker kept {kept:,} of {len(messages):,} messages, so that the rest would be waited for in vain: "
            f"choose fewer (MESSAGES={kept // 2}), or bring Java and Maven for Apache Kafka."
        )


def _wait_until_stored(system: System, messages: int) -> float:
    """Wait until every message is stored and reported; return the seconds to the first run's start."""
    patience = PATIENCE_SECONDS + messages / SLOWEST_MESSAGES_PER_SECOND
    began_at, deadline = datetime.now(UTC), time.monotonic() + patience
    done, first = STORED, None
    while True:
        ((stored, begun),) = system._ask(done)  # noqa: SLF001
        first = first or (datetime.now(UTC) if begun else None)
        if first and stored >= messages:
            return (first - began_at).total_seconds()
        if failed := system._ask(FAILED):  # noqa: SLF001
            raise SystemExit(f"Messages are not stored or lost: {failed[0][0]}")
        complaint = f"Only {stored:,} of {messages:,} messages were stored in {patience:.0f} s."
        system._require_going_on(deadline, complaint)  # noqa: SLF001
        time.sleep(POLL_SECONDS)


def _found(system: System) -> Expected:
    with closing(connect(system.warehouse_url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*), sum(amount) FROM opportunities")
        opportunities = cursor.fetchone()
        cursor.execute("SELECT count(*), sum(budget) FROM projects")
        projects = cursor.fetchone()
        cursor.execute("SELECT count(*) FROM unidentified_messages")
        unidentified = cursor.fetchone()
    assert opportunities
    assert projects
    assert unidentified
    return Expected(opportunities, projects, unidentified[0])


def _expected(messages: list[bytes]) -> Expected:
    newest: dict[str, tuple[str, Decimal]] = {}
    unidentified = 0
    for raw in messages:
        if raw.startswith(b"neither"):
            unidentified += 1
            continue
        message = json.loads(raw, parse_float=Decimal)
        money = message["amount"] if "amount" in message else message["budget"]
        version = (message["meta_data"]["last_modified"], money)
        newest[message["event_id"]] = max(version, newest.get(message["event_id"], version))

    def totals(prefix: str) -> tuple[int, Decimal]:
        found = [money for event_id, (_, money) in newest.items() if event_id.startswith(prefix)]
        return len(found), sum(found, Decimal(0))

    return Expected(totals("opp_"), totals("proj_"), unidentified)
