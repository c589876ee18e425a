"""Tick sensors when they have work, and rarely otherwise.

Dagster evaluates a sensor at intervals. The sensor of a quiet topic then ticks for nothing, or occupies a thread of the
daemon and one of the code server while it waits inside its tick. Here the daemon waits for all of them: a sensor rests
once it had no work for a while and its topics are watched, and ticks again as soon as a message arrives, a work queue
has a due entry, or a long interval is over. A sensor that does not rest yet also ticks immediately when a message
arrives on a topic that is watched again. A sensor's tick function, its switch in the UI and the record of its ticks are
unchanged; without this module sensors tick at their intervals.

A sensor that is switched on or off, in the UI or by a command, wakes the loop over the sensors within a second. A tick
that has requested a run also wakes the run queue, which otherwise checks every second.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, cast

import dagster as dg
import sqlalchemy as sa
from dagster import DagsterInstance
from dagster._core.remote_representation.external import RemoteSensor
from dagster._core.scheduler.instigation import InstigatorState, TickStatus
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from dagster._core.storage.schedules.schema import InstigatorsTable
from dagster._core.storage.schedules.sql_schedule_storage import SqlScheduleStorage
from dagster._core.storage.tags import SENSOR_NAME_TAG
from dagster._daemon import controller, sensor
from dagster._daemon.daemon import DaemonIterator, SensorDaemon, SpanMarker
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon

from ingest_project.core.errors import IngestError
from ingest_project.core.logging import get_logger
from ingest_project.core.settings import KafkaSettings
from ingest_project.platform.kafka.reader import TopicWatch

logger = get_logger(__name__)

# A resting sensor still ticks this often: somebody may have set a position, or a stream's next attempt may be due.
REST_SECONDS = 30.0
# A sensor keeps ticking this long after its last work: more often follows soon.
LINGER_SECONDS = 1.0
WAIT_SECONDS = 1.0
# Dagster's own interval between two rounds over the sensors, enough for sensors with at least this interval.
RARE_SECONDS = 5.0
# Interval of checking the work queues, and topics that did not exist.
LOOK_SECONDS = 2.0
MISSING_SECONDS = 10.0
RETRY_SECONDS = 5.0


@dataclass
class _Sensor:
    """A sensor that may rest.

    Args:
        topics: topics that it reads.
        watched: its watched topics, each with the time since when.
        busy_at: when it last had work.
        resting: True if it ticks only at the long interval.
        has_news: True if a message has arrived since its last tick began.
    """

    topics: frozenset[str]
    watched: dict[str, float] = field(default_factory=dict)
    busy_at: float = field(default_factory=lambda: time.monotonic())  # noqa: PLW0108 - the clock of the moment
    resting: bool = False
    has_news: bool = False


class QuietSensors:
    """Decides which sensors rest. Its methods may be called from any thread.

    Args:
        topics: the topics of each sensor, by its name. Other sensors never rest.
    """

    def __init__(self, topics: Mapping[str, Collection[str]]) -> None:
        self._lock = threading.Lock()
        self._sensors = {name: _Sensor(frozenset(read)) for name, read in topics.items()}
        # The first is set when a sensor has work, the second when a run was requested.
        self.sensor_due, self.run_requested = threading.Event(), threading.Event()

    def rests(self, name: str) -> bool:
        """Return True if a sensor need not tick before the long interval is over."""
        with self._lock:
            return name in self._sensors and self._sensors[name].resting

    def wake(self, names: Collection[str]) -> None:
        """Make sensors tick at their own intervals from now on."""
        with self._lock:
            for one in (self._sensors[name] for name in names if name in self._sensors):
                one.busy_at, one.resting = time.monotonic(), False
        self.sensor_due.set()

    def arrived(self, topic: str) -> None:
        """Note that a message has arrived on a topic, which is then no longer watched."""
        with self._lock:
            readers = [name for name, one in self._sensors.items() if topic in one.topics]
            for one in map(self._sensors.__getitem__, readers):
                one.watched.pop(topic, None)
                one.has_news = True
        self.wake(readers)

    def has_news(self, name: str) -> bool:
        """Return True if a message has arrived that the sensor's last tick may have missed."""
        with self._lock:
            return name in self._sensors and self._sensors[name].has_news

    def began(self, name: str) -> None:
        """Note the beginning of a tick, which sees all messages that have arrived."""
        if one := self._sensors.get(name):
            one.has_news = False

    def watched(self, topic: str) -> None:
        """Note that every message that arrives on a topic from now on will be noticed."""
        with self._lock:
            for one in self._sensors.values():
                if topic in one.topics:
                    one.watched[topic] = time.monotonic()

    def unwatched(self) -> None:
        """Note that no topic is watched any more."""
        with self._lock:
            for one in self._sensors.values():
                one.watched.clear()
        self.wake(self._sensors)

    def to_watch(self, now: float) -> set[str]:
        """Return the topics to watch: those of sensors that had no work for a while."""
        with self._lock:
            idle = [one for one in self._sensors.values() if now - one.busy_at >= LINGER_SECONDS]
            return {topic for one in idle for topic in one.topics if topic not in one.watched}

    def ticked(self, name: str, began: float, had_work: Callable[[], bool]) -> None:
        """Note the end of a tick.

        Args:
            name: name of the sensor.
            began: when the tick began, on the monotonic clock.
            had_work: returns True if the sensor had work, or its runs are not finished.
        """
        with self._lock:
            one = self._sensors.get(name)
        if one is None or one.resting:
            return
        busy = had_work()
        with self._lock:
            if busy:
                one.busy_at = time.monotonic()
            # This tick has seen every message that arrived before its topic was watched.
            elif one.topics == one.watched.keys() and all(since < began for since in one.watched.values()):
                one.resting = time.monotonic() - one.busy_at >= LINGER_SECONDS


def watch_topics(
    quiet: QuietSensors, kafka: KafkaSettings, topics: Collection[str], work: Callable[[], Collection[str]]
) -> None:
    """Wake sensors as messages arrive on the topics of one cluster; never returns.

    Args:
        quiet: the sensors.
        kafka: settings of the cluster.
        topics: topics of the cluster.
        work: returns the sensors that have work other than new messages.
    """
    while True:
        try:
            _watch(quiet, TopicWatch(kafka), topics, work)
        except IngestError as error:
            logger.warning("topics_not_watched", reason=str(error))
        except Exception:
            logger.exception("topics_not_watched")
        quiet.unwatched()
        time.sleep(RETRY_SECONDS)


def _watch(
    quiet: QuietSensors, watch: TopicWatch, topics: Collection[str], work: Callable[[], Collection[str]]
) -> None:
    missing: set[str] = set()
    look_at = search_at = 0.0
    try:
        while True:
            for topic in watch.wait(WAIT_SECONDS):
                quiet.arrived(topic)
            now = time.monotonic()
            for topic in quiet.to_watch(now).intersection(topics):
                if not watch.watch(topic):
                    missing.add(topic)
                quiet.watched(topic)
            if now >= search_at:
                search_at = now + MISSING_SECONDS
                for topic in [topic for topic in missing if watch.watch(topic)]:
                    missing.remove(topic)
                    quiet.arrived(topic)
            if now >= look_at:
                look_at = now + LOOK_SECONDS
                quiet.wake(work())
    finally:
        watch.close()


def install(quiet: QuietSensors) -> None:
    """Make this process's daemon rest these sensors, and launch requested runs immediately after a tick."""
    is_under_interval, alarm = sensor.is_under_min_interval, _Alarm(quiet.sensor_due)

    def is_not_due(state: InstigatorState, remote: RemoteSensor, least_interval: int | None = None) -> bool:
        if quiet.rests(remote.name) and not _was_turned_on(state):
            least_interval = max(least_interval or 0, int(REST_SECONDS))
        elif (remote.min_interval_seconds or 0) < RARE_SECONDS:
            alarm.longest_seconds = 0.0
        # A sensor that reads topics has the shortest interval: it may tick immediately.
        return not quiet.has_news(remote.name) and is_under_interval(state, remote, least_interval)

    class ObservedTick(sensor.SensorLaunchContext):
        """A tick whose runs and end are noted."""

        def __enter__(self) -> Self:
            self._began = time.monotonic()
            quiet.began(self._remote_sensor.name)
            return super().__enter__()

        def add_run_info(self, run_id: str | None = None, run_key: str | None = None) -> None:
            super().add_run_info(run_id, run_key)
            quiet.run_requested.set()

        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
        ) -> None:
            super().__exit__(kind, error, trace)
            name, instance = self._remote_sensor.name, self._instance
            quiet.ticked(name, self._began, lambda: self.status != TickStatus.SKIPPED or _has_runs(instance, name))

    class PromptSensors(SensorDaemon):
        """Evaluates sensors at its interval, and as soon as one has work."""

        def core_loop(self, workspace_process_context: Any, shutdown_event: Any) -> DaemonIterator:  # noqa: ANN401 - Dagster's
            alarm.instance, alarm.shutdown = workspace_process_context.instance, shutdown_event
            yield from super().core_loop(workspace_process_context, cast("Any", alarm))

    class PromptRunQueue(QueuedRunCoordinatorDaemon):
        """Checks the run queue at its interval, and as soon as a tick has requested a run."""

        def core_loop(self, workspace_process_context: Any, shutdown_event: Any) -> DaemonIterator:  # noqa: ANN401 - Dagster's
            # Like Dagster's own loop it never ends: Dagster abandons it at shutdown and would log its end as an error.
            del shutdown_event
            while True:
                yield SpanMarker.START_SPAN
                yield from self.run_iteration(workspace_process_context)
                yield SpanMarker.END_SPAN
                quiet.run_requested.wait(self.interval_seconds)
                quiet.run_requested.clear()
                yield None

    vars(sensor).update(is_under_min_interval=is_not_due, SensorLaunchContext=ObservedTick)
    vars(controller).update(SensorDaemon=PromptSensors, QueuedRunCoordinatorDaemon=PromptRunQueue)


class _Alarm:
    """Replaces the daemon's shutdown event, on which the sensor loop waits between two rounds.

    A round reads the state of all sensors. While all of them rest or have long intervals, rounds are less frequent.
    """

    def __init__(self, event: threading.Event) -> None:
        self._event = event
        self.shutdown = threading.Event()
        self.instance: DagsterInstance | None = None
        self.longest_seconds = 0.0
        self._switches = frozenset[tuple[str, str]]()

    def wait(self, seconds: float) -> None:
        until = time.monotonic() + max(seconds, self.longest_seconds)
        while (left := until - time.monotonic()) > 0 and not self.shutdown.is_set():
            if self._event.wait(min(left, WAIT_SECONDS)) or self._is_switched():
                break
        self._event.clear()
        self.longest_seconds = RARE_SECONDS

    def _is_switched(self) -> bool:
        """Return True if a sensor was switched on or off since the last call."""
        before, self._switches = self._switches, _switches(self.instance)
        return before != self._switches


def _switches(instance: DagsterInstance | None) -> frozenset[tuple[str, str]]:
    """Return the id and the state of each sensor and schedule on record; none if the database is away."""
    storage = instance and instance.schedule_storage
    if not isinstance(storage, SqlScheduleStorage):
        return frozenset()
    try:
        rows = storage.execute(sa.select(InstigatorsTable.c.selector_id, InstigatorsTable.c.status))
    except Exception:  # noqa: BLE001 - the next round over the sensors reports it
        return frozenset()
    return frozenset((row.selector_id, row.status) for row in rows)


def _was_turned_on(state: InstigatorState) -> bool:
    """Return True if a person has turned a sensor on since its last tick."""
    data: Any = state.instigator_data
    return (data.last_sensor_start_timestamp or 0.0) > (data.last_tick_start_timestamp or 0.0)


def _has_runs(instance: DagsterInstance, name: str) -> bool:
    unfinished = dg.RunsFilter(tags={SENSOR_NAME_TAG: name}, statuses=NOT_FINISHED_STATUSES)
    return bool(instance.get_runs(unfinished, limit=1))
