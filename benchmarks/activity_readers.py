"""Readers of one topic, each in its own process: a run, a declared stream's run, the floor, a plain consumer.

    python -m benchmarks.activity_readers run|declared|floor|one_by_one <brokers> <topic> <folder> <events>

prints how long it took and its processor time as a JSON object. The clock starts with everything imported, and nothing
connected but a database with its tables, which a run finds there.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandera.backends.polars.builtin_checks  # noqa: F401 - pandera imports it when it first validates
import pyarrow as pa
from confluent_kafka import Consumer, TopicPartition
from deltalake import write_deltalake

from ingest_project.core.settings import load_settings
from ingest_project.operations import SystemResources
from ingest_project.platform.kafka.consumer import received
from ingest_project.streams.declaration import StreamDeclaration
from ingest_project.streams.delta.sink import DeltaSink
from ingest_project.streams.delta.stream import DeltaStream
from ingest_project.streams.engine import settle, store_stream
from ingest_project.streams.user_activity.event_table import event_rows

ROWS_PER_COMMIT = 50_000
MESSAGES_PER_CALL = 10_000
# The fields of an event; what is nested in the shipped table are columns here.
NESTED = {
    "client_info": ("user_agent", "screen_resolution", "language"),
    "service_info": ("service_name", "service_version", "environment"),
}
COLUMNS: list[dict[str, object]] = [
    {"name": "event_id", "type": "text", "required": True},
    {"name": "event_type", "type": "text", "required": True},
    {"name": "timestamp", "type": "timestamp", "required": True},
    {"name": "event_data", "type": "json"},
    {"name": "received_at", "type": "timestamp", "path": "$.processing_info.received_at"},
    {"name": "processed_at", "type": "timestamp", "path": "$.processing_info.processed_at"},
    {"name": "processing_ms", "type": "number", "path": "$.processing_info.processing_ms"},
]
COLUMNS += [{"name": name, "type": "text"} for name in ("request_id", "user_id", "session_id", "page_url")]
COLUMNS += [
    {"name": name, "type": "text", "path": f"$.{outer}.{name}"} for outer, names in NESTED.items() for name in names
]


Read = Callable[[], None]


def run(brokers: str, topic: str, folder: Path, events: int) -> Read:
    """Read as a run does, positions and exactly-once included."""
    environ = {
        "KAFKA_BOOTSTRAP_SERVERS": brokers,
        "KAFKA_TOPIC_USER_ACTIVITY_EVENTS": topic,
        "DATABASE_URL": f"sqlite:///{folder / 'warehouse.db'}",
        "INGEST_STATE_DIR": str(folder),
    }
    services = SystemResources(load_settings(environ, folder).settings)
    return _store(services, services.user_activity, events)


def declared(brokers: str, topic: str, folder: Path, events: int) -> Read:
    """Read as a run of a declared stream does."""
    environ = {
        "KAFKA_BOOTSTRAP_SERVERS": brokers,
        "DATABASE_URL": f"sqlite:///{folder / 'declared.db'}",
        "INGEST_STATE_DIR": str(folder),
    }
    services = SystemResources(load_settings(environ, folder).settings)
    declaration = {"name": "declared_events", "topic": topic, "event_time": "timestamp", "columns": COLUMNS}
    return _store(services, services.delta_stream(StreamDeclaration.model_validate(declaration)), events)


def _store(services: SystemResources, stream: DeltaStream, events: int) -> Read:
    positions = stream.positions

    def store() -> None:
        done = store_stream(services, positions, DeltaSink(stream), run_id="benchmark")
        settle(services, positions, done)
        assert done.outcome["events"] == events

    return store


def floor(brokers: str, topic: str, folder: Path, events: int) -> None:
    """Consume, decode and append in sequence, without a work queue or state."""
    consumer = _consumer(brokers, topic)
    done = 0
    while done < events:
        messages: list[Any] = []
        while len(messages) < min(ROWS_PER_COMMIT, events - done):
            messages += consumer.consume(MESSAGES_PER_CALL, 0.2)
        table = event_rows([received(message) for message in messages], "").table
        write_deltalake(folder / "floor", table, mode="append", partition_by=["event_day"])
        done += len(messages)
    consumer.close()


def one_by_one(brokers: str, topic: str, folder: Path, events: int) -> None:
    """Read as a plain consumer: poll a message, parse it, write it."""
    consumer = _consumer(brokers, topic)
    for _ in range(events):
        message = consumer.poll(10)
        assert message is not None
        event = json.loads(message.value() or b"")
        event["event_data"] = json.dumps(event["event_data"])
        write_deltalake(folder / "one_by_one", pa.Table.from_pylist([event]), mode="append")
    consumer.close()


def _consumer(brokers: str, topic: str) -> Consumer:
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "benchmark", "enable.auto.commit": False})
    partitions = consumer.list_topics(topic).topics[topic].partitions
    consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
    return consumer


def main() -> None:
    """Read once."""
    reader, brokers, topic, folder, events = sys.argv[1:]
    readers: dict[str, Callable[[str, str, Path, int], Read]] = {
        "run": run,
        "declared": declared,
        "floor": partial(partial, floor),
        "one_by_one": partial(partial, one_by_one),
    }
    read = readers[reader](brokers, topic, Path(folder), int(events))
    began, used = time.monotonic(), time.process_time()
    read()
    print(json.dumps({"seconds": time.monotonic() - began, "cpu_s": round(time.process_time() - used, 2)}))


if __name__ == "__main__":
    main()
