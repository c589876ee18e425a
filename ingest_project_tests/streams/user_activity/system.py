"""Sensors, runs and tables of user activity, driven as the daemon would drive them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
from dagster import ExecuteInProcessResult

from ingest_project.core.items import parse_hour_key
from ingest_project.platform.delta.table import query_events
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.streams.declared import delta_parts
from ingest_project.streams.positions import StreamPositions
from ingest_project.streams.user_activity.definitions import definitions_of
from ingest_project.streams.user_activity.event_table import user_activity_stream
from ingest_project.streams.user_activity.hours import HourOfType, statistics_of
from ingest_project_tests.journeys.system import environment
from ingest_project_tests.streams.system import StreamNames, StreamSystem
from ingest_project_tests.streams.user_activity.events import encoded

SENSOR, HOURLY_SENSOR = "user_activity_events_sensor", "user_activity_hourly_sensor"
BATCH, HOURLY_BATCH = "user_activity_batch", "user_activity_hourly_batch"


class ActivitySystem(StreamSystem):
    """Sensors, runs and stores of one test."""

    def _definitions(self) -> dg.Definitions:
        return definitions_of(delta_parts(user_activity_stream(self.settings)))

    names = StreamNames(SENSOR, BATCH, "store_user_activity")

    @property
    def positions(self) -> StreamPositions:
        """Positions of user activity."""
        return self.services.positions_of(self.services.shipped_streams.user_activity)

    def put(self, *messages: Mapping[str, Any] | bytes | None, key: bytes = b"one") -> None:
        """Send events, in the order given, to the partition of a key."""
        values = [encoded(one) if isinstance(one, dict) else one for one in messages]
        self.services.writer.send_all(self.topic, [ProducerRecord(value, key=key) for value in values])  # type: ignore[arg-type]

    def materialize_hour(self, asset: dg.AssetKey, hour: str) -> ExecuteInProcessResult:
        """Execute what a person requests in the UI: one hour of one asset."""
        job = dg.define_asset_job("by_hand", selection=dg.AssetSelection.assets(asset).without_checks())
        definitions = dg.Definitions.merge(self.definitions, dg.Definitions(jobs=[job]))
        return definitions.resolve_job_def("by_hand").execute_in_process(
            instance=self.instance, partition_key=hour, raise_on_error=False
        )

    def drive(self) -> list[ExecuteInProcessResult]:
        """Tick, and execute what is requested, until every event is stored and every hour counted."""
        done: list[ExecuteInProcessResult] = []
        for _ in range(60):
            batches, hours = self.requests(SENSOR), self.requests(HOURLY_SENSOR)
            done += [self.execute(BATCH, request) for request in batches]
            done += [self.execute(HOURLY_BATCH, request) for request in hours]
            if not batches and not hours and self.is_idle:
                return done
        raise AssertionError(f"Still busy: {self.positions.all()}")

    def rows(self, columns: str = "*") -> list[dict[str, Any]]:
        """The Delta table, in the order of the offsets."""
        query = f"SELECT {columns} FROM events ORDER BY kafka_topic_id, kafka_partition, kafka_offset"
        return [row for batch in query_events(self.services.user_activity.store, query) for row in batch.to_pylist()]

    def table(self) -> pa.Table:
        """The Delta table, as Arrow has it."""
        return pa.Table.from_batches(list(query_events(self.services.user_activity.store, "SELECT * FROM events")))

    def offsets(self) -> list[tuple[int, int]]:
        """Partition and offset of every row."""
        return [(row["kafka_partition"], row["kafka_offset"]) for row in self.rows()]

    def statistics(self, hour: str) -> dict[str, HourOfType]:
        """What is stored of an hour, by type of event."""
        return {one.event_type: one for one in statistics_of(self.services.engine, parse_hour_key(hour))}

    @property
    def dead_letters(self) -> list[ConsumerRecord]:
        """Every message that was put aside, in the order of their offsets."""
        letters = self.on_topic(self.settings.topics.user_activity_events_dlq)
        return sorted(letters, key=lambda letter: int(letter.header("dlq.original-offset") or 0))


def activity_environment(bootstrap_servers: str, database_url: str, folder: Path) -> dict[str, str]:
    """The settings of a test's own system: topics of its own, no waiting."""
    environ = environment(bootstrap_servers, database_url, folder)
    name = environ["KAFKA_GROUP_ID"]
    return environ | {
        "KAFKA_TOPIC_USER_ACTIVITY_EVENTS": f"{name}.activity",
        "KAFKA_TOPIC_USER_ACTIVITY_EVENTS_DLQ": f"{name}.activity.dlq",
        "INGEST_USER_ACTIVITY_HOURLY_REFRESH_SECONDS": "0",
        "INGEST_LAUNCH_GRACE_SECONDS": "0",
    }
