"""Measure the lag and dead letters of topics, and detect stalled topics.

Lag is measured from the saved cursor of the topic's sensor, which is exact. If Dagster's records cannot be read, it is
measured from the committed offsets, which are one tick behind the cursors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import msgspec

from ingest_project.core.errors import BrokerUnavailableError, IngestError
from ingest_project.platform.capability import Cluster, ConsumedTopic
from ingest_project.platform.dagster.records import DagsterRecordsUnavailableError, RunRecords, SensorOnRecord
from ingest_project.platform.kafka.dead_letters import newest_letters
from ingest_project.platform.kafka.offsets import Positions, TopicStates, committed_positions
from ingest_project.platform.runtime import Runtime

# Largest lag of one partition in messages, beyond any sensible threshold.
MAX_RECENT = 5_000


class MeasuredFrom(StrEnum):
    """The positions from which a topic's lag is measured."""

    SAVED_CURSOR = "saved cursor"
    COMMITTED_OFFSETS = "committed offsets"


class TopicLag(msgspec.Struct, frozen=True, kw_only=True):
    """The unconsumed messages of a topic.

    Args:
        sensor: sensor that consumes the topic.
        waiting: number of messages in all partitions; None if unknown.
        partitions: number by partition; empty if the topic does not exist.
        next_offsets: position by partition.
        measured_from: the exact cursor, or the committed offsets, which are one tick behind.
        problem: why the lag is not measured from the cursor, or is unknown.
    """

    topic: str
    sensor: str
    waiting: int | None = None
    partitions: Mapping[int, int] = {}
    next_offsets: Mapping[int, int] = {}
    measured_from: MeasuredFrom | None = None
    problem: str | None = None


class LagMeter:
    """Measures topics for one snapshot; a main cluster or records that failed once are not tried again.

    Args:
        services: the main cluster.
        records: the saved cursors.

    Attributes:
        records_problem: why the saved cursors cannot be read; None if they can, or have not been tried.
    """

    def __init__(self, services: Runtime, records: RunRecords) -> None:
        self._main = services
        self._records = records
        self._unavailable: str | None = None
        self.records_problem: str | None = None

    def try_broker(self) -> None:
        """Check that the main cluster answers."""
        try:
            self._main.reader.end_offsets(self._main.settings.topics.polling_queue)
        except IngestError as error:
            # With any other error the cluster answers; its topics will report the problem.
            self._unavailable = str(error) if type(error) is BrokerUnavailableError else None

    def try_records(self) -> None:
        """Check that the saved cursors can be read."""
        self._sensors()

    def lags_of(self, topics: Iterable[ConsumedTopic]) -> tuple[TopicLag, ...]:
        """Measure the lag of each topic as exactly as possible.

        The cursors are read before the topics: messages that a tick consumes in between count as waiting, and no
        waiting message is missed.
        """
        sensors, problem = self._sensors()
        return tuple(self._lag_of(topic, sensors, problem) for topic in topics)

    def _sensors(self) -> tuple[Mapping[str, SensorOnRecord], str | None]:
        if self.records_problem is None:
            try:
                return self._records.sensors(), None
            except DagsterRecordsUnavailableError as error:
                self.records_problem = str(error)
        return {}, self.records_problem

    def _lag_of(
        self, topic: ConsumedTopic, sensors: Mapping[str, SensorOnRecord], records_problem: str | None
    ) -> TopicLag:
        problem = None if topic.cluster else self._unavailable
        if problem is None:
            try:
                return _lag(topic, cluster_of(topic, self._main), sensors, records_problem)
            except IngestError as error:
                problem = str(error)
                if type(error) is BrokerUnavailableError and not topic.cluster:
                    # The cluster would not answer for the other topics either, and each would take its full timeout.
                    self._unavailable = problem
        return TopicLag(topic=topic.topic, sensor=topic.sensor, problem=problem)


def cluster_of(topic: ConsumedTopic, services: Runtime) -> Cluster:
    """Return the cluster that stores a topic.

    Raises:
        SettingsError, BrokerUnavailableError: the settings do not locate the cluster.
    """
    return topic.cluster() if topic.cluster else Cluster(topic.topic, services.reader, services.settings.kafka)


def _lag(
    consumed: ConsumedTopic, cluster: Cluster, sensors: Mapping[str, SensorOnRecord], records_problem: str | None
) -> TopicLag:
    topic, reader, kafka = cluster
    if records_problem is None:
        positions, measured_from = saved_positions(consumed.sensor, topic, sensors), MeasuredFrom.SAVED_CURSOR
    else:
        positions = committed_positions(kafka, topic, reader.end_offsets(topic))
        measured_from = MeasuredFrom.COMMITTED_OFFSETS
    partitions = reader.lag(topic, positions)
    return TopicLag(
        topic=topic,
        sensor=consumed.sensor,
        waiting=sum(partitions.values()),
        partitions=partitions,
        next_offsets=positions.next_offsets if positions else {},
        measured_from=measured_from,
        problem=records_problem,
    )


def saved_positions(sensor: str, topic: str, sensors: Mapping[str, SensorOnRecord]) -> Positions | None:
    """Return the position of the sensor's saved cursor in this topic; None if it has not saved one.

    A sensor that reads several topics stores one cursor for each, by the topic's name.

    Raises:
        IngestError: the cursor contains no positions.
    """
    cursor = sensors[sensor].cursor if sensor in sensors else None
    if not cursor:
        return None
    try:
        of_each = msgspec.json.decode(cursor, type=dict[str, str])
    except msgspec.MsgspecError:
        return Positions.from_cursor(cursor)
    return Positions.from_cursor(of_each.get(topic))


class StalledTopic(msgspec.Struct, frozen=True):
    """A topic with at least one partition whose position does not change while messages wait in it.

    Args:
        sensor: sensor that consumes the topic.
        partitions: stalled partitions.
        waiting: number of messages in these partitions.
        seconds: time for which the longest stalled one is known to be stalled.
    """

    topic: str
    sensor: str
    partitions: tuple[int, ...]
    waiting: int
    seconds: float

    def __str__(self) -> str:
        """Describe the stalled topic for people."""
        where = ", ".join(map(str, self.partitions))
        return f"{self.topic} has stood still for {self.seconds:.0f} s with {self.waiting} waiting (partition {where})"


class Movement:
    """Tracks the position of each partition, and the time of its last change."""

    def __init__(self) -> None:
        # Two streams may read one topic, each with its own position.
        self._since: dict[tuple[str, str, int], tuple[int, float]] = {}

    def stalled(self, topics: Sequence[TopicLag], now: float) -> tuple[StalledTopic, ...]:
        """Return the topics with partitions whose position has not changed since an earlier call.

        Args:
            topics: current lag of the topics.
            now: current monotonic time.
        """
        found = tuple(stalled for lag in topics if (stalled := self._compare(lag, now)))
        known = {(lag.sensor, lag.topic, partition) for lag in topics for partition in lag.partitions}
        self._since = {partition: since for partition, since in self._since.items() if partition in known}
        return found

    def _compare(self, lag: TopicLag, now: float) -> StalledTopic | None:
        standing: dict[int, float] = {}
        for partition, waiting in lag.partitions.items():
            position = lag.next_offsets.get(partition, 0)
            key = (lag.sensor, lag.topic, partition)
            before = self._since.get(key)
            if not waiting or before is None or before[0] != position:
                self._since[key] = (position, now)
            elif now > before[1]:
                standing[partition] = now - before[1]
        if not standing:
            return None
        waiting = sum(lag.partitions[partition] for partition in standing)
        return StalledTopic(lag.topic, lag.sensor, tuple(sorted(standing)), waiting, max(standing.values()))


class DeadLetters(msgspec.Struct, frozen=True):
    """A dead-letter topic.

    Args:
        written: number of messages since the topic was created.
        kept: number of those that retention has not removed.
        older: number of those written before the alert window that ended when this process first saw the topic; None
            if unknown, or if that was longer ago than the window.
    """

    topic: str
    written: int
    kept: int
    older: int | None = None


class BrokerState(msgspec.Struct, frozen=True):
    """The state of all topics at one time."""

    topics: tuple[TopicLag, ...]
    stalled: tuple[StalledTopic, ...] = ()
    dead_letters: tuple[DeadLetters, ...] = ()


class BrokerPoll:
    """Reads the broker and the saved cursors together, because numbers from different times do not match.

    Args:
        services: resources with the main cluster.
        records: records with the saved cursors.
        topics: returns the consumed topics.
    """

    def __init__(self, services: Runtime, records: RunRecords, topics: Callable[[], Iterable[ConsumedTopic]]) -> None:
        self._services = services
        self._records = records
        self._topics = topics
        self._states = TopicStates(services.settings.kafka)
        self._movement = Movement()
        self._older: dict[str, tuple[int, float]] = {}

    def __call__(self) -> BrokerState:
        """Read the topics once.

        Raises:
            BrokerUnavailableError: the main cluster does not answer; an unavailable event hub is no error.
        """
        # Read the dead letters first, which shows if the broker answers.
        topics = tuple(self._topics())
        letters = tuple(map(self._letters_on, topics_of_dead_letters(self._services, topics)))
        lags = LagMeter(self._services, self._records).lags_of(topics)
        return BrokerState(lags, self._movement.stalled(lags, time.monotonic()), letters)

    def _letters_on(self, topic: str) -> DeadLetters:
        letters = dead_letters_on(self._services, topic, self._states)
        if topic not in self._older:
            window = self._services.settings.alerts.policy("dead_letters", {"topic": topic}).window_seconds or 0
            began = datetime.now(UTC) - timedelta(seconds=window)
            recent = newest_letters(self._services.range_reader, topic, MAX_RECENT, lambda _: True, began)
            older = letters.written - sum(1 for _ in recent) if letters.kept else letters.written
            self._older[topic] = older, time.monotonic() + window
        older, until = self._older[topic]
        return msgspec.structs.replace(letters, older=older if time.monotonic() < until else None)


def topics_of_dead_letters(services: Runtime, topics: Iterable[ConsumedTopic]) -> list[str]:
    """Return the dead-letter topics of the settings and of the consumed topics."""
    known = (*services.settings.topics.dead_letters, *(one.dead_letters for one in topics))
    return [*dict.fromkeys(filter(None, known))]


def dead_letters_on(services: Runtime, topic: str, states: TopicStates | None = None) -> DeadLetters:
    """Count the messages of a dead-letter topic; a missing topic has none.

    Raises:
        BrokerUnavailableError: the broker does not answer.
    """
    state = (states or TopicStates(services.settings.kafka)).look_up(topic)
    bounds = state.bounds.values() if state else ()
    return DeadLetters(topic, sum(one.end for one in bounds), sum(one.end - one.start for one in bounds))
