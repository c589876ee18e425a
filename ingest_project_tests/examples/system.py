"""The examples of `examples/datasets`, driven as the daemon would drive them."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import dagster as dg
from dagster import DagsterInstance, ExecuteInProcessResult
from deltalake import DeltaTable

from ingest_project.core.settings import load_settings
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.streams.declaration import StreamDeclaration, load_streams
from ingest_project.streams.declared import definitions_of_stream
from ingest_project.streams.positions import StreamPositions
from ingest_project_tests.file_ingest.datasets.system import DatasetSystem
from ingest_project_tests.journeys.system import System, environment
from ingest_project_tests.services.kafka import Server
from ingest_project_tests.services.schema_registry import SchemaRegistry

EXAMPLES = Path(__file__).parents[2] / "examples" / "datasets"
SENSOR = "payments_sensor"
ROUNDS = 60


class ExampleSystem(DatasetSystem):
    """Sensors, runs and stores of the three examples."""

    def _definitions(self) -> dg.Definitions:
        (self.payments,), broken = load_streams(self.settings)
        assert broken == ()
        files = super()._definitions()
        assert self.declarations.broken == ()
        return dg.Definitions.merge(files, definitions_of_stream(self.payments))

    payments: StreamDeclaration

    @property
    def positions(self) -> StreamPositions:
        """Positions of the stream."""
        return self.services.positions_of(self.payments)

    def put(self, *values: bytes) -> None:
        """Send payments, in the order given."""
        self.services.writer.send_all(self.payments.topic, [ProducerRecord(value, key=b"one") for value in values])

    def execute(self, job_name: str, request: dg.RunRequest) -> ExecuteInProcessResult:
        """Do one run that a sensor requested, in this process."""
        job = self.definitions.resolve_job_def(job_name)
        return job.execute_in_process(
            instance=self.instance, tags=request.tags, run_config=request.run_config or {}, raise_on_error=False
        )

    def drive(self) -> list[ExecuteInProcessResult]:
        """Store all files and messages that are announced or sent."""
        done = self.run_due()
        for _ in range(ROUNDS):
            if self.is_stored:
                return done
            done += [self.execute(f"{self.payments.name}_batch", request) for request in self.requests(SENSOR)]
        raise AssertionError(self.positions.all())

    @property
    def is_stored(self) -> bool:
        """Return whether every payment is stored, or a dead letter, and no run holds a partition."""
        ends, current = self.services.reader.end_offsets(self.payments.topic), self.positions.current()
        return all(partition in current and current[partition].next_offset == end for partition, end in ends.items())

    def _check_job(self, *names: str) -> dg.JobDefinition:
        # Of whichever example has the check.
        return System._check_job(self, *names)

    def delta_rows(self, table: str, *columns: str) -> list[tuple[Any, ...]]:
        """Return columns of a Delta table, its rows sorted by the first two."""
        found = DeltaTable(self.settings.state_dir / "delta" / table).to_pyarrow_table(columns=list(columns))
        return sorted((tuple(row.values()) for row in found.to_pylist()), key=lambda row: row[:2])

    def quarantine(self, name: str) -> list[tuple[int | None, list[str]]]:
        """Return line and reasons of each rejected row of a file."""
        key = self.file(name).file_key
        found = self.services.warehouse.quarantined_rows_of(key)
        return sorted((row.line_number, sorted(row.reasons)) for row in found)

    def evaluations(self, key: str) -> dict[str, bool]:
        """Return the newest result of each check of a partition, by the check's name."""
        found: dict[str, bool] = {}
        for check in self.definitions.resolve_asset_graph().asset_check_keys:
            for info in self.instance.event_log_storage.get_asset_check_partition_info([check]):
                if info.partition_key == key:
                    found[check.name] = info.latest_execution_status.value == "SUCCEEDED"
        return found


def example_environment(server: Server, database_url: str, registry: SchemaRegistry, folder: Path) -> dict[str, str]:
    """Return the settings of a system with the examples' declarations; the stream's topic is one of its own."""
    declarations = folder / "ingest_project_defs"
    shutil.copytree(EXAMPLES / "defs", declarations)
    stream, topic = declarations / "payments" / "defs.yaml", f"payments-{uuid.uuid4().hex}"
    stream.write_text(stream.read_text("utf-8").replace("topic: payments", f"topic: {topic}"), "utf-8")
    server.create_topic(topic, 1)
    return environment(server.bootstrap_servers, database_url, folder) | {
        "INGEST_SCHEMA_REGISTRY_URL": registry.url,
        "INGEST_LAUNCH_GRACE_SECONDS": "0",
        "DAGSTER_POSTGRES_URL": os.environ["DAGSTER_POSTGRES_URL"],
    }


def opened(environ: dict[str, str], instance: DagsterInstance, folder: Path) -> ExampleSystem:
    """Open the system, with the examples' files in its folder."""
    shutil.copytree(EXAMPLES / "data", folder / "in", dirs_exist_ok=True)
    return ExampleSystem(load_settings(environ, folder).settings, instance, folder / "in")
