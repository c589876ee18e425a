"""Parts of Dagster's instance that `dagster.yaml` names: storage with bulk writes, launcher with health checks, logs.

Dagster stores one event at a time: a materialisation costs about 10 ms, a check result 2 ms more, many times what
ingesting a small file costs. `BulkEventLogStorage` adds methods that store a whole batch; `InstanceStorage` uses it on
PostgreSQL and falls back to Dagster's own SQLite storage where no URL is set. With any other storage `asset_events.py`
stores one event at a time.

Dagster's own process launcher has no health check: a run that was killed together with its code server (a power cut, a
replaced container) would count as started forever, and its files as leased. `WatchedRunLauncher` queries the code
server.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from copy import copy
from datetime import UTC, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TextIO

import dagster as dg
import psutil
import sqlalchemy
from dagster import DagsterRun
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.events import ASSET_CHECK_EVENTS, ASSET_EVENTS, DagsterEvent
from dagster._core.events.log import EventLogEntry
from dagster._core.instance.ref import InstanceRef
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.base_storage import DagsterStorage
from dagster._core.storage.compute_log_manager import CapturedLogContext, ComputeIOType
from dagster._core.storage.local_compute_log_manager import IO_TYPE_EXTENSION, LocalComputeLogManager
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._grpc.client import DagsterGrpcClient
from dagster._grpc.types import GetCurrentRunsResult
from dagster._serdes import ConfigurableClass, ConfigurableClassData, deserialize_value
from dagster_postgres.event_log import PostgresEventLogStorage
from dagster_postgres.run_storage import PostgresRunStorage
from dagster_postgres.schedule_storage import PostgresScheduleStorage
from dagster_postgres.storage import DagsterPostgresStorage
from dagster_postgres.utils import create_pg_connection
from psycopg2 import extensions
from psycopg2.extras import execute_values
from pydantic import SecretStr
from sqlalchemy import Engine

from ingest_project.core.secrets import SecretReference
from ingest_project.core.settings import current_settings
from ingest_project.platform.dagster.event_text import event_texts
from ingest_project.platform.database import follow_secret

# A code server that is being replaced is unreachable for some seconds; if it stays so for longer, its runs are lost.
PATIENCE_SECONDS = 60.0
TEE_SECONDS = 2.0

# About 2 MB of events; larger statements gain nothing and need more memory.
ROWS_PER_STATEMENT = 1_000

# The columns in the order of `_materialization_row`.
_INSERT_MATERIALIZATIONS = """
    INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition)
    VALUES %s RETURNING id
"""

_INSERT_EVENT = """
    INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition) VALUES
    (%(run_id)s, %(event)s, %(dagster_event_type)s, %(timestamp)s, %(step_key)s, %(asset_key)s, %(partition)s)
    RETURNING id
"""

_INSERT_CHECK_EVENTS = """
    INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key) VALUES %s RETURNING id
"""

_ADD_PARTITIONS = """
    INSERT INTO dynamic_partitions (partitions_def_name, partition) SELECT %s, unnest(%s::text[]) ON CONFLICT DO NOTHING
"""

_CHECK_KEY_COLUMNS = 4
_UPSERT_CHECKS = """
    INSERT INTO asset_check_executions (
        asset_key, check_name, run_id, partition, execution_status, evaluation_event, evaluation_event_timestamp,
        evaluation_event_storage_id, materialization_event_storage_id
    ) VALUES %s
    ON CONFLICT (asset_key, check_name, run_id, partition) DO UPDATE SET
        execution_status = EXCLUDED.execution_status,
        evaluation_event = EXCLUDED.evaluation_event,
        evaluation_event_timestamp = EXCLUDED.evaluation_event_timestamp,
        evaluation_event_storage_id = EXCLUDED.evaluation_event_storage_id,
        materialization_event_storage_id = EXCLUDED.materialization_event_storage_id
"""

# Dagster's storages check for these to tell whether their tables were created.
_FIRST_TABLES = frozenset({"runs", "instance_info", "event_logs", "jobs"})

_COLUMNS = """
    SELECT relname, attname FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
    WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p') AND attnum > 0 AND NOT attisdropped
"""

_FOUND = "_found"
_POOL_SIZE = 2
_POOL_OVERFLOW = 20
_POOL_RECYCLE_SECONDS = 3_600


def _remembered_once_true(look: Callable[..., bool]) -> Callable[..., bool]:
    """Return a method that caches True: a table, a column or a data migration that was found stays there.

    It repeats the query only while the answer is False; Dagster would query the catalogue for every answer.
    """

    def has(storage: Any, *sought: object) -> bool:  # noqa: ANN401 - any of Dagster's storages
        found = vars(storage).setdefault(_FOUND, set())
        name = (look.__name__, *(one for one in sought if isinstance(one, str)))
        if name not in found and look(storage, *sought):
            found.add(name)
        return name in found

    return has


class BulkEventLogStorage(PostgresEventLogStorage):
    """Dagster's event log in PostgreSQL, with a bulk path for materialisations, check results and partitions."""

    has_table = _remembered_once_true(PostgresEventLogStorage.has_table)
    has_asset_key_col = _remembered_once_true(PostgresEventLogStorage.has_asset_key_col)
    _has_asset_key_col_on_connection = _remembered_once_true(PostgresEventLogStorage._has_asset_key_col_on_connection)  # noqa: SLF001 - Dagster's

    def store_event(self, event: EventLogEntry) -> None:
        """Store one event; a run stores dozens, and waits for each.

        Does what Dagster's method does, without compiling the statement each time and without notifying listeners,
        which only older versions of Dagster had.
        """
        with self._connect() as connection:
            storage_id = connection.exec_driver_sql(_INSERT_EVENT, self._event_to_row(event)).scalar_one()
        made = event.dagster_event
        if made and made.event_type in ASSET_EVENTS and made.asset_key:
            self._show_on_asset([event], [storage_id])
        if made and made.event_type in ASSET_CHECK_EVENTS:
            self.store_asset_check_event(event, storage_id)

    def store_materializations(self, events: Sequence[EventLogEntry]) -> list[int]:
        """Store materialisations of one asset; return their storage ids.

        Does what Dagster's `store_event_batch` does, but returns the ids and inserts faster: SQLAlchemy takes as long
        to compile the statement as it takes to serialise the events.
        """
        # A generator: only one page of events is serialised at a time.
        rows = (_materialization_row(*one) for one in zip(events, event_texts(events), strict=True))
        with self._cursor() as cursor:
            # PostgreSQL numbers and returns the rows of a VALUES list in their order.
            stored = execute_values(cursor, _INSERT_MATERIALIZATIONS, rows, page_size=ROWS_PER_STATEMENT, fetch=True)
        storage_ids = [int(storage_id) for (storage_id,) in stored]
        # Dagster reads the tags of each event's materialization.
        first = 0 if any(_materialization_of(event).tags for event in events) else -1
        self._show_on_asset(events[first:], storage_ids[first:])
        return storage_ids

    def store_check_results(self, events: Sequence[EventLogEntry]) -> None:
        """Store results of partitioned checks; replace an earlier result of the same run and partition.

        Dagster's `store_event_batch` takes no check results. This writes the rows that its `store_event` writes, except
        that the metadata keeps its order, which the UI shows.
        """
        rows = [
            # For check events, Dagster leaves asset and partition empty in this table.
            (event.run_id, text, event.get_dagster_event().event_type_value, _utc(event.timestamp), event.step_key)
            for event, text in zip(events, event_texts(events, sort_keys=False), strict=True)
        ]
        with self._cursor() as cursor:
            # PostgreSQL numbers and returns the rows of a VALUES list in their order.
            stored = execute_values(cursor, _INSERT_CHECK_EVENTS, rows, page_size=ROWS_PER_STATEMENT, fetch=True)
            records = (
                _check_record(event, row[1], int(storage_id))
                for event, row, (storage_id,) in zip(events, rows, stored, strict=True)
            )
            # One statement may not replace a row twice.
            last = {record[:_CHECK_KEY_COLUMNS]: record for record in records}
            execute_values(cursor, _UPSERT_CHECKS, last.values(), page_size=ROWS_PER_STATEMENT)

    def _show_on_asset(self, events: Sequence[EventLogEntry], storage_ids: list[int]) -> None:
        with self.index_transaction() as connection:
            self._store_asset_event_tags(connection, events, storage_ids)
            # The asset's row refers to its last event only.
            self._store_asset_event(connection, events[-1], storage_ids[-1])

    def add_dynamic_partitions(self, partitions_def_name: str, partition_keys: Sequence[str]) -> None:
        """Add partitions; existing ones stay. One array replaces two parameters for each of thousands of keys."""
        if not partition_keys:
            return
        self._check_partitions_table()
        with self._cursor() as cursor:
            cursor.execute(_ADD_PARTITIONS, (partitions_def_name, list(partition_keys)))

    @contextmanager
    def _cursor(self) -> Iterator[extensions.cursor]:
        """Open a cursor of psycopg2: SQLAlchemy takes twice the time for an insert of many rows."""
        with self._connect() as connection:
            driver: Any = connection.connection.driver_connection
            with driver.cursor() as opened:
                yield opened


class RunsInPostgres(PostgresRunStorage):
    """Dagster's runs and backfills, without the query of the table's columns that precedes each read of a run."""

    has_run_stats_index_cols = _remembered_once_true(PostgresRunStorage.has_run_stats_index_cols)
    has_backfill_id_column = _remembered_once_true(PostgresRunStorage.has_backfill_id_column)
    has_backfill_tags_table = _remembered_once_true(PostgresRunStorage.has_backfill_tags_table)
    has_bulk_action_job_name_column = _remembered_once_true(PostgresRunStorage.has_bulk_action_job_name_column)
    has_bulk_actions_selector_cols = _remembered_once_true(PostgresRunStorage.has_bulk_actions_selector_cols)

    def handle_run_event(self, run_id: str, event: DagsterEvent, update_timestamp: datetime | None = None) -> None:
        """Set the status of a run, unless it was canceled, or is to be canceled after its end.

        Dagster would queue, start or finish a run that a person has canceled by force since its caller last read it,
        and cancel a run that has ended since.
        """
        final = [dg.DagsterRunStatus.CANCELED]
        if event.event_type in (dg.DagsterEventType.PIPELINE_CANCELING, dg.DagsterEventType.PIPELINE_CANCELED):
            final += [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
        # One process at a time, between reading a run's status and setting it.
        with self._engine.connect().execution_options(isolation_level="READ COMMITTED") as locking:
            locking.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (run_id,))
            if not self.get_runs_count(dg.RunsFilter(run_ids=[run_id], statuses=final)):
                super().handle_run_event(run_id, event, update_timestamp)


class SchedulesInPostgres(PostgresScheduleStorage):
    """Dagster's ticks and sensor states, without the catalogue query that precedes each of its queries."""

    has_built_index = _remembered_once_true(PostgresScheduleStorage.has_built_index)
    has_instigators_table = _remembered_once_true(PostgresScheduleStorage.has_instigators_table)
    _has_instigators_table = _remembered_once_true(PostgresScheduleStorage._has_instigators_table)  # noqa: SLF001 - Dagster's


class _PooledPostgresStorage(DagsterPostgresStorage):
    """Dagster's PostgreSQL storage with the storages above, over connections that stay open."""

    def __init__(self, address: SecretStr) -> None:
        postgres_url, engine = with_psycopg2(address.get_secret_value()), shared_engine(address)
        # Query all columns once: otherwise each of Dagster's three storages opens a connection to check for its tables.
        with create_pg_connection(engine) as connection:
            columns = _columns_of_tables(connection)
        is_new = not columns.keys() >= _FIRST_TABLES
        with _alone(engine) if is_new else nullcontext():
            super().__init__(postgres_url, should_autocreate_tables=is_new)
        self._run_storage = RunsInPostgres(postgres_url, should_autocreate_tables=False)
        self._event_log_storage = BulkEventLogStorage(postgres_url, should_autocreate_tables=False)
        self._schedule_storage = SchedulesInPostgres(postgres_url, should_autocreate_tables=False)
        for storage in (self._event_log_storage, self._run_storage, self._schedule_storage):
            storage._engine = engine  # noqa: SLF001 - there is no way in from outside
            # All the copies that `for_instance` makes share this set.
            vars(storage)[_FOUND] = _found_in(columns)

    def for_instance(self, inst_data: ConfigurableClassData | None) -> _PooledPostgresStorage:
        """Return a copy for another instance: each instance registers with its storages, so they cannot be shared."""
        storage = copy(self)
        storage._inst_data = inst_data  # noqa: SLF001 - its own class
        storage._run_storage = copy(self._run_storage)  # noqa: SLF001
        storage._event_log_storage = copy(self._event_log_storage)  # noqa: SLF001
        storage._schedule_storage = copy(self._schedule_storage)  # noqa: SLF001
        return storage


@contextmanager
def _alone(engine: Engine) -> Iterator[None]:
    """Wait while another process creates Dagster's tables: Dagster fails where it finds the type of a table alone."""
    with engine.connect().execution_options(isolation_level="READ COMMITTED") as locking:
        locking.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtextextended('dagster tables', 0))")
        yield


def _columns_of_tables(connection: sqlalchemy.Connection) -> dict[str, set[str]]:
    """Return the column names of each table with one query: SQLAlchemy's reflection takes longer than a run's steps."""
    columns: dict[str, set[str]] = {}
    for table, column in connection.execute(sqlalchemy.text(_COLUMNS)):
        columns.setdefault(table, set()).add(column)
    return columns


def _found_in(columns: Mapping[str, set[str]]) -> set[tuple[str, ...]]:
    """Return the checks of the methods above that these tables satisfy; other checks query the database."""
    assets, runs = columns.get("asset_keys", set()), columns.get("runs", set())
    found: set[tuple[str, ...]] = {("has_table", table) for table in columns}
    for name in ("has_asset_key_col", "_has_asset_key_col_on_connection"):
        found |= {(name, column) for column in assets}
    if {"start_time", "end_time"} <= runs:
        found.add(("has_run_stats_index_cols",))
    if "backfill_id" in runs:
        found.add(("has_backfill_id_column",))
    return found


@cache
def shared_storage(address: SecretStr) -> _PooledPostgresStorage:
    """Return the storage that the instances of this process share; creates missing tables.

    Dagster creates an instance for every tick of a sensor, which would connect and check the tables each time.
    """
    return _PooledPostgresStorage(address)


_engines: dict[str, Engine] = {}


def shared_engine(address: SecretStr) -> Engine:
    """Return this process's connection pool for a database: by default Dagster opens a connection for every query.

    Args:
        address: URL of the database. If it is a reference to a secret, new connections read the secret again.
    """
    url = with_psycopg2(address.get_secret_value())
    key = address.reference if isinstance(address, SecretReference) else url
    if key not in _engines:
        _engines.setdefault(key, _pool(address, url))
    return _engines[key]


def _pool(address: SecretStr, postgres_url: str) -> Engine:
    engine = sqlalchemy.create_engine(
        postgres_url,
        isolation_level="AUTOCOMMIT",
        # Otherwise SQLAlchemy queries each new connection for a type that no table here has.
        use_native_hstore=False,
        pool_size=_POOL_SIZE,
        max_overflow=_POOL_OVERFLOW,
        pool_recycle=_POOL_RECYCLE_SECONDS,
        # Test a connection before use, and replace it if the server was restarted.
        pool_pre_ping=True,
    )
    follow_secret(engine, address, {})
    return engine


class InstanceStorage(DagsterStorage, ConfigurableClass):
    """The storage that `dagster.yaml` names: PostgreSQL at DAGSTER_POSTGRES_URL, else SQLite in DAGSTER_HOME.

    The URL is read from the settings and never becomes part of Dagster's serialised instance configuration, so it
    cannot show up in the UI or in the arguments of a run worker.
    """

    @classmethod
    def config_type(cls) -> Any:  # noqa: ANN401 - Dagster's own config schema
        """Return no configuration: everything comes from the settings."""
        return {}

    @classmethod
    def from_config_value(  # type: ignore[override]  # Dagster asks only for a DagsterStorage
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> DagsterStorage:
        """Create the storage that the settings name."""
        address = current_settings().dagster.postgres_url
        if address:
            return shared_storage(address).for_instance(inst_data)
        return DagsterSqliteStorage.from_local(str(_home()), inst_data)

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """Unused: `from_config_value` returns another class."""
        return None


def upgrade_tables() -> str:
    """Upgrade Dagster's tables to the installed version, and return that version."""
    storage = {"custom": {"module": __name__, "class": InstanceStorage.__name__, "config": {}}}
    with tempfile.TemporaryDirectory() as folder:
        # Without this, Dagster warns if DAGSTER_HOME is set.
        (Path(folder) / "dagster.yaml").touch()
        reference = InstanceRef.from_dir(folder, overrides={"storage": storage, "telemetry": {"enabled": False}})
        with dg.DagsterInstance.from_ref(reference) as instance:
            instance.upgrade()
    return dg.__version__


def with_psycopg2(url: str) -> str:
    """Return the URL with the driver of dagster-postgres: SQLAlchemy 2.1 would choose psycopg 3."""
    scheme, separator, rest = url.partition("://")
    return f"postgresql+psycopg2://{rest}" if separator and scheme in {"postgres", "postgresql"} else url


class TeeLogManager(LocalComputeLogManager):
    """Dagster's files with the output of each step, under the home folder, written by `tee`.

    Dagster itself writes only to the files, and starts `tail` and a Python interpreter for each to copy it to the
    console. `tee` does both, and exits when the printing process ends for any reason.
    """

    @classmethod
    def config_type(cls) -> Any:  # noqa: ANN401 - Dagster's own config schema
        """Return no configuration: everything comes from the settings."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> TeeLogManager:
        """Create the manager with the default folder of Dagster's own."""
        return cls(str(_home() / "storage"), inst_data=inst_data)

    @contextmanager
    def capture_logs(self, log_key: Sequence[str]) -> Iterator[CapturedLogContext]:
        """Copy this process's output to the files of a step until the block ends."""
        out, err = (
            Path(self.get_captured_local_path(log_key, IO_TYPE_EXTENSION[kind]))
            for kind in (ComputeIOType.STDOUT, ComputeIOType.STDERR)
        )
        with _copied(sys.stdout, out), _copied(sys.stderr, err):
            yield CapturedLogContext(log_key)
        # This file tells Dagster that the logs are complete.
        Path(self.complete_artifact_path(log_key)).touch()  # type: ignore[no-untyped-call]


@contextmanager
def _copied(stream: TextIO, path: Path) -> Iterator[None]:
    """Append everything that this process prints on a stream to a file, and still print it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    try:
        shown = stream.fileno()
    except (OSError, ValueError):
        # The stream is in memory, as in a test.
        yield
        return
    reading, writing = os.pipe()
    # Start `tee` in a new session: a stop signal from the terminal would end it before the last lines.
    command = ["tee", "-a", str(path)]
    tee = subprocess.Popen(command, stdin=reading, stdout=shown, start_new_session=True)  # noqa: S603 - ours
    stream.flush()
    original = os.dup(shown)
    os.dup2(writing, shown)
    os.close(reading)
    os.close(writing)
    try:
        yield
    finally:
        stream.flush()
        os.dup2(original, shown)
        os.close(original)
        # Do not wait for a program that the step has left running and that still prints.
        with suppress(subprocess.TimeoutExpired):
            tee.wait(TEE_SECONDS)


class WatchedRunLauncher(DefaultRunLauncher):
    """Dagster's default launcher, whose runs the daemon's run monitoring can check.

    Monitoring fails a run whose process has ended; the work queue then requeues its files. If the process is still
    alive (only its code server was killed), both runs store the same state.
    """

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(inst_data)
        self._away_since: dict[str, float] = {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> WatchedRunLauncher:
        """Create the launcher, which takes no configuration, like the default one."""
        return cls(inst_data)

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Return true: the code server knows its processes."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Query the code server that started a run for its process; find that of a command on this machine."""
        client: DagsterGrpcClient | None = self._get_grpc_client_for_termination(run.run_id)  # type: ignore[no-untyped-call]
        if client is None:
            if _is_executed_by_a_command(self._instance, run.run_id):
                return CheckRunHealthResult(WorkerStatus.RUNNING)
            return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "No code server is on record for it.")
        try:
            current = deserialize_value(client.get_current_runs(), GetCurrentRunsResult).current_runs
        except DagsterUserCodeUnreachableError:
            return self._while_away(run.run_id)
        self._away_since.pop(run.run_id, None)
        if run.run_id in current:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "Its process ended without reporting a result.")

    def _while_away(self, run_id: str) -> CheckRunHealthResult:
        now = time.monotonic()
        if now - self._away_since.setdefault(run_id, now) < PATIENCE_SECONDS:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "Its code server does not answer at the moment.")
        del self._away_since[run_id]
        return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "Its code server is gone.")


def _is_executed_by_a_command(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Return True while `dagster asset materialize` or `dg launch`, which execute a run themselves, still does."""
    engine_events = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT, limit=1).records
    for entry in (record.event_log_entry for record in engine_events):
        pid: Any = entry.get_dagster_event().engine_event_data.metadata.get("pid")
        with suppress(psutil.Error, AttributeError):
            # After a restart of the machine, another process may have this id: it began after the event.
            return psutil.Process(int(pid.text)).create_time() <= entry.timestamp
    return False


def _home() -> Path:
    settings = current_settings()
    return settings.dagster.home or settings.state_dir.absolute() / "dagster_home"


def _check_record(event: EventLogEntry, text: str, storage_id: int) -> tuple[object, ...]:
    """Return the values for the statement's columns, in their order."""
    result = event.get_dagster_event().asset_check_evaluation_data
    status = AssetCheckExecutionRecordStatus.SUCCEEDED if result.passed else AssetCheckExecutionRecordStatus.FAILED
    key = (_key_text(result.asset_key), result.check_name, event.run_id, result.partition)
    target = result.target_materialization_data
    return (*key, status.value, text, _utc(event.timestamp), storage_id, target.storage_id if target else None)


def _materialization_row(event: EventLogEntry, text: str) -> tuple[Any, ...]:
    """Return the row that Dagster's `_event_to_row` returns, without serialising the event again."""
    made, materialization = event.get_dagster_event(), _materialization_of(event)
    key, partition = _key_text(materialization.asset_key), materialization.partition or None
    return event.run_id, text, made.event_type_value, _utc(event.timestamp), made.step_key, key, partition


def _materialization_of(event: EventLogEntry) -> dg.AssetMaterialization:
    # Read the fields directly: Dagster's properties check the type of the event each time.
    materialization: dg.AssetMaterialization = event.get_dagster_event().event_specific_data.materialization  # type: ignore[union-attr]
    return materialization


# These are the same for each event of a batch.
@lru_cache(maxsize=64)
def _key_text(key: dg.AssetKey) -> str:
    """Return an asset key in the form that Dagster's tables store."""
    return key.to_string()


@lru_cache(maxsize=64)
def _utc(timestamp: float) -> datetime:
    """Return the time of an event as Dagster stores it: naive, in UTC."""
    return datetime.fromtimestamp(timestamp, UTC).replace(tzinfo=None)
