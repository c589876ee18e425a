"""Dagster's records as operations use them, importable without Dagster; `run_records` reads them."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

import msgspec

from ingest_project.core.errors import TransientError
from ingest_project.core.secrets import SecretReference
from ingest_project.core.settings import Settings
from ingest_project.platform.database import open_engine, redacted
from ingest_project.platform.errors import first_line_of, map_error


class DagsterRecordsUnavailableError(TransientError):
    """Dagster's storage cannot be read."""

    def __init__(self, address: str, cause: object) -> None:
        super().__init__(
            f"Dagster's records at {address} cannot be read: {cause}. "
            "Start it (ingest dev), or set DAGSTER_POSTGRES_URL or DAGSTER_HOME."
        )


def require_records(settings: Settings) -> None:
    """Connect once to Dagster's database, if any: Dagster itself would retry several times and print a traceback.

    Raises:
        DagsterRecordsUnavailableError: the database does not answer, or refuses the connection.
    """
    url = settings.dagster.postgres_url
    if not isinstance(url, SecretReference) and not url.get_secret_value():
        return
    engine = open_engine(url, settings.warehouse.connect_timeout_seconds)
    try:
        with engine.connect():
            pass
    except Exception as error:
        if map_error(error, "") is None:
            raise
        raise DagsterRecordsUnavailableError(redacted(engine.url), first_line_of(error)) from error
    finally:
        engine.dispose()


class RunsInFlight(msgspec.Struct, frozen=True):
    """Numbers of unfinished runs: waiting, and running."""

    queued: int
    started: int


class SensorOnRecord(msgspec.Struct, frozen=True):
    """A sensor as its last tick left it.

    Args:
        ticked_at: when its last tick began; None if it has never ticked.
        stopped: True if a person has stopped it.
    """

    name: str
    cursor: str | None
    ticked_at: datetime | None
    stopped: bool


class FailingTicks(msgspec.Struct, frozen=True):
    """A sensor or schedule whose last tick failed.

    Args:
        in_a_row: number of consecutive failed ticks.
        reason: reason of the last failure.
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
        since: when it started, or was requested if it has not started.
        tags: tags of the run, as Dagster stores them.
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
        run_id: id of the run that evaluated the check last.
    """

    asset: str
    check: str
    failed: int
    partitions: tuple[str, ...]
    run_id: str | None


class RunRecords(Protocol):
    """Dagster's records; `run_records.DagsterRecords` reads them from its storage.

    Raises:
        DagsterRecordsUnavailableError: from every method.
    """

    def sensors(self) -> dict[str, SensorOnRecord]:
        """Return every sensor that has ticked, or that a person has started or stopped, by name."""

    def failing(self, *, schedules: bool = False) -> dict[str, FailingTicks]:
        """Return the sensors whose last ended tick failed, by name, without those that a person has stopped.

        Args:
            schedules: include schedules, which takes a query for each.
        """

    def heartbeats(self) -> dict[str, datetime]:
        """Return the time of the last heartbeat of each kind of daemon; `SENSOR` ticks sensors."""

    def unfinished_runs(self, limit: int) -> tuple[RunOnRecord, ...]:
        """Return waiting and running runs, newest first."""

    def runs_in_flight(self) -> RunsInFlight:
        """Count the runs that are not finished."""

    def failed_runs(self, since: datetime) -> tuple[FailedRun, ...]:
        """Return the last ended run of each job, if it failed after `since`."""

    def failed_checks(self, since: datetime) -> tuple[FailedChecks, ...]:
        """Return the checks whose last result is a failure: after `since` for partitions, else at any time.

        Searches only the newest results: there is one for each check of each file, and no index over their time.
        """
