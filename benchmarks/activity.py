"""User activity events of 1 KB from Apache Kafka to committed Delta: within a run, and by the whole product.

For comparison, on the same topic: the same work without orchestration, and a plain consumer of one message at a time.

The clock of the whole product starts as the sensors are turned on, with every event on the topic, and stops once every
offset range is stored and reported: it includes the daemon's wait for its next tick and the start of the run workers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
from confluent_kafka import Producer
from deltalake import DeltaTable, QueryBuilder

from benchmarks.memory import PeakMemory
from benchmarks.sensors import switch_sensor
from benchmarks.system import NOT_OURS, System
from ingest_project.core.settings import load_settings
from ingest_project.devstack.supervisor import running_stack
from ingest_project_tests.services.kafka import start_server, why_not_apache_kafka

SENSOR = "user_activity_events_sensor"
EVENTS = 1_000_000
ONE_BY_ONE_EVENTS = 300
PARTITIONS = 4
TOPIC = "user-activity-events"
PATIENCE_SECONDS = 600.0
POLL_SECONDS = 0.1
USER_AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36"


def measure_activity(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Measure user activity events into Delta."""
    if (why_not := why_not_apache_kafka()) is not None:
        raise SystemExit(f"The embedded broker keeps 5 MiB a partition: this benchmark needs Apache Kafka ({why_not}).")
    server = start_server()
    try:
        server.create_topic(TOPIC, PARTITIONS)
        _send(server.bootstrap_servers, options.events)
        seconds, memory, cpu = {}, {}, {}
        for reader, events in _readers(options):
            seconds[reader], memory[reader], cpu[reader] = _read(reader, server.bootstrap_servers, folder, events)
        product = _by_product(server.bootstrap_servers, folder / "product", options.events)
    finally:
        server.stop()
    tables = [folder / "delta" / "user_activity_events", folder / "product" / "delta" / "user_activity_events"]
    return {
        "run_events_per_s": round(options.events / seconds["run"]),
        "end_to_end_events_per_s": round(options.events / product["seconds"]),
        **({"declared_events_per_s": round(options.events / seconds["declared"])} if options.declared else {}),
        "floor_events_per_s": round(options.events / seconds["floor"]),
        "one_by_one_events_per_s": round(ONE_BY_ONE_EVENTS / seconds["one_by_one"]),
        "peak_rss_mb": max(product["peak_rss_mb"], memory["run"]),
        "exact": all(_is_exact(table, options.events) for table in tables),
        "events": options.events,
        "ratio_to_floor": round(seconds["floor"] / seconds["run"], 2),
        **({"declared_to_shipped": round(seconds["declared"] / seconds["run"], 2)} if options.declared else {}),
        "cpu_s": cpu | {"product": product["cpu_s"]},
        "run_peak_rss_mb": memory["run"],
        "floor_peak_rss_mb": memory["floor"],
        "seconds_to_start": product["seconds_to_start"],
    }


def _readers(options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    yield "floor", options.events
    yield "run", options.events
    if options.declared:
        yield "declared", options.events
    yield "one_by_one", ONE_BY_ONE_EVENTS


def _send(brokers: str, events: int) -> None:
    producer = Producer(
        {"bootstrap.servers": brokers, "linger.ms": 50, "compression.type": "snappy", "batch.size": 1_000_000}
    )
    for number, message in enumerate(_messages(events)):
        producer.produce(TOPIC, message, partition=number % PARTITIONS)
        while number % 1_000 == 0 and len(producer) > 50_000:
            producer.poll(0.01)
        producer.poll(0)
    if producer.flush(PATIENCE_SECONDS):
        raise TimeoutError("The broker did not confirm all events.")


def _messages(events: int) -> Iterator[bytes]:
    """Generate events of about 1 KB over three hours, with all fields of the contract and unique ids."""
    for number in range(events):
        moment = f"2026-01-15T{10 + number * 3 // events:02d}:{number % 60:02d}:45.{number % 1000:03d}Z"
        yield json.dumps(
            {
                "event_id": str(UUID(int=number * 0x9E3779B97F4A7C15 % 2**128)),
                "request_id": str(UUID(int=number)),
                "event_type": ("page_view", "click", "form_submit", "search")[number % 4],
                "timestamp": moment,
                "user_id": f"user-{number % 50_000}",
                "session_id": f"session-{number % 200_000}",
                "page_url": f"https://example.com/products/{number % 5_000}/details?ref=newsletter",
                "event_data": {
                    "button_clicked": "submit",
                    "form_data": {f"field{field}": f"value {number % 977 + field}" for field in range(12)},
                },
                "client_info": {"user_agent": USER_AGENT, "screen_resolution": "1920x1080", "language": "en-US"},
                "service_info": {
                    "service_name": "ingestion-service",
                    "service_version": "1.0.0",
                    "environment": "production",
                },
                "processing_info": {"received_at": moment, "processed_at": moment, "processing_ms": number % 40},
            }
        ).encode()


def _read(reader: str, brokers: str, folder: Path, events: int) -> tuple[float, float, float]:
    """Run one reader; return seconds, megabytes and seconds of processor time."""
    command = [sys.executable, "-m", "benchmarks.activity_readers", reader, brokers, TOPIC, str(folder), str(events)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, PeakMemory([process.pid]) as memory:
        output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"The reader {reader} failed.")
    result = json.loads(output.splitlines()[-1])
    return float(result["seconds"]), memory.megabytes, float(result["cpu_s"])


def _by_product(brokers: str, folder: Path, events: int) -> dict[str, Any]:
    folder.mkdir()
    for name in NOT_OURS:
        os.environ.pop(name, None)
    os.environ |= {
        "INGEST_STATE_DIR": str(folder),
        "INGEST_CONFIG_DIR": str(folder),
        "INGEST_WEBSERVER_PORT": "0",
        "KAFKA_BOOTSTRAP_SERVERS": brokers,
        # The topic is read once the clock runs.
        "KAFKA_TOPIC_USER_ACTIVITY_EVENTS": TOPIC,
    }
    with (
        running_stack(load_settings(), lambda *_: None) as stack,
        closing(System(stack)) as system,
        PeakMemory(system.processes, system.servers) as memory,
    ):
        began = time.monotonic()
        switch_sensor(stack.webserver_url, SENSOR, on=True)
        started = _wait_until_stored(system, events)
        seconds = time.monotonic() - began
    return {
        "seconds": seconds,
        "seconds_to_start": round(started - began, 2),
        "peak_rss_mb": memory.megabytes,
        "cpu_s": memory.cpu_seconds,
    }


def _wait_until_stored(system: System, events: int) -> float:
    """Wait until every event is stored and reported; return when the first run began."""
    query = (
        "SELECT coalesce(sum(next_offset - first_offset) FILTER (WHERE run_id IS NULL), 0), count(run_id) > 0"
        " FROM sink_positions WHERE topic = %s"
    )
    deadline, started = time.monotonic() + PATIENCE_SECONDS, 0.0
    while True:
        ((stored, first),) = system._ask(query, TOPIC)  # noqa: SLF001 - of our own package
        started = started or (time.monotonic() if first else 0.0)
        if stored >= events:
            return started
        system._require_going_on(deadline, f"Only {stored} of {events} events were stored.")  # noqa: SLF001
        time.sleep(POLL_SECONDS)


def _is_exact(table: Path, events: int) -> bool:
    """Return true where each event and each offset is stored once."""
    query = "SELECT count(*) AS rows, count(DISTINCT event_id) AS ids, count(DISTINCT kafka_partition * 10000000000 + kafka_offset) AS positions FROM events"  # noqa: E501 - one sentence
    (found,) = pa.table(QueryBuilder().register("events", DeltaTable(table)).execute(query).read_all()).to_pylist()
    return set(found.values()) == {events}
