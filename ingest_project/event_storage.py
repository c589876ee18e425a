"""Where Dagster keeps its records, and how thousands of per-file events reach them in a few statements.

Dagster stores an event at a time: a materialisation costs about 10 ms, a check result 2 ms more, which is many times
what ingesting a small file costs. `BulkEventLogStorage` adds one method that stores a whole batch; `dagster.yaml` names
`InstanceStorage`, which uses it on PostgreSQL and falls back to Dagster's own SQLite storage where no URL is set.

Written against and tested with dagster 1.13.27 and dagster-postgres 0.29.27. It relies on these internals of theirs:
the table objects of `event_log.schema`, `_event_to_row`, `_store_asset_event`, `_store_asset_event_tags`, and the
`_engine` of its three storages.
Where the storage in use has no `store_asset_events`, `batches.py` logs one event at a time instead.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import sqlalchemy
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluation
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.base_storage import DagsterStorage
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable, SqlEventLogStorageTable
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._serdes import ConfigurableClass, ConfigurableClassData
from dagster_postgres.event_log import PostgresEventLogStorage
from dagster_postgres.storage import DagsterPostgresStorage
from sqlalchemy.dialects import postgresql

from ingest_project.settings import current_settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dagster._core.events.log import EventLogEntry
    from sqlalchemy import Engine


class BulkEventLogStorage(PostgresEventLogStorage):
    """Dagster's event log in PostgreSQL, with a bulk path for materialisations and check results."""

    def store_asset_events(self, events: Sequence[EventLogEntry]) -> list[int]:
        """Store materialisations of any assets, and return the storage id of each, in order.

        Called again with the same events it stores them again, as Dagster does: the newest counts.
        """
        if not events:
            return []
        storage_ids = self._insert([self._event_to_row(event) for event in events])
        newest = {event.get_dagster_event().asset_key: index for index, event in enumerate(events)}
        with self.index_transaction() as connection:
            self._store_asset_event_tags(connection, events, storage_ids)
            for index in newest.values():
                self._store_asset_event(connection, events[index], storage_ids[index])
        return storage_ids

    def store_check_events(self, events: Sequence[EventLogEntry]) -> None:
        """Store results of partitioned checks; a result of the same run and partition is replaced."""
        if not events:
            return
        rows = [self._event_to_row(event) for event in events]
        storage_ids = self._insert(rows)
        insert = postgresql.insert(AssetCheckExecutionsTable)
        upsert = insert.on_conflict_do_update(
            index_elements=["asset_key", "check_name", "run_id", "partition"],
            set_={name: insert.excluded[name] for name in _CHECK_RESULT_COLUMNS},
        )
        records = [_check_record(*stored) for stored in zip(events, rows, storage_ids, strict=True)]
        with self.index_connection() as connection:
            connection.execute(upsert, records)

    def _insert(self, rows: Sequence[Mapping[str, Any]]) -> list[int]:
        statement = SqlEventLogStorageTable.insert().returning(
            SqlEventLogStorageTable.c.id, sort_by_parameter_order=True
        )
        with self._connect() as connection:
            return [int(row[0]) for row in connection.execute(statement, rows)]


POOL_SIZE = 2
POOL_OVERFLOW = 20
POOL_RECYCLE_SECONDS = 3_600

_CHECK_RESULT_COLUMNS = (
    "execution_status",
    "evaluation_event",
    "evaluation_event_timestamp",
    "evaluation_event_storage_id",
    "materialization_event_storage_id",
)


def _check_record(event: EventLogEntry, row: Mapping[str, Any], storage_id: int) -> dict[str, object]:
    evaluation = event.get_dagster_event().event_specific_data
    if not isinstance(evaluation, AssetCheckEvaluation):
        raise TypeError(f"Not a check result: {type(evaluation).__name__}")
    status = AssetCheckExecutionRecordStatus
    target = evaluation.target_materialization_data
    return {
        "asset_key": evaluation.asset_key.to_string(),
        "check_name": evaluation.check_name,
        "partition": evaluation.partition,
        "run_id": event.run_id,
        "execution_status": (status.SUCCEEDED if evaluation.passed else status.FAILED).value,
        "evaluation_event": row["event"],
        "evaluation_event_timestamp": row["timestamp"],
        "evaluation_event_storage_id": storage_id,
        "materialization_event_storage_id": target.storage_id if target else None,
    }


class _BulkPostgresStorage(DagsterPostgresStorage):
    """Dagster's PostgreSQL storage with the event log above, over connections that stay open."""

    def __init__(self, postgres_url: str, inst_data: ConfigurableClassData | None) -> None:
        super().__init__(postgres_url, inst_data=inst_data)
        self._event_log_storage = BulkEventLogStorage(postgres_url)
        for storage in (self._event_log_storage, self._run_storage, self._schedule_storage):
            storage._engine = shared_engine(postgres_url)  # noqa: SLF001 - there is no way in from outside


@cache
def shared_engine(postgres_url: str) -> Engine:
    """The one pool of this process: by default Dagster opens a connection for every query.

    An instance is made for every tick of a sensor; a pool of its own would leave a connection behind each time.
    """
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
            return _BulkPostgresStorage(with_psycopg2(url), inst_data)
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
