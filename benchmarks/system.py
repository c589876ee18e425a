"""Start the whole product on a fresh state folder, and measure the time that it takes for files.

When the clock starts, all processes are up, one file has been ingested (so that no process is new), the sensors are off
and the events are on the topic. It starts as the sensors are turned on, through Dagster's API. It stops once every file
is finished and reported in the work queue, and Dagster's event log has a materialisation or a check result of every one
of them. So it includes the daemon's wait for its next tick (a second or two), the start of the run workers,
and all reporting.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg2
from confluent_kafka import Producer

from benchmarks.earlier_files import copy_file
from benchmarks.measurement import say
from benchmarks.sensors import switch_sensor, wait_for_tick
from benchmarks.workload import Workload, write_workload
from ingest_project.core.settings import Settings, load_settings
from ingest_project.devstack.supervisor import Stack, StepState, running_stack
from ingest_project.platform.database import migrate, open_engine

SENSOR = "file_event_queue_sensor"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
POLL_SECONDS = 0.1
START_SECONDS = 60.0
SLOWEST_FILES_PER_SECOND = 10
SLOWEST_BYTES_PER_SECOND = 1e6
# Of the 5 MiB that the embedded broker keeps of each of a topic's 4 partitions; keys spread the events evenly enough.
MAX_EVENT_BYTES = 16 * 1024**2
# A benchmark measures the defaults, not what happens to be set around it.
NOT_OURS = ("DATABASE_URL", "DAGSTER_POSTGRES_URL", "DAGSTER_HOME", "KAFKA_BOOTSTRAP_SERVERS", "KAFKA_BROKERS")
NOT_DAGSTER = ("postgres", "broker")


@dataclass(frozen=True)
class Timing:
    """Durations of a workload.

    Args:
        seconds: from the sensor on to everything stored and shown.
        seconds_to_start: from the sensor on to the first file that a run begins.
    """

    seconds: float
    seconds_to_start: float


class System:
    """The running product through its public interfaces: a topic, a warehouse, Dagster's API."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        # Otherwise the first tick creates the tables, and they are queried before.
        migrate(open_engine(stack.settings.warehouse.database_url.get_secret_value()))
        self._producer = Producer(
            {"bootstrap.servers": stack.settings.kafka.bootstrap_servers, "linger.ms": 5, "log_level": 2}
        )
        self._warehouse = connect(stack.settings.warehouse.database_url.get_secret_value())
        self._dagster = connect(stack.settings.dagster.postgres_url.get_secret_value())

    @property
    def warehouse_url(self) -> str:
        """Libpq URL of the database with the rows."""
        return _libpq(self._stack.settings.warehouse.database_url.get_secret_value())

    @property
    def processes(self) -> list[int]:
        """Process ids of Dagster's top-level processes, without database and broker."""
        return [child.guard.pid for child in self._stack.children if child.name not in NOT_DAGSTER]

    @property
    def servers(self) -> list[int]:
        """Process ids of the database and the broker."""
        return [child.guard.pid for child in self._stack.children if child.name in NOT_DAGSTER]

    @property
    def settings(self) -> Settings:
        """Settings of all its processes."""
        return self._stack.settings

    @property
    def webserver_url(self) -> str:
        """Address of Dagster's UI and API."""
        return self._stack.webserver_url

    def close(self) -> None:
        """Close the connections."""
        self._warehouse.close()
        self._dagster.close()

    def announce(self, paths: Sequence[Path]) -> None:
        """Put an event for each file on the topic; returns once the broker has confirmed all."""
        events = [(path.name, _event(path)) for path in paths]
        if sum(len(event) for _, event in events) > MAX_EVENT_BYTES:
            raise SystemExit(f"The embedded broker does not hold events of {len(paths)} files: choose fewer.")
        for name, event in events:
            self._producer.produce(self._stack.settings.topics.file_event_queue, event, key=name)
            self._producer.poll(0)
        if self._producer.flush(START_SECONDS):
            raise TimeoutError("The broker did not confirm all events.")

    def turn_off(self, sensor: str) -> None:
        """Turn a sensor off and wait until it has ended its last tick."""
        switch_sensor(self._stack.webserver_url, sensor, on=False)
        wait_for_tick(self._dagster, sensor, START_SECONDS)

    def measure(self, workload: Workload) -> Timing:
        """Ingest the files of a workload, from events on the topic to everything stored and shown."""
        self.turn_off(SENSOR)
        self.announce(workload.paths)
        began_at, began = datetime.now(UTC), time.monotonic()
        switch_sensor(self._stack.webserver_url, SENSOR, on=True)
        self._wait_until_shown(workload)
        seconds = time.monotonic() - began
        ((first,),) = self._ask("SELECT min(started_at) FROM files WHERE started_at >= %s", began_at)
        return Timing(seconds, (first - began_at).total_seconds())

    def seconds_to_rows(self, path: Path, poll_seconds: float = 0.02) -> float:
        """Announce one file and wait until its rows are stored.

        The transaction that stores the rows finishes the file's entry in the work queue, which an index finds.
        """
        query = (
            "SELECT file_key FROM files WHERE state IN ('ingested', 'quarantined', 'duplicate', 'failed')"
            " AND updated_at >= %s AND file_name = %s"
        )
        began_at, began = datetime.now(UTC), time.monotonic()
        self.announce([path])
        deadline = time.monotonic() + START_SECONDS
        while not (found := self._ask(query, began_at, path.name)):
            self._require_going_on(deadline, f"{path.name} was not ingested.")
            time.sleep(poll_seconds)
        seconds = time.monotonic() - began
        ((rows,),) = self._ask("SELECT count(*) FROM raw_sensor_data WHERE file_key = %s", found[0][0])
        assert rows, f"{path.name} is finished and has no rows"
        return seconds

    def remember_earlier_files(self, like: str, count: int) -> None:
        """Record that many files as ingested earlier, each a copy of the one of this name."""
        ((key,),) = self._ask("SELECT file_key FROM files WHERE file_name = %s", like)
        self._earlier_files, self._like = count, key
        copy_file(self._warehouse, self._dagster, key, count)

    def remember_more_files(self, count: int) -> None:
        """Record that many more earlier files."""
        copy_file(self._warehouse, self._dagster, self._like, count, after=self._earlier_files)
        self._earlier_files += count

    def _wait_until_shown(self, workload: Workload) -> None:
        names = set(workload.files["file_name"])
        allowed = workload.files.height / SLOWEST_FILES_PER_SECOND
        allowed += int(workload.files["size_bytes"].sum()) / SLOWEST_BYTES_PER_SECOND
        deadline = time.monotonic() + START_SECONDS + allowed
        while True:
            keys = self._finished_keys(names)
            if keys is not None and keys <= self._shown_keys():
                return
            self._require_going_on(deadline, "Not every file was ingested and shown.")
            time.sleep(POLL_SECONDS)

    def _finished_keys(self, names: set[str]) -> set[str] | None:
        """Return the keys of all files, or None while one of them is not finished and reported."""
        # Cheap, and nearly always the answer: what is unfinished is found by index.
        if self._ask("SELECT 1 FROM files WHERE state IN ('pending', 'requested', 'ingesting') LIMIT 1"):
            return None
        reported = "SELECT file_name, file_key FROM files WHERE reported_at IS NOT NULL AND file_name = ANY(%s)"
        keys = dict(self._ask(reported, list(names)))
        return set(keys.values()) if keys.keys() == names else None

    def _shown_keys(self) -> set[str]:
        """Return the partitions with a materialisation or a check result in Dagster."""
        with self._dagster.cursor() as cursor:
            cursor.execute(
                "SELECT partition FROM event_logs WHERE partition IS NOT NULL"
                " AND dagster_event_type = 'ASSET_MATERIALIZATION'"
                " UNION SELECT partition FROM asset_check_executions WHERE execution_status IN ('SUCCEEDED', 'FAILED')"
            )
            return {key for (key,) in cursor}

    def _require_going_on(self, deadline: float, complaint: str) -> None:
        self._stack.require_running()
        if time.monotonic() > deadline:
            states = self._ask("SELECT state, count(*), min(reason) FROM files GROUP BY state")
            raise TimeoutError(f"{complaint} States: {states}. Logs: {self._stack.settings.state_dir}/logs.")

    def _ask(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        with self._warehouse.cursor() as cursor:
            cursor.execute(query, parameters)
            return cursor.fetchall()


@contextmanager
def running_system(
    folder: Path, inboxes: Sequence[Path], earlier_files: int = 0, *, brokers: str = ""
) -> Iterator[System]:
    """Run the product on a fresh state folder, warmed up by one file.

    Args:
        folder: of all its state; created.
        inboxes: folders it may read files from.
        earlier_files: that many files are already on record.
        brokers: of a Kafka that has the topics; the embedded one by default.

    Raises:
        ServiceFailedError: a part did not start.
    """
    state_dir, warm_up = folder / "state", folder / "warm-up"
    state_dir.mkdir(parents=True)
    for name in NOT_OURS:
        os.environ.pop(name, None)
    roots = ",".join(str(inbox) for inbox in (*inboxes, warm_up))
    os.environ |= {
        "INGEST_STATE_DIR": str(state_dir),
        # No config.yaml and no .env of the person who measures.
        "INGEST_CONFIG_DIR": str(state_dir),
        "INGEST_LOCAL_ROOTS": roots,
        "INGEST_WEBSERVER_PORT": "0",
        **({"KAFKA_BOOTSTRAP_SERVERS": brokers} if brokers else {}),
    }
    with running_stack(load_settings(), report_restarts) as stack, closing(System(stack)) as system:
        first = write_workload(warm_up, 1, 1_000, name="warm-up", seed=0)
        system.measure(first)
        if earlier_files:
            system.remember_earlier_files(str(first.files["file_name"][0]), earlier_files)
        yield system


def _event(path: Path) -> bytes:
    """Return a file event as discovery publishes it."""
    status = path.stat()
    # Not from the time as a float, which is rounded to another microsecond for one file in two.
    modified_at = EPOCH + timedelta(microseconds=status.st_mtime_ns // 1_000)
    return json.dumps(
        {
            "event_id": str(uuid4()),
            "job_id": "benchmark",
            "source_type": "local",
            "file_path": str(path),
            "file_name": path.name,
            "file_type": "csv",
            "size_bytes": status.st_size,
            "modified_at": modified_at.isoformat(),
            "etag": None,
            "discovered_at": datetime.now(UTC).isoformat(),
            "trace_id": uuid4().hex,
            "metadata": {},
        }
    ).encode()


def connect(url: str) -> psycopg2.extensions.connection:
    """Connect to a database, each statement a transaction of its own."""
    connection = psycopg2.connect(_libpq(url))
    connection.autocommit = True
    return connection


def _libpq(url: str) -> str:
    return url.replace("+psycopg2", "")


def report_restarts(what: str, state: StepState) -> None:
    """Print the notes of the stack: a restarted process explains a slow or failed measurement."""
    if state is StepState.NOTE:
        say(f"{what}.")
