"""Poll every part of the system in the background, and check the readiness of each.

`Monitor` polls each part in its own thread and keeps the last sample of each, so that scrapers and viewers add no load
to the databases, and a hanging part does not delay others. `readiness` returns one line for each service, sensor and
disk that ingestion needs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Generic

import msgspec

from ingest_project.core.logging import get_logger
from ingest_project.core.settings import Settings
from ingest_project.file_ingest.warehouse.baselines import SourceReport
from ingest_project.operations import SystemResources
from ingest_project.operations.actions import ACTIONS
from ingest_project.operations.alerts.facts import DagsterFailures, FileFacts, FileFactsPoll, read_failures
from ingest_project.operations.alerts.incidents import AlertState, AlertStores
from ingest_project.operations.pausing import Pause
from ingest_project.operations.snapshot import (
    SENSOR_DAEMON,
    DagsterState,
    DeltaFigures,
    Sample,
    SystemSnapshot,
    Value,
    WarehouseState,
    consumed_topics,
    read_dagster,
    read_sources,
    read_tables,
    read_warehouse,
    sample_of,
)
from ingest_project.operations.topics import BrokerPoll, BrokerState
from ingest_project.platform.actions import settle_interrupted
from ingest_project.platform.runtime import LARGEST_SKEW_SECONDS, Disk

logger = get_logger(__name__)

# Short timeout, so that an unavailable part is reported soon: only the monitor waits for the answer.
TIMEOUT_SECONDS = 3
# Reading the log of a remote table takes seconds and costs money; baselines read many rows and change slowly.
TABLES_SECONDS = 60.0
STOP_SECONDS = 3.0
# The daemon writes a heartbeat every 30 seconds.
LONGEST_SILENCE_SECONDS = 90.0
# A tick may take 60 seconds, and the next one follows after 5.
LONGEST_PAUSE_SECONDS = 120.0
# A poll that takes longer counts as hanging: its part does not answer.
LONGEST_POLL_SECONDS = 20.0
# After this time without a viewer, parts are polled less often; the next viewer waits for new samples.
LOOKED_SECONDS = 30.0
UNSEEN_SECONDS = 10.0
RENEWAL_SECONDS = 1.0
SET_BACK = "a clock was set back, and the daemon repairs that"


class Poller(Generic[Value]):
    """A thread that polls one part.

    Args:
        name: name of the part for people and metrics.
        poll: reads the part; an IngestError is the reason why it cannot be read.
        every_seconds: pause between two polls.
        is_seen: returns True if the samples have a viewer; otherwise the pause is longer.
    """

    def __init__(
        self, name: str, poll: Callable[[], Value], every_seconds: float, is_seen: Callable[[], bool] = lambda: True
    ) -> None:
        self.name = name
        self._every_seconds = every_seconds
        self._is_seen = is_seen
        self._wake = threading.Event()
        self._poll = poll
        self._sample: Sample[Value] = Sample()
        self._polled = threading.Event()
        self._stop = threading.Event()
        # A hanging poll must not keep the process alive.
        self._thread = threading.Thread(target=self._keep_polling, name=f"monitor-{name}", daemon=True)

    @property
    def sample(self) -> Sample[Value]:
        """Return the result of the last poll, or a problem if the thread has died."""
        if self._thread.ident is None or self._thread.is_alive() or self._stop.is_set():
            return self._sample
        return replace(self._sample, problem="it is not polled any more: its thread has ended. Start the monitor again")

    def start(self) -> None:
        """Start polling."""
        self._thread.start()

    def wait_for_first(self, seconds: float) -> None:
        """Wait for a first poll, at most this time in seconds."""
        self._polled.wait(seconds)

    def renew(self) -> None:
        """Poll immediately if the pause is long; `wait_for_first` waits for that poll."""
        if self._every_seconds < UNSEEN_SECONDS:
            self._polled.clear()
            self._wake.set()

    def request_stop(self) -> None:
        """Start no further poll."""
        self._stop.set()
        self._wake.set()

    def join(self, seconds: float) -> None:
        """Wait for the poll in progress."""
        if self._thread.is_alive():
            self._thread.join(seconds)

    def poll_now(self) -> None:
        """Poll once, in the calling thread."""
        sample = sample_of(self._poll, self.name)
        if sample.problem is not None:
            if sample.problem != self._sample.problem:
                logger.warning("part_away", part=self.name, reason=sample.problem)
            sample = replace(self._sample, problem=sample.problem)
        self._sample = sample
        self._polled.set()

    def _keep_polling(self) -> None:
        while not self._stop.is_set():
            try:
                self.poll_now()
            except Exception as defect:  # noqa: BLE001 - of the log, say: a thread that ended would poll nothing
                self._sample = replace(self._sample, problem=f"{type(defect).__name__}: {defect}")
                self._polled.set()
            self._wake.wait(self._every_seconds if self._is_seen() else max(self._every_seconds, UNSEEN_SECONDS))
            self._wake.clear()


class Monitor:
    """Pollers for every part of the system, with their own connections.

    Args:
        settings: settings of the system.
    """

    def __init__(self, settings: Settings) -> None:
        # Import Dagster before starting threads: threads that import its modules in different orders find each
        # other's modules partially initialised.
        import ingest_project.platform.dagster.control  # noqa: F401 - see above
        from ingest_project.platform.dagster.run_records import DagsterRecords  # imports Dagster

        self.settings = settings
        services = self.services = SystemResources(_with_short_timeouts(settings))
        services.reload_declarations()
        seconds = settings.monitor.refresh_seconds
        # Each thread gets its own records: storages must not be shared between threads.
        broker = BrokerPoll(services, DagsterRecords(services.settings), lambda: consumed_topics(services))
        records = DagsterRecords(services.settings)
        self._looked_at = self._began_at = time.monotonic()
        seen = self._is_seen
        self.warehouse: Poller[WarehouseState] = Poller("warehouse", lambda: _read_work(services), seconds, seen)
        self.broker: Poller[BrokerState] = Poller("broker", broker, seconds, seen)
        self.dagster: Poller[DagsterState] = Poller("dagster", lambda: read_dagster(records), seconds, seen)
        self.tables: Poller[tuple[DeltaFigures, ...]] = Poller("tables", lambda: read_tables(services), TABLES_SECONDS)
        self.disk: Poller[Disk] = Poller("disk", services.fullest_disk, seconds, seen)
        self.sources: Poller[tuple[SourceReport, ...]] = Poller(
            "sources", lambda: read_sources(services), TABLES_SECONDS
        )
        pause, failures = settings.alerts.every_seconds, DagsterRecords(services.settings)
        self.failures: Poller[DagsterFailures] = Poller(
            "failures", lambda: read_failures(failures, settings, datetime.now(UTC)), pause
        )
        self.file_facts: Poller[FileFacts] = Poller("file_facts", FileFactsPoll(services), pause)
        self.alert_stores = AlertStores(services.settings)
        self.alerts: Poller[AlertState] = Poller("alerts", self.alert_stores.read, seconds, seen)
        # Users may add and remove declared datasets and streams while the monitor runs.
        declarations = Poller("declarations", services.reload_declarations, seconds, seen)
        self._pollers: tuple[Poller[Any], ...] = (
            declarations,
            *(self.warehouse, self.broker, self.dagster, self.tables, self.disk),
            *(self.failures, self.file_facts, self.alerts, self.sources),
        )

    def snapshot(self) -> SystemSnapshot:
        """Return the last sample of every part without waiting."""
        return SystemSnapshot(
            settings=self.settings,
            at=datetime.now(UTC),
            broker=self.broker.sample,
            warehouse=self.warehouse.sample,
            dagster=self.dagster.sample,
            tables=self.tables.sample,
            disk=self.disk.sample,
            unshared_stores=self.services.unshared_stores,
            sources=self.sources.sample,
            failures=self.failures.sample,
            file_facts=self.file_facts.sample,
            alerts=self.alerts.sample,
        )

    def poll_now(self) -> SystemSnapshot:
        """Poll every part once, in the calling thread."""
        for poller in self._pollers:
            poller.poll_now()
        return self.snapshot()

    def start(self) -> None:
        """Begin to poll."""
        self._began_at = time.monotonic()
        for poller in self._pollers:
            poller.start()

    def wait_for_first(self, seconds: float) -> None:
        """Wait until every part has been polled, before a person reads the samples.

        A part whose poll takes longer does not delay later callers.

        Args:
            seconds: longest wait since the start of these polls.
        """
        was_seen, self._looked_at = self._is_seen(), time.monotonic()
        if not was_seen:
            self._began_at = self._looked_at
            seconds = min(seconds, RENEWAL_SECONDS)
            for poller in self._pollers:
                poller.renew()
        give_up_at = self._began_at + seconds
        for poller in self._pollers:
            poller.wait_for_first(max(0.0, give_up_at - time.monotonic()))

    def _is_seen(self) -> bool:
        return time.monotonic() - self._looked_at < LOOKED_SECONDS

    def stop(self) -> None:
        """Stop all polling and disconnect; abandon a hanging poll."""
        for poller in self._pollers:
            poller.request_stop()
        give_up_at = time.monotonic() + STOP_SECONDS
        for poller in self._pollers:
            poller.join(max(0.0, give_up_at - time.monotonic()))
        if "reader" in self.services.__dict__:
            self.services.reader.close()
        if "engine" in self.services.__dict__:
            self.services.engine.dispose()
        self.alert_stores.close()


def _read_work(services: SystemResources) -> WarehouseState:
    settle_interrupted(services, ACTIONS)
    return read_warehouse(services)


def _with_short_timeouts(settings: Settings) -> Settings:
    kafka, warehouse = settings.kafka, settings.warehouse
    timeout = min(kafka.request_timeout_seconds, TIMEOUT_SECONDS)
    connect = min(warehouse.connect_timeout_seconds, TIMEOUT_SECONDS)
    return settings.model_copy(
        update={
            "kafka": kafka.model_copy(update={"request_timeout_seconds": timeout}),
            "warehouse": warehouse.model_copy(update={"connect_timeout_seconds": connect}),
        }
    )


class Line(msgspec.Struct, frozen=True):
    """The readiness of one part that ingestion needs.

    Args:
        ok: True if the part works.
        detail: description for people.
    """

    name: str
    ok: bool
    detail: str

    def __str__(self) -> str:
        """Return the line in the format of `/readyz`."""
        return f"{'ok  ' if self.ok else 'down'} {self.name}: {self.detail}"


def readiness(snapshot: SystemSnapshot) -> tuple[Line, ...]:
    """Check broker, warehouse, Dagster's storage, its daemon, sensors, topics, stores and this machine's disks."""
    dagster, now, every_seconds = snapshot.dagster, snapshot.at, snapshot.settings.monitor.refresh_seconds
    return (
        _answers("broker", snapshot.broker, now, every_seconds),
        _answers("warehouse", snapshot.warehouse, now, every_seconds),
        _answers("dagster storage", dagster, now, every_seconds),
        daemon_line(dagster, now),
        sensors_line(dagster, now, snapshot.paused),
        topics_line(snapshot.broker, dagster),
        *([Line("stores", ok=False, detail=snapshot.unshared_stores)] if snapshot.unshared_stores else []),
        disk_line(snapshot.disk),
    )


def daemon_line(sample: Sample[DagsterState], now: datetime) -> Line:
    """Check that the daemon that ticks sensors is alive."""
    name = "daemon"
    found = sample.present
    if found is None:
        return Line(name, ok=False, detail="unknown, as Dagster's storage does not answer")
    beat = found.heartbeats.get(SENSOR_DAEMON)
    if beat is None:
        return Line(name, ok=False, detail="no heartbeat on record; start dagster-daemon")
    silence = (now - beat).total_seconds()
    if silence < -LARGEST_SKEW_SECONDS:
        return Line(name, ok=False, detail=f"its last heartbeat lies {-silence:.0f} s in the future: {SET_BACK}")
    return Line(name, silence <= LONGEST_SILENCE_SECONDS, f"last heartbeat {max(0.0, silence):.0f} s ago")


def sensors_line(sample: Sample[DagsterState], now: datetime, paused: Sequence[Pause] = ()) -> Line:
    """Check that every sensor ticks, unless a person stopped it, and that its last tick succeeded.

    Args:
        sample: sample of Dagster.
        now: the current time.
        paused: paused capabilities, which the line lists with operator and reason.
    """
    name = "sensors"
    found = sample.present
    if found is None:
        return Line(name, ok=False, detail="unknown, as Dagster's storage does not answer")
    stopped = {sensor.name for sensor in found.sensors.values() if sensor.stopped}
    silences = {
        sensor.name: (now - sensor.ticked_at).total_seconds()
        for sensor in found.sensors.values()
        if not sensor.stopped and sensor.ticked_at
    }
    if not silences and not stopped:
        return Line(name, ok=False, detail="none has ticked yet")
    quiet = {sensor: silence for sensor, silence in silences.items() if silence > LONGEST_PAUSE_SECONDS}
    ahead = {sensor: -silence for sensor, silence in silences.items() if silence < -LARGEST_SKEW_SECONDS}
    by_pause = [pause for pause in paused if stopped.intersection(pause.sensors)]
    others = sorted(stopped.difference(*(pause.sensors for pause in by_pause)))
    well = silences.keys() - (quiet.keys() | ahead.keys() | found.failing.keys())
    parts = [f"{len(well)} of {len(silences)} tick"]
    parts += [f"{sensor} {ticks}" for sensor, ticks in sorted(found.failing.items())]
    parts += [f"silent: {_listed(quiet)}"] if quiet else []
    parts += [f"last tick in the future, {SET_BACK}: {_listed(ahead)}"] if ahead else []
    parts += [str(pause) for pause in by_pause]
    parts += [f"stopped by a person: {', '.join(others)}"] if others else []
    return Line(name, not (quiet or ahead or found.failing), "; ".join(parts))


def topics_line(broker: Sample[BrokerState], dagster: Sample[DagsterState]) -> Line:
    """Check that no topic is stalled, unless a person has stopped its sensor."""
    name = "topics"
    found = broker.present
    if found is None:
        return Line(name, ok=False, detail="unknown, as the broker does not answer")
    sensors = dagster.present.sensors if dagster.present else {}
    stopped = {sensor.name for sensor in sensors.values() if sensor.stopped}
    stalled = [one for one in found.stalled if one.seconds > LONGEST_PAUSE_SECONDS and one.sensor not in stopped]
    if stalled:
        return Line(name, ok=False, detail="; ".join(f"{one}, read by {one.sensor}" for one in stalled))
    waiting = sum(topic.waiting or 0 for topic in found.topics)
    return Line(name, ok=True, detail=f"all of {len(found.topics)} move, {waiting} messages wait")


def disk_line(sample: Sample[Disk]) -> Line:
    """Check that the disks of this machine have free space."""
    disk = sample.present
    if disk is None:
        return Line("disk", ok=False, detail=sample.problem or "not checked yet")
    return Line("disk", not disk.is_nearly_full, str(disk))


def _listed(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{name} for {one:.0f} s" for name, one in sorted(seconds.items()))


def _answers(name: str, sample: Sample[Value], now: datetime, every_seconds: float) -> Line:
    age = sample.age_seconds(now)
    if sample.problem:
        return Line(name, ok=False, detail=sample.problem)
    if age is None:
        return Line(name, ok=False, detail="has not answered yet")
    if age > LONGEST_POLL_SECONDS + max(every_seconds, UNSEEN_SECONDS):
        return Line(name, ok=False, detail=f"has not answered for {age:.0f} s")
    return Line(name, ok=True, detail=f"answered in {sample.took_seconds * 1_000:.0f} ms, {age:.0f} s ago")
