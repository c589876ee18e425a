"""The product in one test process: its sensors and jobs on real servers, driven as the daemon would drive them."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster import AssetCheckEvaluation, DagsterInstance, ExecuteInProcessResult
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.definitions.sensor_definition import SensorExecutionData

import ingest_project.file_ingest.definitions
import ingest_project.polling.definitions
from ingest_project.core.errors import BrokerUnavailableError
from ingest_project.core.secrets import SecretReference
from ingest_project.core.settings import Settings, load_settings
from ingest_project.file_ingest.file_queue import FileRecord
from ingest_project.operations import SystemResources
from ingest_project.operations.items import describe, find
from ingest_project.platform.database import migrate
from ingest_project.platform.items import ItemView
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project_tests.services.kafka import OwnServer, Server

POLLING, FILE_EVENTS, SHORT_FILE_EVENTS = "polling_queue_sensor", "file_event_queue_sensor", "file_events_sensor"
SENSORS = (POLLING, FILE_EVENTS, SHORT_FILE_EVENTS)
JOB_OF = {POLLING: "polling_batch", FILE_EVENTS: "file_batch", SHORT_FILE_EVENTS: "file_batch"}
RAW, VALIDATED, QUARANTINED, METRICS = (
    dg.AssetKey(name) for name in ("raw_files", "validated_sensor_data", "quarantined_files", "aggregated_metrics")
)
DISCOVERED = dg.AssetKey("discovered_files")
CONTRACT = dg.AssetCheckKey(VALIDATED, "contract_holds")
HEADER = "timestamp,device_id,sensor_type,value,unit\n"
MOST_ROUNDS = 20

_numbers = itertools.count(1)


_engines: dict[tuple[str, float], sa.Engine] = {}


class _Resources(SystemResources):
    """The resources of one test, with the engine of the tests before it: statements are compiled for an engine."""

    @cached_property
    def engine(self) -> sa.Engine:
        """The warehouse database, with its tables migrated."""
        url = self.settings.warehouse.database_url
        key = (url.get_secret_value(), self.settings.warehouse.connect_timeout_seconds)
        if known := _engines.get(key):
            migrate(known)
            return known
        engine = super().engine
        # Each file of SQLite is one test's.
        if engine.dialect.name == "postgresql" and not isinstance(url, SecretReference):
            _engines[key] = engine
        return engine


@dataclass
class System:
    """Sensors, runs and stores of one test.

    Args:
        settings: where everything is.
        instance: Dagster's records.
        folder: the only folder local files may come from.
        cursors: what Dagster would have saved, by sensor.
    """

    settings: Settings
    instance: DagsterInstance
    folder: Path
    cursors: dict[str, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._open()

    def restart(self) -> None:
        """Begin again as a new process would: nothing is remembered but what was saved."""
        self.close()
        self._open()

    def _open(self) -> None:
        self.services = _Resources(self.settings)
        self.definitions = dg.Definitions.merge(
            self._definitions(), dg.Definitions(resources={"services": self.services}, executor=dg.in_process_executor)
        )

    def _definitions(self) -> dg.Definitions:
        """The capabilities under test."""
        return dg.Definitions.merge(
            ingest_project.polling.definitions.polling, ingest_project.file_ingest.definitions.file_ingest
        )

    def close(self) -> None:
        """Give connections back."""
        close(self.services)

    def tick(self, sensor: str = FILE_EVENTS, *, save: bool = True) -> SensorExecutionData:
        """Evaluate a sensor from its saved cursor, as the daemon does.

        Args:
            sensor: its name.
            save: whether the daemon lives long enough to save the cursor.
        """
        repository = self.definitions.get_repository_def()
        with (
            dg.build_sensor_context(
                instance=self.instance,
                cursor=self.cursors.get(sensor),
                resources={"services": self.services},
                repository_def=repository,
            ) as context,
            partition_loading_context(dynamic_partitions_store=self.instance),
        ):
            result = repository.get_sensor_def(sensor).evaluate_tick(context)
        if save and result.cursor is not None:
            self.cursors[sensor] = result.cursor
        return result

    def requests(self, sensor: str = FILE_EVENTS, *, save: bool = True) -> list[dg.RunRequest]:
        """What one tick asks for."""
        return list(self.tick(sensor, save=save).run_requests or [])

    def execute(self, job_name: str, request: dg.RunRequest) -> ExecuteInProcessResult:
        """Do one run that a sensor asked for, in this process."""
        job = self.definitions.resolve_job_def(job_name)
        return job.execute_in_process(
            instance=self.instance, tags=request.tags, partition_key=request.partition_key, raise_on_error=False
        )

    def materialize(self, keys: Sequence[str], *assets: dg.AssetKey) -> list[ExecuteInProcessResult]:
        """Do what a person asks for in the UI: these partitions of these assets, a run for each; all without assets."""
        job = self.definitions.resolve_job_def("file_batch")
        return [
            job.execute_in_process(
                instance=self.instance, partition_key=key, asset_selection=list(assets) or None, raise_on_error=False
            )
            for key in keys
        ]

    def materialize_range(self, first: str, last: str, *assets: dg.AssetKey) -> ExecuteInProcessResult:
        """Do what a person asks for in the UI by selecting partitions that arrived one after the other."""
        tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
        return self.definitions.resolve_job_def("file_batch").execute_in_process(
            instance=self.instance, tags=tags, asset_selection=list(assets) or None, raise_on_error=False
        )

    def item(self, *texts: str) -> ItemView:
        """Describe the one item that each of these texts finds."""
        refs = {text: [hit.ref for hit in find(self.services, text).hits] for text in texts}
        assert all(len(found) == 1 and found == refs[texts[0]] for found in refs.values()), refs
        view = describe(self.services, refs[texts[0]][0])
        assert view is not None
        assert view.problems == ()
        return view

    def drive(self) -> list[ExecuteInProcessResult]:
        """Tick every sensor and do what it asks for, until nothing is asked for any more."""
        done: list[ExecuteInProcessResult] = []
        topics = self.settings.topics
        # A tick takes much longer than a look at a topic that nothing was sent to.
        read = {POLLING: topics.polling_queue, SHORT_FILE_EVENTS: topics.file_events}
        sensors = [sensor for sensor in SENSORS if sensor not in read or self.has_messages(read[sensor])]
        for _ in range(MOST_ROUNDS):
            before = len(done)
            for sensor in sensors:
                done += [self.execute(JOB_OF[sensor], request) for request in self.requests(sensor)]
            if len(done) == before and self.is_idle:
                return done
        raise AssertionError(f"Still busy: {self.services.files.counts_by_state()}")

    def has_messages(self, topic: str) -> bool:
        """Return whether anything was ever sent to a topic."""
        return any(self.services.reader.end_offsets(topic).values())

    @property
    def is_idle(self) -> bool:
        """Whether no file and no job waits for anything."""
        files = self.services.files.counts_by_state()
        jobs = self.services.polling_jobs.counts_by_state()
        waiting = [state for state, count in files.items() if count and not state.finished]
        return not waiting and not any(count for state, count in jobs.items() if not state.finished)

    def write(self, name: str, content: str | bytes) -> Path:
        """A file in the folder that may be read."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def send(self, topic: str, *messages: Mapping[str, Any] | bytes) -> None:
        """Put messages on a topic."""
        values = [message if isinstance(message, bytes) else json.dumps(message).encode() for message in messages]
        self.services.writer.send_all(topic, [ProducerRecord(value) for value in values])

    def send_files(self, *paths: Path | str, **more: object) -> None:
        """Announce files, each in the version that is there."""
        self.send(self.settings.topics.file_event_queue, *(file_event(path, **more) for path in paths))

    def send_job(self, path: Path | str, pattern: str = "**", **more: object) -> None:
        """Ask to look in a local folder."""
        source = more.pop("source_config", {"source_type": "local", "path": str(path)})
        job = {"job_id": f"job_{next(_numbers)}", "source_config": source, "file_pattern": pattern, **more}
        self.send(self.settings.topics.polling_queue, job)

    def on_topic(self, topic: str) -> list[ConsumerRecord]:
        """Everything on a topic."""
        messages: list[ConsumerRecord] = []
        positions, remaining = None, 1
        while remaining:
            read = self.services.reader.read(topic, positions, max_messages=100_000, max_bytes=10**9, wait_seconds=0)
            messages += read.messages
            positions, remaining = read.positions, read.remaining
        return messages

    def files(self) -> dict[str, FileRecord]:
        """The ledger, by file name; the last changed version of each."""
        return {record.event.file_name: record for record in reversed(self.services.files.list(limit=10_000))}

    def file(self, name: str) -> FileRecord:
        """The ledger's record of the one file of that name."""
        return self.files()[name]

    def states(self) -> dict[str, str]:
        """State by file name."""
        return {name: record.state.value for name, record in self.files().items()}

    def checks(self) -> dict[str, str]:
        """What Dagster shows of `contract_holds`, by file key."""
        return self._check_results(CONTRACT)

    def accepted(self) -> dict[str, str]:
        """What Dagster shows of `file_accepted`, by file key."""
        return self._check_results(dg.AssetCheckKey(CONTRACT.asset_key, "file_accepted"))

    def _check_results(self, check: dg.AssetCheckKey) -> dict[str, str]:
        infos = self.instance.event_log_storage.get_asset_check_partition_info([check])
        return {str(info.partition_key): info.latest_execution_status.value for info in infos}

    def metadata(self, asset: dg.AssetKey, key: str) -> dict[str, Any]:
        """What Dagster shows of the newest materialisation of one partition."""
        found = self.instance.fetch_materializations(dg.AssetRecordsFilter(asset, asset_partitions=[key]), limit=1)
        materialization = found.records[0].asset_materialization
        assert materialization is not None
        return {
            name: [record.data for record in value.records] if isinstance(value, dg.TableMetadataValue) else value.value
            for name, value in materialization.metadata.items()
        }

    def quarantined_bytes(self, key: str) -> bytes:
        """The bytes that the quarantine keeps of a refused file."""
        with self.services.quarantine.local_path(key) as path:
            return path.read_bytes()

    def quarantined(self) -> list[dict[str, Any]]:
        """Return the reason of every file in the quarantine store, a folder, by name."""
        paths = sorted(Path(self.settings.quarantine_url).glob("*.json"))
        return [json.loads(path.read_bytes()) for path in paths]

    def times_materialized(self, asset: dg.AssetKey) -> int:
        """How many materialisations of an asset Dagster knows, all partitions together."""
        return len(self.instance.fetch_materializations(asset, limit=10_000).records)

    def check(self, name: str, *keys: str) -> AssetCheckEvaluation:
        """Evaluate one check by itself; the result that Dagster stores.

        Args:
            name: of the check.
            keys: partitions of a partitioned one; the first and last of several that arrived one after the other, as
                a person selects them.
        """
        if len(keys) > 1:
            tags = {"dagster/asset_partition_range_start": keys[0], "dagster/asset_partition_range_end": keys[-1]}
        else:
            tags = {"dagster/partition": keys[0]} if keys else {}
        result = self._check_job(name).execute_in_process(instance=self.instance, tags=tags)
        (evaluation,) = result.get_asset_check_evaluations()
        return evaluation

    def passed(self, *checks: str) -> list[bool]:
        """Evaluate unpartitioned checks in one run; return whether each passed."""
        evaluations = self._check_job(*checks).execute_in_process(instance=self.instance).get_asset_check_evaluations()
        return [one.passed for name in checks for one in evaluations if one.check_name == name]

    def _check_job(self, *names: str) -> dg.JobDefinition:
        keys = [key for key in self.definitions.resolve_asset_graph().asset_check_keys if key.name in names]
        job = dg.define_asset_job("one_check", selection=dg.AssetSelection.checks(*keys))
        return dg.Definitions.merge(self.definitions, dg.Definitions(jobs=[job])).resolve_job_def("one_check")


def close(services: SystemResources) -> None:
    """Give the connections of those services back that were used."""
    opened = services.__dict__
    if "warehouse" in opened:
        services.warehouse.close()
    if "engine" in opened:
        services.engine.dispose()
    if "reader" in opened:
        services.reader.close()
    if "writer" in opened:
        services.writer.close()


def file_event(path: Path | str, **more: object) -> dict[str, object]:
    """The event of a file: in its present version where it is there, of no version otherwise."""
    path = Path(path)
    event: dict[str, object] = {"file_path": str(path), "file_name": path.name, "source_type": "local"}
    if path.exists():
        status = path.stat()
        nanoseconds = status.st_mtime_ns
        event |= {"size_bytes": status.st_size, "modified_at": _iso(nanoseconds)}
    return event | more


def readings(count: int = 3, device: str = "device-1", bad: int = 0) -> str:
    """A csv file of so many rows, the last of them out of range."""
    rows = [
        f"2026-01-15T10:{number // 60:02d}:{number % 60:02d}Z,{device},temperature,{20 + number % 7},C"
        for number in range(count - bad)
    ]
    rows += [f"2026-01-15T11:00:{number % 60:02d}Z,{device},temperature,99999,C" for number in range(bad)]
    return HEADER + "\n".join(rows) + "\n"


def environment(bootstrap_servers: str, database_url: str, folder: Path) -> dict[str, str]:
    """The settings of a test's own system, as environment variables: topics of its own, no waiting."""
    name = f"t{os.getpid()}-{next(_numbers)}"
    return {
        "KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
        "KAFKA_REQUEST_TIMEOUT_SECONDS": "15",
        "KAFKA_GROUP_ID": name,
        "KAFKA_TOPIC_POLLING_QUEUE": f"{name}.polling",
        "KAFKA_TOPIC_POLLING_QUEUE_DLQ": f"{name}.polling.dlq",
        "KAFKA_TOPIC_FILE_EVENT_QUEUE": f"{name}.files",
        "KAFKA_TOPIC_FILE_EVENT_QUEUE_DLQ": f"{name}.files.dlq",
        "KAFKA_TOPIC_FILE_EVENTS": f"{name}.short",
        "DATABASE_URL": database_url,
        "INGEST_STATE_DIR": str(folder / "state"),
        "INGEST_LOCAL_ROOTS": str(folder / "in"),
        "INGEST_CONFIG_DIR": str(folder),
        "INGEST_TICK_WAIT_SECONDS": "0",
        "INGEST_MIN_FILE_AGE_SECONDS": "0",
        "RETRY_DELAY": "0",
        "LOG_LEVEL": "ERROR",
    }


def changed(settings: Settings, section: str, **values: object) -> Settings:
    """The settings with some of one section replaced."""
    return settings.model_copy(update={section: getattr(settings, section).model_copy(update=values)})


def _iso(nanoseconds: int) -> str:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=nanoseconds // 1_000)
    return moment.isoformat(timespec="microseconds")


@pytest.fixture
def instance(dagster_instance: DagsterInstance) -> DagsterInstance:
    """Dagster's records of one test."""
    return dagster_instance


@pytest.fixture
def system(kafka_server: Server, postgres_url: str, instance: DagsterInstance, tmp_path: Path) -> Iterator[System]:
    """The product with a topic, a database and a folder of its own."""
    (tmp_path / "in").mkdir()
    environ = environment(kafka_server.bootstrap_servers, postgres_url, tmp_path)
    system = System(load_settings(environ, tmp_path).settings, instance, tmp_path / "in")
    yield system
    system.close()


def move_to(system: System, server: Server) -> None:
    """Begin again at another broker."""
    system.settings = changed(
        system.settings, "kafka", bootstrap_servers=server.bootstrap_servers, request_timeout_seconds=3.0
    )
    system.restart()


@contextmanager
def paused(server: OwnServer, system: System) -> Iterator[None]:
    """The broker does not answer; afterwards it does again, and the ticks that failed meanwhile are over."""
    server.pause()
    try:
        yield
    finally:
        server.resume()
    give_up_at = time.monotonic() + 30
    while time.monotonic() < give_up_at:
        with suppress(BrokerUnavailableError):
            # Two clients, and each finds its own way back.
            system.services.reader.end_offsets(system.settings.topics.file_event_queue)
            system.services.range_reader.backlog(system.settings.topics.file_event_queue, None, 0)
            return
    raise TimeoutError
