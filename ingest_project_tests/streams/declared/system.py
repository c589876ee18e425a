"""Declared streams, driven as the daemon would drive them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy as sa
import yaml
from dagster import ExecuteInProcessResult

from ingest_project.platform.database import reading
from ingest_project.platform.delta.table import query_events
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.streams.declaration import StreamDeclaration
from ingest_project.streams.declared import asset_key, definitions_of_stream
from ingest_project.streams.positions import StreamPositions
from ingest_project_tests.journeys.system import environment
from ingest_project_tests.streams.system import StreamNames, StreamSystem

NAME = "orders"
COLUMNS: list[dict[str, Any]] = [
    {"name": "order_id", "type": "text", "required": True},
    {"name": "amount", "type": "decimal(12,2)", "required": True, "min": 0},
    {"name": "placed_at", "type": "timestamp", "required": True},
    {"name": "version", "type": "integer"},
]
DELTA: dict[str, Any] = {"columns": COLUMNS, "event_time": "placed_at"}
KEYED: dict[str, Any] = {"columns": COLUMNS, "sink": {"key": ["order_id"]}}


class DeclaredSystem(StreamSystem):
    """The one stream that is declared in the folder of declarations."""

    def _definitions(self) -> dg.Definitions:
        return definitions_of_stream(self.declaration)

    names = StreamNames(f"{NAME}_sensor", f"{NAME}_batch", NAME)

    @property
    def declaration(self) -> StreamDeclaration:
        """The stream."""
        found = self.services.declared_streams
        assert not found.broken, found.broken
        return found.usable[0]

    @property
    def positions(self) -> StreamPositions:
        """Positions of the stream."""
        return self.services.positions_of(self.declaration)

    @property
    def asset(self) -> dg.AssetKey:
        """The asset of the stream."""
        return asset_key(self.declaration)

    def put(self, *values: bytes | None, key: bytes = b"one", keys: Iterable[bytes] = ()) -> None:
        """Send messages, in the order given, to the partition of a key; or each with a key of its own."""
        each = list(keys) or [key] * len(values)
        records = [ProducerRecord(value, key=one) for value, one in zip(values, each, strict=True)]
        self.services.writer.send_all(self.topic, records)

    def drive(self) -> list[ExecuteInProcessResult]:
        """Tick, and execute what is requested, until every message is stored."""
        done: list[ExecuteInProcessResult] = []
        for _ in range(60):
            requests = self.requests(self.names.sensor)
            done += [self.execute(self.names.job, request) for request in requests]
            if not requests and self.is_idle:
                return done
        raise AssertionError(f"Still busy: {self.positions.all()}")

    def rows(self, columns: str = "*") -> list[dict[str, Any]]:
        """The Delta table, in the order of the offsets."""
        query = f"SELECT {columns} FROM events ORDER BY kafka_topic_id, kafka_partition, kafka_offset"
        store = self.services.delta_stream(self.declaration).store
        return [row for batch in query_events(store, query) for row in batch.to_pylist()]

    def table(self) -> dict[str, dict[str, Any]]:
        """The table of the warehouse by key."""
        with reading(self.services.engine) as connection:
            found = connection.execute(sa.text(f'SELECT * FROM "{NAME}"')).mappings()
            return {row["order_id"]: dict(row) for row in found}

    @property
    def dead_letters(self) -> list[ConsumerRecord]:
        """Every dead letter, in the order of their offsets."""
        letters = self.on_topic(self.declaration.dlq)
        return sorted(letters, key=lambda letter: int(letter.header("dlq.original-offset") or 0))


def declare(folder: Path, attributes: Mapping[str, Any]) -> None:
    """Write the declaration of the stream, as a person does."""
    path = folder / "defs" / NAME / "defs.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"type": "ingest_project.TopicStream", "attributes": dict(attributes)}))


def declared_environment(bootstrap_servers: str, database_url: str, folder: Path) -> dict[str, str]:
    """The settings of a test's own system, without waiting."""
    environ = environment(bootstrap_servers, database_url, folder)
    return environ | {"INGEST_DECLARATIONS": str(folder / "defs"), "INGEST_LAUNCH_GRACE_SECONDS": "0"}


def order(number: int = 1, amount: object = "1.50", **more: object) -> bytes:
    """An order in JSON."""
    fields = {"order_id": f"o{number}", "amount": amount, "placed_at": "2026-01-15T10:30:45Z", **more}
    return json.dumps(fields).encode()
