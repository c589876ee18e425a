"""What Dagster tells: whether its daemon lives, its sensors tick, and what runs now."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import msgspec

from ingest_project.core.settings import Settings
from ingest_project.platform.dagster.run_records import (
    DagsterRecords,
    FailingTicks,
    RunOnRecord,
    RunsInFlight,
    SensorOnRecord,
)

SHOWN_RUNS = 12
SENSOR_DAEMON = "SENSOR"


class DagsterSeen(msgspec.Struct, frozen=True):
    """Dagster at one moment.

    Args:
        heartbeats: by kind of daemon, when it was last alive.
        running: some of the runs that are not finished, the newest first.
        failing: the sensors whose last tick failed.
    """

    sensors: Mapping[str, SensorOnRecord]
    heartbeats: Mapping[str, datetime]
    runs: RunsInFlight
    running: tuple[RunOnRecord, ...]
    failing: Mapping[str, FailingTicks] = {}


class DagsterLook:
    """Looks at Dagster's storage."""

    def __init__(self, settings: Settings) -> None:
        # Of its own: storages are not shared between threads.
        self._records = DagsterRecords(settings)

    def __call__(self) -> DagsterSeen:
        """Raises DagsterRecordsUnavailableError where its storage cannot be read."""
        records = self._records
        return DagsterSeen(
            sensors=records.sensors(),
            heartbeats=records.heartbeats(),
            runs=records.runs_in_flight(),
            running=records.unfinished_runs(SHOWN_RUNS),
            failing=records.failing(),
        )
