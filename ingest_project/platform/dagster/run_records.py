"""Read Dagster's records: saved cursors, failing ticks, unfinished and failed runs, and the daemon's heartbeats.

They are read from its storage, PostgreSQL or SQLite by the same rule as `dagster.yaml`, which works without a
DAGSTER_HOME, and while webserver and daemon are away. Nothing is created or changed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import sqlalchemy as sa

from ingest_project.core.errors import IngestError, TransientError
from ingest_project.core.settings import Settings
from ingest_project.platform.database import open_engine, printable, reading

if TYPE_CHECKING:
    from dagster import DagsterInstance, RunRecord
    from dagster._core.scheduler.instigation import InstigatorState, InstigatorTick
    from dagster._core.storage.event_log import SqlEventLogStorage
    from dagster._core.storage.runs import RunStorage
    from dagster._core.storage.schedules import ScheduleStorage

MAX_REASON = 300
MAX_FAILED_RUNS = 200
MAX_CHECK_RESULTS = 20_000
SHOWN_PARTITIONS = 3
MAIN_TABLES = {"runs", "instigators"}
# The modules of dagster_postgres import each other: two threads that begin at different ones get half a module.
_IMPORTING = threading.Lock()


class DagsterRecordsUnavailableError(TransientError):
    """Dagster's storage cannot be read."""

    def __init__(self, address: str, cause: object) -> None:
        super().__init__(
            f"Dagster's records at {address} cannot be read: {cause}. "
            "Start it (ingest dev), or set DAGSTER_POSTGRES_URL or DAGSTER_HOME."
        )


class RunsInFlight(msgspec.Struct, frozen=True):
    """Numbers of runs that are not finished: those that wait, and those that work."""

    queued: int
    started: int


class SensorOnRecord(msgspec.Struct, frozen=True):
    """A sensor as its last tick left it.

    Args:
        ticked_at: when it last began a tick; None where it never has.
        stopped: a person has stopped it.
    """

    name: str
    cursor: str | None
    ticked_at: datetime | None
    stopped: bool


class FailingTicks(msgspec.Struct, frozen=True):
    """A sensor or schedule whose last tick failed.

    Args:
        in_a_row: ticks that failed one after the other.
        reason: of the last one.
        kind: `sensor` or `schedule`.
    """

    in_a_row: int
    reason: str
    kind: str = "sensor"

    def __str__(self) -> str:
        """Describe it for people."""
        times = f"{self.in_a_row} times in a row" if self.in_a_row > 1 else "the last time"
        return f"failed {times}: {self.reason}"


class RunOnRecord(msgspec.Struct, frozen=True):
    """A run that is not finished.

    Args:
        since: when it started, or was requested where it has not.
        tags: as Dagster keeps them.
    """

    run_id: str
    job: str
    status: str
    since: datetime
    tags: dict[str, str]


class FailedRun(msgspec.Struct, frozen=True):
    """The last run of a job, which failed.

    Args:
        at: when it ended.
    """

    job: str
    run_id: str
    at: datetime


class FailedChecks(msgspec.Struct, frozen=True):
    """An asset check that failed.

    Args:
        asset: its key, e.g. `validated_sensor_data`.
        failed: partitions for which its last result is a failure; 1 without partitions.
        partitions: some of these, newest first.
        run_id: that evaluated it last.
    """

    asset: str
    check: str
    failed: int
    partitions: tuple[str, ...]
    run_id: str | None


class DagsterRecords:
    """Read Dagster's storage; opened when first used.

    Args:
        settings: say where it is.
        instance: whose storage is read instead of that of the settings.

    Raises:
        DagsterRecordsUnavailableError: from every method.
    """

    def __init__(self, settings: Settings, instance: DagsterInstance | None = None) -> None:
        self._settings = settings
        self._instance = instance
        self._url = settings.dagster.postgres_url

    def sensors(self) -> dict[str, SensorOnRecord]:
        """Return every sensor that has ticked, or that a person has started or stopped, by name."""
        from dagster._core.definitions.run_request import InstigatorType  # one second to import

        with self._mapped_errors():
            states = self._storages[1].all_instigator_state(instigator_type=InstigatorType.SENSOR)
        # The same sensor may be on record under an older name of its code location: the one that ticks counts.
        each = sorted(map(_sensor, states), key=lambda sensor: sensor.ticked_at.timestamp() if sensor.ticked_at else 0)
        return {sensor.name: sensor for sensor in each}

    def failing(self, *, schedules: bool = False) -> dict[str, FailingTicks]:
        """Return the sensors whose last ended tick failed, by name, without those that a person has stopped.

        Args:
            schedules: the schedules as well, which takes a query for each.
        """
        from dagster._core.definitions.run_request import InstigatorType  # one second to import
        from dagster._core.scheduler.instigation import TickStatus  # the same

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

    def heartbeats(self) -> dict[str, datetime]:
        """Return when each kind of daemon was last alive; `SENSOR` is the one that ticks sensors."""
        with self._mapped_errors():
            beats = self._storages[0].get_daemon_heartbeats()
        return {kind: datetime.fromtimestamp(beat.timestamp, UTC) for kind, beat in beats.items()}

    def unfinished_runs(self, limit: int) -> tuple[RunOnRecord, ...]:
        """Return runs that wait or work, the newest first."""
        from dagster import RunsFilter  # one second to import
        from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES  # the same

        with self._mapped_errors():
            records = self._storages[0].get_run_records(RunsFilter(statuses=NOT_FINISHED_STATUSES), limit=limit)
        return tuple(map(_run, records))

    def runs_in_flight(self) -> RunsInFlight:
        """Count the runs that are not finished."""
        from dagster import DagsterRunStatus, RunsFilter  # one second to import
        from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES  # the same

        waiting = [DagsterRunStatus.QUEUED, DagsterRunStatus.NOT_STARTED]
        working = [status for status in NOT_FINISHED_STATUSES if status not in waiting]
        with self._mapped_errors():
            runs = self._storages[0]
            return RunsInFlight(
                queued=runs.get_runs_count(RunsFilter(statuses=waiting)),
                started=runs.get_runs_count(RunsFilter(statuses=working)),
            )

    def failed_runs(self, since: datetime) -> tuple[FailedRun, ...]:
        """Return the last ended run of each job where it has failed, of those that failed after a moment."""
        from dagster import DagsterRunStatus, RunsFilter  # one second to import

        ended = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE]
        found: list[FailedRun] = []
        with self._mapped_errors():
            storage = self._storages[0]
            recent = RunsFilter(statuses=[DagsterRunStatus.FAILURE], updated_after=since)
            failed = storage.get_run_records(recent, limit=MAX_FAILED_RUNS)
            for job in sorted({record.dagster_run.job_name for record in failed}):
                (last,) = storage.get_run_records(RunsFilter(job_name=job, statuses=ended), limit=1)
                if last.dagster_run.status is DagsterRunStatus.FAILURE:
                    at = last.update_timestamp
                    found.append(FailedRun(job, last.dagster_run.run_id, at if at.tzinfo else at.replace(tzinfo=UTC)))
        return tuple(found)

    def failed_checks(self, since: datetime) -> tuple[FailedChecks, ...]:
        """Return the checks whose last result is a failure: since a moment for a partition, else at any time.

        Only the last results are searched: there is one for each check of each file, and no index over their time.
        """
        from dagster import AssetKey  # one second to import
        from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable  # the same

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
                    # Dagster stores UTC without saying so.
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
        return printable(self._url.get_secret_value()) if self._url else str(self._folder)

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
        from dagster._core.storage.event_log import SqlEventLogStorage, SqliteEventLogStorage  # one second to import

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
        with _IMPORTING:
            from dagster_postgres.event_log import PostgresEventLogStorage  # the same

            from ingest_project.platform.dagster.instance import shared_engine, with_psycopg2  # imports dagster

        self._require_tables()
        url = with_psycopg2(self._url.get_secret_value())
        storage = PostgresEventLogStorage(url, should_autocreate_tables=False)
        storage._engine = shared_engine(self._url)  # noqa: SLF001 - there is no way in from outside
        return storage

    def _in_postgres(self) -> tuple[RunStorage, ScheduleStorage]:
        self._require_tables()
        with _IMPORTING:
            from dagster_postgres.run_storage import PostgresRunStorage  # one second to import
            from dagster_postgres.schedule_storage import PostgresScheduleStorage  # the same

            from ingest_project.platform.dagster.instance import shared_engine, with_psycopg2  # imports dagster

        url = with_psycopg2(self._url.get_secret_value())
        storages = PostgresRunStorage(url, False), PostgresScheduleStorage(url, False)
        for storage in storages:
            # Dagster's own opens a connection for every query.
            storage._engine = shared_engine(self._url)  # noqa: SLF001 - there is no way in from outside
        return storages

    def _in_sqlite(self) -> tuple[RunStorage, ScheduleStorage]:
        runs, schedules = self._folder / "history", self._folder / "schedules"
        if not (runs / "runs.db").exists() or not (schedules / "schedules.db").exists():
            raise DagsterRecordsUnavailableError(self._address, "there are none")
        from dagster._core.storage.runs import SqliteRunStorage  # one second to import
        from dagster._core.storage.schedules import SqliteScheduleStorage  # the same

        return SqliteRunStorage.from_local(str(runs)), SqliteScheduleStorage.from_local(str(schedules))

    def _require_tables(self) -> None:
        """Fail fast and without log lines: Dagster itself would try for six seconds and log each time."""
        from sqlalchemy import inspect  # with the rest

        engine = open_engine(self._url, self._settings.warehouse.connect_timeout_seconds)
        try:
            with reading(engine) as connection:
                missing = MAIN_TABLES - set(inspect(connection).get_table_names())
        finally:
            engine.dispose()
        if missing:
            raise DagsterRecordsUnavailableError(self._address, "there are none")

    @contextmanager
    def _mapped_errors(self) -> Iterator[None]:
        from dagster_postgres.utils import DagsterPostgresException  # one second to import
        from sqlalchemy.exc import SQLAlchemyError  # with the rest

        try:
            yield
        except DagsterRecordsUnavailableError:
            raise
        except (DagsterPostgresException, SQLAlchemyError, IngestError) as error:
            cause = getattr(error, "__cause__", None) or error
            raise DagsterRecordsUnavailableError(self._address, " ".join(str(cause).split())) from error


def failure_of_run(instance: DagsterInstance, run_id: str) -> str:
    """Return what Dagster recorded of the end of a run: an exception, or how its process died; else nothing."""
    from dagster import DagsterEventType  # one second to import
    from dagster._core.events import JobFailureData  # the same
    from dagster._core.execution.plan.objects import StepFailureData  # the same

    kinds = {DagsterEventType.STEP_FAILURE, DagsterEventType.RUN_FAILURE}
    records = instance.get_records_for_run(run_id, of_type=kinds, limit=1).records
    if not records:
        return ""
    entry = records[0].event_log_entry
    event = entry.dagster_event
    if event is None:
        return entry.user_message
    data = event.event_specific_data
    error = data.error if isinstance(data, StepFailureData | JobFailureData) else None
    while error is not None and error.cause is not None:
        error = error.cause
    reason = (error.message if error else event.message) or ""
    return " ".join(reason.replace("\x00", "").split())


def _sensor(state: InstigatorState) -> SensorOnRecord:
    from dagster._core.scheduler.instigation import InstigatorStatus, SensorInstigatorData  # one second to import

    stopped = state.status is InstigatorStatus.STOPPED
    data = state.instigator_data
    if not isinstance(data, SensorInstigatorData):
        return SensorOnRecord(state.instigator_name, None, None, stopped)
    ticked = data.last_tick_timestamp
    ticked_at = datetime.fromtimestamp(ticked, UTC) if ticked else None
    return SensorOnRecord(state.instigator_name, data.cursor, ticked_at, stopped)


def _may_have_failed(state: InstigatorState) -> bool:
    """Tell whether the ticks have to be read: the state of a sensor says when its last tick succeeded."""
    from dagster._core.scheduler.instigation import InstigatorStatus, SensorInstigatorData  # one second to import

    data = state.instigator_data
    succeeded = isinstance(data, SensorInstigatorData) and data.last_tick_success_timestamp
    return state.status is not InstigatorStatus.STOPPED and not succeeded


def _schedules_of(instance: DagsterInstance) -> ScheduleStorage:
    storage = instance.schedule_storage
    if storage is None:
        raise DagsterRecordsUnavailableError(repr(instance), "it has no schedule storage")
    return storage


def _failing(tick: InstigatorTick, kind: str) -> FailingTicks:
    error = tick.error
    # The innermost cause: Dagster wraps it the same way for every sensor.
    while error is not None and error.cause is not None:
        error = error.cause
    reason = " ".join(error.message.split()) if error else "no reason is on record"
    return FailingTicks(max(1, tick.consecutive_failure_count), reason[:MAX_REASON], kind)


def _run(record: RunRecord) -> RunOnRecord:
    run = record.dagster_run
    since = datetime.fromtimestamp(record.start_time, UTC) if record.start_time else record.create_timestamp
    return RunOnRecord(run.run_id, run.job_name, run.status.value, since, dict(run.tags))
