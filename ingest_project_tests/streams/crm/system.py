"""Sensor, runs and tables of crm, driven as the daemon would drive them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy as sa
from dagster import ExecuteInProcessResult

from ingest_project.platform.database import reading
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.platform.kafka.reader import Backlog
from ingest_project.streams.crm.definitions import definitions_of
from ingest_project.streams.crm.records import opportunities, projects, unidentified_messages
from ingest_project.streams.crm.sink import crm_stream
from ingest_project.streams.crm.unidentified import KeptMessage, find
from ingest_project.streams.declared import sql_parts
from ingest_project.streams.engine import Batch
from ingest_project.streams.positions import SinkPosition, StreamPositions
from ingest_project.streams.resources import StreamResources
from ingest_project_tests.journeys.system import environment
from ingest_project_tests.streams.system import StreamNames, StreamSystem

SENSOR = "sales_events_sensor"
TABLES = (opportunities, projects, unidentified_messages)
# What is not a function of the messages alone.
TIMES = ("stored_at", "received_at")


class CrmSystem(StreamSystem):
    """Sensor, runs and stores of one test."""

    def _definitions(self) -> dg.Definitions:
        return definitions_of(sql_parts(crm_stream(self.settings)))

    names = StreamNames(SENSOR, "crm_batch", "crm")

    @property
    def positions(self) -> StreamPositions:
        """Positions of CRM messages."""
        return self.services.positions_of(self.services.shipped_streams.crm)

    def put(self, *messages: Mapping[str, Any] | bytes | None) -> None:
        """Send messages, in the order given, to one partition."""
        values = [json.dumps(one).encode() if isinstance(one, dict) else one for one in messages]
        self.services.writer.send_all(
            self.topic,
            [ProducerRecord(value if value is None else bytes(value), key=b"one") for value in values],  # type: ignore[arg-type]
        )

    def drive(self) -> list[ExecuteInProcessResult]:
        """Tick, and execute what is requested, until every message is stored."""
        done: list[ExecuteInProcessResult] = []
        for _ in range(30):
            requests = self.requests(SENSOR)
            done += [self.execute("crm_batch", request) for request in requests]
            if not requests and self.is_idle:
                return done
        raise AssertionError(f"Still busy: {self.positions.all()}")

    def rows(self, table: sa.Table) -> dict[str, dict[str, Any]]:
        """All rows of a table by key, without the time they were stored."""
        (key,) = table.primary_key.columns
        with reading(self.services.engine) as connection:
            found = connection.execute(sa.select(table)).mappings().all()
        return {row[key.name]: {name: row[name] for name in row if name not in TIMES} for row in found}

    @property
    def unidentified(self) -> list[KeptMessage]:
        """Every message that is kept, in the order of their offsets."""
        with reading(self.services.engine) as connection:
            return sorted(find(connection, open_only=False, limit=10_000), key=lambda kept: kept.kafka_offset)


def crm_environment(bootstrap_servers: str, database_url: str, folder: Path) -> dict[str, str]:
    """The settings of a test's own system: a topic of its own, no waiting."""
    environ = environment(bootstrap_servers, database_url, folder)
    name = environ["KAFKA_GROUP_ID"]
    return environ | {"KAFKA_TOPIC_SALES_EVENTS": f"{name}.sales", "INGEST_LAUNCH_GRACE_SECONDS": "0"}


def store_messages(
    services: StreamResources, messages: Sequence[ConsumerRecord], topic_id: str = "g"
) -> dict[str, int]:
    """Store messages as a run does, the first offset being 0; returns their number by outcome."""
    end = messages[-1].offset + 1
    backlog = Backlog(topic_id, starts={0: 0}, log_starts={0: 0}, ends={0: end}, notices=[])
    (position,) = services.positions_of(services.shipped_streams.crm).begin(backlog, datetime.now(UTC)).values()
    sink = services.sql_sink(services.shipped_streams.crm)
    batch = Batch(0, end, [sink.decode(messages, position)], len(messages))
    stored: SinkPosition = sink.store(batch, position)
    return stored.outcome
