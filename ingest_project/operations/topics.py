"""Topics: which sensor reads each, how many messages and dead letters wait, and which stand still.

Lag is measured from the saved cursor of the topic's sensor, which is exact. Where Dagster's records cannot be read, it
is measured from the committed offsets, which follow the cursors one tick behind.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from itertools import chain
from typing import NamedTuple

import msgspec

from ingest_project.core.errors import BrokerUnavailableError, IngestError
from ingest_project.core.settings import KafkaSettings, Settings
from ingest_project.operations.resources import SystemResources
from ingest_project.platform.dagster.run_records import DagsterRecords, DagsterRecordsUnavailableError, SensorOnRecord
from ingest_project.platform.kafka.consumer import TopicReader
from ingest_project.platform.kafka.offsets import Positions, TopicStates, committed_positions


class ConsumedTopic(NamedTuple):
    """A topic and the sensor that reads it.

    Args:
        on_event_hub: it is in the namespace of Event Hubs, not in the main cluster.
    """

    topic: str
    sensor: str
    on_event_hub: bool = False


class MeasuredFrom(StrEnum):
    """What a topic's lag is measured from."""

    SAVED_CURSOR = "saved cursor"
    COMMITTED_OFFSETS = "committed offsets"


class TopicLag(msgspec.Struct, frozen=True, kw_only=True):
    """How many messages of a topic are not taken yet.

    Args:
        sensor: which takes them.
        waiting: over all partitions; None where it cannot be told.
        partitions: by partition; none where the topic does not exist.
        next_offsets: where the position is, by partition.
        measured_from: the cursor is exact, the committed offsets are one tick behind.
        problem: why it is not measured from the cursor, or not at all.
    """

    topic: str
    sensor: str
    waiting: int | None = None
    partitions: Mapping[int, int] = {}
    next_offsets: Mapping[int, int] = {}
    measured_from: MeasuredFrom | None = None
    problem: str | None = None


class Place(NamedTuple):
    """A topic in the cluster that has it."""

    topic: str
    reader: TopicReader
    settings: KafkaSettings


class _OnRecord(NamedTuple):
    """The sensors, or why they are not known."""

    sensors: Mapping[str, SensorOnRecord]
    problem: str | None = None


class LagMeter:
    """Measures topics, for one look at the system: the main broker, once it did not answer, is not asked again.

    Args:
        services: the clusters.
        records: the saved cursors.
    """

    def __init__(self, services: SystemResources, records: DagsterRecords) -> None:
        self._services = services
        self._records = records
        self._away: str | None = None

    def lags_of(self, intakes: Iterable[ConsumedTopic]) -> tuple[TopicLag, ...]:
        """How many messages of each topic are not taken yet, as exactly as can be told.

        The cursors are read before the topics: what a tick takes meanwhile counts as waiting, never the other way
        round.
        """
        on_record = _on_record(self._records)
        return tuple(self._lag_of(intake, on_record) for intake in intakes)

    def _lag_of(self, intake: ConsumedTopic, on_record: _OnRecord) -> TopicLag:
        problem = None if intake.on_event_hub else self._away
        if problem is None:
            try:
                return _lag(intake, consumed_position(intake, self._services), on_record)
            except IngestError as error:
                problem = str(error)
                if isinstance(error, BrokerUnavailableError) and not intake.on_event_hub:
                    # It will not answer for the other topics either, and each would take its time.
                    self._away = problem
        return TopicLag(topic=intake.topic, sensor=intake.sensor, problem=problem)


def consumed_position(intake: ConsumedTopic, services: SystemResources) -> Place:
    """Where a topic is.

    Raises:
        SettingsError, BrokerUnavailableError: not enough is set to reach it.
    """
    if intake.on_event_hub:
        return Place(services.event_hub.topic, services.event_hub_reader, services.event_hub.settings)
    return Place(intake.topic, services.reader, services.settings.kafka)


def _lag(intake: ConsumedTopic, place: Place, on_record: _OnRecord) -> TopicLag:
    topic, reader, kafka = place
    if on_record.problem is None:
        positions, measured_from = saved_positions(intake.sensor, topic, on_record.sensors), MeasuredFrom.SAVED_CURSOR
    else:
        positions = committed_positions(kafka, topic, reader.end_offsets(topic))
        measured_from = MeasuredFrom.COMMITTED_OFFSETS
    partitions = reader.lags({topic: positions})[topic]
    return TopicLag(
        topic=topic,
        sensor=intake.sensor,
        waiting=sum(partitions.values()),
        partitions=partitions,
        next_offsets=positions.next_offsets if positions else {},
        measured_from=measured_from,
        problem=on_record.problem,
    )


def _on_record(records: DagsterRecords) -> _OnRecord:
    try:
        return _OnRecord(records.sensors())
    except DagsterRecordsUnavailableError as error:
        return _OnRecord({}, str(error))


def saved_positions(sensor: str, topic: str, sensors: Mapping[str, SensorOnRecord]) -> Positions | None:
    """Where the sensor's saved cursor is in this topic; None where it has saved nothing.

    A sensor that reads several topics keeps one cursor for each, by the topic's name.

    Raises:
        IngestError: the cursor holds no positions.
    """
    cursor = sensors[sensor].cursor if sensor in sensors else None
    if not cursor:
        return None
    try:
        of_each = msgspec.json.decode(cursor, type=dict[str, str])
    except msgspec.MsgspecError:
        return Positions.from_cursor(cursor)
    return Positions.from_cursor(of_each.get(topic))


class Intakes(NamedTuple):
    """Every topic that is read, by what its messages become, in the order the data goes."""

    polling: tuple[ConsumedTopic, ...]
    files: tuple[ConsumedTopic, ...]
    attachments: tuple[ConsumedTopic, ...]
    streams: tuple[ConsumedTopic, ...]

    @property
    def all(self) -> tuple[ConsumedTopic, ...]:
        """Of every capability."""
        return tuple(chain(*self))


def intakes(settings: Settings) -> Intakes:
    """The topics that these settings name."""
    topics = settings.topics
    return Intakes(
        polling=(ConsumedTopic(topics.polling_queue, "polling_queue_sensor"),),
        files=(
            ConsumedTopic(topics.file_event_queue, "file_event_queue_sensor"),
            ConsumedTopic(topics.file_events, "file_events_sensor"),
        ),
        attachments=(
            events_intake(settings),
            ConsumedTopic(topics.downloads_pending, "downloads_pending_sensor"),
            *(ConsumedTopic(topic, "downloads_retry_sensor") for topic in topics.downloads_retry),
        ),
        streams=(
            ConsumedTopic(topics.user_activity_events, "user_activity_events_sensor"),
            ConsumedTopic(topics.sales_events, "sales_events_sensor"),
        ),
    )


def events_intake(settings: Settings) -> ConsumedTopic:
    """Where the events with attachments come from."""
    sensor = "attachment_events_sensor"
    if settings.attachments.event_source == "eventhub":
        return ConsumedTopic(settings.eventhubs.topic or "Event Hubs", sensor, on_event_hub=True)
    return ConsumedTopic(settings.topics.events_raw, sensor)


class StalledTopic(msgspec.Struct, frozen=True):
    """A topic of which at least one partition stands still while messages wait in it.

    Args:
        sensor: that takes them.
        partitions: the partitions that stand still.
        waiting: messages in these.
        seconds: how long the first of them has stood still, as far as it was looked at.
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
    """Remembers where each partition was, and since when."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, int], tuple[int, float]] = {}

    def stalled(self, topics: Sequence[TopicLag], now: float) -> tuple[StalledTopic, ...]:
        """The topics with partitions that have stood still since an earlier look.

        Args:
            topics: as they are now.
            now: a clock that nobody sets.
        """
        found = tuple(stalled for lag in topics if (stalled := self._look_at(lag, now)))
        seen = {(lag.topic, partition) for lag in topics for partition in lag.partitions}
        self._since = {place: since for place, since in self._since.items() if place in seen}
        return found

    def _look_at(self, lag: TopicLag, now: float) -> StalledTopic | None:
        standing: dict[int, float] = {}
        for partition, waiting in lag.partitions.items():
            position = lag.next_offsets.get(partition, 0)
            before = self._since.get((lag.topic, partition))
            if not waiting or before is None or before[0] != position:
                self._since[lag.topic, partition] = (position, now)
            elif now > before[1]:
                standing[partition] = now - before[1]
        if not standing:
            return None
        waiting = sum(lag.partitions[partition] for partition in standing)
        return StalledTopic(lag.topic, lag.sensor, tuple(sorted(standing)), waiting, max(standing.values()))


class DeadLetters(msgspec.Struct, frozen=True):
    """A dead-letter topic.

    Args:
        written: messages ever written to this life of the topic.
        kept: of those, the ones that retention has left.
    """

    topic: str
    written: int
    kept: int


class BrokerSeen(msgspec.Struct, frozen=True):
    """Everything about topics at one moment."""

    topics: tuple[TopicLag, ...]
    stalled: tuple[StalledTopic, ...]
    dead_letters: tuple[DeadLetters, ...]


class BrokerLook:
    """Looks at the broker. Asks Dagster for the saved cursors at the same moment: numbers of two moments do not fit."""

    def __init__(self, services: SystemResources, records: DagsterRecords) -> None:
        self._services = services
        self._records = records
        self._states = TopicStates(services.settings.kafka)
        self._movement = Movement()

    def __call__(self) -> BrokerSeen:
        """Raises BrokerUnavailableError where it does not answer; the main one: an event hub may be away."""
        settings = self._services.settings
        # These first: they find out whether the broker answers.
        letters = tuple(self._dead_letters(topic) for topic in settings.topics.dead_letters)
        topics = LagMeter(self._services, self._records).lags_of(intakes(settings).all)
        return BrokerSeen(topics, self._movement.stalled(topics, time.monotonic()), letters)

    def _dead_letters(self, topic: str) -> DeadLetters:
        state = self._states.look_up(topic)
        bounds = state.bounds.values() if state else ()
        return DeadLetters(topic, sum(one.end for one in bounds), sum(one.end - one.start for one in bounds))
