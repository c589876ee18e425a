"""Where Dagster keeps its records, and how thousands of per-file events reach them in a few statements.

Dagster stores an event at a time: a materialisation costs about 10 ms, a check result 2 ms more, which is many times
what ingesting a small file costs. `BulkEventLogStorage` adds methods that store a whole batch; `dagster.yaml` names
`InstanceStorage`, which uses it on PostgreSQL and falls back to Dagster's own SQLite storage where no URL is set.

Written against and tested with dagster 1.13.27 and dagster-postgres 0.29.27. It relies on these internals of theirs:
the tables `event_logs`, `asset_check_executions` and `dynamic_partitions`, `_connect`, `_store_asset_event`,
`_check_partitions_table`, the `_engine` of its three storages, that these can be copied, and `_has_instigators_table`;
`event_rows.py` says what the events rely on. Where the storage in use is another one, `partition_reports.py` logs one
event at a time instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from functools import cache, partial
from pathlib import Path
from typing import Any

import sqlalchemy
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.base_storage import DagsterStorage
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._serdes import ConfigurableClass, ConfigurableClassData
from dagster_postgres.event_log import PostgresEventLogStorage
from dagster_postgres.schedule_storage import PostgresScheduleStorage
from dagster_postgres.storage import DagsterPostgresStorage
from psycopg2 import extensions
from psycopg2.extras import execute_values
from sqlalchemy import Connection, Engine

from ingest_project.core.settings import current_settings
from ingest_project.platform.dagster.event_rows import CheckRow, EventRow


class BulkEventLogStorage(PostgresEventLogStorage):
    """Dagster's event log in PostgreSQL, with a bulk path for materialisations, check results and partitions."""

    def store_asset_events(self, rows: Iterable[EventRow], newest: Mapping[int, EventLogEntry]) -> list[int]:
        """Store materialisations, and return the storage id of each, in order.

        Called again with the same events it stores them again, as Dagster does: the newest counts.

        Args:
            rows: of any assets, without tags.
            newest: the last event of each asset, under its position among the rows; Dagster shows it with the asset.
        """
        storage_ids = self._insert(rows)
        if newest:
            with self.index_transaction() as connection:
                for position, entry in newest.items():
                    self._store_asset_event(connection, entry, storage_ids[position])
        return storage_ids

    def store_check_events(self, rows: Sequence[CheckRow]) -> None:
        """Store results of partitioned checks; a result of the same run and partition is replaced."""
        storage_ids = self._insert(row.event for row in rows)
        records = (_check_record(row, storage_id) for row, storage_id in zip(rows, storage_ids, strict=True))
        # One statement may not replace a row twice.
        last = {record[:_CHECK_KEY_COLUMNS]: record for record in records}
        with self._cursor() as cursor:
            execute_values(cursor, _UPSERT_CHECKS, last.values(), page_size=ROWS_PER_STATEMENT)

    def add_dynamic_partitions(self, partitions_def_name: str, partition_keys: Sequence[str]) -> None:
        """Add partitions; those that are there stay. One array in place of two parameters for each of thousands."""
        if not partition_keys:
            return
        self._check_partitions_table()
        with self._cursor() as cursor:
            cursor.execute(_ADD_PARTITIONS, (partitions_def_name, list(partition_keys)))

    def _insert(self, rows: Iterable[EventRow]) -> list[int]:
        # PostgreSQL numbers and returns the rows of a VALUES list in their order.
        with self._cursor() as cursor:
            stored = execute_values(cursor, _INSERT_EVENTS, rows, page_size=ROWS_PER_STATEMENT, fetch=True)
        return [int(storage_id) for (storage_id,) in stored]

    @contextmanager
    def _cursor(self) -> Iterator[extensions.cursor]:
        """A cursor of psycopg2 itself: SQLAlchemy takes twice the time for an insert of many rows."""
        with self._connect() as connection:
            driver: Any = connection.connection.driver_connection
            with driver.cursor() as opened:
                yield opened


# Of events, some 2 MB; larger statements gain nothing and hold more memory.
ROWS_PER_STATEMENT = 1_000

_INSERT_EVENTS = f"INSERT INTO event_logs ({', '.join(EventRow._fields)}) VALUES %s RETURNING id"

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


def _check_record(row: CheckRow, storage_id: int) -> tuple[object, ...]:
    """The values of the statement above, in its order."""
    status = AssetCheckExecutionRecordStatus.SUCCEEDED if row.passed else AssetCheckExecutionRecordStatus.FAILED
    key = (row.asset_key, row.check_name, row.event.run_id, row.partition)
    return (*key, status.value, row.event.event, row.event.timestamp, storage_id, row.target_storage_id)


POOL_SIZE = 2
POOL_OVERFLOW = 20
POOL_RECYCLE_SECONDS = 3_600


class _RememberingScheduleStorage(PostgresScheduleStorage):
    """Dagster's ticks and sensor states, without the look at the catalogue that precedes each of its queries.

    A table or a migration that was there once stays.
    """

    def __init__(self, postgres_url: str) -> None:
        super().__init__(postgres_url)
        self._found: set[str] = set()

    def has_instigators_table(self) -> bool:
        """Whether states are kept by selector."""
        return self._is_there("instigators", super().has_instigators_table)

    def _has_instigators_table(self, conn: Connection) -> bool:
        return self._is_there("instigators", partial(super()._has_instigators_table, conn))

    def has_built_index(self, migration_name: str) -> bool:
        """Whether a migration of data was made."""
        return self._is_there(migration_name, partial(super().has_built_index, migration_name))

    def _is_there(self, name: str, look: Callable[[], bool]) -> bool:
        if name not in self._found and look():
            self._found.add(name)
        return name in self._found


class _PooledPostgresStorage(DagsterPostgresStorage):
    """Dagster's PostgreSQL storage with the event log above, over connections that stay open."""

    def __init__(self, postgres_url: str) -> None:
        super().__init__(postgres_url)
        self._event_log_storage = BulkEventLogStorage(postgres_url)
        self._schedule_storage = _RememberingScheduleStorage(postgres_url)
        for storage in (self._event_log_storage, self._run_storage, self._schedule_storage):
            storage._engine = shared_engine(postgres_url)  # noqa: SLF001 - there is no way in from outside

    def for_instance(self, inst_data: ConfigurableClassData | None) -> _PooledPostgresStorage:
        """The same for one more instance: each makes itself known to its storages, and those cannot be shared."""
        storage = copy(self)
        storage._inst_data = inst_data  # noqa: SLF001 - its own class
        storage._run_storage = copy(self._run_storage)  # noqa: SLF001
        storage._event_log_storage = copy(self._event_log_storage)  # noqa: SLF001
        storage._schedule_storage = copy(self._schedule_storage)  # noqa: SLF001
        return storage


@cache
def shared_storage(postgres_url: str) -> _PooledPostgresStorage:
    """What the instances of this process have in common; makes the tables where there are none.

    An instance is made for every tick of a sensor, and would look for the tables through new connections each time.
    """
    return _PooledPostgresStorage(postgres_url)


@cache
def shared_engine(postgres_url: str) -> Engine:
    """The one pool of this process: by default Dagster opens a connection for every query."""
    return sqlalchemy.create_engine(
        postgres_url,
        isolation_level="AUTOCOMMIT",
        pool_size=POOL_SIZE,
        max_overflow=POOL_OVERFLOW,
        pool_recycle=POOL_RECYCLE_SECONDS,
        # A connection that a restarted server has forgotten is replaced before it is used.
        pool_pre_ping=True,
    )


class InstanceStorage(DagsterStorage, ConfigurableClass):
    """The storage that `dagster.yaml` names: PostgreSQL at DAGSTER_POSTGRES_URL, else SQLite in DAGSTER_HOME.

    The URL is read from the settings and never becomes part of Dagster's serialised instance configuration, so it
    cannot show up in the UI or in the arguments of a run worker.
    """

    @classmethod
    def config_type(cls) -> Any:  # noqa: ANN401 - Dagster's own config schema
        """No configuration: everything comes from the settings."""
        return {}

    @classmethod
    def from_config_value(  # type: ignore[override]  # Dagster asks only for a DagsterStorage
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> DagsterStorage:
        """Build the storage that the settings ask for."""
        del config_value
        url = current_settings().dagster.postgres_url.get_secret_value()
        if url:
            return shared_storage(with_psycopg2(url)).for_instance(inst_data)
        return DagsterSqliteStorage.from_local(str(_sqlite_folder()), inst_data)

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """Never asked of this class: `from_config_value` hands out the storage itself."""
        return None


def with_psycopg2(url: str) -> str:
    """The URL with the driver that dagster-postgres ships named: SQLAlchemy 2.1 would look for psycopg 3."""
    scheme, separator, rest = url.partition("://")
    return f"postgresql+psycopg2://{rest}" if separator and scheme in {"postgres", "postgresql"} else url


def _sqlite_folder() -> Path:
    settings = current_settings()
    return settings.dagster.home or settings.state_dir.absolute() / "dagster_home"
