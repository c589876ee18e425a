"""What Dagster has on record: where each sensor has read to, which runs are not finished, and whether its daemon lives.

Read from its storage itself, PostgreSQL or SQLite by the same rule as `dagster.yaml`, so that it works without a
DAGSTER_HOME, and while webserver and daemon are away. Nothing is created or changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ingest_project.core.errors import IngestError, TransientError
from ingest_project.core.settings import Settings
from ingest_project.platform.database.engine import open_engine, printable, reading

if TYPE_CHECKING:
    from dagster import RunRecord
    from dagster._core.scheduler.instigation import InstigatorState, InstigatorTick
    from dagster._core.storage.runs import RunStorage
    from dagster._core.storage.schedules import ScheduleStorage

LONGEST_REASON = 300
MAIN_TABLES = {"runs", "instigators"}


class DagsterRecordsUnavailableError(TransientError):
    """Dagster's storage cannot be read."""

    def __init__(self, address: str, cause: object) -> None:
        super().__init__(
            f"Dagster's records at {address} cannot be read: {cause}. "
            "Start it (ingest dev), or set DAGSTER_POSTGRES_URL or DAGSTER_HOME."
        )


class RunsInFlight(msgspec.Struct, frozen=True):
    """Runs that are not finished: those that wait, and those that work."""

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
    """A sensor whose last tick failed.

    Args:
        in_a_row: ticks that failed one after the other.
        reason: of the last one.
    """

    in_a_row: int
    reason: str

    def __str__(self) -> str:
        """As people read it."""
        times = f"{self.in_a_row} times in a row" if self.in_a_row > 1 else "the last time"
        return f"failed {times}: {self.reason}"


class RunOnRecord(msgspec.Struct, frozen=True):
    """A run that is not finished.

    Args:
        since: when it started, or was asked for where it has not.
        tags: as Dagster keeps them.
    """

    run_id: str
    job: str
    status: str
    since: datetime
    tags: dict[str, str]


class DagsterRecords:
    """Reads Dagster's storage; opened when first asked.

    Args:
        settings: say where it is.

    Raises:
        DagsterRecordsUnavailableError: from every method.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._url = settings.dagster.postgres_url.get_secret_value()

    def cursor(self, sensor: str) -> str | None:
        """The cursor that a sensor saved last; None where it has saved none."""
        found = self.sensors().get(sensor)
        return found.cursor if found else None

    def sensors(self) -> dict[str, SensorOnRecord]:
        """Every sensor that has ticked, or that a person has started or stopped, by name."""
        from dagster._core.definitions.run_request import InstigatorType  # noqa: PLC0415 - one second to import

        with self._failures_told():
            states = self._storages[1].all_instigator_state(instigator_type=InstigatorType.SENSOR)
        # The same sensor may be on record under an older name of its code location: the one that ticks counts.
        each = sorted(map(_sensor, states), key=lambda sensor: sensor.ticked_at.timestamp() if sensor.ticked_at else 0)
        return {sensor.name: sensor for sensor in each}

    def failing(self) -> dict[str, FailingTicks]:
        """The sensors whose last tick that ended has failed, by name; those that a person has stopped are left out."""
        from dagster._core.definitions.run_request import InstigatorType  # noqa: PLC0415 - one second to import
        from dagster._core.scheduler.instigation import TickStatus  # noqa: PLC0415 - the same

        ended = [TickStatus.SUCCESS, TickStatus.SKIPPED, TickStatus.FAILURE]
        storage = self._storages[1]
        found: dict[str, FailingTicks] = {}
        with self._failures_told():
            for state in storage.all_instigator_state(instigator_type=InstigatorType.SENSOR):
                if not _may_have_failed(state):
                    continue
                for tick in storage.get_ticks(state.instigator_origin_id, state.selector_id, limit=1, statuses=ended):
                    if tick.status is TickStatus.FAILURE:
                        found[state.instigator_name] = _failing(tick)
        return found

    def heartbeats(self) -> dict[str, datetime]:
        """When each kind of daemon was last alive; `SENSOR` is the one that ticks sensors."""
        with self._failures_told():
            beats = self._storages[0].get_daemon_heartbeats()
        return {kind: datetime.fromtimestamp(beat.timestamp, UTC) for kind, beat in beats.items()}

    def unfinished_runs(self, limit: int) -> tuple[RunOnRecord, ...]:
        """Runs that wait or work, the newest first."""
        from dagster import RunsFilter  # noqa: PLC0415 - one second to import
        from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES  # noqa: PLC0415 - the same

        with self._failures_told():
            records = self._storages[0].get_run_records(RunsFilter(statuses=NOT_FINISHED_STATUSES), limit=limit)
        return tuple(map(_run, records))

    def runs_in_flight(self) -> RunsInFlight:
        """How many runs are not finished."""
        from dagster import DagsterRunStatus, RunsFilter  # noqa: PLC0415 - one second to import
        from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES  # noqa: PLC0415 - the same

        waiting = [DagsterRunStatus.QUEUED, DagsterRunStatus.NOT_STARTED]
        working = [status for status in NOT_FINISHED_STATUSES if status not in waiting]
        with self._failures_told():
            runs = self._storages[0]
            return RunsInFlight(
                queued=runs.get_runs_count(RunsFilter(statuses=waiting)),
                started=runs.get_runs_count(RunsFilter(statuses=working)),
            )

    @property
    def _address(self) -> str:
        return printable(self._url) if self._url else str(self._folder)

    @property
    def _folder(self) -> Path:
        settings = self._settings
        return settings.dagster.home or settings.state_dir.absolute() / "dagster_home"

    @cached_property
    def _storages(self) -> tuple[RunStorage, ScheduleStorage]:
        return self._in_postgres() if self._url else self._in_sqlite()

    def _in_postgres(self) -> tuple[RunStorage, ScheduleStorage]:
        self._require_tables()
        from dagster_postgres.run_storage import PostgresRunStorage  # noqa: PLC0415 - one second to import
        from dagster_postgres.schedule_storage import PostgresScheduleStorage  # noqa: PLC0415 - the same

        from ingest_project.platform.dagster.event_log_storage import with_psycopg2  # noqa: PLC0415 - imports dagster

        url = with_psycopg2(self._url)
        return PostgresRunStorage(url, False), PostgresScheduleStorage(url, False)

    def _in_sqlite(self) -> tuple[RunStorage, ScheduleStorage]:
        runs, schedules = self._folder / "history", self._folder / "schedules"
        if not (runs / "runs.db").exists() or not (schedules / "schedules.db").exists():
            raise DagsterRecordsUnavailableError(self._address, "there are none")
        from dagster._core.storage.runs import SqliteRunStorage  # noqa: PLC0415 - one second to import
        from dagster._core.storage.schedules import SqliteScheduleStorage  # noqa: PLC0415 - the same

        return SqliteRunStorage.from_local(str(runs)), SqliteScheduleStorage.from_local(str(schedules))

    def _require_tables(self) -> None:
        """Find out quickly and quietly: Dagster itself would try for six seconds and log each time."""
        from sqlalchemy import inspect  # noqa: PLC0415 - with the rest

        engine = open_engine(self._url, self._settings.warehouse.connect_timeout_seconds)
        try:
            with reading(engine) as connection:
                missing = MAIN_TABLES - set(inspect(connection).get_table_names())
        finally:
            engine.dispose()
        if missing:
            raise DagsterRecordsUnavailableError(self._address, "there are none")

    @contextmanager
    def _failures_told(self) -> Iterator[None]:
        from dagster_postgres.utils import DagsterPostgresException  # noqa: PLC0415 - one second to import
        from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415 - with the rest

        try:
            yield
        except DagsterRecordsUnavailableError:
            raise
        except (DagsterPostgresException, SQLAlchemyError, IngestError) as error:
            cause = getattr(error, "__cause__", None) or error
            raise DagsterRecordsUnavailableError(self._address, " ".join(str(cause).split())) from error


def _sensor(state: InstigatorState) -> SensorOnRecord:
    from dagster._core.scheduler.instigation import (  # noqa: PLC0415 - one second to import
        InstigatorStatus,
        SensorInstigatorData,
    )

    stopped = state.status is InstigatorStatus.STOPPED
    data = state.instigator_data
    if not isinstance(data, SensorInstigatorData):
        return SensorOnRecord(state.instigator_name, None, None, stopped)
    ticked = data.last_tick_timestamp
    ticked_at = datetime.fromtimestamp(ticked, UTC) if ticked else None
    return SensorOnRecord(state.instigator_name, data.cursor, ticked_at, stopped)


def _may_have_failed(state: InstigatorState) -> bool:
    """Whether the ticks have to be asked: a sensor whose last tick ended well says so by itself."""
    from dagster._core.scheduler.instigation import (  # noqa: PLC0415 - one second to import
        InstigatorStatus,
        SensorInstigatorData,
    )

    data = state.instigator_data
    is_stopped = state.status is InstigatorStatus.STOPPED
    return not is_stopped and isinstance(data, SensorInstigatorData) and not data.last_tick_success_timestamp


def _failing(tick: InstigatorTick) -> FailingTicks:
    error = tick.error
    # The innermost cause: around it stands what Dagster says of every sensor.
    while error is not None and error.cause is not None:
        error = error.cause
    reason = " ".join(error.message.split()) if error else "no reason is on record"
    return FailingTicks(max(1, tick.consecutive_failure_count), reason[:LONGEST_REASON])


def _run(record: RunRecord) -> RunOnRecord:
    run = record.dagster_run
    since = datetime.fromtimestamp(record.start_time, UTC) if record.start_time else record.create_timestamp
    return RunOnRecord(run.run_id, run.job_name, run.status.value, since, dict(run.tags))
