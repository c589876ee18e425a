"""Poll every part of the system in the background and keep the last sample of each.

Each part has a thread of its own and an interval of its own. Readers get the last sample at once: scrapers and viewers
cost the databases nothing, and a part that hangs delays nobody.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import msgspec

from ingest_project.core.errors import IngestError
from ingest_project.core.logging import get_logger
from ingest_project.core.settings import Settings
from ingest_project.operations.counts import LedgerLook, LedgerSeen, TablesLook, TablesSeen
from ingest_project.operations.resources import SystemResources
from ingest_project.operations.topics import BrokerLook, BrokerSeen
from ingest_project.platform.dagster.run_records import (
    DagsterRecords,
    FailingTicks,
    RunOnRecord,
    RunsInFlight,
    SensorOnRecord,
)
from ingest_project.platform.work_queue.capacity import Disk, fullest_disk

logger = get_logger(__name__)

Value = TypeVar("Value")


@dataclass(frozen=True)
class Sample(Generic[Value]):
    """Result of the last poll of a part.

    Args:
        value: of the last look that worked, however long ago; None before the first.
        at: when that was.
        took_seconds: how long it took.
        problem: why the last look did not work; None when it did.
    """

    value: Value | None = None
    at: datetime | None = None
    took_seconds: float = 0.0
    problem: str | None = None

    @property
    def present(self) -> Value | None:
        """The value, unless the last look failed."""
        return None if self.problem else self.value

    def age_seconds(self, now: datetime) -> float | None:
        """How old the value is; None where there is none."""
        return None if self.at is None else max(0.0, (now - self.at).total_seconds())


class Poller(Generic[Value]):
    """A part and the thread that looks at it.

    Args:
        name: for people and metrics.
        look: asks everything there is to know; an IngestError says why it cannot be known.
        every_seconds: pause between two looks.
    """

    def __init__(self, name: str, look: Callable[[], Value], every_seconds: float) -> None:
        self.name = name
        self.every_seconds = every_seconds
        self._look = look
        self._seen: Sample[Value] = Sample()
        self._looked = threading.Event()
        self._stop = threading.Event()
        # A look that hangs must not keep the process alive.
        self._thread = threading.Thread(target=self._keep_looking, name=f"monitor-{name}", daemon=True)

    @property
    def seen(self) -> Sample[Value]:
        """What the last look brought; a problem where nobody looks any more."""
        if self._thread.ident is None or self._thread.is_alive() or self._stop.is_set():
            return self._seen
        return replace(self._seen, problem="nobody looks at it any more: its thread has ended. Start the monitor again")

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def wait_for_first_look(self, seconds: float) -> None:
        """Return once there has been a look, or after that time."""
        self._looked.wait(seconds)

    def ask_to_stop(self) -> None:
        """No further look is begun."""
        self._stop.set()

    def join(self, seconds: float) -> None:
        """Wait for the look that goes on."""
        if self._thread.is_alive():
            self._thread.join(seconds)

    def look_now(self) -> None:
        """Look once, in the calling thread."""
        began = time.monotonic()
        problem = None
        try:
            value = self._look()
        except IngestError as error:
            problem = str(error)
        except Exception as error:  # a defect in one part must not end the others
            logger.exception("look_failed", part=self.name)
            problem = f"{type(error).__name__}: {error}"
        if problem is None:
            self._seen = Sample(value, datetime.now(UTC), time.monotonic() - began)
        else:
            if problem != self._seen.problem:
                logger.warning("part_away", part=self.name, reason=problem)
            self._seen = Sample(self._seen.value, self._seen.at, self._seen.took_seconds, problem)
        self._looked.set()

    def _keep_looking(self) -> None:
        while not self._stop.is_set():
            try:
                self.look_now()
            except Exception as defect:  # noqa: BLE001 - of the log, say: a thread that ended would look at nothing
                self._seen = replace(self._seen, problem=f"{type(defect).__name__}: {defect}")
                self._looked.set()
            self._stop.wait(self.every_seconds)


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


# A part that is away should be known as away soon: nobody waits for the answer but this monitor.
PATIENCE_SECONDS = 3
# Reading the log of a remote table takes seconds and costs money.
TABLES_SECONDS = 60.0
STOP_SECONDS = 3.0


class SystemSnapshot:
    """The parts of a system, and the connections that they are looked at through.

    Args:
        settings: where everything is.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.services = SystemResources(_impatient(settings))
        records = DagsterRecords(self.services.settings)
        seconds = settings.monitor.refresh_seconds
        self.started_at = datetime.now(UTC)
        self.ledger: Poller[LedgerSeen] = Poller("ledger", LedgerLook(self.services), seconds)
        self.broker: Poller[BrokerSeen] = Poller("broker", BrokerLook(self.services, records), seconds)
        self.dagster: Poller[DagsterSeen] = Poller("dagster", DagsterLook(self.services.settings), seconds)
        self.tables: Poller[TablesSeen] = Poller("tables", TablesLook(self.services), TABLES_SECONDS)
        self.disk: Poller[Disk] = Poller("disk", lambda: fullest_disk(settings), seconds)

    @property
    def parts(self) -> tuple[Poller[Any], ...]:
        """All of them."""
        return (self.ledger, self.broker, self.dagster, self.tables, self.disk)

    def start(self) -> None:
        """Begin to look."""
        for part in self.parts:
            part.start()

    def wait_for_first_look(self, seconds: float) -> None:
        """Return once every part has been looked at, or after that time."""
        give_up_at = time.monotonic() + seconds
        for part in self.parts:
            part.wait_for_first_look(max(0.0, give_up_at - time.monotonic()))

    def stop(self) -> None:
        """End all looking and disconnect; a look that hangs is left behind."""
        for part in self.parts:
            part.ask_to_stop()
        give_up_at = time.monotonic() + STOP_SECONDS
        for part in self.parts:
            part.join(max(0.0, give_up_at - time.monotonic()))
        if "reader" in self.services.__dict__:
            self.services.reader.close()
        if "engine" in self.services.__dict__:
            self.services.engine.dispose()


def _impatient(settings: Settings) -> Settings:
    kafka, warehouse = settings.kafka, settings.warehouse
    timeout = min(kafka.request_timeout_seconds, PATIENCE_SECONDS)
    connect = min(warehouse.connect_timeout_seconds, PATIENCE_SECONDS)
    return settings.model_copy(
        update={
            "kafka": kafka.model_copy(update={"request_timeout_seconds": timeout}),
            "warehouse": warehouse.model_copy(update={"connect_timeout_seconds": connect}),
        }
    )
