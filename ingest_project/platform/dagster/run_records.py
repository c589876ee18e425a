"""Read Dagster's records: saved cursors, failing ticks, unfinished and failed runs, and the daemon's heartbeats.

They are read from Dagster's storage (PostgreSQL or SQLite, chosen as in `dagster.yaml`), which works without a
DAGSTER_HOME and while webserver and daemon are stopped. Nothing is created or changed.

Loads Dagster: `records` has the types and the protocol without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import sqlalchemy as sa
from dagster import AssetKey, DagsterEventType, DagsterInstance, DagsterRunStatus, RunRecord, RunsFilter
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.events import JobFailureData
from dagster._core.execution.plan.objects import StepFailureData
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorTick,
    SensorInstigatorData,
    TickStatus,
)
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from dagster._core.storage.event_log import SqlEventLogStorage, SqliteEventLogStorage
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable
from dagster._core.storage.runs import RunStorage, SqliteRunStorage
from dagster._core.storage.schedules import ScheduleStorage, SqliteScheduleStorage
from dagster_postgres.event_log import PostgresEventLogStorage
from dagster_postgres.utils import DagsterPostgresException
from dagster_shared.error import SerializableErrorInfo
from sqlalchemy.exc import SQLAlchemyError
from typing_extensions import override

from ingest_project.core.errors import IngestError
from ingest_project.core.items import as_utc
from ingest_project.core.settings import Settings
from ingest_project.platform.dagster.instance import RunsInPostgres, SchedulesInPostgres, shared_engine, with_psycopg2
from ingest_project.platform.dagster.records import (
    DagsterRecordsUnavailableError,
    FailedChecks,
    FailedRun,
    FailingTicks,
    RunOnRecord,
    RunRecords,
    RunsInFlight,
    SensorOnRecord,
)
from ingest_project.platform.database import open_engine, reading, redacted
from ingest_project.platform.errors import first_line_of

MAX_REASON = 300
MAX_FAILED_RUNS = 200
MAX_CHECK_RESULTS = 20_000
SHOWN_PARTITIONS = 3
MAIN_TABLES = {"runs", "instigators"}


class DagsterRecords(RunRecords):
    """Read Dagster's storage; opened when first used.

    Args:
        settings: settings that locate the storage.
        instance: instance whose storage to read instead.
    """

    def __init__(self, settings: Settings, instance: DagsterInstance | None = None) -> None:
        self._settings = settings
        self._instance = instance
        self._url = settings.dagster.postgres_url

    @override
    def sensors(self) -> dict[str, SensorOnRecord]:
        with self._mapped_errors():
            states = self._storages[1].all_instigator_state(instigator_type=InstigatorType.SENSOR)
        # There may be an older record of the sensor under another code location: use the one that ticks.
        each = sorted(map(_sensor, states), key=lambda sensor: sensor.ticked_at.timestamp() if sensor.ticked_at else 0)
        return {sensor.name: sensor for sensor in each}

    @override
    def failing(self, *, schedules: bool = False) -> dict[str, FailingTicks]:
        ended = [TickStatus.SUCCESS, TickStatus.SKIPPED, TickStatus.FAILURE]
        storage = self._storages[1]
        found: dict[str, FailingTicks] = {}
        with self._mapped_errors():
            for state in storage.all_instigator_state(instigator_type=None if schedules else InstigatorType.SENSOR):
                if not _may_have_failed(state):
                    continue
                for tick in storage.get_ticks(state.instigator_origin_id, state.selector_id, limit=1, statuses=ended):
                    if tick.status is TickStatus.FAILURE:
                        found[state.instigator_name] = _failing(tick, state.instigator_type.value.lower())
        return found

    @override
    def heartbeats(self) -> dict[str, datetime]:
        with self._mapped_errors():
            beats = self._storages[0].get_daemon_heartbeats()
        return {kind: datetime.fromtimestamp(beat.timestamp, UTC) for kind, beat in beats.items()}

    @override
    def unfinished_runs(self, limit: int) -> tuple[RunOnRecord, ...]:
        with self._mapped_errors():
            records = self._storages[0].get_run_records(RunsFilter(statuses=NOT_FINISHED_STATUSES), limit=limit)
        return tuple(map(_run, records))

    @override
    def runs_in_flight(self) -> RunsInFlight:
        waiting = [DagsterRunStatus.QUEUED, DagsterRunStatus.NOT_STARTED]
        working = [status for status in NOT_FINISHED_STATUSES if status not in waiting]
        with self._mapped_errors():
            runs = self._storages[0]
            return RunsInFlight(
                queued=runs.get_runs_count(RunsFilter(statuses=waiting)),
                started=runs.get_runs_count(RunsFilter(statuses=working)),
            )

    @override
    def failed_runs(self, since: datetime) -> tuple[FailedRun, ...]:
        ended = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE]
        found: list[FailedRun] = []
        with self._mapped_errors():
            storage = self._storages[0]
            recent = RunsFilter(statuses=[DagsterRunStatus.FAILURE], updated_after=since)
            failed = storage.get_run_records(recent, limit=MAX_FAILED_RUNS)
            for job in sorted({record.dagster_run.job_name for record in failed}):
                (last,) = storage.get_run_records(RunsFilter(job_name=job, statuses=ended), limit=1)
                if last.dagster_run.status is DagsterRunStatus.FAILURE:
                    found.append(FailedRun(job, last.dagster_run.run_id, as_utc(last.update_timestamp)))
        return tuple(found)

    @override
    def failed_checks(self, since: datetime) -> tuple[FailedChecks, ...]:
        columns = AssetCheckExecutionsTable.c
        check = (columns.asset_key, columns.check_name)
        found: dict[tuple[str, str], list[tuple[str | None, str]]] = {}
        with self._mapped_errors(), self._events.index_connection() as connection:
            newest = connection.execute(sa.select(sa.func.max(columns.id))).scalar() or 0
            last = (
                sa.select(sa.func.max(columns.id))
                .where(
                    columns.id > newest - MAX_CHECK_RESULTS,
                    columns.execution_status.in_(["SUCCEEDED", "FAILED"]),
                    # Dagster stores naive times in UTC.
                    columns.partition.is_(None)
                    | (columns.evaluation_event_timestamp > since.astimezone(UTC).replace(tzinfo=None)),
                )
                .group_by(*check, columns.partition)
            )
            failed = (
                sa.select(*check, columns.partition, columns.run_id)
                .where(columns.id.in_(last), columns.execution_status == "FAILED")
                .order_by(columns.id.desc())
            )
            for asset, name, partition, run_id in connection.execute(failed):
                found.setdefault((asset, name), []).append((partition, run_id))
        return tuple(
            FailedChecks(
                asset=key.to_user_string() if (key := AssetKey.from_db_string(asset)) else asset,
                check=name,
                failed=len(results),
                partitions=tuple(partition for partition, _ in results if partition)[:SHOWN_PARTITIONS],
                run_id=results[0][1] or None,
            )
            for (asset, name), results in sorted(found.items())
        )

    @property
    def _address(self) -> str:
        return redacted(self._url.get_secret_value()) if self._url else str(self._folder)

    @property
    def _folder(self) -> Path:
        settings = self._settings
        return settings.dagster.home or settings.state_dir.absolute() / "dagster_home"

    @cached_property
    def _storages(self) -> tuple[RunStorage, ScheduleStorage]:
        if self._instance:
            return self._instance.run_storage, _schedules_of(self._instance)
        return self._in_postgres() if self._url else self._in_sqlite()

    @cached_property
    def _events(self) -> SqlEventLogStorage:
        if self._instance:
            storage = self._instance.event_log_storage
            if not isinstance(storage, SqlEventLogStorage):
                raise DagsterRecordsUnavailableError(repr(self._instance), "its events are not in a database")
            return storage
        if not self._url:
            events = self._folder / "history" / "runs"
            if not (events / "index.db").exists():
                raise DagsterRecordsUnavailableError(self._address, "there are none")
            return SqliteEventLogStorage(str(events))
        self._require_tables()
        storage = PostgresEventLogStorage(with_psycopg2(self._url.get_secret_value()), should_autocreate_tables=False)
        storage._engine = shared_engine(self._url)  # noqa: SLF001 - there is no way in from outside
        return storage

    def _in_postgres(self) -> tuple[RunStorage, ScheduleStorage]:
        self._require_tables()
        url = with_psycopg2(self._url.get_secret_value())
        storages = RunsInPostgres(url, False), SchedulesInPostgres(url, False)
        for storage in storages:
            # Dagster's own engine opens a connection for every query.
            storage._engine = shared_engine(self._url)  # noqa: SLF001 - there is no way in from outside
        return storages

    def _in_sqlite(self) -> tuple[RunStorage, ScheduleStorage]:
        runs, schedules = self._folder / "history", self._folder / "schedules"
        if not (runs / "runs.db").exists() or not (schedules / "schedules.db").exists():
            raise DagsterRecordsUnavailableError(self._address, "there are none")
        return SqliteRunStorage.from_local(str(runs)), SqliteScheduleStorage.from_local(str(schedules))

    def _require_tables(self) -> None:
        """Fail fast and without log lines: Dagster itself would retry for 6 s and log each attempt."""
        engine = open_engine(self._url, self._settings.warehouse.connect_timeout_seconds)
        try:
            with reading(engine) as connection:
                missing = MAIN_TABLES - set(sa.inspect(connection).get_table_names())
        finally:
            engine.dispose()
        if missing:
            raise DagsterRecordsUnavailableError(self._address, "there are none")

    @contextmanager
    def _mapped_errors(self) -> Iterator[None]:
        try:
            yield
        except DagsterRecordsUnavailableError:
            raise
        except (DagsterPostgresException, SQLAlchemyError, IngestError, OSError) as error:
            raise DagsterRecordsUnavailableError(self._address, first_line_of(error.__cause__ or error)) from error


def failure_of_run(instance: DagsterInstance, run_id: str) -> str:
    """Return the exception or the death of the process that Dagster recorded for a run; empty without either."""
    kinds = {DagsterEventType.STEP_FAILURE, DagsterEventType.RUN_FAILURE}
    records = instance.get_records_for_run(run_id, of_type=kinds, limit=1).records
    if not records:
        return ""
    entry = records[0].event_log_entry
    event = entry.dagster_event
    if event is None:
        return entry.user_message
    data = event.event_specific_data
    error = innermost(data.error) if isinstance(data, StepFailureData | JobFailureData) else None
    reason = (error.message if error else event.message) or ""
    return " ".join(reason.replace("\x00", "").split())


def innermost(error: SerializableErrorInfo | None) -> SerializableErrorInfo | None:
    """Return the first error of this project, which names a remedy, or else the innermost cause.

    Dagster wraps it the same way for every step and sensor.
    """
    while error is not None and error.cause is not None and not error.message.startswith("ingest_project."):
        error = error.cause
    return error


def _sensor(state: InstigatorState) -> SensorOnRecord:
    stopped = state.status is InstigatorStatus.STOPPED
    data = state.instigator_data
    if not isinstance(data, SensorInstigatorData):
        return SensorOnRecord(state.instigator_name, None, None, stopped)
    ticked = data.last_tick_timestamp
    ticked_at = datetime.fromtimestamp(ticked, UTC) if ticked else None
    return SensorOnRecord(state.instigator_name, data.cursor, ticked_at, stopped)


def _may_have_failed(state: InstigatorState) -> bool:
    """Return True if the ticks must be read, because the sensor's state does not show that its last tick succeeded."""
    data = state.instigator_data
    succeeded = isinstance(data, SensorInstigatorData) and data.last_tick_success_timestamp
    return state.status is not InstigatorStatus.STOPPED and not succeeded


def _schedules_of(instance: DagsterInstance) -> ScheduleStorage:
    storage = instance.schedule_storage
    if storage is None:
        raise DagsterRecordsUnavailableError(repr(instance), "it has no schedule storage")
    return storage


def _failing(tick: InstigatorTick, kind: str) -> FailingTicks:
    error = innermost(tick.error)
    reason = " ".join(error.message.split()) if error else "no reason is on record"
    return FailingTicks(max(1, tick.consecutive_failure_count), reason[:MAX_REASON], kind)


def _run(record: RunRecord) -> RunOnRecord:
    run = record.dagster_run
    since = datetime.fromtimestamp(record.start_time, UTC) if record.start_time else record.create_timestamp
    return RunOnRecord(run.run_id, run.job_name, run.status.value, since, dict(run.tags))
